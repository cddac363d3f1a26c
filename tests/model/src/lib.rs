//! A second, independent implementation of packet handling, and random packets and scenes, for comparisons with the
//! kernel program.
//!
//! Begin with `model`, the expected result of a packet; `generate` makes random packets and scenes, `contest` plays them
//! against the kernel program, and `world` runs core and kernel program in one process.

// The kernel program's parser, compiled into this crate. The kernel program's own crate exports functions such as
// `memcpy` for BPF, which would replace the host's functions.
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
