//! The peers that ask, and the requests that each of them may make.

use std::{path::Path, sync::Arc};

use nix::unistd::{Group, geteuid};

/// The right that a request takes. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// It reads, and changes nothing.
    Read,
    /// It changes something.
    Change,
    /// It reads a key.
    Keys,
}

/// The peer at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// It is not known, and may do everything: a connection that has no other end.
    Unknown,
    /// A process that may open the control socket.
    Changer(Process),
    /// A process that may open the socket that only reads.
    Reader {
        process: Process,
        /// The socket that changes things.
        changing: Arc<Path>,
    },
}

/// A process of this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) uid: Option<u32>,
}

impl Peer {
    pub(super) const fn uid(&self) -> Option<u32> {
        match self {
            Self::Unknown => None,
            Self::Changer(process) | Self::Reader { process, .. } => process.uid,
        }
    }

    /// The most that it may ask for.
    pub(super) fn may(&self) -> Needs {
        match self {
            Self::Unknown => Needs::Keys,
            Self::Changer(process) if process.is_owner() => Needs::Keys,
            Self::Changer(_) => Needs::Change,
            Self::Reader { .. } => Needs::Read,
        }
    }

    /// Why it is refused what takes `needs`. Groups are looked up, which may take a while.
    pub(super) fn refusal(&self, needs: Needs) -> String {
        match self {
            Self::Unknown | Self::Changer(_) => {
                "this answer has a key, which only root and the balancer's own user may read".to_owned()
            }
            Self::Reader { changing, .. } => {
                let what = if needs == Needs::Keys { "this answer has a key" } else { "this changes something" };
                let changers = changers(changing);
                format!("{what}, and {} only reads: ask as {changers}", super::readers_socket(changing).display())
            }
        }
    }
}

impl Process {
    /// Whether it could read everything that the balancer reads.
    fn is_owner(self) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == geteuid().as_raw())
    }
}

/// The users who may change something, by the socket's file.
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
        Process { uid: Some(uid) }
    }

    #[test]
    fn when_somebody_asks_then_the_way_and_the_user_say_what_he_may() {
        let stranger = geteuid().as_raw() + 4711;
        let reader = |uid| Peer::Reader { process: process(uid), changing: Path::new("/nonexistent").into() };
        for (peer, most) in [
            (Peer::Changer(process(0)), Needs::Keys),
            (Peer::Changer(process(geteuid().as_raw())), Needs::Keys),
            (Peer::Changer(process(stranger)), Needs::Change),
            (Peer::Changer(Process { uid: None }), Needs::Change),
            (reader(stranger), Needs::Read),
            (reader(0), Needs::Read),
        ] {
            assert_eq!(peer.may(), most, "{peer:?}");
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
