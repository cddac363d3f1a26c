//! Errors and warnings in a configuration file, each with its line.

use std::{
    cell::OnceCell,
    fmt,
    path::{Path, PathBuf},
};

/// The maximum number of errors reported for one file; the balancer only counts further errors.
const MAX_ERRORS: usize = 100;

/// One error or warning as a line for the user: `FILE:LINE: error; advice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The path of the file, as the user has given it.
    pub file: PathBuf,
    /// The line, counted from 1; `None` if the error concerns the whole file.
    pub line: Option<usize>,
    /// The error, with advice on how to correct it.
    pub text: String,
}

/// A warning about something that is allowed but probably not intended.
pub type Warning = Finding;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.text),
            None => write!(f, "{}: {}", self.file.display(), self.text),
        }
    }
}

/// The reasons why a file is not a valid configuration: at least one error, in the order of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Finding>);

impl ConfigErrors {
    /// An error about a whole file.
    #[must_use]
    pub fn whole_file(file: &Path, text: String) -> Self {
        Self(vec![Finding { file: file.to_owned(), line: None, text }])
    }

    pub(super) fn of(findings: Vec<Finding>) -> Self {
        Self(findings)
    }

    /// The errors in the order of lines.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }
}

/// Formats each error on a line of its own.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            finding.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects errors and warnings during the validation of a text. Positions are byte offsets into the whole text, or
/// into a piece of the text.
#[derive(Debug)]
pub(super) struct Findings<'i> {
    file: &'i Path,
    text: &'i str,
    /// The positions at which the lines of the text start.
    line_starts: OnceCell<Vec<usize>>,
    /// The position at which the current piece starts.
    offset: usize,
    /// The errors found so far, each with its line.
    errors: Vec<(usize, String)>,
    /// The warnings found so far, each with its position in the text.
    warnings: Vec<(usize, String)>,
}

impl<'i> Findings<'i> {
    pub(super) fn new(file: &'i Path, text: &'i str) -> Self {
        Self { file, text, line_starts: OnceCell::new(), offset: 0, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Starts a piece at `offset` of the text; from now on, positions are relative to the start of this piece.
    pub(super) fn begin_piece(&mut self, offset: usize) {
        self.offset = offset;
    }

    pub(super) fn line(&self, at: usize) -> usize {
        self.line_of_text(self.offset + at)
    }

    fn line_of_text(&self, at: usize) -> usize {
        let starts = || std::iter::once(0).chain(self.text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        self.line_starts.get_or_init(starts).partition_point(|&start| start <= at)
    }

    pub(super) fn error(&mut self, at: usize, text: String) {
        self.error_on_line(self.line(at), text);
    }

    pub(super) fn error_on_line(&mut self, line: usize, text: String) {
        self.errors.push((line, text));
    }

    pub(super) fn warn(&mut self, at: usize, text: String) {
        self.warnings.push((self.offset + at, text));
    }

    /// The warnings about the current piece, each with its position in the piece.
    pub(super) fn warnings_of_piece(&self) -> Vec<(usize, String)> {
        let begins = self.warnings.iter().rposition(|(at, _)| *at < self.offset).map_or(0, |before| before + 1);
        self.warnings.iter().skip(begins).map(|(at, text)| (at - self.offset, text.clone())).collect()
    }

    pub(super) fn forget_all(&mut self) {
        self.errors.clear();
        self.warnings.clear();
        self.offset = 0;
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    pub(super) fn into_errors(self) -> ConfigErrors {
        let mut errors = in_order(self.file, self.errors);
        if errors.len() > MAX_ERRORS {
            let more = errors.len() - MAX_ERRORS;
            errors.truncate(MAX_ERRORS);
            errors.push(Finding { file: self.file.to_owned(), line: None, text: format!("and {more} more errors") });
        }
        ConfigErrors(errors)
    }

    /// Returns the result for a text: `config`, or the errors if there are any.
    pub(super) fn outcome<C>(self, config: Option<C>) -> Result<(C, Vec<Warning>), ConfigErrors> {
        match config {
            Some(config) if !self.has_errors() => Ok((config, self.into_warnings())),
            _ => Err(self.into_errors()),
        }
    }

    fn into_warnings(mut self) -> Vec<Warning> {
        let warnings = std::mem::take(&mut self.warnings).into_iter();
        in_order(self.file, warnings.map(|(at, text)| (self.line_of_text(at), text)).collect())
    }
}

fn in_order(file: &Path, mut found: Vec<(usize, String)>) -> Vec<Finding> {
    found.sort_by_key(|&(line, _)| line);
    found.into_iter().map(|(line, text)| Finding { file: file.to_owned(), line: Some(line), text }).collect()
}
