//! The packet path in the kernel: parse the frame, find the service, choose the backend, forward the packet.
//!
//! Functions take a [`packet::Packet`], so that code without maps also runs on the development host, over a byte slice.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod answer;
mod backends;
mod budget;
pub mod connection_id;
mod control;
mod cpu_rows;
pub mod debug_log;
pub mod decap;
mod devices;
mod direct;
mod features;
mod flows;
pub mod forward;
mod found;
mod fragments;
pub mod handover;
mod icmp;
mod ingress;
mod kept;
mod link;
mod local_mac;
pub mod local_replies;
mod martian;
mod memory;
mod opaque;
mod order;
mod own_connections;
pub mod packet;
pub mod parse;
mod path;
mod probe;
mod quic;
mod rare;
pub mod redirects;
mod reject;
mod returns;
mod rules;
mod samples;
mod scratch;
mod service;
mod share;
mod shared;
mod signs;
pub mod stats;
mod steer;
pub mod step;
mod steps;
mod sum;
pub mod tracing;
mod words;

pub use ingress::Ingress;
pub use path::process;
