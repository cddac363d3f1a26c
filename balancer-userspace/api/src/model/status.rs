//! The state of the balancer as a whole.

use std::{collections::BTreeMap, net::IpAddr};

use balancer_control::{fleet::FleetSnapshot, readiness::Readiness, run_time::RunTimeChange};
use serde::{Deserialize, Serialize};

use super::services::ServiceView;

/// The body of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView<Services = Vec<ServiceView>> {
    /// Attached interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Frames that were redirected but not sent, by target interface.
    #[serde(default)]
    pub redirect_errors: BTreeMap<String, u64>,
    /// Services in configuration order.
    pub services: Services,
    /// The number of changes by users, across restarts.
    pub generation: u64,
    /// The differences between services and the configuration file.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// Whether the balancer is fit to receive clients.
    #[serde(default)]
    pub ready: Readiness,
    /// Whether the operator has withdrawn its VIPs.
    #[serde(default)]
    pub withdrawn: bool,
    /// The VIPs that the balancer has assigned to its machine.
    #[serde(default)]
    pub vips: Vec<VipView>,
    /// The fleet that the balancer belongs to; `None`: none.
    #[serde(default)]
    pub fleet: Option<FleetSnapshot>,
    /// The client table and its fill level.
    #[serde(default)]
    pub client_table: ClientTableView,
    /// The table of `snat` connections; absent: no service was `snat` when the balancer started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_table: Option<FlowTableView>,
    /// Dropped packets, by reason; reasons without packets are left out.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// The client table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTableView {
    /// The number of known clients that the table is sized for.
    pub capacity: u64,
    /// Known clients at the last sweep.
    pub entries: u64,
    /// Clients that were forgotten to make room for others.
    pub evictions: u64,
    /// Newcomers that found no room.
    pub unrecorded: u64,
}

/// The table of `snat` connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowTableView {
    /// The number of connections that the table is sized for.
    pub capacity: u64,
    /// Connections, and ports that rest after a connection.
    pub entries: u64,
    /// Backends for which at least 80% of the ports of the pool are taken, with the taken fraction.
    #[serde(default)]
    pub full_pools: BTreeMap<String, f64>,
}

/// A VIP that the balancer has assigned to the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipView {
    /// The address.
    pub address: IpAddr,
    /// The name of the interface with the VIP.
    pub interface: String,
}

/// An attached interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// The name of the interface.
    pub name: String,
    /// The index of the interface.
    pub ifindex: u32,
    /// The real XDP mode: `native` or `generic`.
    pub xdp_mode: String,
    /// Packets seen, by verdict.
    pub packets_seen: Verdicts,
}

/// Packets by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Packets sent by the interface on which they arrived.
    pub tx: u64,
    /// Sent by another interface.
    pub redirect: u64,
    /// Passed to the kernel unchanged.
    pub pass: u64,
    /// Dropped.
    pub drop: u64,
    /// The program failed.
    pub aborted: u64,
    /// Rewritten and handed to the kernel for sending.
    pub handed: u64,
    /// Passed to this machine, which is the backend.
    #[serde(default)]
    pub local: u64,
}
