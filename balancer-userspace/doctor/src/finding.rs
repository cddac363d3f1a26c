//! The report of an examination.

use serde::Serialize;

/// Everything that an examination says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether a controller was reachable.
    pub controller: bool,
    /// The troubles found, causes only.
    pub findings: Vec<Finding>,
    /// The things that were examined and are right, a few words each.
    pub looked_at: Vec<String>,
    /// The things that could not be examined, with the reasons.
    pub not_looked_at: Vec<Unseen>,
}

/// Something that was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// The thing that was not examined.
    pub what: String,
    /// The reason.
    pub why: String,
}

impl Unseen {
    /// `what` was not looked at, because of `why`.
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

/// One cause of trouble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind of trouble, in one word that stays the same.
    pub kind: Kind,
    /// The service that suffers; `None`: all of them.
    pub service: Option<String>,
    /// The backend that it is about.
    pub backend: Option<String>,
    /// The trouble, in one sentence.
    pub what: String,
    /// How that was seen.
    pub seen: String,
    /// The cure for the trouble.
    pub cure: Cure,
}

/// The cure for a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cure {
    /// The machine that the commands are for: `this machine`, or a backend's name and address.
    pub on: String,
    /// The commands, or, where none is known, what to do.
    pub commands: Vec<String>,
    /// The same for `--fix`, where it can be taken back; empty where `--fix` leaves it alone.
    pub fix: Vec<Step>,
}

/// A command that can be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The words of the command.
    pub run: Vec<String>,
    /// The command that takes it back.
    pub undo: String,
}

impl Cure {
    /// A cure on this machine that `--fix` does not carry out.
    #[must_use]
    pub fn here(commands: &[String]) -> Self {
        Self { on: "this machine".to_owned(), commands: commands.to_vec(), fix: Vec::new() }
    }

    /// A cure on this machine that `--fix` carries out. Words are separated by one space.
    #[must_use]
    pub fn fixable(command: &str, undo: &str) -> Self {
        let step = Step { run: command.split(' ').map(str::to_owned).collect(), undo: undo.to_owned() };
        Self { fix: vec![step], ..Self::here(&[command.to_owned()]) }
    }

    /// A cure on another machine.
    #[must_use]
    pub fn elsewhere(machine: &str, commands: &[String]) -> Self {
        Self { on: machine.to_owned(), commands: commands.to_vec(), fix: Vec::new() }
    }
}

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The kernel is too old.
    Kernel,
    /// The controller's control group runs out of memory.
    Memory,
    /// The controller says that it is not, or not fully, fit.
    NotReady,
    /// The operator has taken the VIPs away.
    Withdrawn,
    /// An interface that packets need is off or without carrier.
    Link,
    /// The interface is in generic mode, which nobody has asked for, and its driver has native mode.
    Generic,
    /// An offload spoils packets.
    Offload,
    /// The program on an interface is another one than the balancer's.
    ForeignProgram,
    /// Frames are redirected to an interface that does not take them.
    Redirect,
    /// Clients' packets come in by an interface that the program is not attached to.
    NotAttached,
    /// Clients' packets are for another hardware address.
    WrongMac,
    /// The kernel's forwarding is off, which `nat` needs.
    Forwarding,
    /// Two machines own a VIP.
    VipDuplicate,
    /// A VIP belongs to no machine.
    VipUnowned,
    /// A service has no backends.
    NoBackends,
    /// The operator has every backend of a service out of use.
    NoneEligible,
    /// A rule denies every client.
    DeniesAll,
    /// There is no route to a backend.
    Route,
    /// A neighbour does not answer.
    Neighbour,
    /// The kernel's entry of a neighbour is wrong.
    NeighbourEntry,
    /// This machine's firewall drops what passes.
    Firewall,
    /// Packets of a backend arrive with unfinished checksums.
    Checksum,
    /// A server does not run, or does not answer.
    Server,
    /// A server answers, and its health check fails.
    Unhealthy,
    /// A backend does not have the VIP.
    VipMissing,
    /// A backend answers ARP for the VIP.
    VipAnswered,
    /// A server does not listen on the VIP.
    ServerBound,
    /// Nothing on a backend removes the outer header.
    NoDecap,
    /// Large packets do not reach a backend.
    Mtu,
    /// Replies do not come back through the balancer, or do not reach the clients.
    Replies,
    /// The client table loses clients that are known.
    ClientTable,
    /// The clock of a member of the fleet is off.
    Clock,
}
