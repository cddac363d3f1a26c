//! The sockets that control the balancer, and the users that may use these sockets.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// The section `[control]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The socket that allows reading and making changes.
    pub socket: PathBuf,
    /// The group, by name or number, whose members may use the socket in addition to root; `None`: the group of the
    /// process.
    pub group: Option<String>,
    /// The group whose members may use the [socket for readers](readers_socket); `None`: there is no such socket.
    pub readers: Option<String>,
    /// The listener for connections from other machines; `None`: there is no such listener.
    pub remote: Option<Remote>,
    /// The file in which the balancer records requests for changes; `None`: the balancer records no requests.
    pub audit: Option<PathBuf>,
}

impl Control {
    /// Settings that contain only this socket.
    #[must_use]
    pub const fn at(socket: PathBuf) -> Self {
        Self { socket, group: None, readers: None, remote: None, audit: None }
    }
}

/// A listener for connections from other machines, which uses TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The address and the port on which the listener waits.
    pub listen: SocketAddr,
    /// The file with the balancer's certificate, followed by the certificates between this certificate and a root.
    pub cert: PathBuf,
    /// The file with the private key of the balancer's certificate.
    pub key: PathBuf,
    /// The file with the certificates that have signed the clients' certificates.
    pub client_ca: PathBuf,
    /// The roles of clients, by a name in the client's certificate: the common name, or a DNS name.
    pub roles: BTreeMap<String, Role>,
}

impl Remote {
    /// The role of the client whose certificate contains these names; if the names have several roles, the role with
    /// the most rights applies.
    pub fn role<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<Role> {
        names.into_iter().filter_map(|name| self.roles.get(name).copied()).max()
    }
}

/// The requests of the API that a client may make. Each role includes the rights of the roles before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The client may make requests that only read.
    Read,
    /// The client may also set the administrative states and the weights of backends.
    Drain,
    /// The client may make every request.
    All,
}

impl Role {
    /// Every role, in ascending order of the roles' rights.
    pub const ALL: [Self; 3] = [Self::Read, Self::Drain, Self::All];

    /// The word for the role in a configuration file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Drain => "drain",
            Self::All => "all",
        }
    }
}

/// The path of the socket for readers, which belongs to the control socket with the given path.
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
