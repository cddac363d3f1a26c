//! Tests that `balancer trace` and `balancer capture` report the packets of real clients correctly, and leave no
//! program attached.

mod capture;
mod release;
mod trace;
pub(crate) mod watch;

use balancer_common::map_types::Forwarding;

/// The mode with the longest headers, and the mode whose replies pass the balancer.
const HARDEST: [Forwarding; 2] = [Forwarding::Gue, Forwarding::Nat];
