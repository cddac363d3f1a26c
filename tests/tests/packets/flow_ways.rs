//! Tests of the interfaces by which replies of `snat` backends may arrive: the rules are those of `nat`.

use std::time::Duration;

use balancer_common::verdict::DropReason;
use balancer_dataplane::Layers;
use balancer_testkit::{
    frame::{ACK, Frame},
    rig::{IN_MAC, OUT_MAC, Rig, Setup},
};

use crate::{
    flows::{BOTH, Scene, XDP_DROP, XDP_PASS, connect, sent, services},
    rows::{self, rows},
};

const RST: u8 = 4;
const PORT: u16 = 40_000;

/// Runs the program on a frame that arrives on an interface. Returns the action; a drop is for the wrong interface.
fn action(rig: &Rig, ifindex: u32, frame: &Frame) -> u32 {
    let destination_mac = if ifindex == rig.in_ifindex { IN_MAC } else { OUT_MAC };
    let before = rig.drops(DropReason::WrongInterface).expect("counters");
    let ran = rig.run_by(ifindex, &Frame { destination_mac, ..frame.clone() }.bytes()).expect("a run");
    let wrong = rig.drops(DropReason::WrongInterface).expect("counters") - before;
    assert_eq!(wrong, u64::from(ran.action == XDP_DROP), "{frame:?}");
    ran.action
}

fn goes_on(rig: &Rig, ifindex: u32, frame: &Frame) -> bool {
    let action = action(rig, ifindex, frame);
    assert_ne!(action, XDP_PASS, "{frame:?}");
    action != XDP_DROP
}

/// An ICMP error of the backend about a packet that it got from the pool.
fn unreachable(scene: Scene, pool_port: u16) -> Frame {
    let back = scene.back(pool_port, ACK);
    let quoted = Frame { source: back.destination, destination: back.source, ..back.clone() }.packet();
    let ends = [back.source, back.destination].map(|end| {
        let ip = end.ip();
        if ip.is_ipv4() { format!("{ip}:0") } else { format!("[{ip}]:0") }
    });
    let (kind, code) = if back.source.is_ipv4() { (3, 1) } else { (1, 3) };
    Frame { payload: quoted, ..Frame::icmp(&ends[0], &ends[1], kind, code, [0; 4]) }
}

fn when_a_reply_comes_in_where_the_backend_is_not_then_the_reply_is_dropped_and_changes_nothing(rig: &mut Rig) {
    let (usual, other) = (rig.in_ifindex, rig.out_ifindex);
    for scene in BOTH {
        let seen = connect(rig, scene, PORT);
        for flags in [ACK, RST | ACK, ACK | 1] {
            assert!(!goes_on(rig, other, &scene.back(seen, flags)), "{flags}");
        }
        let last_hop = Frame { ttl: 1, ..scene.back(seen, ACK) };
        assert!(!goes_on(rig, other, &last_hop), "no other reason is counted");
        assert!(!goes_on(rig, other, &unreachable(scene, seen)));
        assert!(goes_on(rig, usual, &unreachable(scene, seen)));
        assert!(goes_on(rig, usual, &scene.back(seen, ACK)));
        assert_eq!(sent(rig, scene.index, &scene.there(PORT, ACK), scene.backend), seen);
        // A packet of no connection is for this machine, and the kernel's reverse path filter decides about it.
        assert_eq!(action(rig, other, &scene.back(seen + 1, ACK)), XDP_PASS);
    }
}

fn when_a_later_fragment_comes_in_where_the_backend_is_not_then_it_is_dropped(rig: &mut Rig) {
    let scene = BOTH[0];
    let seen = connect(rig, scene, PORT);
    let first = Frame { id: 77, more_fragments: true, payload: vec![1; 68], ..scene.back(seen, ACK) };
    let later = Frame {
        fragment_offset: (first.packet().len() - 20) as u16 / 8,
        more_fragments: false,
        payload: vec![2; 8],
        ..first.clone()
    };
    assert!((first.packet().len() - 20).is_multiple_of(8));
    assert!(goes_on(rig, rig.in_ifindex, &first));
    assert!(!goes_on(rig, rig.out_ifindex, &later));
    assert!(goes_on(rig, rig.in_ifindex, &later));
}

fn when_the_next_hop_moves_then_the_accepted_ingress_follows(rig: &mut Rig) {
    let (usual, other) = (rig.in_ifindex, rig.out_ifindex);
    for scene in BOTH {
        let seen = connect(rig, scene, PORT);
        let by = |rig: &Rig, ifindex| goes_on(rig, ifindex, &scene.back(seen, ACK));
        rig.move_backend(scene.vip, scene.backend, Some(other)).expect("a move");
        assert!(by(rig, other), "at once");
        assert!(by(rig, usual), "the backend may not have noticed yet");
    }
    let opened = BOTH.map(|scene| (scene, connect_by_other(rig, scene, PORT + 1)));
    let by = |rig: &Rig, ifindex| opened.map(|(scene, seen)| goes_on(rig, ifindex, &scene.back(seen, ACK)));
    rig.pass_time(Duration::from_secs(59));
    assert_eq!((by(rig, usual), by(rig, other)), ([true; 2], [true; 2]));
    rig.pass_time(Duration::from_secs(60));
    assert_eq!((by(rig, usual), by(rig, other)), ([false; 2], [true; 2]));
    for scene in BOTH {
        rig.move_backend(scene.vip, scene.backend, None).expect("a move");
    }
    assert_eq!((by(rig, usual), by(rig, other)), ([true; 2], [true; 2]), "the interface is unknown");
    for scene in BOTH {
        rig.move_backend(scene.vip, scene.backend, Some(usual)).expect("a move");
    }
    rig.pass_time(Duration::from_secs(200));
    assert_eq!((by(rig, usual), by(rig, other)), ([true; 2], [false; 2]));
}

/// Opens a connection to a backend behind the other interface, and returns the port that the backend sees.
fn connect_by_other(rig: &Rig, scene: Scene, port: u16) -> u16 {
    let ran = rig.run(&scene.there(port, balancer_testkit::frame::SYN).bytes()).expect("a run");
    let header = 14 + if scene.index == 0 { 20 } else { 40 };
    u16::from_be_bytes([ran.frame[header], ran.frame[header + 1]])
}

fn when_interfaces_are_ports_of_one_bridge_then_replies_by_each_are_taken(rig: &mut Rig) {
    let (usual, other) = (rig.in_ifindex, rig.out_ifindex);
    let seen = BOTH.map(|scene| (scene, connect(rig, scene, PORT)));
    let by = |rig: &Rig, ifindex| seen.map(|(scene, seen)| goes_on(rig, ifindex, &scene.back(seen, ACK)));
    let mut layers = Layers::flat(&[(usual, IN_MAC), (other, OUT_MAC)]);
    layers.add(1000, Some(IN_MAC));
    layers.put_upon(usual, 1000);
    layers.put_upon(other, 1000);
    rig.set_layers(layers);
    assert_eq!((by(rig, usual), by(rig, other)), ([true; 2], [true; 2]));
    rig.set_layers(Layers::flat(&[(usual, IN_MAC), (other, OUT_MAC)]));
    assert_eq!((by(rig, usual), by(rig, other)), ([true; 2], [false; 2]));
}

#[test]
fn when_replies_of_snat_backends_arrive_then_their_interfaces_decide_whether_they_are_taken() {
    rows::run(
        services(),
        Setup::default(),
        rows![
            when_a_reply_comes_in_where_the_backend_is_not_then_the_reply_is_dropped_and_changes_nothing,
            when_a_later_fragment_comes_in_where_the_backend_is_not_then_it_is_dropped,
            when_the_next_hop_moves_then_the_accepted_ingress_follows,
            when_interfaces_are_ports_of_one_bridge_then_replies_by_each_are_taken
        ],
    );
}
