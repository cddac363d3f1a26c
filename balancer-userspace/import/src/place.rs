//! The position of a directive.

use std::{
    fmt::{self, Display, Formatter},
    rc::Rc,
};

/// A line of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    /// The name of the file, unless there is only one file.
    pub(crate) file: Option<Rc<str>>,
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(file) = &self.file {
            write!(f, " of {file}")?;
        }
        Ok(())
    }
}

/// The name of the file for use in positions, if there are several files.
pub(crate) fn named(files: &[(String, String)], name: &str) -> Option<Rc<str>> {
    (files.len() > 1).then(|| Rc::from(name))
}
