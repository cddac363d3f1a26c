//! The user-space side of the kernel program: no other code in user space accesses the maps.
//!
//! Begin with `kernel`, the data path of a running controller, and `kernel/start.rs`, which loads the program. `stickiness`,
//! `sweep` and `rescan` run concurrently with packets: swaps of tables, clocks, the pass after a change. `pins`, `kept` and
//! `attach` are about what outlives the controller; `flows` keeps the tables of `snat` connections.

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
mod default_hops;
mod denied;
mod devices;
mod direct;
mod flows;
mod former_clients;
mod grace;
mod growth;
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
mod mirrored;
mod network_namespace;
mod object;
pub mod offload;
mod peers;
mod pinned_link;
mod pins;
mod placement;
pub mod privileges;
mod programs;
mod quic;
mod redirects;
mod regions;
mod replaced;
mod reported;
mod rescan;
mod rows;
mod rule_filter;
mod rules;
mod scanner;
mod seen;
mod sharing;
mod signs;
#[cfg(test)]
mod site;
mod stickiness;
mod sweep;
mod tables;
pub mod telling;
mod threads;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use balancer_common::{
    features::Features,
    kept::{BackendHistory, ServiceHistory},
    map_types::{BackendStats, DropStats, InterfaceStats, ListenerStats, ReplyStats, RuleStats, ShareStats},
    quic::QuicStats,
};
use balancer_control::{
    io::{BackendId, BackendSpec, ListenerId, RuleSpec, ServiceId, ServiceSpec},
    room::Need,
    served::HandshakeCounts,
    snapshot::{MemorySnapshot, Unanswered},
};
use ipnet::IpNet;

pub use attach::{Attached, Attacher, Attachment, NotReplaced};
pub use backend_counters::BackendCounters;
pub use budgets::Budgets;
pub use capacity::Capacity;
pub use clients::KnownClients;
pub use decap::Decap;
pub use default_hops::{DefaultHops, coarse_now};
pub use denied::DeniedBy;
pub use devices::Devices;
pub use flows::{FlowCounts, FlowTable, KnownFlow};
pub use growth::{Growth, Larger};
pub use handshakes::{Begun, Handshakes};
pub use host_changes::{HostChanges, SwitchChange};
pub use kept::{Histories, Kept, NotesWriter};
pub use kernel::{HostEnds, KernelDataplane};
pub use layers::Layers;
pub use learning::{Learning, Learnt, Seen, Served};
pub use pins::{AllPins, Notes, Pins};
pub use sharing::ImportedClients;
pub use threads::Threads;

/// The compiled kernel program.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer-kernel"));

/// The remembered state of a known client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownClient {
    /// The backend to which the program last steered the client.
    pub backend: BackendId,
    /// The time since the client's last recorded packet, to the precision of a tick.
    pub last_seen: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The number of known clients that were forgotten.
    pub clients: u64,
    /// The number of forgotten clients that the live table now sends to another backend.
    pub moved: u64,
}

/// The progress of the work in the client table after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rescanned {
    /// For packets in progress, the program may still record clients by the earlier state; such packets are finished
    /// within milliseconds.
    Waits,
    /// More parts of the work remain.
    GoesOn,
    /// The work after the change is done. The value is the number of forgotten clients for each backend.
    Ends(Vec<(BackendId, Forgotten)>),
}

/// The progress of the sweep of the client table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swept {
    /// The sweep pauses, because a part is done or because the next pass must wait for packets in progress.
    Rests,
    /// A part of the sweep is in progress and continues shortly.
    GoesOn,
    /// A pass of the sweep is done. The value is the number of known clients of each backend, in ascending order of
    /// ids.
    Ends(Vec<(BackendId, u64)>),
}

/// The controller's operations on a data path; the kernel's maps and, for tests, a data path in memory implement these
/// operations.
pub trait Dataplane {
    /// Makes sure that the kernel program has `features`. As long as the program is attached nowhere, this function
    /// loads a richer program if necessary.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program, or if an attached program lacks a feature.
    fn require(&mut self, features: Features) -> anyhow::Result<()>;

    /// The maps that must grow before the services can need this room; `None`: the maps have room.
    fn growth(&self, need: &Need) -> Option<Growth>;

    /// Makes sure that the maps have this room. As long as the program is attached nowhere, this function makes larger
    /// maps if necessary.
    ///
    /// # Errors
    /// Fails if the kernel refuses a map, or if the maps of an attached program lack the room.
    fn make_room(&mut self, need: &Need) -> anyhow::Result<()>;

    /// Copies the contents of the maps that grow to larger maps, and writes to both from now on.
    ///
    /// # Errors
    /// Fails if the kernel refuses to map a map into memory, or if another growth is in progress.
    fn begin_growth(&mut self, larger: Larger) -> anyhow::Result<()>;

    /// Ends the growth in progress. `is_used` says whether the program with the larger maps, and no other, is attached;
    /// otherwise, the program with the larger maps is attached nowhere.
    fn end_growth(&mut self, is_used: bool);

    /// Writes the row of a backend.
    ///
    /// # Errors
    /// Fails if the kernel refuses the write; the row is then unchanged.
    fn write_backend(&mut self, backend: &BackendSpec) -> anyhow::Result<()>;

    /// Clears the row of a backend that no table names any more.
    ///
    /// # Errors
    /// Fails if the kernel refuses the write.
    fn retire_backend(&mut self, id: BackendId) -> anyhow::Result<()>;

    /// Replaces a service's whole live table: for each packet, the program sees either the old table or the new table.
    ///
    /// # Errors
    /// Fails if the map has no room for the table; in this case, the old table stays in use.
    fn swap_table(&mut self, service: ServiceId, table: Arc<[u16]>, home: Option<Arc<[u16]>>) -> anyhow::Result<()>;

    /// Replaces the whole directory of services in one step. The tables of services that are not listed are discarded.
    ///
    /// # Errors
    /// Fails if a service has no table, or if the maps have no room; in this case, the old directory stays in use.
    fn publish_services(&mut self, services: &[ServiceSpec]) -> anyhow::Result<()>;

    /// Gives back the lines of lookup tables that a failed change has written for services that are not published.
    fn abandon(&mut self);

    /// Declares that all changes written so far are complete and permanent. Since the last such call, a service may
    /// have been removed, may hash differently, or may remember clients for a shorter time; [`rescan`](Self::rescan)
    /// then forgets the clients that the service no longer knows.
    fn complete(&mut self);

    /// Processes the next part of the client table after the last [`complete`](Self::complete), about a millisecond of
    /// work. If the caller publishes services before the last part is done, the caller does not get the result.
    fn rescan(&mut self) -> Rescanned;

    /// Continues to use the clients and counters that an earlier controller has left for these backends and listeners,
    /// and its rules for services that are `ruled`. Forgets all other data that the earlier controller has left.
    ///
    /// # Errors
    /// Fails if the kernel refuses to remove a rule.
    fn adopt(
        &mut self,
        backends: &[(BackendId, ServiceId)],
        listeners: &[ListenerId],
        ruled: &[ServiceId],
    ) -> anyhow::Result<()>;

    /// Stores the counters of a backend for the next controller.
    fn keep_backend_history(&self, id: BackendId, history: &BackendHistory);

    /// Stores the counters of a service for the next controller.
    fn keep_service_history(&self, id: ServiceId, history: &ServiceHistory);

    /// Replaces the rules of a service by `rules`; each single rule changes in one step.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write; some rules may then be unchanged.
    fn set_rules(&mut self, service: ServiceId, rules: &[RuleSpec]) -> anyhow::Result<()>;

    /// Sets a deny list in addition to the service's rules: a rule for the same prefix takes precedence; otherwise the
    /// longest prefix decides. Writing the list takes several [steps](Self::step_lists). If an earlier controller has
    /// left a list for the service, this list is updated.
    ///
    /// # Errors
    /// Fails if the map has no room for the list.
    fn set_list(&mut self, denied: &DeniedBy) -> anyhow::Result<()>;

    /// Continues to write deny lists, for about a millisecond. Returns whether all lists are completely written.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write; a later call repeats the remaining work.
    fn step_lists(&mut self) -> anyhow::Result<bool>;

    /// Removes the deny list of a service in one call, even if an earlier controller has left the list.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    fn drop_list(&mut self, service: ServiceId) -> anyhow::Result<()>;

    /// Removes the deny lists that an earlier controller has left, except the lists of services that are `spared`.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    fn forget_left_lists(&mut self, spared: &HashSet<ServiceId>) -> anyhow::Result<()>;

    /// The number of prefixes in the service's deny list, and the number of packets that the list has denied.
    fn denied(&self, service: ServiceId) -> (usize, u64);

    /// The counters of the rule for a prefix, added up over the CPUs; zero if there is no such rule.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn rule_stats(&self, service: ServiceId, prefix: IpNet) -> anyhow::Result<RuleStats>;

    /// The number of packets that rules of a service, including removed rules, pinned to backends which took no
    /// clients.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn rule_fallbacks(&self, service: ServiceId) -> anyhow::Result<u64>;

    /// The counters of a backend, added up over the CPUs. The counters start from zero each time a new backend gets the
    /// id.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn backend_stats(&self, id: BackendId) -> anyhow::Result<BackendStats>;

    /// The counters of a listener, added up over the CPUs. The counters start from zero when the listener's service
    /// changes from one listener to several.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn listener_stats(&self, id: ListenerId) -> anyhow::Result<ListenerStats>;

    /// The interfaces to which the program is attached.
    fn attached(&self) -> &[Attachment];

    /// The counters of an interface, added up over the CPUs.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn interface_stats(&self, ifindex: u32) -> anyhow::Result<InterfaceStats>;

    /// Sets the clocks of client memory to `elapsed`, the time since the data path was made, and continues the sweep of
    /// the client table. The sweep forgets expired clients, sets the flags of slots with exceptions, and clears the
    /// flags of slots without exceptions. A separate thread scans the client table.
    fn sweep(&mut self, elapsed: Duration) -> Swept;

    /// Returns the remembered state of a client.
    fn client(&self, service: ServiceId, address: IpAddr) -> Option<KnownClient>;

    /// All known clients, in a form that another thread can read. `None`: no service remembers clients.
    fn known_clients(&mut self) -> Option<KnownClients>;

    /// The state of the client table.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn memory(&self) -> anyhow::Result<MemorySnapshot>;

    /// Forgets a client of a service if the client is known.
    fn forget(&mut self, service: ServiceId, address: IpAddr) -> Forgotten;

    /// Forgets the clients of a backend in the part of the client table that begins at `from` (0 at first). The
    /// function also returns the start of the next part, if there is a next part.
    fn forget_all(&mut self, backend: BackendId, from: usize) -> (Forgotten, Option<usize>);

    /// Counters, added up over the CPUs: packets that the program answered itself, and fragments that it did not
    /// remember.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn reply_stats(&self) -> anyhow::Result<ReplyStats>;

    /// The numbers of frames that were redirected but not sent, by the index of the egress interface.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn redirect_errors(&self) -> anyhow::Result<BTreeMap<u32, u64>>;

    /// The counters of a service's packets that passed to the host, which serves some of the service's clients.
    fn share_stats(&self, id: ServiceId) -> ShareStats;

    /// The QUIC counters of a service, added up over the CPUs: packets whose connection IDs were read, and addresses
    /// recorded because of these IDs.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn quic_stats(&self, id: ServiceId) -> anyhow::Result<QuicStats>;

    /// The number of known clients that left a backend because a connection that they moved to a new address names
    /// another backend.
    fn migrated(&self, id: BackendId) -> u64;

    /// Records that a check found a suspected backend working, so that the backend refuses connections on purpose and
    /// the program no longer withholds its resets.
    fn works(&self, id: BackendId);

    /// Records that a check of a suspected backend has failed, or that the backend works again afterwards. Its resets then
    /// do not refuse connections on purpose, whatever they did before, and the program withholds the next ones.
    fn withhold_again(&self, id: BackendId);

    /// The number of a backend's resets withheld from clients since this data path was made.
    fn withheld(&self, id: BackendId) -> u64;

    /// The unfinished handshakes with a backend.
    fn unanswered(&self, id: BackendId) -> Option<Unanswered>;

    /// The interface of a backend's next hop; `None` for a backend that is this machine, or that has no next hop.
    fn egress(&self, id: BackendId) -> Option<u32>;

    /// The interfaces of backends' next hops from beyond which packets certainly arrive where the program is not
    /// attached.
    fn missed(&self) -> BTreeSet<u32>;

    /// The numbers of watched handshakes whose outcome has become known since the last call, for the backends in `ids`
    /// with such handshakes.
    fn handshakes(&mut self, ids: &[BackendId]) -> BTreeMap<BackendId, HandshakeCounts>;

    /// Computes from the traffic until `elapsed` how many clients' handshakes the program watches, and sets this
    /// number.
    fn watch_handshakes(&mut self, elapsed: Duration);

    /// The connections of `snat` services, in a form that another thread can read.
    fn flows(&self) -> Arc<FlowTable>;

    /// The counters of many backends, in a form that another thread can read.
    fn backend_counters(&self) -> Arc<BackendCounters>;

    /// The counters of dropped packets, added up over the CPUs.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn drop_stats(&self) -> anyhow::Result<DropStats>;
}
