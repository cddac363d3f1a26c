//! Names that users give, and suggestions for misspelt names.

use std::fmt;

/// A backend by its user-visible names, `service/backend`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BackendName {
    /// The service's name.
    pub service: String,
    /// The name of the backend in this service.
    pub backend: String,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// The name in `known` that a user who wrote `word` probably meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let close = |candidate: &'a str| {
        // Words that are much longer are skipped.
        let distance =
            (word.len() <= 2 * candidate.len()).then(|| strsim::osa_distance(&word, &candidate.to_lowercase()))?;
        (distance <= (candidate.len() / 3).max(1)).then_some((distance, candidate))
    };
    known.into_iter().filter_map(close).min().map(|(_, nearest)| nearest)
}
