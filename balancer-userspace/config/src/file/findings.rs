//! Errors and warnings in a configuration file, with their lines.

use std::{
    cell::OnceCell,
    fmt,
    path::{Path, PathBuf},
};

use super::Parsed;
use crate::config::Config;

/// The maximum number of errors reported for a file; the others are only counted.
const MAX_ERRORS: usize = 100;

/// One line for the user: `FILE:LINE: error; advice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, under the name that the user gave.
    pub file: PathBuf,
    /// The line, counted from 1; `None` if the error concerns the whole file.
    pub line: Option<usize>,
    /// The error, and how to correct it.
    pub text: String,
}

/// A finding about something that is allowed but probably not intended.
pub type Warning = Finding;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.text),
            None => write!(f, "{}: {}", self.file.display(), self.text),
        }
    }
}

/// The reasons why a file is not a valid configuration: at least one finding, in the order of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Finding>);

impl ConfigErrors {
    pub(super) fn whole_file(file: &Path, text: String) -> Self {
        Self(vec![Finding { file: file.to_owned(), line: None, text }])
    }

    pub(super) fn of(findings: Vec<Finding>) -> Self {
        Self(findings)
    }

    /// The findings.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }
}

/// Formats one finding on each line.
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

/// Collects findings while a text is validated. Positions are byte offsets into the text, or into a piece of it.
#[derive(Debug)]
pub(super) struct Findings<'i> {
    file: &'i Path,
    text: &'i str,
    /// The positions at which lines start.
    line_starts: OnceCell<Vec<usize>>,
    /// The position at which the piece starts.
    offset: usize,
    /// The errors, each with its line.
    errors: Vec<(usize, String)>,
    /// The warnings, each with its position in the text.
    warnings: Vec<(usize, String)>,
}

impl<'i> Findings<'i> {
    pub(super) fn new(file: &'i Path, text: &'i str) -> Self {
        Self { file, text, line_starts: OnceCell::new(), offset: 0, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Starts a piece at `offset` of the text; from now on, positions are relative to it.
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

    /// The warnings about the piece, each with its position in the piece.
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

    /// Returns the result for a text: `config`, unless there are errors.
    pub(super) fn outcome(self, config: Option<Config>) -> Parsed {
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
