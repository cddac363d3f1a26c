//! The state of the balancer as a whole.

use std::{collections::BTreeMap, net::IpAddr};

use balancer_control::{fleet::FleetSnapshot, readiness::Readiness, run_time::RunTimeChange};
use serde::{Deserialize, Serialize};

use super::services::ServiceView;

/// The body of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView<Services = Vec<ServiceView>> {
    /// The interfaces to which the program is attached.
    pub interfaces: Vec<InterfaceView>,
    /// The number of frames that were redirected but not sent, by target interface.
    #[serde(default)]
    pub redirect_errors: BTreeMap<String, u64>,
    /// The services in the order of the configuration.
    pub services: Services,
    /// The number of changes by users; restarts do not reset it.
    pub generation: u64,
    /// The differences between the services and the configuration file.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// Whether the balancer is fit to receive clients.
    #[serde(default)]
    pub ready: Readiness,
    /// Whether the operator has withdrawn the balancer's VIPs.
    #[serde(default)]
    pub withdrawn: bool,
    /// The VIPs that the balancer has assigned to its machine.
    #[serde(default)]
    pub vips: Vec<VipView>,
    /// The fleet that the balancer belongs to; `None` if the balancer belongs to no fleet.
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
    /// The number of known clients for which the client table is sized.
    pub capacity: u64,
    /// The number of known clients at the last sweep of the client table.
    pub entries: u64,
    /// The number of clients that the program forgot to make room for new clients.
    pub evictions: u64,
    /// The number of new clients that the program did not record because the client table was full.
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
    /// The name of the interface that has the VIP.
    pub name: String,
    /// An interface to which the program is attached.
    pub ifindex: u32,
    /// The XDP mode in use: `native` or `generic`.
    pub xdp_mode: String,
    /// The number of packets that the program saw, by verdict.
    pub packets_seen: Verdicts,
}

/// Packets by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Packets that the program sent out of the interface on which they had arrived.
    pub tx: u64,
    /// Packets that the program sent out of another interface.
    pub redirect: u64,
    /// Packets that the program passed unchanged to the kernel.
    pub pass: u64,
    /// Packets that the program dropped.
    pub drop: u64,
    /// Packets that the program failed to process.
    pub aborted: u64,
    /// Packets that the program rewrote and passed to the kernel for sending.
    pub handed: u64,
    /// Packets that the program passed to this machine, because it is the backend.
    #[serde(default)]
    pub local: u64,
}
