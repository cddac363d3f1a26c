//! A larger attack, for which a landing has no time.

use super::none_that_carries_data_is_lost;

#[test]
fn when_a_million_segments_open_connections_that_nobody_answers_then_none_that_carries_data_is_lost() {
    none_that_carries_data_is_lost(1_000_000);
}
