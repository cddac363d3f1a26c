//! Parses configuration files from all sources, one at a time.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use balancer_config::{
    file::{self, ConfigErrors, Parsed, Parser, Warning},
    validate::Valid,
};
use tokio::task::{JoinError, spawn_blocking};

/// The parser, which remembers the last parsed configuration.
#[derive(Clone, Debug, Default)]
pub struct Configurations {
    parser: Arc<Mutex<Parser>>,
    /// The balancer's own configuration file.
    own: Option<PathBuf>,
}

impl Configurations {
    /// Makes a `Configurations` that continues with the last configuration of `parser`.
    #[must_use]
    pub fn new(parser: Parser) -> Self {
        Self { parser: Arc::new(Mutex::new(parser)), own: None }
    }

    /// Sets the configuration file with which the balancer was started.
    #[must_use]
    pub fn of(self, own: PathBuf) -> Self {
        Self { own: Some(own), ..self }
    }

    /// The configuration file with which the balancer was started.
    pub(crate) fn own(&self) -> Option<&Path> {
        self.own.as_deref()
    }

    /// Reads and parses a file without delaying other tasks.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the file is parsed.
    pub(crate) async fn load(&self, path: PathBuf) -> Result<Parsed, JoinError> {
        let this = self.clone();
        spawn_blocking(move || file::read(&path).and_then(|bytes| this.parse_now(path, &bytes))).await
    }

    /// Parses the contents of a file.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the contents are parsed.
    pub(crate) async fn parse(&self, path: PathBuf, text: String) -> Result<Parsed, JoinError> {
        let this = self.clone();
        // Parsing a large file takes a while and must not block other tasks.
        spawn_blocking(move || this.parse_now(path, text.as_bytes())).await
    }

    /// Parses the text of a drop-in.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the text is parsed.
    pub(crate) async fn parse_drop_in(
        &self,
        name: String,
        path: PathBuf,
        text: String,
    ) -> Result<Result<(Valid, Vec<Warning>), ConfigErrors>, JoinError> {
        spawn_blocking(move || {
            let parsed = file::parse_drop_in(&name, &path, text.as_bytes())?;
            file::deny::check(&parsed.0)?;
            Ok(parsed)
        })
        .await
    }

    fn parse_now(&self, path: PathBuf, bytes: &[u8]) -> Parsed {
        let parsed = self.parser.lock().unwrap_or_else(PoisonError::into_inner).parse(&path, bytes)?;
        // The balancer refuses a configuration file that names unreadable deny lists.
        file::deny::check(&parsed.0.services)?;
        Ok(parsed)
    }
}
