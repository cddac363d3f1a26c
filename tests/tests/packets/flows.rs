//! Tests of `snat`: the program rewrites both ends of a packet, and replies reach the client of their connection.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use balancer_common::{map_types::Forwarding, verdict::DropReason};
use balancer_config::config::Protocol;
use balancer_control::io::ServiceId;
use balancer_testkit::{
    frame::{ACK, FIRST_BYTE, Frame, SYN, Transport},
    rig::{
        IN_MAC, POOL_PORTS, ROUTER_MAC, Rig, Service, Setup, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6, Target, backend_id,
        backend_mac,
    },
};

use crate::{
    icmp_errors::error,
    rows::{self, Row, rows},
};

const FIN: u8 = 1;
const RST: u8 = 4;
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;

#[derive(Clone, Copy)]
pub(crate) struct Scene {
    pub(crate) index: usize,
    pub(crate) vip: &'static str,
    pub(crate) backend: &'static str,
    client: &'static str,
    router: &'static str,
    too_big: (&'static str, u8, u8, [u8; 4]),
}

const V4: Scene = Scene {
    index: 0,
    vip: "198.51.100.10:80",
    backend: "10.0.0.11:8080",
    client: "203.0.113.7",
    router: "192.0.2.77:0",
    too_big: ("fragmentation needed", 3, 4, [0, 0, 5, 0]),
};
const V6: Scene = Scene {
    index: 1,
    vip: "[2001:db8::10]:80",
    backend: "[fd00::11]:8080",
    client: "[2001:db8:c::7]",
    router: "[2001:db8:ff::77]:0",
    too_big: ("packet too big", 2, 0, [0, 0, 5, 0]),
};
pub(crate) const BOTH: [Scene; 2] = [V4, V6];
const UDP: (&str, &str) = ("198.51.100.20:53", "10.0.0.21:5353");

impl Scene {
    pub(crate) fn client(self, port: u16) -> String {
        format!("{}:{port}", self.client)
    }

    pub(crate) fn there(self, port: u16, flags: u8) -> Frame {
        Frame::tcp(&self.client(port), self.vip, flags)
    }

    fn pool(self, port: u16) -> String {
        if self.index == 0 { format!("{TUNNEL_SOURCE_V4}:{port}") } else { format!("[{TUNNEL_SOURCE_V6}]:{port}") }
    }

    pub(crate) fn back(self, pool_port: u16, flags: u8) -> Frame {
        Frame::tcp(self.backend, &self.pool(pool_port), flags)
    }
}

fn service(address: &'static str, at: &'static str, protocol: Protocol) -> Service {
    Service { address, protocol, forwarding: Forwarding::Snat, target: Target::SameInterface(at) }
}

pub(crate) fn services() -> Vec<Service> {
    let all = [(V4.vip, V4.backend, Protocol::Tcp), (V6.vip, V6.backend, Protocol::Tcp), (UDP.0, UDP.1, Protocol::Udp)];
    all.map(|(address, at, protocol)| service(address, at, protocol)).into()
}

pub(crate) fn with_services(services: Vec<Service>, test: impl FnOnce(Rig) + Send + 'static) {
    std::thread::spawn(move || test(Rig::new(&services).expect("a rig"))).join().expect("the thread panicked");
}

/// Returns the port under which the backend sees the sender of `frame`.
pub(crate) fn sent(rig: &Rig, index: usize, frame: &Frame, backend: &str) -> u16 {
    let ran = rig.run(&frame.bytes()).expect("a run");
    assert_eq!(ran.action, XDP_TX, "{frame:?}");
    let header = 14 + 4 * frame.vlans.len() + if frame.source.is_ipv4() { 20 + frame.options.len() } else { 40 };
    let port = u16::from_be_bytes([ran.frame[header], ran.frame[header + 1]]);
    assert!((POOL_PORTS.0..=POOL_PORTS.1).contains(&port), "{port}");
    let expected = translated(frame, index, port, backend);
    assert_eq!(ran.frame, expected.bytes(), "{frame:?}");
    port
}

fn pool(v4: bool, port: u16) -> SocketAddr {
    if v4 { (TUNNEL_SOURCE_V4, port).into() } else { (TUNNEL_SOURCE_V6, port).into() }
}

pub(crate) fn translated(frame: &Frame, index: usize, port: u16, backend: &str) -> Frame {
    Frame {
        destination_mac: backend_mac(index),
        source_mac: IN_MAC,
        source: pool(frame.source.is_ipv4(), port),
        destination: backend.parse().expect("an address"),
        ttl: frame.ttl - 1,
        ..frame.clone()
    }
}

pub(crate) fn restored(frame: &Frame, vip: &str, client: &str) -> Frame {
    Frame {
        destination_mac: ROUTER_MAC,
        source_mac: IN_MAC,
        source: vip.parse().expect("an address"),
        destination: client.parse().expect("an address"),
        ttl: frame.ttl - 1,
        ..frame.clone()
    }
}

pub(crate) fn comes_back(rig: &Rig, frame: &Frame, vip: &str, client: &str) {
    let ran = rig.run(&frame.bytes()).expect("a run");
    assert_eq!((ran.action, ran.frame), (XDP_TX, restored(frame, vip, client).bytes()), "{frame:?}");
}

fn action(rig: &Rig, frame: &Frame) -> u32 {
    rig.run(&frame.bytes()).expect("a run").action
}

/// Opens a connection from `port`, sends data, and returns the port that the backend sees.
pub(crate) fn connect(rig: &Rig, scene: Scene, port: u16) -> u16 {
    let seen = sent(rig, scene.index, &scene.there(port, SYN), scene.backend);
    comes_back(rig, &scene.back(seen, SYN | ACK), scene.vip, &scene.client(port));
    assert_eq!(sent(rig, scene.index, &scene.there(port, ACK), scene.backend), seen);
    seen
}

#[test]
fn when_a_nat_service_has_the_same_backend_then_each_reply_goes_to_the_client_of_its_service() {
    const NAT_VIP: &str = "198.51.100.30:80";
    const NAT_CLIENT: &str = "203.0.113.7:40009";
    let of = |address| service(address, V4.backend, Protocol::Tcp);
    with_services(vec![of(V4.vip), Service { forwarding: Forwarding::Nat, ..of(NAT_VIP) }], |rig| {
        let seen = connect(&rig, V4, 40_000);
        let there = rig.run(&Frame::tcp(NAT_CLIENT, NAT_VIP, SYN).bytes()).expect("a run");
        let reply = Frame::tcp(V4.backend, NAT_CLIENT, SYN | ACK);
        assert_eq!(there.action, XDP_TX);
        for _ in 0..2 {
            comes_back(&rig, &reply, NAT_VIP, NAT_CLIENT);
            comes_back(&rig, &V4.back(seen, ACK), V4.vip, &V4.client(40_000));
        }
    });
}

fn when_a_client_connects_then_both_ends_are_rewritten_and_back(rig: &mut Rig) {
    for scene in BOTH {
        let seen = connect(rig, scene, 40_000);
        for flags in [ACK, ACK | FIN] {
            assert_eq!(sent(rig, scene.index, &scene.there(40_000, flags), scene.backend), seen);
            comes_back(rig, &scene.back(seen, flags), scene.vip, &scene.client(40_000));
        }
        let options = Frame { options: vec![1; 8], ..scene.there(40_000, ACK) };
        if scene.index == 0 {
            assert_eq!(sent(rig, scene.index, &options, scene.backend), seen);
        }
        let tagged = Frame { vlans: vec![7], ..scene.there(40_000, ACK) };
        assert_eq!(sent(rig, scene.index, &tagged, scene.backend), seen);
        assert_eq!(rig.backend_stats(scene.index).expect("counters").decisions.iter().sum::<u64>(), 1);
    }
}

fn when_a_client_asks_by_datagram_then_the_answer_finds_it(rig: &mut Rig) {
    for transport in [Transport::Udp, Transport::UdpWithoutChecksum] {
        let ask = Frame { transport, ..Frame::udp("203.0.113.7:5000", UDP.0) };
        let seen = sent(rig, 2, &ask, UDP.1);
        let answer = Frame { transport, ..Frame::udp(UDP.1, &format!("{TUNNEL_SOURCE_V4}:{seen}")) };
        comes_back(rig, &answer, UDP.0, "203.0.113.7:5000");
        assert_eq!(sent(rig, 2, &ask, UDP.1), seen);
    }
}

/// Returns the action for a frame, and the flags of the segment that leaves.
fn outcome(rig: &Rig, scene: Scene, frame: &Frame) -> (u32, u8) {
    let ran = rig.run(&frame.bytes()).expect("a run");
    (ran.action, ran.frame[if scene.index == 0 { 14 + 20 + 13 } else { 14 + 40 + 13 }])
}

/// Sends segments of no connection to both services: those that are answered with a reset, and resets.
fn are_reset(rig: &Rig) {
    let before = (rig.drops(DropReason::FlowUnknown).expect("counters"), rig.replies().expect("counters").rejected);
    for scene in BOTH {
        for flags in [ACK, SYN | ACK, FIN | ACK] {
            assert_eq!(outcome(rig, scene, &scene.there(40_000, flags)), (XDP_TX, RST), "{flags}");
        }
        assert_eq!(action(rig, &scene.there(40_000, RST)), XDP_DROP, "nobody answers a reset");
    }
    assert_eq!(rig.drops(DropReason::FlowUnknown).expect("counters"), before.0 + 2);
    assert_eq!(rig.replies().expect("counters").rejected, before.1 + 6);
}

fn when_a_segment_is_of_no_connection_then_the_segment_is_reset(rig: &mut Rig) {
    are_reset(rig);
}

#[test]
fn when_a_segment_of_no_connection_is_for_a_service_that_rejects_then_the_segment_is_reset() {
    with_services(services(), |mut rig| {
        rig.reject(true).expect("a publication");
        are_reset(&rig);
    });
}

fn when_a_packet_is_no_reply_then_it_passes(rig: &mut Rig) {
    for scene in BOTH {
        let seen = connect(rig, scene, 40_000);
        let others = [
            scene.back(seen + 1, ACK),
            Frame { source: scene.router.parse().expect("an address"), ..scene.back(seen, ACK) },
            Frame { transport: Transport::Udp, ..scene.back(seen, ACK) },
            scene.back(POOL_PORTS.0 - 1, ACK),
        ];
        for other in others {
            let bytes = other.bytes();
            let ran = rig.run(&bytes).expect("a run");
            assert_eq!((ran.action, ran.frame), (XDP_PASS, bytes), "{other:?}");
        }
    }
}

fn when_all_ports_carry_data_then_the_next_connection_is_dropped_and_the_others_stay(rig: &mut Rig) {
    for scene in BOTH {
        let all = 1 + POOL_PORTS.1 - POOL_PORTS.0;
        let seen: HashSet<u16> = (0..all).map(|number| connect(rig, scene, 40_000 + number)).collect();
        assert_eq!(seen.len(), usize::from(all));
        let drops = rig.drops(DropReason::NoPort).expect("counters");
        for port in 0..100 {
            assert_eq!(action(rig, &scene.there(50_000 + port, SYN)), XDP_DROP);
        }
        assert_eq!(rig.drops(DropReason::NoPort).expect("counters"), drops + 100);
        let again: HashSet<u16> =
            (0..all).map(|number| sent(rig, scene.index, &scene.there(40_000 + number, ACK), scene.backend)).collect();
        assert_eq!(again, seen);
    }
}

fn when_ports_are_taken_by_what_nobody_answers_then_a_new_connection_finds_one(rig: &mut Rig) {
    let seen = connect(rig, V4, 39_999);
    for port in 0..2000 {
        sent(rig, V4.index, &V4.there(40_000 + port, SYN), V4.backend);
    }
    connect(rig, V4, 50_000);
    assert_eq!(sent(rig, V4.index, &V4.there(39_999, ACK), V4.backend), seen);
    assert_eq!(rig.drops(DropReason::NoPort).expect("counters"), 0);
}

/// Returns the sequence number after a segment with FIN.
fn end_of(fin: &Frame) -> u32 {
    fin.sequence + fin.payload.len() as u32 + 1
}

/// Closes a connection; the backend closes first, so it keeps the connection in TIME-WAIT.
fn close_from_backend(rig: &Rig, scene: Scene, port: u16, seen: u16) {
    comes_back(rig, &scene.back(seen, FIN | ACK), scene.vip, &scene.client(port));
    sent(rig, scene.index, &scene.there(port, FIN | ACK), scene.backend);
}

/// Opens ten connections that carry data, calls `load`, and checks that all ten go on and that nothing was dropped for
/// want of a port or a row.
fn others_go_on_while(rig: &mut Rig, load: impl Fn(&Rig, Scene)) {
    for scene in BOTH {
        let open: Vec<u16> = (0..10).map(|number| connect(rig, scene, 39_000 + number)).collect();
        load(rig, scene);
        for (port, seen) in (39_000..).zip(open) {
            assert_eq!(sent(rig, scene.index, &scene.there(port, ACK), scene.backend), seen);
        }
        connect(rig, scene, 38_999);
    }
    for reason in [DropReason::NoPort, DropReason::FlowTableFull] {
        assert_eq!(rig.drops(reason).expect("counters"), 0, "{reason:?}");
    }
}

fn when_all_ports_rest_then_a_new_connection_takes_one_and_open_connections_stay(rig: &mut Rig) {
    others_go_on_while(rig, |rig, scene| {
        for port in 40_000..40_300 {
            let seen = connect(rig, scene, port);
            close_from_backend(rig, scene, port, seen);
        }
    });
}

fn when_clients_close_first_then_their_ports_serve_new_connections(rig: &mut Rig) {
    others_go_on_while(rig, |rig, scene| {
        for port in 40_000..40_300 {
            let seen = connect(rig, scene, port);
            let fin = scene.there(port, FIN | ACK);
            sent(rig, scene.index, &fin, scene.backend);
            let answer = Frame { acknowledgement: end_of(&fin), ..scene.back(seen, FIN | ACK) };
            comes_back(rig, &answer, scene.vip, &scene.client(port));
        }
    });
}

fn when_hosts_reset_what_the_backend_answers_then_new_clients_are_served(rig: &mut Rig) {
    others_go_on_while(rig, |rig, scene| {
        for port in 40_000..42_000 {
            let seen = sent(rig, scene.index, &scene.there(port, SYN), scene.backend);
            comes_back(rig, &scene.back(seen, SYN | ACK), scene.vip, &scene.client(port));
            sent(rig, scene.index, &scene.there(port, RST), scene.backend);
        }
    });
}

fn when_one_client_port_is_used_again_and_again_then_each_connection_is_served(rig: &mut Rig) {
    others_go_on_while(rig, |rig, scene| {
        for _ in 0..100 {
            let seen = connect(rig, scene, 40_000);
            close_from_backend(rig, scene, 40_000, seen);
        }
    });
}

fn when_each_question_comes_from_another_port_then_all_are_answered_and_conversations_stay(rig: &mut Rig) {
    let ask = |port: u16| sent(rig, 2, &Frame::udp(&format!("203.0.113.7:{port}"), UDP.0), UDP.1);
    let answer = |port: u16, seen: u16| {
        let answer = Frame::udp(UDP.1, &format!("{TUNNEL_SOURCE_V4}:{seen}"));
        comes_back(rig, &answer, UDP.0, &format!("203.0.113.7:{port}"));
    };
    let exchange = |port: u16| {
        let seen = ask(port);
        answer(port, seen);
        seen
    };
    let conversations: Vec<u16> = (5000..5010).map(exchange).collect();
    (5000..5010).zip(&conversations).for_each(|(port, seen)| assert_eq!(ask(port), *seen));
    for port in 10_000..12_000 {
        exchange(port);
    }
    for (port, seen) in (5000..5010).zip(conversations) {
        answer(port, seen);
        assert_eq!(exchange(port), seen);
    }
    assert_eq!(rig.drops(DropReason::NoPort).expect("counters"), 0);
}

fn when_a_first_attempt_meets_an_old_connection_then_the_second_comes_from_the_same_port(rig: &mut Rig) {
    for scene in BOTH {
        // The backend answers for an old connection in TIME-WAIT, and the client's reset ends that one.
        let seen = sent(rig, scene.index, &scene.there(40_000, SYN), scene.backend);
        comes_back(rig, &scene.back(seen, ACK), scene.vip, &scene.client(40_000));
        sent(rig, scene.index, &scene.there(40_000, RST), scene.backend);
        assert_eq!(connect(rig, scene, 40_000), seen);
    }
}

/// The segments that a stranger sends who knows the addresses and ports of a connection, but not its numbers.
fn forged(scene: Scene, port: u16) -> impl Iterator<Item = Frame> {
    [RST, RST | ACK, SYN, FIN | ACK, FIN, ACK].into_iter().flat_map(move |flags| {
        [1 << 17, 1 << 30, 3 << 30].map(|far| {
            let segment = scene.there(port, flags);
            let [sequence, acknowledgement] = [segment.sequence, segment.acknowledgement].map(|n| n.wrapping_add(far));
            Frame { sequence, acknowledgement, ..segment }
        })
    })
}

fn when_segments_are_forged_then_they_are_forwarded_and_no_connection_ends_or_makes_room(rig: &mut Rig) {
    for scene in BOTH {
        let all = 1 + POOL_PORTS.1 - POOL_PORTS.0;
        let open: Vec<u16> = (0..all).map(|number| connect(rig, scene, 40_000 + number)).collect();
        for (port, seen) in (40_000..).zip(&open) {
            for segment in forged(scene, port) {
                assert_eq!(sent(rig, scene.index, &segment, scene.backend), *seen, "{segment:?}");
            }
        }
        assert!(states(rig, scene).iter().all(|(_, state)| *state == "established"));
        for port in 50_000..50_200 {
            assert_eq!(action(rig, &scene.there(port, SYN)), XDP_DROP);
        }
        for (port, seen) in (40_000..).zip(open) {
            assert_eq!(sent(rig, scene.index, &scene.there(port, ACK), scene.backend), seen);
        }
    }
}

fn when_a_stranger_continues_a_handshake_that_it_has_not_seen_then_the_connection_stays_half_open(rig: &mut Rig) {
    for scene in BOTH {
        let seen = sent(rig, scene.index, &scene.there(40_000, SYN), scene.backend);
        comes_back(rig, &scene.back(seen, SYN | ACK), scene.vip, &scene.client(40_000));
        for segment in forged(scene, 40_000) {
            assert_eq!(sent(rig, scene.index, &segment, scene.backend), seen, "{segment:?}");
        }
        assert_eq!(states(rig, scene), [(40_000, "half_open")]);
        assert_eq!(sent(rig, scene.index, &scene.there(40_000, ACK), scene.backend), seen);
        assert_eq!(states(rig, scene), [(40_000, "established")]);
    }
}

fn when_clients_reset_their_connections_then_their_ports_serve_new_connections(rig: &mut Rig) {
    others_go_on_while(rig, |rig, scene| {
        for port in 40_000..40_300 {
            connect(rig, scene, port);
            sent(rig, scene.index, &scene.there(port, RST), scene.backend);
        }
    });
}

fn when_a_client_opens_the_same_connection_again_then_it_takes_its_own_row_and_port(rig: &mut Rig) {
    for (stamped, scene) in [(false, V4), (true, V6)] {
        let stamp = |stamp: u32| stamped.then_some(stamp);
        // Without time stamps, a SYN is newer if its sequence number is ahead.
        let ahead = if stamped { 0_u32.wrapping_sub(500) } else { 500 };
        let mut first = FIRST_BYTE;
        let seen = connect(rig, scene, 40_000);
        for round in 1..20 {
            let closes = Frame { acknowledgement: first, ..scene.back(seen, FIN | ACK) };
            comes_back(rig, &closes, scene.vip, &scene.client(40_000));
            let fin = Frame { sequence: first, stamp: stamp(round * 10), ..scene.there(40_000, FIN | ACK) };
            sent(rig, scene.index, &fin, scene.backend);
            assert_eq!(states(rig, scene), [(40_000, "closing")]);
            first = first.wrapping_add(ahead);
            let syn =
                Frame { sequence: first.wrapping_sub(1), stamp: stamp(round * 10 + 1), ..scene.there(40_000, SYN) };
            assert_eq!(sent(rig, scene.index, &syn, scene.backend), seen, "round {round}");
            let answer = Frame { acknowledgement: first, ..scene.back(seen, SYN | ACK) };
            comes_back(rig, &answer, scene.vip, &scene.client(40_000));
            let ack = Frame { sequence: first, ..scene.there(40_000, ACK) };
            assert_eq!(sent(rig, scene.index, &ack, scene.backend), seen);
            assert_eq!(states(rig, scene), [(40_000, "established")]);
        }
    }
    assert_eq!(rig.flows().sweep().entries, 2);
}

fn when_a_connection_has_ended_then_the_next_from_the_same_port_has_another_end(rig: &mut Rig) {
    for scene in BOTH {
        let mut seen = HashSet::from([connect(rig, scene, 40_000)]);
        let last = *seen.iter().next().expect("one");
        close_from_backend(rig, scene, 40_000, last);
        comes_back(rig, &scene.back(last, ACK), scene.vip, &scene.client(40_000));
        let next = connect(rig, scene, 40_000);
        assert!(seen.insert(next), "{next} is in TIME-WAIT");
    }
}

/// Returns the state of each connection of a scene's service, by the client's port.
fn states(rig: &Rig, scene: Scene) -> Vec<(u16, &'static str)> {
    let all = rig.flows().list(ServiceId(scene.index as u16), |_| true, 100);
    let mut states: Vec<_> = all.iter().map(|flow| (flow.client.port(), flow.state)).collect();
    states.sort_unstable();
    states
}

/// The first packet in a tick makes the program update two fields of the packet's connection: the time and the state.
fn when_a_backends_packet_is_the_first_in_a_second_then_what_it_says_counts(rig: &mut Rig) {
    const ANSWERED: u16 = 40_000;
    const CLOSED: u16 = 40_001;
    const RESET: u16 = 40_002;
    // A tick of the kernel program's clock lasts 2^30 ns, about 1.07 s.
    let wait = || std::thread::sleep(Duration::from_millis(1100));
    let opening = BOTH.map(|scene| sent(rig, scene.index, &scene.there(ANSWERED, SYN), scene.backend));
    let [closed, reset] = [CLOSED, RESET].map(|port| BOTH.map(|scene| connect(rig, scene, port)));
    wait();
    for (scene, seen) in BOTH.into_iter().zip(opening) {
        comes_back(rig, &scene.back(seen, SYN | ACK), scene.vip, &scene.client(ANSWERED));
        sent(rig, scene.index, &scene.there(ANSWERED, ACK), scene.backend);
    }
    for (scene, seen) in BOTH.into_iter().zip(closed) {
        comes_back(rig, &scene.back(seen, FIN | ACK), scene.vip, &scene.client(CLOSED));
        sent(rig, scene.index, &scene.there(CLOSED, FIN | ACK), scene.backend);
    }
    for (scene, seen) in BOTH.into_iter().zip(reset) {
        comes_back(rig, &scene.back(seen, RST | ACK), scene.vip, &scene.client(RESET));
    }
    for scene in BOTH {
        let expected = [(ANSWERED, "established"), (CLOSED, "closing"), (RESET, "closing")];
        assert_eq!(states(rig, scene), expected, "{}", scene.vip);
    }
}

fn when_a_clients_packet_is_the_first_in_a_second_then_what_it_says_counts(rig: &mut Rig) {
    let ends = BOTH.map(|scene| connect(rig, scene, 40_000));
    std::thread::sleep(Duration::from_millis(1100));
    for (scene, seen) in BOTH.into_iter().zip(ends) {
        sent(rig, scene.index, &scene.there(40_000, FIN | ACK), scene.backend);
        comes_back(rig, &scene.back(seen, FIN | ACK), scene.vip, &scene.client(40_000));
        assert_eq!(states(rig, scene), [(40_000, "closing")], "{}", scene.vip);
    }
}

fn when_a_reset_is_forged_then_the_connection_goes_on(rig: &mut Rig) {
    let seen = connect(rig, V4, 40_000);
    sent(rig, V4.index, &V4.there(40_000, RST), V4.backend);
    comes_back(rig, &V4.back(seen, ACK), V4.vip, &V4.client(40_000));
    assert_eq!(sent(rig, V4.index, &V4.there(40_000, SYN), V4.backend), seen, "it is for the backend to refuse that");
}

fn when_the_backend_no_longer_keeps_known_clients_then_its_connections_are_reset(rig: &mut Rig) {
    for scene in BOTH {
        connect(rig, scene, 40_000);
        rig.keep_known(scene.vip, scene.backend, false).expect("a backend");
        for _ in 0..2 {
            assert_eq!(outcome(rig, scene, &scene.there(40_000, ACK)), (XDP_TX, RST));
        }
        rig.keep_known(scene.vip, scene.backend, true).expect("a backend");
        connect(rig, scene, 40_000);
    }
}

fn when_a_packet_comes_in_fragments_then_all_of_them_are_translated(rig: &mut Rig) {
    let ask = Frame { payload: (0..200).collect(), ..Frame::udp("203.0.113.7:5000", UDP.0) };
    let seen = sent(rig, 2, &ask, UDP.1);
    let parts = ask.fragments(64, 77);
    // Fragments of two clients with one identification have different ones at their backend.
    let expected = translated(&ask, 2, seen, UDP.1).fragments(64, 77 ^ u32::from(seen));
    for (part, expected) in parts.iter().zip(expected) {
        let ran = rig.run(&part.bytes()).expect("a run");
        assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()));
    }
    let pool = format!("{TUNNEL_SOURCE_V4}:{seen}");
    let answer = Frame { payload: (0..200).collect(), ..Frame::udp(UDP.1, &pool) };
    let expected = restored(&answer, UDP.0, "203.0.113.7:5000").fragments(64, 78);
    for (part, expected) in answer.fragments(64, 78).iter().zip(expected) {
        let ran = rig.run(&part.bytes()).expect("a run");
        assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()));
    }
    let unknown = &ask.fragments(64, 79)[1];
    assert_eq!(action(rig, unknown), XDP_DROP);
    assert_eq!(rig.drops(DropReason::FragmentUnknown).expect("counters"), 1);
}

fn when_a_router_says_that_a_packet_is_too_big_then_its_sender_hears_it(rig: &mut Rig) {
    for scene in BOTH {
        let seen = connect(rig, scene, 40_000);
        for length in [28, 36, 48, 1500] {
            let length = if scene.index == 0 { length } else { length + 20 };
            let there = Frame { payload: vec![3; 100], ..scene.there(40_000, ACK) };
            let at_backend = Frame { ttl: there.ttl - 1, ..translated(&there, scene.index, seen, scene.backend) };
            // The router sends the client an error about the client's packet to the backend.
            let told = error(scene.router, &at_backend, length, scene.too_big);
            let as_sent = Frame { source: there.source, destination: there.destination, ..at_backend.clone() };
            let expected = Frame {
                source: SocketAddr::new(there.destination.ip(), 0),
                ttl: told.ttl - 1,
                destination_mac: ROUTER_MAC,
                source_mac: IN_MAC,
                ..error(scene.router, &as_sent, length, scene.too_big)
            };
            let ran = rig.run(&told.bytes()).expect("a run");
            assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()), "to {}, {length}", scene.client);
            // The router sends the backend an error about the backend's packet to the client.
            let back = Frame { payload: vec![3; 100], ..scene.back(seen, ACK) };
            let at_client = restored(&back, scene.vip, &scene.client(40_000));
            let told = error(scene.router, &at_client, length, scene.too_big);
            let as_sent = Frame { source: back.source, destination: back.destination, ..at_client };
            let expected = Frame {
                source: SocketAddr::new(back.destination.ip(), 0),
                ttl: told.ttl - 1,
                destination_mac: backend_mac(scene.index),
                source_mac: IN_MAC,
                ..error(scene.router, &as_sent, length, scene.too_big)
            };
            let ran = rig.run(&told.bytes()).expect("a run");
            assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()), "to {}, {length}", scene.backend);
        }
    }
}

fn when_the_ttl_is_used_up_then_a_packet_is_dropped_both_ways(rig: &mut Rig) {
    for scene in BOTH {
        let seen = connect(rig, scene, 40_000);
        assert_eq!(action(rig, &Frame { ttl: 1, ..scene.there(40_000, ACK) }), XDP_DROP);
        assert_eq!(action(rig, &Frame { ttl: 1, ..scene.back(seen, ACK) }), XDP_DROP);
    }
    assert_eq!(rig.drops(DropReason::TtlExceeded).expect("counters"), 4);
}

fn when_flows_are_counted_then_they_are_those_that_live(rig: &mut Rig) {
    for port in 0..3 {
        connect(rig, V4, 40_000 + port);
    }
    sent(rig, V6.index, &V6.there(40_000, SYN), V6.backend);
    let counts = rig.flows().sweep();
    assert_eq!(counts.entries, 4);
    assert_eq!(counts.of_backends.get(&backend_id(0)), Some(&3));
    assert_eq!(counts.of_backends.get(&backend_id(1)), Some(&1));
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_client_connects_then_both_ends_are_rewritten_and_back,
    when_a_client_asks_by_datagram_then_the_answer_finds_it,
    when_a_segment_is_of_no_connection_then_the_segment_is_reset,
    when_a_packet_is_no_reply_then_it_passes,
    when_all_ports_carry_data_then_the_next_connection_is_dropped_and_the_others_stay,
    when_ports_are_taken_by_what_nobody_answers_then_a_new_connection_finds_one,
    when_all_ports_rest_then_a_new_connection_takes_one_and_open_connections_stay,
    when_clients_close_first_then_their_ports_serve_new_connections,
    when_hosts_reset_what_the_backend_answers_then_new_clients_are_served,
    when_one_client_port_is_used_again_and_again_then_each_connection_is_served,
    when_each_question_comes_from_another_port_then_all_are_answered_and_conversations_stay,
    when_a_first_attempt_meets_an_old_connection_then_the_second_comes_from_the_same_port,
    when_segments_are_forged_then_they_are_forwarded_and_no_connection_ends_or_makes_room,
    when_a_stranger_continues_a_handshake_that_it_has_not_seen_then_the_connection_stays_half_open,
    when_clients_reset_their_connections_then_their_ports_serve_new_connections,
    when_a_client_opens_the_same_connection_again_then_it_takes_its_own_row_and_port,
    when_a_connection_has_ended_then_the_next_from_the_same_port_has_another_end,
    when_a_backends_packet_is_the_first_in_a_second_then_what_it_says_counts,
    when_a_clients_packet_is_the_first_in_a_second_then_what_it_says_counts,
    when_a_reset_is_forged_then_the_connection_goes_on,
    when_the_backend_no_longer_keeps_known_clients_then_its_connections_are_reset,
    when_a_packet_comes_in_fragments_then_all_of_them_are_translated,
    when_a_router_says_that_a_packet_is_too_big_then_its_sender_hears_it,
    when_the_ttl_is_used_up_then_a_packet_is_dropped_both_ways,
    when_flows_are_counted_then_they_are_those_that_live,
];

#[test]
fn when_connections_of_snat_services_come_and_go_then_both_ends_see_the_right_packets() {
    rows::run(services(), Setup::default(), ROWS);
}
