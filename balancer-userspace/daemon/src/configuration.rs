//! Parses configuration files from all sources, one at a time.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use balancer_config::{
    file::{self, ConfigErrors, Parsed, Parser, Warning},
    validate::Valid,
};
use tokio::{
    task::{JoinError, spawn_blocking},
    time::timeout,
};

/// The maximum time that a read of a file may take.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// The parser, which remembers the last parsed configuration.
#[derive(Clone, Debug, Default)]
pub struct Configurations {
    parser: Arc<Mutex<Parser>>,
    /// Held by the thread that reads a file. A file system that does not answer holds the thread up.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// The balancer's own configuration file.
    own: Option<PathBuf>,
}

impl Configurations {
    /// Makes a `Configurations` that continues with the last configuration of `parser`.
    #[must_use]
    pub fn new(parser: Parser) -> Self {
        Self { parser: Arc::new(Mutex::new(parser)), ..Self::default() }
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

    /// Reads and parses a file without delaying other tasks, and returns the time of the file's last change.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the file is parsed.
    pub(crate) async fn load(&self, path: PathBuf) -> Result<(Parsed, Option<SystemTime>), JoinError> {
        match self.read(path.clone(), READ_LIMIT).await {
            Ok((bytes, modified)) => Ok((self.parse(path, bytes).await?, modified)),
            Err(errors) => Ok((Err(errors), None)),
        }
    }

    /// Reads a file, and the time of the file's last change.
    ///
    /// # Errors
    /// Fails if the file cannot be read within `limit`, or if an earlier read has not ended.
    async fn read(&self, path: PathBuf, limit: Duration) -> Result<(Vec<u8>, Option<SystemTime>), ConfigErrors> {
        let cannot = |why: &str| ConfigErrors::whole_file(&path, format!("cannot be read: {why}"));
        let Ok(turn) = timeout(limit, Arc::clone(&self.reading).lock_owned()).await else {
            return Err(cannot("an earlier read has not ended; is the file a pipe, or its file system unreachable?"));
        };
        let file = path.clone();
        let read = spawn_blocking(move || {
            let _turn = turn;
            let modified = fs::metadata(&file).and_then(|metadata| metadata.modified()).ok();
            Ok((file::read(&file)?, modified))
        });
        match timeout(limit, read).await {
            Ok(Ok(read)) => read,
            Ok(Err(failed)) => Err(cannot(&failed.to_string())),
            Err(_) => Err(cannot(&format!(
                "{} s were not enough; is the file a pipe, or its file system unreachable?",
                limit.as_secs()
            ))),
        }
    }

    /// Parses the contents of a file.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the contents are parsed.
    pub(crate) async fn parse(&self, path: PathBuf, bytes: Vec<u8>) -> Result<Parsed, JoinError> {
        let this = self.clone();
        // Parsing a large file takes a while and must not block other tasks.
        spawn_blocking(move || this.parse_now(path, &bytes)).await
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

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write as _};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[tokio::test]
    async fn when_a_file_cannot_be_opened_then_each_read_ends_with_an_error_until_the_file_can_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("balancer.toml");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let configurations = Configurations::default();
        let first = configurations.read(pipe.clone(), Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(first.contains("balancer.toml") && first.contains("cannot be read: 0 s were not enough"), "{first}");
        let second = configurations.read(pipe.clone(), Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(second.contains("cannot be read: an earlier read has not ended"), "{second}");

        OpenOptions::new().write(true).open(&pipe).unwrap().write_all(b"[metrics]\n").unwrap();
        let file = directory.path().join("other.toml");
        fs::write(&file, "[metrics]\n").unwrap();
        let (bytes, modified) = configurations.read(file, READ_LIMIT).await.unwrap();
        assert!(bytes == b"[metrics]\n" && modified.is_some());
    }
}
