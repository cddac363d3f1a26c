//! The balancer on this machine: its configuration file, and its control socket.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use balancer_api::{
    client::{Client, ClientError},
    model::{ApplyConfiguration, ServiceView, SetAdmin},
};

use crate::changes::Change;

/// A handle for the balancer on this machine.
#[derive(Debug)]
pub struct Balancer {
    client: Client,
    path: PathBuf,
}

impl Balancer {
    /// Makes a handle for the balancer with this control socket and this configuration file.
    #[must_use]
    pub fn new(socket: &Path, path: &Path) -> Self {
        // If the path is a symbolic link, writes replace the file that the link points to, so that the link remains.
        Self { client: Client::new(socket), path: fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) }
    }

    /// The path of the configuration file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the text of the configuration file.
    ///
    /// # Errors
    /// Fails if the configuration file cannot be read.
    pub fn read(&self) -> Result<String, String> {
        fs::read_to_string(&self.path).map_err(|error| format!("{} cannot be read: {error}", self.path.display()))
    }

    /// Replaces the configuration file, if it is unchanged since it was read.
    ///
    /// # Errors
    /// Fails if the file cannot be written, or if another program or a user has changed it.
    pub fn write(&self, read: &str, text: &str) -> Result<(), String> {
        let failed = |error: io::Error| format!("{} cannot be written: {error}", self.path.display());
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let metadata = fs::metadata(&self.path).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.as_file().set_permissions(metadata.permissions()).map_err(failed)?;
        keep_owner(&metadata, file.path());
        file.as_file().sync_all().map_err(failed)?;
        if self.read()? != read {
            return Err(format!("{} was changed by somebody else meanwhile; it is read again", self.path.display()));
        }
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Returns the services that the balancer has, and the backends that users have added to them at run time, as
    /// `SERVICE/BACKEND`.
    ///
    /// # Errors
    /// Fails if the balancer does not answer.
    pub async fn status(&self) -> Result<(Vec<ServiceView>, BTreeSet<String>), ClientError> {
        let status = self.client.status().await?;
        let changed = status.changed_at_run_time.into_iter();
        let added = changed.filter(|change| change.name.contains('/') && change.change.starts_with("added"));
        Ok((status.services, added.map(|change| change.name).collect()))
    }

    /// Returns the services that the balancer has.
    ///
    /// # Errors
    /// See [`status`](Self::status).
    pub async fn services(&self) -> Result<Vec<ServiceView>, ClientError> {
        self.client.services().await
    }

    /// Makes the balancer apply the configuration `text`; with `dry_run`, the balancer only checks it. The function
    /// returns the balancer's answer.
    ///
    /// # Errors
    /// Fails if the balancer refuses the configuration, or does not answer.
    pub async fn apply(&self, text: String, dry_run: bool) -> Result<String, ClientError> {
        let configuration = ApplyConfiguration {
            file: self.path.display().to_string(),
            text,
            dry_run,
            age_seconds: None,
            force: false,
            reset: false,
            path: Some(self.path.clone()),
        };
        self.client.apply(&configuration).await.map(|applied| applied.message)
    }

    /// Makes a change of a backend, and returns the balancer's answer.
    ///
    /// # Errors
    /// See [`apply`](Self::apply).
    pub async fn change(&self, change: &Change) -> Result<String, ClientError> {
        let changed = match change {
            Change::SetAdmin(name, admin) => {
                self.client.set_admin(name, &SetAdmin { admin: *admin, timeout: None }).await?
            }
            Change::Add(service, backend) => self.client.add_backend(service, backend).await?,
        };
        Ok(changed.message)
    }
}

/// Keeps the owner of the file, if this program has the permission, because the balancer has to read the file.
fn keep_owner(metadata: &fs::Metadata, path: &Path) {
    use std::os::unix::fs::{MetadataExt as _, chown};
    if chown(path, Some(metadata.uid()), Some(metadata.gid())).is_err() {
        let _ = chown(path, None, Some(metadata.gid()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn when_the_file_is_written_then_its_mode_stays_and_a_change_of_somebody_else_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("balancer.toml");
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let balancer = Balancer::new("/nowhere".as_ref(), &path);
        balancer.write("one", "two").unwrap();
        assert_eq!(balancer.read().unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let error = balancer.write("one", "three").unwrap_err();
        assert!(error.contains("was changed by somebody else"), "{error}");
        assert_eq!(balancer.read().unwrap(), "two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left lying about");
    }
}
