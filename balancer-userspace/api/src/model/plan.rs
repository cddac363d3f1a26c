//! Plans, which show the clients that a change would move.

use balancer_control::plan::{ComingClients, PlannedMove, PlannedService};
use serde::{Deserialize, Serialize};

use super::changes::{AddBackend, SetAdmin, SetLimits};

/// The body of `POST /v1/plan`: a change to be planned but not made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum PlanRequest {
    /// Adding a backend.
    Add {
        /// The service's name.
        service: String,
        /// The backend.
        backend: AddBackend,
    },
    /// Removing a backend.
    Remove {
        /// The service's name.
        service: String,
        /// The backend's name.
        name: String,
        /// Whether the controller removes the backend without draining it first.
        #[serde(default)]
        force: bool,
    },
    /// Setting a backend's administrative state.
    Admin {
        /// The service's name.
        service: String,
        /// The backend's name.
        name: String,
        /// The new state.
        admin: SetAdmin,
    },
    /// Setting a backend's weight.
    Weight {
        /// The service's name.
        service: String,
        /// The backend's name.
        name: String,
        /// The weight, 0–65535.
        weight: u16,
    },
    /// Setting a backend's limits.
    Limit {
        /// The service's name.
        service: String,
        /// The backend's name.
        name: String,
        /// The limits.
        limits: SetLimits,
    },
    /// Setting the percentage of steered clients.
    Steer {
        /// The service's name.
        service: String,
        /// The percentage of the service's clients that the balancer would steer, 0–100.
        steer: u8,
        /// Whether the balancer plans the change even if it knows that the clients would not be served.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Adding a listener.
    AddListener {
        /// The service's name.
        service: String,
        /// The listener in the format of `listen` in a configuration file.
        listener: String,
    },
    /// Removing a listener.
    RemoveListener {
        /// The service's name.
        service: String,
        /// The listener in the format of `listen` in a configuration file.
        listener: String,
    },
}

/// Known clients that the balancer would start to steer, by how their backends are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComingView {
    /// The number of clients that the balancer has steered within the last hour.
    pub served: u64,
    /// The number of clients whose backends were imported since the controller started.
    pub imported: u64,
    /// The number of clients that the balancer has only watched: their backends are those of the lookup table, and the
    /// host may serve them at others.
    pub guessed: u64,
}

impl From<ComingClients> for ComingView {
    fn from(coming: ComingClients) -> Self {
        let ComingClients { served, reported, guessed } = coming;
        Self { served, imported: reported, guessed }
    }
}

/// The effects that a change would have on a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// The service's name.
    pub service: String,
    /// The number of slots before the change; the sum over both lookup tables if the service has listeners of both
    /// address families.
    #[serde(default)]
    pub table_size_before: u32,
    /// The number of slots after the change.
    pub table_size: u32,
    /// The number of slots that would get another backend, in the one or two live lookup tables of the service.
    pub slots_moved: u32,
    /// The number of slots that move between backends with unchanged shares.
    pub needless_slots_moved: u32,
    /// The number of known clients that would move at once. The balancer counts each of these clients as moved when the
    /// client's next packet arrives.
    pub known_clients_moved: u64,
    /// The number of known clients that would stay with a draining backend until the drain's deadline.
    pub known_clients_draining: u64,
    /// The number of known clients that would be forgotten, because hashing changes, the service is removed, or the
    /// service remembers clients for a shorter time. The balancer counts each of these clients as moved at once, with
    /// the cause `forgotten`. The balancer does not count clients that the lookup table sends to the same backend, nor
    /// clients of an address that no service takes over.
    #[serde(default)]
    pub known_clients_forgotten: u64,
    /// The reason why clients would be forgotten, if any are.
    #[serde(default)]
    pub forgotten_because: Option<String>,
    /// The percentage of steered clients before the change.
    #[serde(default = "super::all")]
    pub steer_before: u8,
    /// The percentage of steered clients after the change.
    #[serde(default = "super::all")]
    pub steer: u8,
    /// The number of known clients that the balancer would start to steer.
    #[serde(default)]
    pub known_clients_taken_over: u64,
    /// The clients that the balancer would start to steer, by how their backends are known; absent: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coming: Option<ComingView>,
    /// The number of known clients that the host would serve again.
    #[serde(default)]
    pub known_clients_sent_back: u64,
    /// Whether the service would be removed.
    #[serde(default)]
    pub removed: bool,
    /// The listeners that the change would add, such as `198.51.100.10:443/tcp`; empty for a removed service.
    #[serde(default)]
    pub listeners_added: Vec<String>,
    /// The listeners that the change would remove; empty for a removed service.
    #[serde(default)]
    pub listeners_removed: Vec<String>,
    /// The moved slots and clients, grouped by old and new backend.
    pub moves: Vec<MoveView>,
}

/// The slots and clients that move from one backend to one other backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveView {
    /// The backend that loses the slots and clients; `None` if the slots and clients had no backend.
    pub from: Option<String>,
    /// The backend that gets the slots and clients; `None` if the program would drop the clients' packets.
    pub to: Option<String>,
    /// The number of moved slots of the live lookup table.
    pub slots: u32,
    /// The number of moved known clients.
    pub clients: u64,
}

impl From<PlannedService> for PlanView {
    fn from(planned: PlannedService) -> Self {
        Self {
            service: planned.service,
            table_size_before: planned.table_size_before,
            table_size: planned.table_size,
            slots_moved: planned.slots_moved,
            needless_slots_moved: planned.needless_slots_moved,
            known_clients_moved: planned.known_clients_moved,
            known_clients_draining: planned.known_clients_draining,
            known_clients_forgotten: planned.known_clients_forgotten,
            forgotten_because: planned.forgotten_because.map(str::to_owned),
            steer_before: planned.steer[0],
            steer: planned.steer[1],
            known_clients_taken_over: planned.known_clients_taken_over,
            coming: (planned.known_clients_taken_over > 0).then(|| planned.coming.into()),
            known_clients_sent_back: planned.known_clients_sent_back,
            removed: planned.removed,
            listeners_added: planned.listeners_added.iter().map(ToString::to_string).collect(),
            listeners_removed: planned.listeners_removed.iter().map(ToString::to_string).collect(),
            moves: planned.moves.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<PlannedMove> for MoveView {
    fn from(PlannedMove { from, to, slots, clients }: PlannedMove) -> Self {
        Self { from, to, slots, clients }
    }
}
