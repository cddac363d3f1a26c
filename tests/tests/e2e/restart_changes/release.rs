//! The same test with `on_exit = "detach"`, which takes longer than a landing has time for.

use super::starts_whatever_was_before;

#[test]
fn when_the_configuration_shrinks_or_grows_with_detach_then_the_balancer_starts() {
    starts_whatever_was_before("detach");
}
