//! Bodies of `/v1/trace`.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// How long a request may wait for the next packet.
pub const MAX_WAIT: Duration = Duration::from_secs(3);
/// Bytes of a frame that are told, at least: less would not hold the headers that tell what a packet is.
pub const LEAST_SNAPLEN: u32 = 64;
/// Bytes of a frame that are told, at most: a jumbo frame.
pub const MOST_SNAPLEN: u32 = 9216;

/// `POST /v1/trace`: whose packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginTrace {
    /// Only packets of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only packets of this client, or of the clients in this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Bytes of each frame to keep.
    pub snaplen: u32,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceBegun {
    /// Names the trace.
    pub trace: u64,
}

/// `DELETE /v1/trace/{trace}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEnded {
    /// Frames that came too fast to be told.
    pub lost: u64,
}

/// `GET /v1/trace/{trace}`: packets, with what is known of the ways that they take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceView {
    /// In the order in which each CPU told of them.
    pub packets: Vec<TracedPacket>,
    /// Frames that came too fast to be told, since the beginning.
    pub lost: u64,
    /// How backends are reached at present.
    pub hops: Vec<HopView>,
    /// The interfaces of this network namespace.
    pub interfaces: Vec<InterfaceName>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceName {
    /// The index.
    pub ifindex: u32,
    /// The name.
    pub name: String,
}

/// How a backend is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopView {
    /// The backend's id.
    pub id: u16,
    /// The backend's address.
    pub address: IpAddr,
    /// The port that packets are given, if one is.
    pub port: Option<u16>,
    /// The interface that leads to it; absent: it cannot be reached, or is this machine.
    pub ifindex: Option<u32>,
    /// The hardware address that packets are sent to.
    pub mac: Option<String>,
    /// Whether clients may be at it; otherwise it is one that was removed.
    pub in_use: bool,
}

/// One packet, as it came and as it left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedPacket {
    /// When it came, in nanoseconds of the machine's monotonic clock.
    pub came: u64,
    /// When it left.
    pub left: u64,
    /// The interface that it came in by.
    pub ifindex: u32,
    /// The receive queue.
    pub queue: u32,
    /// The XDP action.
    pub action: u32,
    /// The length of the frame that came.
    pub came_length: u32,
    /// The length of the frame that left.
    pub left_length: u32,
    /// The frame as it came, or its beginning, in base64.
    pub came_frame: String,
    /// The frame as it left.
    pub left_frame: String,
    /// Why it was dropped, as in `balancer_drops_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<String>,
    /// The answer that the program gave itself: `echo`, `too_big` or `rejected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<String>,
    /// Changes to the client's entry: `recorded`, `evicted` (of another), `full`, `limited`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<String>,
    /// How the backend was chosen, as in `balancer_decisions_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// The id of the backend that counted the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<u16>,
    /// The id of the backend that the client was moved from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<u16>,
    /// Why it was moved, as in `balancer_moves_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}
