//! What the privileged tests are made of: the demo's hosts, with clients, web servers and a controller in them, to be
//! measured; and packets for the kernel program alone.

pub use balancer_demo::{backend, controller, namespace, process, routing, topology, xdp};

pub mod asm;
pub mod binaries;
pub mod browser;
pub mod contest;
pub mod datagrams;
pub mod etcd;
pub mod failover;
pub mod far;
pub mod frame;
pub mod fuzz;
pub mod generate;
pub mod http_client;
pub mod metrics;
pub mod model;
pub mod prog_run;
pub mod rig;
pub mod sessions;
pub mod site;
pub mod stop;
pub mod transfer;
pub mod users;
pub mod variable;
pub mod world;
