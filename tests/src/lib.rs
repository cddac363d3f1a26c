//! What the privileged tests are made of: the demo's hosts, with clients, web servers and a controller in them, to be
//! measured; and packets for the kernel program alone.

pub use balancer_demo::{backend, controller, metrics, namespace, process, routing, topology, xdp};

// The kernel program's parsing, compiled here: its crate brings functions such as `memcpy` for BPF, which return nothing and
// would take the place of the host's.
#[path = "../../balancer-ebpf/src/order.rs"]
mod order;
#[path = "../../balancer-ebpf/src/packet.rs"]
pub mod packet;
#[path = "../../balancer-ebpf/src/parse.rs"]
pub mod parse;

pub mod asm;
pub mod binaries;
pub mod browser;
pub mod classics;
pub mod contest;
pub mod datagrams;
pub mod etcd;
pub mod failover;
pub mod far;
pub mod faults;
pub mod figures;
pub mod frame;
pub mod fuzz;
pub mod generate;
pub mod http_client;
pub mod machine;
pub mod model;
pub mod outcome;
pub mod processor_time;
pub mod prog_run;
pub mod report;
pub mod rig;
pub mod site;
pub mod stop;
pub mod transfer;
pub mod users;
pub mod variable;
pub mod world;
