//! Tests of the count of handshakes that clients complete: on each path to a backend, a handshake counts once.

use balancer_common::share::{Share, Side};
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, SYN, options},
    rig::{Rig, Setup},
};

use crate::{
    cases, flows,
    rows::{self, rows},
    share::{CHANGED, HALF, TCP, on},
};

/// Sends the client's SYN twice and its next segment twice, and returns how many completed handshakes the backend then
/// has more.
fn completed(rig: &mut Rig, index: usize, of: impl Fn(u8) -> Frame) -> u64 {
    let before = rig.handshakes(index);
    assert_eq!(before.completed, 0, "counted by a test before");
    for flags in [SYN, SYN, ACK, ACK] {
        rig.run(&of(flags).bytes()).expect("a run");
    }
    rig.handshakes(index).completed
}

fn rare(frame: Frame) -> Frame {
    if frame.source.is_ipv4() {
        Frame { options: vec![1; 8], ..frame }
    } else {
        Frame { extensions: vec![options(DESTINATION_OPTIONS, 1)], ..frame }
    }
}

fn when_a_client_completes_its_handshake_on_any_path_then_the_handshake_counts_once(rig: &mut Rig) {
    rig.watch_handshakes();
    for vip in TCP {
        let index = rig.service(vip).expect("a service");
        let client = on(HALF, Side::Steered, vip);
        let segment =
            |port: u16| move |flags| Frame::tcp(&std::net::SocketAddr::new(client, port).to_string(), vip, flags);
        assert_eq!(completed(rig, index, segment(40_001)), 1, "{vip}: plain");
        assert_eq!(completed(rig, index, |flags| rare(segment(40_002)(flags))), 1, "{vip}: rare");
        for share in [HALF, CHANGED] {
            rig.share(vip, share).expect("a service");
            assert_eq!(completed(rig, index, segment(40_003)), 1, "{vip}: {share:?}");
        }
        rig.share(vip, Share::always(0)).expect("a service");
        assert_eq!(completed(rig, index, segment(40_004)), 0, "{vip}: the host's");
    }
}

fn when_a_client_completes_its_handshake_with_an_snat_backend_then_the_handshake_counts_once(rig: &mut Rig) {
    rig.watch_handshakes();
    for scene in flows::BOTH {
        assert_eq!(completed(rig, scene.index, |flags| scene.there(40_001, flags)), 1, "{}", scene.vip);
        assert_eq!(completed(rig, scene.index, |flags| rare(scene.there(40_002, flags))), 1, "{}: rare", scene.vip);
    }
}

#[test]
fn when_clients_complete_handshakes_then_each_handshake_counts_once() {
    rows::run(
        cases::services(),
        Setup::default(),
        rows![when_a_client_completes_its_handshake_on_any_path_then_the_handshake_counts_once],
    );
}

#[test]
fn when_clients_complete_handshakes_with_snat_backends_then_each_handshake_counts_once() {
    rows::run(
        flows::services(),
        Setup::default(),
        rows![when_a_client_completes_its_handshake_with_an_snat_backend_then_the_handshake_counts_once],
    );
}
