//! Plans: the clients that a change would move.

use balancer_control::plan::{PlannedMove, PlannedService};
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
        /// Remove it without draining.
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
    /// Setting the share of steered clients.
    Steer {
        /// The service's name.
        service: String,
        /// The share in percent, 0–100.
        steer: u8,
    },
    /// Adding a listener.
    AddListener {
        /// The service's name.
        service: String,
        /// The listener, as in `listen` of a configuration file.
        listener: String,
    },
    /// Removing a listener.
    RemoveListener {
        /// The service's name.
        service: String,
        /// The listener, as in `listen` of a configuration file.
        listener: String,
    },
}

/// The planned effects on a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// The service's name.
    pub service: String,
    /// Number of slots before the change; of both tables together if the service has listeners of both families.
    #[serde(default)]
    pub table_size_before: u32,
    /// Number of slots after the change.
    pub table_size: u32,
    /// Slots of the live table, or of both, that would get another backend.
    pub slots_moved: u32,
    /// The number of slots that move between backends with unchanged shares.
    pub needless_slots_moved: u32,
    /// Known clients that would move at once. Each counts as moved when it returns.
    pub known_clients_moved: u64,
    /// Known clients that would stay with a draining backend until its deadline.
    pub known_clients_draining: u64,
    /// Known clients that would be forgotten, because hashing changes, the service is removed, or it remembers for a
    /// shorter time. Each counts as moved at once, under `forgotten`, unless the table sends it to the same backend, or
    /// no service takes over the address.
    #[serde(default)]
    pub known_clients_forgotten: u64,
    /// The reason for forgetting clients, if there is any.
    #[serde(default)]
    pub forgotten_because: Option<String>,
    /// The share of steered clients before the change, in percent.
    #[serde(default = "super::all")]
    pub steer_before: u8,
    /// The share of steered clients after the change, in percent.
    #[serde(default = "super::all")]
    pub steer: u8,
    /// Known clients that would start being steered.
    #[serde(default)]
    pub known_clients_taken_over: u64,
    /// Known clients that would return to the host.
    #[serde(default)]
    pub known_clients_sent_back: u64,
    /// Whether the service would be removed.
    #[serde(default)]
    pub removed: bool,
    /// Added listeners, such as `198.51.100.10:443/tcp`; empty for a removed service.
    #[serde(default)]
    pub listeners_added: Vec<String>,
    /// Removed listeners; empty for a removed service.
    #[serde(default)]
    pub listeners_removed: Vec<String>,
    /// The moves by old and new backend.
    pub moves: Vec<MoveView>,
}

/// Slots and clients with the same old and new backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveView {
    /// The backend that loses the slots and clients; `None`: they had no backend.
    pub from: Option<String>,
    /// The backend that gets the slots and clients; `None`: their packets would be dropped.
    pub to: Option<String>,
    /// Slots of the live table.
    pub slots: u32,
    /// Known clients.
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
