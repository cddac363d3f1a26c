//! The kernel program against its model and beneath the controller's core, in one process: no hosts, no network.

mod changing_keys;
mod contention;
mod corpora;
mod known_clients;
mod late_cpus;
mod many_backends;
mod map_memory;
mod memory;
mod model;
mod plan;
mod rereading;
mod samples;
mod sharing;
mod swaps;
mod verifier;
