//! The same test with a pause, for which a landing has no time.

use std::time::Duration;

use super::is_said_once;

/// During the pause, the balancer repeats its search, but not the warning in the log.
#[test]
fn when_a_client_stays_in_the_subnet_of_nat_backends_then_that_is_said_once() {
    is_said_once(Duration::from_secs(11));
}
