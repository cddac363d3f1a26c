//! The reason why a text cannot be converted.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
    rc::Rc,
};

use crate::place::Place;

const LONGEST: usize = 400;

/// The text is not a configuration that can be converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUnderstood {
    place: Option<Place>,
    file: Option<Rc<str>>,
    what: String,
}

impl NotUnderstood {
    pub(crate) fn at(place: &Place, what: impl Into<String>) -> Self {
        Self { place: Some(place.clone()), file: place.file.clone(), what: shown(&what.into()) }
    }

    pub(crate) fn whole(what: impl Into<String>) -> Self {
        Self { place: None, file: None, what: shown(&what.into()) }
    }

    /// Adds the file's name if the error has none.
    pub(crate) fn or_in(mut self, file: &str) -> Self {
        self.file.get_or_insert_with(|| Rc::from(file));
        self
    }
}

/// Makes text from the configuration safe to show: without escape sequences and not too long.
fn shown(what: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    what.chars().take(LONGEST).map(shown).collect()
}

/// Prints `FILE:LINE: what`, as editors expect it.
impl Display for NotUnderstood {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
        }
        if let Some(place) = &self.place {
            write!(f, "{}:", place.line)?;
        }
        let space = if self.file.is_some() || self.place.is_some() { " " } else { "" };
        write!(f, "{space}{}", self.what)
    }
}

impl Error for NotUnderstood {}
