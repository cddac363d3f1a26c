//! The sockets that the balancer is controlled by, and who may use them.

use std::path::{Path, PathBuf};

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The socket that changes things and reads.
    pub socket: PathBuf,
    /// Who may use it besides root: a group's name or number; `None`: the group of the process.
    pub group: Option<String>,
    /// Who may use the [socket that only reads](readers_socket); `None`: there is no such socket.
    pub readers: Option<String>,
}

/// The socket that only reads, beside the one that changes things.
#[must_use]
pub fn readers_socket(socket: &Path) -> PathBuf {
    let stem = socket.file_stem().unwrap_or_default();
    let mut name = stem.to_owned();
    name.push("-readers");
    if let Some(extension) = socket.extension() {
        name.push(".");
        name.push(extension);
    }
    socket.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_socket_has_a_path_then_the_one_for_readers_is_beside_it() {
        for (socket, readers) in [
            ("/run/balancer/balancer.sock", "/run/balancer/balancer-readers.sock"),
            ("/run/lb1", "/run/lb1-readers"),
            ("lb.2.sock", "lb.2-readers.sock"),
        ] {
            assert_eq!(readers_socket(Path::new(socket)), Path::new(readers));
        }
    }
}
