//! More fleets, for which a landing has no time.

use std::ops::Range;

use super::{SEEDS, members_agree_and_nobody_moves_without_a_cause};

/// The seeds that follow those of each change.
const REST: Range<u64> = SEEDS..500;

#[test]
fn when_anything_happens_in_more_fleets_then_members_agree_and_no_client_moves_without_a_cause_1() {
    members_agree_and_nobody_moves_without_a_cause(REST, 0);
}

#[test]
fn when_anything_happens_in_more_fleets_then_members_agree_and_no_client_moves_without_a_cause_2() {
    members_agree_and_nobody_moves_without_a_cause(REST, 1);
}

#[test]
fn when_anything_happens_in_more_fleets_then_members_agree_and_no_client_moves_without_a_cause_3() {
    members_agree_and_nobody_moves_without_a_cause(REST, 2);
}

#[test]
fn when_anything_happens_in_more_fleets_then_members_agree_and_no_client_moves_without_a_cause_4() {
    members_agree_and_nobody_moves_without_a_cause(REST, 3);
}
