//! Building blocks of the privileged tests and of the benchmarks. Some run the demo's hosts with clients, web servers
//! and a controller; others build frames for tests of single packets.
//!
//! Begin with `rig` (single packets), `site` (a whole site) and `users` (clients that must not move); `faults` breaks disks
//! and clocks.

pub use balancer_demo::{backend, controller, metrics, namespace, offload, process, routing, topology, xdp};

pub mod binaries;
pub mod bpf_map;
pub mod browser;
pub mod datagrams;
pub mod etcd;
pub mod far;
pub mod faults;
pub mod frame;
pub mod http_client;
pub mod kubernetes;
pub mod machine;
pub mod outcome;
pub mod pace;
pub mod prog_run;
pub mod rig;
pub mod site;
pub mod stop;
pub mod sweep;
pub mod transfer;
pub mod users;
pub mod variable;
