//! The same tests in `dsr`, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;

use super::{datagrams_stick, known_clients_stay_through_every_change};

#[test]
fn when_backends_change_with_dsr_then_known_clients_stay() {
    known_clients_stay_through_every_change(Forwarding::Dsr);
}

#[test]
fn when_clients_send_datagrams_with_dsr_then_they_stay() {
    datagrams_stick(Forwarding::Dsr);
}
