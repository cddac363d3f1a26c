//! Parses configuration files one at a time, whatever their source is.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use balancer_config::file::{self, Parsed, Parser};
use tokio::task::{JoinError, spawn_blocking};

/// The parser, which remembers the last parsed configuration.
#[derive(Clone, Debug, Default)]
pub struct Configurations {
    parser: Arc<Mutex<Parser>>,
    /// The balancer's own configuration file.
    own: Option<PathBuf>,
}

impl Configurations {
    /// Starts with what `parser` has parsed.
    #[must_use]
    pub fn new(parser: Parser) -> Self {
        Self { parser: Arc::new(Mutex::new(parser)), own: None }
    }

    /// Sets the file with which the balancer was started.
    #[must_use]
    pub fn of(self, own: PathBuf) -> Self {
        Self { own: Some(own), ..self }
    }

    /// The file with which the balancer was started.
    pub(crate) fn own(&self) -> Option<&Path> {
        self.own.as_deref()
    }

    /// Reads and parses a file without delaying other tasks.
    ///
    /// # Errors
    /// If the runtime ends meanwhile.
    pub(crate) async fn load(&self, path: PathBuf) -> Result<Parsed, JoinError> {
        let this = self.clone();
        spawn_blocking(move || file::read(&path).and_then(|bytes| this.parse_now(path, &bytes))).await
    }

    /// Parses the contents of a file.
    ///
    /// # Errors
    /// If the runtime ends meanwhile.
    pub(crate) async fn parse(&self, path: PathBuf, text: String) -> Result<Parsed, JoinError> {
        let this = self.clone();
        // Parsing a large file takes a while.
        spawn_blocking(move || this.parse_now(path, text.as_bytes())).await
    }

    fn parse_now(&self, path: PathBuf, bytes: &[u8]) -> Parsed {
        let parsed = self.parser.lock().unwrap_or_else(PoisonError::into_inner).parse(&path, bytes)?;
        // The balancer does not apply a file whose lists cannot be read.
        file::deny::check(&parsed.0)?;
        Ok(parsed)
    }
}
