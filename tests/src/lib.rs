//! Hosts on one machine: network namespaces joined by veth pairs and a bridge, with clients, demo backends and a
//! controller in them, which the lab shows and the privileged tests measure; and packets for the kernel program alone.

pub mod asm;
pub mod backend;
pub mod binaries;
pub mod browser;
pub mod contest;
pub mod controller;
pub mod demo;
pub mod far;
pub mod frame;
pub mod generate;
pub mod http_client;
pub mod metrics;
pub mod model;
pub mod namespace;
pub mod process;
pub mod prog_run;
pub mod rig;
pub mod site;
pub mod topology;
pub mod transfer;
pub mod users;
pub mod world;
pub mod xdp;
