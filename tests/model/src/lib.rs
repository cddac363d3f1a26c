//! A second, independent description of packet handling, and random packets and scenes, for comparisons with the kernel
//! program.

// The kernel program's parser, compiled here. Its crate has functions such as `memcpy` for BPF, which return nothing
// and would replace the host's.
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
