//! The peers that send requests, and the requests that each of them may make.

use std::{net::SocketAddr, path::Path, sync::Arc};

use balancer_config::control::{Role, readers_socket};
use nix::unistd::{Group, geteuid};

use super::certificate::CertificateNames;
use crate::audit::Who;

/// The right that a request needs. Each right includes the rights that precede it in this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// The request only reads, and makes no change.
    Read,
    /// The request sets the administrative state or the weight of a backend.
    Drain,
    /// The request makes another change.
    Change,
    /// The request reads a secret key.
    Keys,
}

/// The peer at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// The peer is unknown and may make every request, because the connection exists only inside this process.
    Unknown,
    /// A process that may open the control socket.
    Changer(Process),
    /// A process that may open the read-only socket.
    Reader {
        process: Process,
        /// The path of the socket that allows changes.
        changing: Arc<Path>,
    },
    /// A program on another machine that has shown a certificate.
    Remote { names: CertificateNames, role: Option<Role>, address: SocketAddr },
}

/// A process on this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) uid: Option<u32>,
    pub(super) pid: Option<i32>,
}

impl Peer {
    pub(super) const fn uid(&self) -> Option<u32> {
        match self {
            Self::Unknown | Self::Remote { .. } => None,
            Self::Changer(process) | Self::Reader { process, .. } => process.uid,
        }
    }

    /// Returns the kind of connection and the identity of the peer, for the audit file.
    pub(super) fn told(&self) -> (&'static str, Who) {
        let of = |process: &Process| Who { uid: process.uid, pid: process.pid, ..Who::default() };
        match self {
            Self::Unknown => ("unknown", Who::default()),
            Self::Changer(process) => ("socket", of(process)),
            Self::Reader { process, .. } => ("readers", of(process)),
            Self::Remote { names, role, address } => {
                let (certificate, address) = (Some(names.to_string()), Some(address.to_string()));
                ("tls", Who { certificate, role: role.map(Role::word), address, ..Who::default() })
            }
        }
    }

    /// The highest right that the peer has; `None` if the peer has no right.
    pub(super) fn may(&self) -> Option<Needs> {
        match self {
            Self::Unknown => Some(Needs::Keys),
            Self::Changer(process) if process.is_owner() => Some(Needs::Keys),
            Self::Changer(_) => Some(Needs::Change),
            Self::Reader { .. } => Some(Needs::Read),
            Self::Remote { role, .. } => role.map(|role| match role {
                Role::Read => Needs::Read,
                Role::Drain => Needs::Drain,
                Role::All => Needs::Keys,
            }),
        }
    }

    /// The reason why a peer is refused a request that needs the right `needs`. The function looks up group names,
    /// which may take a while.
    pub(super) fn refusal(&self, needs: Needs) -> String {
        match self {
            Self::Unknown | Self::Changer(_) => {
                "this answer has a key, which only root and the balancer's own user may read".to_owned()
            }
            Self::Reader { changing, .. } => {
                let what = if needs == Needs::Keys { "this answer has a key" } else { "this changes something" };
                let changers = changers(changing);
                format!("{what}, and {} only reads: ask as {changers}", readers_socket(changing).display())
            }
            Self::Remote { names, role: None, .. } => {
                format!("the certificate {names} has no role: give it one in [control] roles of the balancer's file")
            }
            Self::Remote { names, role: Some(role), .. } => {
                let least = match needs {
                    Needs::Read => Role::Read,
                    Needs::Drain => Role::Drain,
                    Needs::Change | Needs::Keys => Role::All,
                };
                let (has, takes) = (role.word(), least.word());
                format!(
                    "the certificate {names} has the role {has:?}, and this takes {takes:?}: [control] roles says so"
                )
            }
        }
    }
}

impl Process {
    /// Whether the process could read all files that the balancer can read.
    fn is_owner(self) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == geteuid().as_raw())
    }
}

/// Describes the users who may make changes, according to the permissions of the socket's file.
fn changers(socket: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let at = socket.display();
    let Ok(file) = socket.metadata() else { return format!("somebody who may use {at}") };
    let group = Group::from_gid(file.gid().into()).ok().flatten();
    let group = group.map_or_else(|| file.gid().to_string(), |group| group.name);
    format!("root or as a member of the group {group}, who may use {at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(uid: u32) -> Process {
        Process { uid: Some(uid), pid: None }
    }

    #[test]
    fn when_somebody_asks_then_the_way_and_the_user_say_what_he_may() {
        let stranger = geteuid().as_raw() + 4711;
        let reader = |uid| Peer::Reader { process: process(uid), changing: Path::new("/nonexistent").into() };
        for (peer, most) in [
            (Peer::Changer(process(0)), Needs::Keys),
            (Peer::Changer(process(geteuid().as_raw())), Needs::Keys),
            (Peer::Changer(process(stranger)), Needs::Change),
            (Peer::Changer(Process { uid: None, pid: None }), Needs::Change),
            (reader(stranger), Needs::Read),
            (reader(0), Needs::Read),
        ] {
            assert_eq!(peer.may(), Some(most), "{peer:?}");
        }
    }

    #[test]
    fn when_another_machine_asks_then_the_role_of_its_certificate_says_what_it_may() {
        use Needs::{Change, Drain, Keys, Read};
        let names = CertificateNames::named("deploy");
        for (role, may, refused) in [
            (None, &[][..], "CN=deploy has no role: give it one in [control] roles"),
            (Some(Role::Read), &[Read], "CN=deploy has the role \"read\", and this takes "),
            (Some(Role::Drain), &[Read, Drain], "CN=deploy has the role \"drain\", and this takes \"all\""),
            (Some(Role::All), &[Read, Drain, Change, Keys], ""),
        ] {
            let peer = Peer::Remote { names: names.clone(), role, address: ([192, 0, 2, 1], 1024).into() };
            for needs in [Read, Drain, Change, Keys] {
                assert_eq!(peer.may().is_some_and(|most| needs <= most), may.contains(&needs), "{role:?} {needs:?}");
                if !may.contains(&needs) {
                    assert!(peer.refusal(needs).contains(refused), "{}", peer.refusal(needs));
                }
            }
        }
    }

    #[test]
    fn when_a_reader_is_refused_then_it_is_told_who_may() {
        let directory = tempfile::tempdir().unwrap();
        let changing: Arc<Path> = directory.path().join("balancer.sock").into();
        let reader = Peer::Reader { process: process(4711), changing: Arc::clone(&changing) };
        let at = changing.display();
        assert!(reader.refusal(Needs::Change).ends_with(&format!("ask as somebody who may use {at}")));
        std::fs::write(&changing, "").unwrap();
        let group = Group::from_gid(nix::unistd::getegid()).unwrap().unwrap().name;
        let words = reader.refusal(Needs::Change);
        assert!(
            words.starts_with("this changes something, and ") && words.contains("-readers.sock only reads"),
            "{words}"
        );
        assert!(words.ends_with(&format!("as a member of the group {group}, who may use {at}")), "{words}");
        assert!(reader.refusal(Needs::Keys).starts_with("this answer has a key, and "));
    }
}
