//! The kernel's side of the controller: no other code in user space accesses the maps.

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
mod former_clients;
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
mod rescan;
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
use balancer_control::{
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

/// The state of a known client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownClient {
    /// The backend to which it was last steered.
    pub backend: BackendId,
    /// Time since its last recorded packet, to the precision of a tick.
    pub last_seen: Duration,
}

/// Clients that were forgotten on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Number of known clients among them.
    pub clients: u64,
    /// Number of these clients that the live table now sends to another backend.
    pub moved: u64,
}

/// Progress of the work that a change leaves in the client table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rescanned {
    /// Packets in progress may still record clients by the earlier state; they end within milliseconds.
    Waits,
    /// More parts are left.
    GoesOn,
    /// The work is done. The value is the number of forgotten clients by backend.
    Ends(Vec<(BackendId, Forgotten)>),
}

/// Progress of the sweep of the client table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swept {
    /// The sweep pauses: a part is done, or the next pass must wait for packets in progress.
    Rests,
    /// A part is in progress and continues shortly.
    GoesOn,
    /// A pass is done. The value is the number of known clients of each backend, in rising order of ids.
    Ends(Vec<(BackendId, u64)>),
}

/// The controller's operations on a data path, implemented by the kernel's maps and, for tests, in memory.
pub trait Dataplane {
    /// Writes a backend's row.
    ///
    /// # Errors
    /// If the kernel refuses the write; the row is then unchanged.
    fn write_backend(&mut self, backend: &BackendSpec) -> anyhow::Result<()>;

    /// Clears the row of a backend that no table names any more.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    fn retire_backend(&mut self, id: BackendId) -> anyhow::Result<()>;

    /// Replaces a service's whole live table: each packet sees either the old table or the new one.
    ///
    /// # Errors
    /// If there is no room for the table; the old table then stays.
    fn swap_table(&mut self, service: ServiceId, table: Arc<[u16]>, home: Option<Arc<[u16]>>) -> anyhow::Result<()>;

    /// Replaces the whole directory of services. Tables of services not listed are discarded.
    ///
    /// # Errors
    /// If a service has no table, or there is no room; the old directory then stays in use.
    fn publish_services(&mut self, services: &[ServiceSpec]) -> anyhow::Result<()>;

    /// Declares everything written so far complete and permanent. Since the last such call, a service may have been
    /// removed, may hash differently, or may remember clients for a shorter time; [`rescan`](Self::rescan) then forgets
    /// the clients that such a service no longer knows.
    fn complete(&mut self);

    /// Processes the next part of the client table after the last [`complete`](Self::complete), about a millisecond of
    /// work. If the caller publishes services before the last part, it does not get the result.
    fn rescan(&mut self) -> Rescanned;

    /// Continues with the clients and counters that an earlier controller left for these backends and listeners, and
    /// with its rules for services that are `ruled`. Forgets everything else that the earlier controller left.
    ///
    /// # Errors
    /// If the kernel refuses to remove a rule.
    fn adopt(
        &mut self,
        backends: &[(BackendId, ServiceId)],
        listeners: &[ListenerId],
        ruled: &[ServiceId],
    ) -> anyhow::Result<()>;

    /// Stores counters of a backend for the next controller.
    fn keep_backend_history(&self, id: BackendId, history: &BackendHistory);

    /// Stores counters of a service for the next controller.
    fn keep_service_history(&self, id: ServiceId, history: &ServiceHistory);

    /// Replaces the rules of a service by `rules`, each rule in one step.
    ///
    /// # Errors
    /// If the kernel refuses a write; some rules may then be unchanged.
    fn set_rules(&mut self, service: ServiceId, rules: &[RuleSpec]) -> anyhow::Result<()>;

    /// Sets a deny list beside the service's rules: a rule for the same prefix takes precedence; otherwise the longest
    /// prefix decides. Writing the list takes several [steps](Self::step_lists). A list that an earlier controller left
    /// for the service is updated.
    ///
    /// # Errors
    /// If there is no room.
    fn set_list(&mut self, denied: &DeniedBy) -> anyhow::Result<()>;

    /// Continues writing lists, for about a millisecond. Returns whether all lists are complete.
    ///
    /// # Errors
    /// If the kernel refuses a write; the remaining work is still to be done.
    fn step_lists(&mut self) -> anyhow::Result<bool>;

    /// Removes a service's list at once, including one that an earlier controller left.
    ///
    /// # Errors
    /// If the kernel refuses a write.
    fn drop_list(&mut self, service: ServiceId) -> anyhow::Result<()>;

    /// Removes the lists that an earlier controller left, except those of services that are `spared`.
    ///
    /// # Errors
    /// If the kernel refuses a write.
    fn forget_left_lists(&mut self, spared: &HashSet<ServiceId>) -> anyhow::Result<()>;

    /// The number of denied prefixes in the service's list, and the number of packets that they denied.
    fn denied(&self, service: ServiceId) -> (usize, u64);

    /// The counters of the rule for a prefix, summed over the CPUs; zero if there is no such rule.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn rule_stats(&self, service: ServiceId, prefix: IpNet) -> anyhow::Result<RuleStats>;

    /// Packets of a service that a rule pinned to a backend that took no clients, including those of removed rules.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn rule_fallbacks(&self, service: ServiceId) -> anyhow::Result<u64>;

    /// A backend's counters, summed over the CPUs. They start at zero with each use of an id.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn backend_stats(&self, id: BackendId) -> anyhow::Result<BackendStats>;

    /// A listener's counters, summed over the CPUs. They start at zero when the listener becomes one of several in its
    /// service.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn listener_stats(&self, id: ListenerId) -> anyhow::Result<ListenerStats>;

    /// The interfaces the program is attached to.
    fn attached(&self) -> &[Attachment];

    /// An interface's counters, summed over the CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn interface_stats(&self, ifindex: u32) -> anyhow::Result<InterfaceStats>;

    /// Sets the clocks of client memory to `elapsed` since the data path was made, and continues the sweep of the
    /// client table: it forgets expired clients, flags slots with exceptions, and clears the flags of slots without
    /// exceptions. Another thread scans the table.
    fn sweep(&mut self, elapsed: Duration) -> Swept;

    /// Returns the remembered state of a client.
    fn client(&self, service: ServiceId, address: IpAddr) -> Option<KnownClient>;

    /// Every known client, for another thread. `None`: no service remembers clients.
    fn known_clients(&mut self) -> Option<KnownClients>;

    /// The state of the client table.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn memory(&self) -> anyhow::Result<MemorySnapshot>;

    /// Forgets a client of a service if it is known.
    fn forget(&mut self, service: ServiceId, address: IpAddr) -> Forgotten;

    /// Forgets the clients of a backend in the part of the client table that begins at `from` (0 at first). Also
    /// returns the start of the next part, if there is one.
    fn forget_all(&mut self, backend: BackendId, from: usize) -> (Forgotten, Option<usize>);

    /// Counters of packets that the program answered itself and of fragments that it did not remember, summed over the
    /// CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn reply_stats(&self) -> anyhow::Result<ReplyStats>;

    /// Frames that were redirected but not sent, by the index of the target interface.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn redirect_errors(&self) -> anyhow::Result<BTreeMap<u32, u64>>;

    /// Packets of a service that passed to the host, which serves some of its clients.
    fn share_stats(&self, id: ServiceId) -> ShareStats;

    /// Packets whose connection IDs were read, and addresses recorded because of them, for a service, summed over the
    /// CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn quic_stats(&self, id: ServiceId) -> anyhow::Result<QuicStats>;

    /// Known clients that left a backend because a connection that they moved to a new address names another backend.
    fn migrated(&self, id: BackendId) -> u64;

    /// Records that a suspected backend was checked and works, so that its resets, which are intended, are no longer
    /// withheld.
    fn works(&self, id: BackendId);

    /// Resets of a backend withheld from clients since this data path was made.
    fn withheld(&self, id: BackendId) -> u64;

    /// Unfinished handshakes with a backend.
    fn unanswered(&self, id: BackendId) -> Option<Unanswered>;

    /// Uses the traffic until `elapsed` to set how many clients' handshakes the program watches.
    fn watch_handshakes(&mut self, elapsed: Duration);

    /// The connections of `snat` services, for another thread.
    fn flows(&self) -> Arc<FlowTable>;

    /// The counters of many backends, for another thread.
    fn backend_counters(&self) -> Arc<BackendCounters>;

    /// Counters of dropped packets, summed over the CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    fn drop_stats(&self) -> anyhow::Result<DropStats>;
}
