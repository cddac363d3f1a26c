//! Failures that are tried again and again: each is said once.

use super::Failure;

/// A thing that may go on failing.
#[derive(Debug)]
pub struct Trouble {
    what: String,
    last: String,
}

impl Trouble {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(what: &str) -> Self {
        Self { what: what.to_owned(), last: String::new() }
    }

    /// Says that it failed, and what follows, unless that is known.
    pub fn say(&mut self, failure: &Failure, then: &str) {
        if let Some(text) = self.news(failure) {
            tracing::warn!("{}: {text}; {then}", self.what);
        }
    }

    /// Says that all is well again, if it was not.
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
