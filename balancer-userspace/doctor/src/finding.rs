//! The report of an examination.

use serde::Serialize;

/// All results of an examination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether a controller was reachable.
    pub controller: bool,
    /// The causes of trouble, without their consequences.
    pub findings: Vec<Finding>,
    /// The things that were examined and are in order, a few words each.
    pub looked_at: Vec<String>,
    /// The things that could not be examined, with the reasons.
    pub not_looked_at: Vec<Unseen>,
}

/// A fact that the doctor could not find out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// The thing that was not examined.
    pub what: String,
    /// The reason.
    pub why: String,
}

impl Unseen {
    /// `what` could not be examined, because of `why`.
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

/// One cause of trouble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind of trouble, as a stable identifier.
    pub kind: Kind,
    /// The affected service; `None`: all services.
    pub service: Option<String>,
    /// The affected backend.
    pub backend: Option<String>,
    /// The trouble, in one sentence.
    pub what: String,
    /// The observation that shows the trouble.
    pub seen: String,
    /// The cure for the trouble.
    pub cure: Cure,
}

/// The cure for a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cure {
    /// The machine on which to run the commands: `this machine`, or a backend's name and address.
    pub on: String,
    /// The commands, or if there are none, instructions.
    pub commands: Vec<String>,
    /// The steps for `--fix`, if they can be undone; empty if `--fix` does not apply them.
    pub fix: Vec<Step>,
}

/// A command that can be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The command's words.
    pub run: Vec<String>,
    /// The command that undoes the step.
    pub undo: String,
}

impl Cure {
    /// A cure on this machine that `--fix` does not carry out.
    #[must_use]
    pub fn here(commands: &[String]) -> Self {
        Self { on: "this machine".to_owned(), commands: commands.to_vec(), fix: Vec::new() }
    }

    /// A cure on this machine that `--fix` carries out. Words are separated by single spaces.
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
    /// The controller reports that it is not ready, or degraded.
    NotReady,
    /// The operator has withdrawn the VIPs.
    Withdrawn,
    /// An interface that packets need is off or without carrier.
    Link,
    /// The interface is in generic mode although the configuration does not request that and the driver has native
    /// mode.
    Generic,
    /// An offload damages packets.
    Offload,
    /// A program that is not the balancer's is on an interface.
    ForeignProgram,
    /// The program redirects frames to an interface that does not accept them.
    Redirect,
    /// Clients' packets arrive on an interface without the program.
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
    /// The operator has taken every backend of a service out of use.
    NoneEligible,
    /// A rule denies every client.
    DeniesAll,
    /// There is no route to a backend.
    Route,
    /// A neighbour does not answer.
    Neighbour,
    /// The kernel's neighbour entry is wrong.
    NeighbourEntry,
    /// This machine's firewall drops packets that should pass.
    Firewall,
    /// Packets of a backend arrive with unfinished checksums.
    Checksum,
    /// A server does not run or does not answer.
    Server,
    /// A server answers, and its health check fails.
    Unhealthy,
    /// A backend does not have the VIP.
    VipMissing,
    /// A backend answers ARP for the VIP.
    VipAnswered,
    /// A server does not listen on the VIP.
    ServerBound,
    /// The backend does not remove the outer header.
    NoDecap,
    /// Large packets do not reach a backend.
    Mtu,
    /// Replies do not come back through the balancer, or do not reach the clients.
    Replies,
    /// The client table loses known clients.
    ClientTable,
    /// The table of connections is full.
    FlowTable,
    /// A backend's pool has few free ports left.
    Ports,
    /// The clock of a fleet member is wrong.
    Clock,
}
