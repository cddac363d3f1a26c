//! The kernel's side of the controller: the only place in user space that names maps.

mod attach;
mod backend_counters;
mod backends;
mod bpffs;
mod budgets;
mod capacity;
mod classifiers;
mod clients;
mod counter_rows;
mod counters;
mod cpu_rows;
mod decap;
mod denied;
mod devices;
mod flows;
mod grace;
mod halves;
mod handshakes;
mod host_changes;
mod interfaces;
mod kept;
mod kernel;
mod kernel_types;
mod layers;
mod learning;
mod link_pins;
mod listeners;
mod load;
mod map_sizes;
mod mapped;
mod memory;
mod network_namespace;
mod object;
pub mod offload;
mod peers;
mod pinned_link;
mod pins;
mod placement;
pub mod privileges;
mod quic;
mod redirects;
mod regions;
mod replaced;
mod rereading;
mod rows;
mod rule_filter;
mod rules;
mod seen;
mod sharing;
mod signs;
mod stickiness;
mod sweep;
mod tables;
pub mod telling;
mod threads;

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use balancer_common::{
    kept::{BackendHistory, ServiceHistory},
    map_types::{BackendStats, DropStats, InterfaceStats, ListenerStats, ReplyStats, RuleStats, ShareStats},
    quic::QuicStats,
};
use balancer_core::{
    io::{BackendId, BackendSpec, ListenerId, RuleSpec, ServiceId, ServiceSpec},
    snapshot::{MemorySnapshot, Unanswered},
};
use ipnet::IpNet;

pub use attach::{Attached, Attacher, Attachment};
pub use backend_counters::BackendCounters;
pub use budgets::Budgets;
pub use capacity::Capacity;
pub use clients::KnownClients;
pub use decap::Decap;
pub use denied::DeniedBy;
pub use devices::Devices;
pub use flows::{FlowCounts, FlowTable, KnownFlow};
pub use handshakes::{Begun, Handshakes};
pub use host_changes::{HostChanges, SwitchChange};
pub use kept::{Histories, Kept, NotesWriter};
pub use kernel::{HostEnds, KernelDataplane};
pub use layers::Layers;
pub use learning::{Learning, Learnt, Seen};
pub use pins::{AllPins, Notes, Pins};
pub use sharing::ImportedClients;
pub use threads::Threads;

/// The compiled kernel program.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer-kernel"));

/// The remembered state of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownClient {
    /// Where it was last steered to.
    pub backend: BackendId,
    /// How long ago its last recorded packet was, to a tick.
    pub last_seen: Duration,
}

/// Clients that were forgotten on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// How many were known.
    pub clients: u64,
    /// How many of them the live table sends elsewhere.
    pub moved: u64,
}

/// How far what a change leaves to be done in the client table has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reread {
    /// Packets are on their way that may still record their clients as before; that is over in some milliseconds.
    Waits,
    /// There are more parts.
    GoesOn,
    /// Nothing is left; so many clients of backends were forgotten.
    Ends(Vec<(BackendId, Forgotten)>),
}

/// How far the sweep of the client table has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swept {
    /// This is all for now: a part is over, or packets are on their way that the next pass has to wait for.
    Rests,
    /// A part is under way, which goes on in a moment.
    GoesOn,
    /// A pass is over; so many known clients each backend has, in rising order of ids.
    Ends(Vec<(BackendId, u64)>),
}

/// The controller's operations on a data path. Implemented by the kernel's maps and, for tests, in memory.
pub trait Dataplane {
    /// Writes a backend's row.
    ///
    /// # Errors
    /// When the kernel refuses the write; the row is then unchanged.
    fn write_backend(&mut self, backend: &BackendSpec) -> anyhow::Result<()>;

    /// Clears a backend's row, which no table names any more.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    fn retire_backend(&mut self, id: BackendId) -> anyhow::Result<()>;

    /// Replaces a service's live table, whole: a packet sees the old one or the new one.
    ///
    /// # Errors
    /// When there is no room for the table; the old one then stays.
    fn swap_table(&mut self, service: ServiceId, table: Arc<[u16]>, home: Option<Arc<[u16]>>) -> anyhow::Result<()>;

    /// Replaces the directory of services, whole. Tables of services not listed are given up.
    ///
    /// # Errors
    /// When a service has no table, or there is no room; the old directory then stays.
    fn publish_services(&mut self, services: &[ServiceSpec]) -> anyhow::Result<()>;

    /// Declares everything written so far complete and permanent. Clients that can no longer be known since the last
    /// such call, because their service is gone, hashes differently or remembers for a shorter time, are to be
    /// forgotten by [`reread`](Self::reread).
    fn complete(&mut self);

    /// Looks at the next part of the client table, about a millisecond's work, for what was last said to be complete. Who
    /// publishes services before the end is not told of it.
    fn reread(&mut self) -> Reread;

    /// Goes on with the clients and counters that an earlier controller left for these backends and listeners, and with the rules that
    /// it left for services that are `ruled`. What it left for others is forgotten.
    ///
    /// # Errors
    /// When the kernel refuses to remove a rule.
    fn adopt(
        &mut self,
        backends: &[(BackendId, ServiceId)],
        listeners: &[ListenerId],
        ruled: &[ServiceId],
    ) -> anyhow::Result<()>;

    /// Keeps counters of a backend for the next controller.
    fn keep_backend_history(&self, id: BackendId, history: &BackendHistory);

    /// Keeps counters of a service for the next controller.
    fn keep_service_history(&self, id: ServiceId, history: &ServiceHistory);

    /// Makes `rules` the rules of a service, each replaced in one piece.
    ///
    /// # Errors
    /// When the kernel refuses a write; some of the rules may then be as they were.
    fn set_rules(&mut self, service: ServiceId, rules: &[RuleSpec]) -> anyhow::Result<()>;

    /// Has the clients of a list denied, beside what the rules of the service say: a prefix that a rule is for is the rule's,
    /// and the longest decides. That takes some [steps](Self::step_lists). The list that an earlier controller left for the
    /// service is gone on with.
    ///
    /// # Errors
    /// When there is no room.
    fn set_list(&mut self, denied: &DeniedBy) -> anyhow::Result<()>;

    /// Goes on with lists that were set, by about a millisecond's work; whether that was all.
    ///
    /// # Errors
    /// When the kernel refuses a write; the rest is still to be done.
    fn step_lists(&mut self) -> anyhow::Result<bool>;

    /// Drops a service's list at once, also one that an earlier controller left.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    fn drop_list(&mut self, service: ServiceId) -> anyhow::Result<()>;

    /// Drops the lists that an earlier controller left, but those of services that are `spared`.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    fn forget_left_lists(&mut self, spared: &HashSet<ServiceId>) -> anyhow::Result<()>;

    /// How many prefixes of the service's list are denied, and how many packets these were.
    fn denied(&self, service: ServiceId) -> (usize, u64);

    /// The counters of the rule for a prefix, summed over the CPUs; zero where there is none.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn rule_stats(&self, service: ServiceId, prefix: IpNet) -> anyhow::Result<RuleStats>;

    /// Packets of a service that a rule pinned to a backend that took no clients; those of rules that are gone included.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn rule_fallbacks(&self, service: ServiceId) -> anyhow::Result<u64>;

    /// A backend's counters, summed over the CPUs. They start at zero with each use of an id.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn backend_stats(&self, id: BackendId) -> anyhow::Result<BackendStats>;

    /// A listener's counters, summed over the CPUs. They start at zero where it becomes one of several of its service.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn listener_stats(&self, id: ListenerId) -> anyhow::Result<ListenerStats>;

    /// The interfaces the program is attached to.
    fn attached(&self) -> &[Attachment];

    /// An interface's counters, summed over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn interface_stats(&self, ifindex: u32) -> anyhow::Result<InterfaceStats>;

    /// Sets the clocks of client memory to `elapsed` since the data path was made, and goes on with the sweep of the client
    /// table: expired clients are forgotten, slots that have exceptions are flagged, and flags of those that have none any more
    /// are taken back. Another thread looks at the table meanwhile.
    fn sweep(&mut self, elapsed: Duration) -> Swept;

    /// Returns the remembered state of a client.
    fn client(&self, service: ServiceId, address: IpAddr) -> Option<KnownClient>;

    /// Every known client, to be looked at by another thread. `None`: no service remembers any.
    fn known_clients(&mut self) -> Option<KnownClients>;

    /// The client table.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn memory(&self) -> anyhow::Result<MemorySnapshot>;

    /// Forgets a client of a service, if it is known.
    fn forget(&mut self, service: ServiceId, address: IpAddr) -> Forgotten;

    /// Forgets the clients of a backend in the part of the client table that begins at `from` (0 at first). With it: where
    /// the next part begins, if there is one.
    fn forget_all(&mut self, backend: BackendId, from: usize) -> (Forgotten, Option<usize>);

    /// Counters of the packets that the program answered itself, and of what it did not remember, summed
    /// over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn reply_stats(&self) -> anyhow::Result<ReplyStats>;

    /// Frames that were redirected and not sent, by the index of the interface that they were to leave by.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn redirect_errors(&self) -> anyhow::Result<BTreeMap<u32, u64>>;

    /// Packets of a service that have passed to the host, which serves some of its clients.
    fn share_stats(&self, id: ServiceId) -> ShareStats;

    /// Packets of a service whose connection IDs were looked at, and addresses that were remembered because of them, summed over
    /// the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn quic_stats(&self, id: ServiceId) -> anyhow::Result<QuicStats>;

    /// Known clients that were moved from a backend because a connection that they brought from another address names another
    /// one.
    fn migrated(&self, id: BackendId) -> u64;

    /// A backend that packets had suspected was checked and works: resets of its own intent are not withheld any more.
    fn works(&self, id: BackendId);

    /// Resets of a backend that were withheld from clients since this data path was made.
    fn withheld(&self, id: BackendId) -> u64;

    /// Handshakes with a backend that have begun and that no client has ended.
    fn unanswered(&self, id: BackendId) -> Option<Unanswered>;

    /// Watches the handshakes of as many clients as there is time for, by what has come in until `elapsed`.
    fn watch_handshakes(&mut self, elapsed: Duration);

    /// The connections of `snat` services, to be looked at by another thread.
    fn flows(&self) -> Arc<FlowTable>;

    /// The counters of many backends, to be read by another thread.
    fn backend_counters(&self) -> Arc<BackendCounters>;

    /// Counters of dropped packets, summed over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    fn drop_stats(&self) -> anyhow::Result<DropStats>;
}
