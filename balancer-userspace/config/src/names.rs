//! Names that users give to objects, and suggestions for misspelt names.

use std::fmt;

/// The name of a backend that users see, `service/backend`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BackendName {
    /// The name of the service.
    pub service: String,
    /// The name of the backend in this service.
    pub backend: String,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// The name among the `known` names that a user who wrote `word` probably meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let close = |candidate: &'a str| {
        // The search skips names that are much longer than `word`.
        let distance =
            (word.len() <= 2 * candidate.len()).then(|| strsim::osa_distance(&word, &candidate.to_lowercase()))?;
        (distance <= (candidate.len() / 3).max(1)).then_some((distance, candidate))
    };
    known.into_iter().filter_map(close).min().map(|(_, nearest)| nearest)
}
