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
    pub fn own(&self) -> Option<&Path> {
        self.own.as_deref()
    }

    /// Reads and parses a file without delaying other tasks, and returns the time of the file's last change.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the file is parsed.
    pub async fn load(&self, path: PathBuf) -> Result<(Parsed, Option<SystemTime>), JoinError> {
        match self.read(path.clone(), READ_LIMIT).await {
            Ok((bytes, modified)) => Ok((self.parse(path, bytes).await?, modified)),
            Err(errors) => Ok((Err(errors), None)),
        }
    }

    /// Reads a file, and the time of the file's last change.
    ///
    /// # Errors
    /// Fails if the file is no regular file, or cannot be read within `limit`, or if an earlier read has not ended.
    async fn read(&self, path: PathBuf, limit: Duration) -> Result<(Vec<u8>, Option<SystemTime>), ConfigErrors> {
        let file = path.clone();
        self.limited(&path, limit, move || {
            let metadata = fs::metadata(&file).ok();
            // Opening a pipe would wait for a writer, who may never come.
            if metadata.as_ref().is_some_and(|metadata| !metadata.is_file()) {
                return Err(cannot_be_read(&file, "it is not a regular file"));
            }
            Ok((file::read(&file)?, metadata.and_then(|metadata| metadata.modified().ok())))
        })
        .await
    }

    /// Runs `read`, which reads the file at `path`, in another thread.
    async fn limited<T: Send + 'static>(
        &self,
        path: &Path,
        limit: Duration,
        read: impl FnOnce() -> Result<T, ConfigErrors> + Send + 'static,
    ) -> Result<T, ConfigErrors> {
        let Ok(turn) = timeout(limit, Arc::clone(&self.reading).lock_owned()).await else {
            return Err(cannot_be_read(path, "an earlier read of it has not ended; check its file system"));
        };
        let read = spawn_blocking(move || {
            let _turn = turn;
            read()
        });
        match timeout(limit, read).await {
            Ok(Ok(read)) => read,
            Ok(Err(failed)) => Err(cannot_be_read(path, &failed.to_string())),
            Err(_) => {
                let seconds = limit.as_secs();
                Err(cannot_be_read(path, &format!("reading it takes longer than {seconds} s; check its file system")))
            }
        }
    }

    /// Parses the contents of a file. The function refuses a configuration that names unreadable deny lists.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the contents are parsed.
    pub async fn parse(&self, path: PathBuf, bytes: Vec<u8>) -> Result<Parsed, JoinError> {
        let (this, file) = (self.clone(), path.clone());
        // Parsing a large file takes a while and must not block other tasks.
        let parsed =
            spawn_blocking(move || this.parser.lock().unwrap_or_else(PoisonError::into_inner).parse(&file, &bytes));
        let (config, warnings) = match parsed.await? {
            Ok(parsed) => parsed,
            Err(errors) => return Ok(Err(errors)),
        };
        Ok(self.check_deny_lists(&path, config.services.clone()).await.map(|()| (config, warnings)))
    }

    /// Parses the text of a drop-in. The function refuses services that name unreadable deny lists.
    ///
    /// # Errors
    /// Fails if the runtime shuts down before the text is parsed.
    pub async fn parse_drop_in(
        &self,
        name: String,
        path: PathBuf,
        text: String,
    ) -> Result<Result<(Valid, Vec<Warning>), ConfigErrors>, JoinError> {
        let file = path.clone();
        let (services, warnings) =
            match spawn_blocking(move || file::parse_drop_in(&name, &file, text.as_bytes())).await? {
                Ok(parsed) => parsed,
                Err(errors) => return Ok(Err(errors)),
            };
        Ok(self.check_deny_lists(&path, services.clone()).await.map(|()| (services, warnings)))
    }

    /// Reads the deny lists that services of the configuration at `path` name.
    async fn check_deny_lists(&self, path: &Path, services: Valid) -> Result<(), ConfigErrors> {
        if services.iter().all(|service| service.deny.is_none()) {
            return Ok(());
        }
        self.limited(path, READ_LIMIT, move || file::deny::check(&services).map(drop)).await
    }
}

fn cannot_be_read(path: &Path, why: &str) -> ConfigErrors {
    ConfigErrors::whole_file(path, format!("cannot be read: {why}"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[tokio::test]
    async fn when_a_file_system_does_not_answer_then_each_read_ends_with_an_error_until_it_answers() {
        let limit = Duration::from_millis(50);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("balancer.toml");
        fs::write(&file, "[metrics]\n").unwrap();
        let configurations = Configurations::default();
        let (answers, answer) = mpsc::channel::<()>();
        let silent = configurations.limited(&file, limit, move || Ok(answer.recv().is_ok()));
        let first = silent.await.unwrap_err().to_string();
        let slow = "cannot be read: reading it takes longer than 0 s";
        assert!(first.contains("balancer.toml") && first.contains(slow), "{first}");
        let second = configurations.read(file.clone(), limit).await.unwrap_err().to_string();
        assert!(second.contains("cannot be read: an earlier read of it has not ended"), "{second}");

        answers.send(()).unwrap();
        let (bytes, modified) = configurations.read(file, READ_LIMIT).await.unwrap();
        assert!(bytes == b"[metrics]\n" && modified.is_some());
    }

    #[tokio::test]
    async fn when_the_file_is_a_pipe_then_it_is_refused_and_the_file_that_replaces_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("balancer.toml");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let configurations = Configurations::default();
        for _ in 0..2 {
            let error = configurations.read(path.clone(), READ_LIMIT).await.unwrap_err().to_string();
            assert!(error.contains("cannot be read: it is not a regular file"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, "[metrics]\n").unwrap();
        assert_eq!(configurations.read(path, READ_LIMIT).await.unwrap().0, b"[metrics]\n");
    }
}
