//! This machine and its network, mostly through netlink: links, routes, neighbours and next hops; and the balancer's
//! changes to the machine: attachments of the program, addresses with their announcements, and switches.

pub mod decap;
pub mod interfaces;
mod layers;
pub mod machine;
pub mod neighbours;
pub mod reply_interfaces;
pub mod sides;
pub mod xdp_features;
