//! Logs repeated failures only once.

use super::Failure;

/// The failures of a task that may fail repeatedly.
#[derive(Debug)]
pub struct Trouble {
    what: String,
    last: String,
}

impl Trouble {
    /// Makes the record of a task that has not failed yet.
    #[must_use]
    pub fn new(what: &str) -> Self {
        Self { what: what.to_owned(), last: String::new() }
    }

    /// Logs a failure of the task and the consequence, unless the last failure was the same.
    pub fn say(&mut self, failure: &Failure, then: &str) {
        if let Some(text) = self.news(failure) {
            tracing::warn!("{}: {text}; {then}", self.what);
        }
    }

    /// Logs that the task works again, if it has failed before.
    pub fn is_over(&mut self) {
        if !std::mem::take(&mut self.last).is_empty() {
            tracing::info!("{}: the API server answers again", self.what);
        }
    }

    fn news(&mut self, failure: &Failure) -> Option<String> {
        let text = failure.to_string();
        let is_new = text != self.last;
        self.last.clone_from(&text);
        is_new.then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_something_fails_again_in_the_same_way_then_that_is_no_news() {
        let mut trouble = Trouble::new("Lease kube-system/it");
        let away = || Failure::Away("connection refused".to_owned());
        assert!(trouble.news(&away()).is_some_and(|text| text.contains("connection refused")));
        assert_eq!(trouble.news(&away()), None);
        assert!(trouble.news(&Failure::Refused("403".to_owned())).is_some());
        trouble.is_over();
        assert!(trouble.news(&away()).is_some());
    }
}
