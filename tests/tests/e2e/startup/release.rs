//! The same test with more signals, which takes longer than a landing has time for.

use super::nothing_is_left_by_starts_that_end;

#[test]
fn when_a_signal_comes_at_any_time_of_the_start_then_nothing_is_left() {
    nothing_is_left_by_starts_that_end(0..20);
}
