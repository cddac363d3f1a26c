//! Tests with single frames in the loaded program (`BPF_PROG_TEST_RUN`), with the real verifier and real maps. Each
//! case has a title, a frame, and the expected result. The tests build expected frames from scratch, and compute all
//! checksums anew.

#![expect(clippy::expect_used, clippy::panic, reason = "the helpers of tests fail like tests")]

mod budgets;
mod cases;
mod checksums;
mod decap;
mod default_hops;
mod default_routes;
mod direct;
mod dsr;
mod echo;
mod extensions;
mod families;
mod flow_contest;
mod flow_paths;
mod flow_quic;
mod flow_table;
mod flow_ways;
mod flows;
mod fragments;
mod full_tables;
mod handover;
mod handshakes;
mod icmp_errors;
mod jumbo;
mod listeners;
mod local_macs;
mod malformed;
mod martian;
mod nat;
mod nat_return;
mod next_hop_cache;
mod parts;
mod pass;
mod reject;
mod replaced;
mod rows;
mod rules;
mod sets;
mod share;
mod share_flows;
mod signs;
mod too_big;
mod tunnel;
mod unavailable;
