//! Directives that may have blocks, as in nginx's and keepalived's configuration.

use crate::place::Place;

#[derive(Debug)]
pub(crate) struct Directive {
    pub(crate) place: Place,
    /// The name of the directive and its arguments.
    pub(crate) words: Vec<String>,
    pub(crate) block: Option<Vec<Directive>>,
}

impl Directive {
    pub(crate) fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(crate) fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    pub(crate) fn argument(&self) -> &str {
        self.words.get(1).map_or("", String::as_str)
    }

    pub(crate) fn children(&self) -> &[Self] {
        self.block.as_deref().unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        self.words.join(" ")
    }
}
