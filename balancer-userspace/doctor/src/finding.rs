//! The doctor's report about an examination.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

/// The results of an examination by the doctor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the doctor reached a controller.
    pub controller: bool,
    /// The causes of problems, without the consequences of these causes.
    pub findings: Vec<Finding>,
    /// The requests to connect that the doctor sent like those of clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<Tried>,
    /// The subjects in which the doctor found no problem, each in a few words.
    pub looked_at: Vec<String>,
    /// The subjects that the doctor could not examine, each with the reason.
    pub not_looked_at: Vec<Unseen>,
}

/// A request to connect to a backend that the doctor sent like those of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    pub service: String,
    pub backend: String,
    /// The source address of the request.
    pub source: IpAddr,
    pub to: SocketAddr,
    /// Whether the request had the source address of a client, and not of this machine.
    pub as_client: bool,
    /// The name of the interface by which the answer came; `None` if no answer came.
    pub answered_by: Option<String>,
}

/// A subject that the doctor could not examine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// The subject that the doctor could not examine.
    pub what: String,
    /// The reason why the doctor could not examine the subject.
    pub why: String,
}

impl Unseen {
    /// Records that the doctor could not examine `what`, because of `why`.
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

/// A cause of problems that the doctor has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind of the problem, as a stable identifier.
    pub kind: Kind,
    /// The service that the problem affects; `None` if the problem affects all services.
    pub service: Option<String>,
    /// The name of the backend that the problem affects, if it is a single one.
    pub backend: Option<String>,
    /// The backends that the problem affects, as `SERVICE/NAME`.
    pub backends: Vec<String>,
    /// The problem, described in one sentence.
    pub what: String,
    /// The observation that shows the problem.
    pub seen: String,
    /// The steps that solve the problem.
    pub cure: Cure,
}

/// The steps that solve the problem of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cure {
    /// The machine on which the user must run the commands: `this machine`, or the name and address of a backend.
    pub on: String,
    /// The commands that solve the problem. A line that begins with `#` is an instruction instead of a command.
    pub commands: Vec<String>,
    /// The steps that `--fix` runs; empty if the cure cannot be undone.
    pub fix: Vec<Step>,
}

/// A command that can be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The command as a list of arguments.
    pub run: Vec<String>,
    /// The command that undoes the effect of the step.
    pub undo: String,
}

impl Cure {
    /// Makes a cure for this machine that `--fix` does not carry out.
    #[must_use]
    pub fn here(commands: &[String]) -> Self {
        Self { on: "this machine".to_owned(), commands: commands.to_vec(), fix: Vec::new() }
    }

    /// Makes a cure for this machine that `--fix` carries out. In `command`, single spaces separate the arguments.
    #[must_use]
    pub fn fixable(command: &str, undo: &str) -> Self {
        let step = Step { run: command.split(' ').map(str::to_owned).collect(), undo: undo.to_owned() };
        Self { fix: vec![step], ..Self::here(&[command.to_owned()]) }
    }

    /// Makes a cure for another machine.
    #[must_use]
    pub fn elsewhere(machine: &str, commands: &[String]) -> Self {
        Self { on: machine.to_owned(), commands: commands.to_vec(), fix: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The kernel is older than the oldest supported kernel.
    Kernel,
    /// The controller does not answer.
    Controller,
    /// The controller's control group runs out of memory.
    Memory,
    /// The controller reports that it is not ready or that it is degraded.
    NotReady,
    /// The operator has withdrawn the VIPs.
    Withdrawn,
    /// An interface that packets must pass is off or has no carrier.
    Link,
    /// The program runs in generic mode, although the driver has native mode and the configuration does not request
    /// generic mode.
    Generic,
    /// An offload damages packets.
    Offload,
    /// The XDP program of another product is on an interface.
    ForeignProgram,
    /// The program redirects frames to an interface that does not accept redirected frames.
    Redirect,
    /// Clients' packets or backends' replies arrive on an interface without the program.
    NotAttached,
    /// Clients' packets are sent to another hardware address than that of the interface.
    WrongMac,
    /// The kernel's forwarding, which `nat` needs, is off.
    Forwarding,
    /// Two machines have the same VIP.
    VipDuplicate,
    VipUnowned,
    /// The kernel does not use an IPv6 VIP, because it searches for another machine with the VIP, or has found one.
    VipUnusable,
    /// An address of a pool of `snat` is on no interface.
    Pool,
    /// A list of targets has never been read.
    Discover,
    NoBackends,
    /// No backend of a service takes clients.
    NoneEligible,
    /// The program drops packets of clients or backends.
    Drops,
    /// A rule denies every client.
    DeniesAll,
    /// There is no route to a backend, or no route for replies to clients.
    Route,
    /// A neighbour on the path to a backend does not answer.
    Neighbour,
    /// The kernel's entry for a neighbour contains a wrong hardware address.
    NeighbourEntry,
    /// This machine's firewall drops packets that should pass.
    Firewall,
    /// Something else on this machine drops packets that should pass.
    Dropped,
    /// A host rejects packets to a backend by ICMP.
    Rejected,
    /// Two hardware addresses answer ARP for a backend's address.
    AddressDuplicate,
    /// Packets from a backend arrive with unfinished checksums.
    Checksum,
    /// A server is not running or does not answer.
    Server,
    /// A server answers, but its health check fails.
    Unhealthy,
    VipMissing,
    /// A backend answers ARP for the VIP.
    VipAnswered,
    /// A server does not listen on the VIP.
    ServerBound,
    /// The backend does not remove the outer header.
    NoDecap,
    /// Large packets do not reach a backend.
    Mtu,
    /// Clients complete no connection, although the backends answer this machine.
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
