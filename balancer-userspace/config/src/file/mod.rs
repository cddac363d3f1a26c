//! Reads a configuration from a file, and validates it.
//!
//! The TOML parser turns a file into a table that contains positions (`toml`). Each table becomes a `section::Section`,
//! which tracks the keys that were read; `document` makes a [`Config`] from the sections, or reports the lines that
//! contain errors.

mod agent;
mod bounded;
pub mod check;
pub mod contents;
mod control;
pub mod deny;
pub mod discover;
mod document;
mod etcd;
mod findings;
mod fleet;
mod heavy;
mod pieces;
mod quic;
mod rule;
mod section;
mod service;
mod snat;

use std::{fs::File, io::Read as _, path::Path};

use crate::{config::Config, validate::Valid};
pub use control::DEFAULT_SOCKET;
use findings::Findings;
pub use findings::{ConfigErrors, Finding, Warning};

/// The maximum size of a configuration file, in bytes.
pub const MAX_FILE_SIZE: u64 = 16 << 20;

/// A configuration with warnings about it, or the errors that prevent a configuration.
pub type Parsed = Result<(Config, Vec<Warning>), ConfigErrors>;

/// Reads and validates a configuration file.
///
/// # Errors
/// Returns all errors that the balancer can find in one run, in the order of lines.
pub fn load(path: &Path) -> Parsed {
    Parser::default().load(path)
}

/// Reads a configuration file; if the file is too large, the result is longer than the maximum size.
///
/// # Errors
/// Fails if the file is not readable.
pub fn read(path: &Path) -> Result<Vec<u8>, ConfigErrors> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|error| ConfigErrors::whole_file(path, format!("cannot be read: {error}")))?;
    Ok(bytes)
}

/// Validates the contents of a configuration file; the messages mention the file by `path`.
///
/// # Errors
/// Returns the same errors as the function [`load`].
pub fn parse(path: &Path, bytes: &[u8]) -> Parsed {
    Parser::default().parse(path, bytes)
}

/// Validates the contents of a drop-in, which has the services of a configuration file and nothing else.
///
/// # Errors
/// Returns the errors in the same form as the function [`parse`].
pub fn parse_drop_in(name: &str, path: &Path, bytes: &[u8]) -> Result<(Valid, Vec<Warning>), ConfigErrors> {
    let text = text(path, bytes)?;
    let mut findings = Findings::new(path, text);
    let services = document::drop_in(name, text, &mut findings);
    findings.outcome(services)
}

/// A parser for reading the same configuration file repeatedly. The parser skips services whose text has not changed
/// since the previous read.
#[derive(Debug, Default)]
pub struct Parser(pieces::Known);

impl Parser {
    /// Reads and validates a configuration file.
    ///
    /// # Errors
    /// Returns the same errors as the function [`load`].
    pub fn load(&mut self, path: &Path) -> Parsed {
        self.parse(path, &read(path)?)
    }

    /// Validates the contents of a configuration file.
    ///
    /// # Errors
    /// Returns the same errors as the function [`load`].
    pub fn parse(&mut self, path: &Path, bytes: &[u8]) -> Parsed {
        let text = text(path, bytes)?;
        let mut findings = Findings::new(path, text);
        let config = document::config(text, &mut self.0, &mut findings);
        findings.outcome(config)
    }
}

fn text<'b>(path: &Path, bytes: &'b [u8]) -> Result<&'b str, ConfigErrors> {
    if bytes.len() as u64 > MAX_FILE_SIZE {
        let what = "is larger than 16 MiB, the largest configuration; is it the right file?";
        return Err(ConfigErrors::whole_file(path, what.to_owned()));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let mut findings = Findings::new(path, "");
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        findings.error_on_line(line, "not UTF-8 text; save the file as UTF-8".to_owned());
        findings.into_errors()
    })
}
