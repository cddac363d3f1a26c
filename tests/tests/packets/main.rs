//! Frames through the loaded program (`BPF_PROG_TEST_RUN`): the real verifier, the real maps. Each case is a row: what it
//! shows, the frame, and what must become of it. Expected frames are built from scratch with checksums summed anew.

#![expect(clippy::expect_used, reason = "a rig that cannot be built fails the test")]

mod cases;
mod checksums;
mod dsr;
mod malformed;
mod nat;
mod nat_return;
mod pass;
mod unavailable;
