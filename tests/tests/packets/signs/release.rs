//! A larger flood, for which a landing has no time.

use super::the_controller_is_told_once_a_second;

#[test]
fn when_a_million_forged_syns_come_twice_then_the_controller_is_told_once_a_second() {
    the_controller_is_told_once_a_second(1_000_000);
}
