//! The error that a text cannot be converted.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
    rc::Rc,
};

use crate::place::Place;

const LONGEST: usize = 400;

/// The error that a text is not a configuration that the importer can convert.
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

    /// Adds the name of the file if the error contains no file name.
    pub(crate) fn or_in(mut self, file: &str) -> Self {
        self.file.get_or_insert_with(|| Rc::from(file));
        self
    }
}

/// Makes text from a configuration safe to display: removes escape sequences, and limits the length.
fn shown(what: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    what.chars().take(LONGEST).map(shown).collect()
}

/// Formats the error as `FILE:LINE: what`, which editors can parse.
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
