//! The names that users give, and those that they may have meant.

use std::fmt;

/// A backend by the names users give it, `service/backend`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BackendName {
    /// The service's name.
    pub service: String,
    /// The backend's name in it.
    pub backend: String,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// The one of `known` that somebody who wrote `word` may have meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let close = |candidate: &'a str| {
        // What is much longer is not worth a look, however long it is.
        let distance =
            (word.len() <= 2 * candidate.len()).then(|| strsim::osa_distance(&word, &candidate.to_lowercase()))?;
        (distance <= (candidate.len() / 3).max(1)).then_some((distance, candidate))
    };
    known.into_iter().filter_map(close).min().map(|(_, nearest)| nearest)
}
