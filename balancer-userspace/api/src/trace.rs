//! Bodies of `/v1/trace`.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// How long a request may wait for the next packet.
pub const MAX_WAIT: Duration = Duration::from_secs(3);
/// The minimum number of bytes that a trace reports of each frame, which is enough for the headers that identify a
/// packet.
pub const LEAST_SNAPLEN: u32 = 64;
/// The maximum number of bytes that a trace reports of each frame: the length of a jumbo frame.
pub const MOST_SNAPLEN: u32 = 9216;

/// The body of `POST /v1/trace`: the packets to trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginTrace {
    /// Restricts the trace to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Restricts the trace to this client, or to all clients in this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The number of bytes to report of each frame.
    pub snaplen: u32,
}

/// The answer to `POST /v1/trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceBegun {
    /// The number of the trace.
    pub trace: u64,
}

/// The answer to `DELETE /v1/trace/{trace}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEnded {
    /// The number of frames that the trace lost, because frames arrived too fast.
    pub lost: u64,
}

/// The answer to `GET /v1/trace/{trace}`: traced packets, and the current paths to backends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceView {
    /// The packets. The packets of each CPU are in the order in which this CPU reported them.
    pub packets: Vec<TracedPacket>,
    /// The number of frames that the trace has lost since its start, because frames arrived too fast.
    pub lost: u64,
    /// The current paths to backends.
    pub hops: Vec<HopView>,
    /// The interfaces of this network namespace.
    pub interfaces: Vec<InterfaceName>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceName {
    /// The index of the interface.
    pub ifindex: u32,
    /// The name of the interface.
    pub name: String,
}

/// The path to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopView {
    /// The backend's id.
    pub id: u16,
    /// The backend's address.
    pub address: IpAddr,
    /// The destination port that packets get, if the program changes the port.
    pub port: Option<u16>,
    /// The egress interface; absent: the backend is unreachable, or the backend is this machine.
    pub ifindex: Option<u32>,
    /// The destination MAC address.
    pub mac: Option<String>,
    /// Whether the backend still exists; false for a removed backend, which has no clients.
    pub in_use: bool,
}

/// A packet as it arrived and as it departed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedPacket {
    /// Time of arrival, in nanoseconds of the machine's monotonic clock.
    pub came: u64,
    /// Time of departure, by the same clock.
    pub left: u64,
    /// The interface on which the packet arrived.
    pub ifindex: u32,
    /// The receive queue of the interface.
    pub queue: u32,
    /// The XDP action of the program.
    pub action: u32,
    /// Length of the arriving frame.
    pub came_length: u32,
    /// Length of the departing frame.
    pub left_length: u32,
    /// The arriving frame, or its beginning, in base64.
    pub came_frame: String,
    /// The departing frame, or its beginning, in base64.
    pub left_frame: String,
    /// The reason for dropping the packet, as in `balancer_drops_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<String>,
    /// The kind of packet with which the program itself answered: `echo`, `too_big` or `rejected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<String>,
    /// Changes to the client's entry in the client table: `recorded`, `evicted` (another client's entry), `full`,
    /// `limited`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<String>,
    /// The decision based on the packet's QUIC connection ID: `none` (the packet has no ID that a server has issued),
    /// `unknown` (the ID names no server), `gone` (the ID names a backend that takes no such packets), `named` (the ID
    /// names the backend), or `taught` (like `named`, and the program recorded the client's address at the backend).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<String>,
    /// The method by which the program chose the backend, as in `balancer_decisions_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// The id of the backend for which the program counted the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<u16>,
    /// The id of the backend that the client was moved from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<u16>,
    /// The cause of the move, as in `balancer_moves_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}
