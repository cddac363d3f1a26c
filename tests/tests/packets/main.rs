//! Frames through the loaded program (`BPF_PROG_TEST_RUN`): the real verifier, the real maps. Each case is a row: what it
//! shows, the frame, and what must become of it. Expected frames are built from scratch with checksums summed anew.

#![expect(clippy::expect_used, clippy::panic, reason = "the helpers of tests fail like tests")]

mod budgets;
mod cases;
mod checksums;
mod decap;
mod dsr;
mod echo;
mod extensions;
mod flow_table;
mod flows;
mod fragments;
mod full_tables;
mod handover;
mod icmp_errors;
mod jumbo;
mod listeners;
mod malformed;
mod martian;
mod nat;
mod nat_return;
mod pass;
mod recent_hops;
mod reject;
mod replaced;
mod rules;
mod share;
mod signs;
mod stations;
mod too_big;
mod tunnel;
mod unavailable;
