//! More packets, for which a landing has no time.

use balancer_common::features::Features;

use super::{SEED, agree, wanted};

#[test]
fn when_a_million_packets_are_generated_then_kernel_and_model_agree() {
    agree(SEED, wanted(1_000_000), Features::ALL);
}
