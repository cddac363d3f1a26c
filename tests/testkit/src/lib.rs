//! Building blocks of the privileged tests and of the benchmarks. Some run the demo's hosts with clients, web servers
//! and a controller; others build frames for tests of single packets.

pub use balancer_demo::{backend, controller, metrics, namespace, offload, process, routing, topology, xdp};

pub mod binaries;
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
pub mod prog_run;
pub mod rig;
pub mod site;
pub mod stop;
pub mod sweep;
pub mod transfer;
pub mod users;
pub mod variable;
