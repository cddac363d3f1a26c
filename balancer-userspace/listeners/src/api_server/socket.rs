//! The file of the control socket: this module creates the file, takes it over from an ended controller, and removes
//! it.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use balancer_config::control::readers_socket;
use nix::unistd::{Gid, Group, chown, getegid};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tracing::warn;

use crate::listener::Listen;

/// The maximum number of connections in the socket's accept queue.
const BACKLOG: u32 = 128;

/// A bound control socket. Dropping the value removes the socket's file.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    _file: SocketFile,
}

impl ControlSocket {
    /// Binds a socket at `path` with mode 0660; the file belongs to `group` (a name or a number), if given. The
    /// function creates the directory if it is missing, and replaces a socket file that an ended controller has left.
    ///
    /// # Errors
    /// Fails if the group does not exist, if another controller serves the socket, if `path` is not a socket, or if a
    /// system call fails.
    pub async fn bind(path: &Path, group: Option<&str>) -> anyhow::Result<Self> {
        Self::bind_for(path, group, SocketUsers::Changers).await
    }

    /// Binds the read-only socket that belongs to the control socket at `changing`.
    ///
    /// # Errors
    /// Fails in the same cases as [`bind`](Self::bind).
    pub async fn bind_readers(changing: &Path, group: &str) -> anyhow::Result<Self> {
        Self::bind_for(&readers_socket(changing), Some(group), SocketUsers::Readers).await
    }

    async fn bind_for(path: &Path, group: Option<&str>, whose: SocketUsers) -> anyhow::Result<Self> {
        let group = group.map(|group| resolve(group, whose)).transpose()?;
        clear(path).await?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {} for the control socket", directory.display()))?;
        }
        let cannot = || format!("cannot bind the control socket {}", path.display());
        let socket = UnixSocket::new_stream().with_context(cannot)?;
        socket.bind(path).with_context(cannot)?;
        let file = SocketFile::new(path).with_context(cannot)?;
        if let Some(group) = group {
            give_to(path, group)?;
        }
        // The mode is set before the socket listens: until then, no process can connect, regardless of the umask.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).with_context(cannot)?;
        let listener = socket.listen(BACKLOG).with_context(cannot)?;
        Ok(Self { listener, _file: file })
    }
}

impl Listen for ControlSocket {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

/// The users for whom a socket exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketUsers {
    /// Users who may make changes.
    Changers,
    /// Users who may only read.
    Readers,
}

/// The id of a group, by its name or number.
fn resolve(group: &str, whose: SocketUsers) -> anyhow::Result<Gid> {
    if let Ok(id) = group.parse() {
        return Ok(Gid::from_raw(id));
    }
    let found = Group::from_name(group).with_context(|| format!("cannot look up the group {group:?}"))?;
    let (socket, key) = match whose {
        SocketUsers::Changers => ("the control socket", "group"),
        SocketUsers::Readers => ("the socket for readers", "readers"),
    };
    found.map(|group| group.gid).with_context(|| {
        format!(
            "there is no group {group:?} for {socket}; make it (groupadd --system {group}), or change [control] {key}"
        )
    })
}

/// Gives the socket at `path` to the group `group`, or, if `group` is `None`, to the group of this process.
///
/// # Errors
/// Fails if the group does not exist, or if this process cannot give the socket to the group.
pub(crate) fn give(path: &Path, group: Option<&str>, whose: SocketUsers) -> anyhow::Result<()> {
    give_to(path, find(group, whose)?)
}

/// Returns the id of the group to which `give` would give the socket.
///
/// # Errors
/// Fails if the group does not exist.
pub fn find(group: Option<&str>, whose: SocketUsers) -> anyhow::Result<Gid> {
    group.map_or_else(|| Ok(getegid()), |group| resolve(group, whose))
}

fn give_to(path: &Path, group: Gid) -> anyhow::Result<()> {
    chown(path, None, Some(group)).map_err(|error| {
        anyhow!(
            "cannot give the control socket {} to group {group}: {error}; start as a member of that group \
             (SupplementaryGroups= in a unit) or with CAP_CHOWN",
            path.display()
        )
    })
}

/// Removes a socket file that an ended controller has left at `path`.
async fn clear(path: &Path) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot examine {}", path.display())),
    };
    if !metadata.file_type().is_socket() {
        bail!("{} is not a socket; remove it, or choose another path for the control socket", path.display());
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| format!("cannot tell whether a controller serves {}", path.display()))
        }
        Ok(_) | Err(_) => bail!(
            "another controller serves {}; stop it first, or give this one another socket and other interfaces",
            path.display()
        ),
    }
}

/// Removes the socket's file when dropped, but does not remove another file at the same path.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: file_id(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|id| id == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("cannot remove the control socket {}: {error}", self.path.display());
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
