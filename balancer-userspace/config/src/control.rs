//! The sockets that the balancer is controlled by, and who may use them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The socket that changes things and reads.
    pub socket: PathBuf,
    /// The group, by name or number, that may use it besides root; `None`: the group of the process.
    pub group: Option<String>,
    /// The group that may use the [socket that only reads](readers_socket); `None`: there is no such socket.
    pub readers: Option<String>,
    /// The listener for other machines; `None`: there is none.
    pub remote: Option<Remote>,
    /// The file that requests for changes are written to; `None`: they are not.
    pub audit: Option<PathBuf>,
}

impl Control {
    /// One socket, and nothing else.
    #[must_use]
    pub const fn at(socket: PathBuf) -> Self {
        Self { socket, group: None, readers: None, remote: None, audit: None }
    }
}

/// A listener for other machines, over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it is.
    pub listen: SocketAddr,
    /// The file of the balancer's certificate, and of those between it and a root.
    pub cert: PathBuf,
    /// The file of its key.
    pub key: PathBuf,
    /// The file of the certificates that those of clients are signed by.
    pub client_ca: PathBuf,
    /// The roles of clients, by a name in their certificates: the common name, or a DNS name.
    pub roles: BTreeMap<String, Role>,
}

impl Remote {
    /// The role of whoever goes by these names: the one that may the most.
    pub fn role<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<Role> {
        names.into_iter().filter_map(|name| self.roles.get(name).copied()).max()
    }
}

/// The part of the API that a client may use. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It reads.
    Read,
    /// It sets administrative states and weights of backends.
    Drain,
    /// It does everything.
    All,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Read, Self::Drain, Self::All];

    /// The word for it in a file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Drain => "drain",
            Self::All => "all",
        }
    }
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
    fn when_a_certificate_has_several_names_then_the_one_that_may_the_most_counts() {
        let file = || PathBuf::from("/file");
        let roles = [("a", Role::Read), ("b", Role::All), ("c", Role::Drain)];
        let roles = roles.map(|(name, role)| (name.to_owned(), role)).into();
        let listen = SocketAddr::from(([127, 0, 0, 1], 9661));
        let remote = Remote { listen, cert: file(), key: file(), client_ca: file(), roles };
        for (names, role) in [
            (&["a"][..], Some(Role::Read)),
            (&["a", "c"], Some(Role::Drain)),
            (&["b", "a"], Some(Role::All)),
            (&["x", "c"], Some(Role::Drain)),
            (&["A", "a.", "*", ""], None),
            (&[], None),
        ] {
            assert_eq!(remote.role(names.iter().copied()), role, "{names:?}");
        }
    }

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
