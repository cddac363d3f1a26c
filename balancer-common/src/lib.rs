//! The code that the kernel program and the controller share: map layouts, client hashes, checksum arithmetic,
//! verdicts.
//!
//! This crate defines once everything that the kernel program and the controller must agree on; its code does no I/O
//! and is tested on the host.
//!
//! Begin with `map_types`, the layout of every map, and `verdict`, the outcomes of a packet. `client` (hash to slot),
//! `client_table` and `memory` (entries and their replacement), `seen` (periods) and `share` decide which client goes
//! where; `flows/life.rs` is the life of a `snat` connection, `direct` tells connections to a server on this machine apart, `quic` reads connection IDs that name servers, and `signs`
//! finds packets that show a backend's health.

#![cfg_attr(not(test), no_std)]

pub mod aes;
pub mod checksum;
pub mod client;
pub mod client_table;
pub mod clock;
pub mod direct;
pub mod features;
pub mod flows;
pub mod handover;
pub mod kept;
pub mod map_types;
pub mod memory;
pub mod query;
pub mod quic;
pub mod rule_filter;
pub mod seen;
pub mod service_table;
pub mod share;
pub mod signs;
pub mod tracing;
pub mod verdict;
