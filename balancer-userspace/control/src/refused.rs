//! The reasons why the controller refuses changes.

use balancer_config::{names::nearest, validate::Problem};

/// Why the controller refused a change; a refused change has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The change names an object that does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The change contradicts the current state.
    #[error("{0}")]
    Conflict(String),
    /// The values in the change make no sense.
    #[error("{0}")]
    Invalid(String),
    /// The configuration has changed since the user prepared the change.
    #[error("the configuration has changed to generation {0}: check it, and try again")]
    Stale(u64),
    /// The balancer could not save the change for a restart.
    #[error("{0}")]
    Unsaved(String),
}

impl Refused {
    /// Makes [`Refused::NotFound`] for `name`, with the known name that is most similar to it.
    #[must_use]
    pub fn not_found<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Self {
        Self::NotFound(match (nearest(name, known.clone()), { known }.next()) {
            (Some(nearest), _) => format!("no {what} {name:?}: did you mean {nearest:?}?"),
            (None, Some(example)) => format!("no {what} {name:?}: there is {example:?}, for example"),
            (None, None) => format!("no {what} {name:?}: there are none"),
        })
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        let text = problem.to_string();
        if problem.is_conflict() { Self::Conflict(text) } else { Self::Invalid(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_name_is_unknown_then_the_most_similar_one_is_suggested() {
        let hint =
            |name, known: &[&'static str]| Refused::not_found("service", name, known.iter().copied()).to_string();
        assert_eq!(hint("wbe", &["api", "web"]), "no service \"wbe\": did you mean \"web\"?");
        assert_eq!(hint("mail", &["web"]), "no service \"mail\": there is \"web\", for example");
        assert_eq!(hint("mail", &[]), "no service \"mail\": there are none");
    }
}
