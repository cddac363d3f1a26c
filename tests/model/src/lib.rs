//! A second, independent description of how packets are handled; and random packets and scenes, for the kernel program
//! to be compared with it.

// The kernel program's parsing, compiled here: its crate brings functions such as `memcpy` for BPF, which return nothing and
// would take the place of the host's.
#[path = "../../../balancer-ebpf/src/connection_id.rs"]
pub mod connection_id;
#[path = "../../../balancer-ebpf/src/order.rs"]
mod order;
#[path = "../../../balancer-ebpf/src/packet.rs"]
pub mod packet;
#[path = "../../../balancer-ebpf/src/parse.rs"]
pub mod parse;

pub mod contest;
pub mod generate;
pub mod model;
pub mod parsing;
pub mod world;
