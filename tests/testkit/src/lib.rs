//! Building blocks of the privileged tests and the benchmarks: the demo's hosts with clients, web servers and a
//! controller, and frames for tests of the kernel program alone.

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
