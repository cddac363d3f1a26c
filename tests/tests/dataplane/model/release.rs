//! More packets, for which a landing has no time.

use super::{SEED, agree};

#[test]
fn when_a_million_packets_are_generated_then_kernel_and_model_agree() {
    agree(SEED, 1_000_000);
}
