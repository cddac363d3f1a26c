//! Tests of the kernel program in one process, without hosts and network: against the model, and together with the
//! controller's core.

mod changing_keys;
mod contention;
mod corpora;
mod features;
mod growth;
mod known_clients;
mod late_cpus;
mod many_backends;
mod map_memory;
mod memory;
mod model;
mod plan;
mod rescan;
mod samples;
mod scene;
mod sharing;
mod swaps;
mod verifier;
