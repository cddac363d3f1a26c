//! Tests of packets that suggest the failure of a backend: the program informs the controller, and withholds resets by
//! which backends refuse connections.

mod release;

use std::{
    env,
    thread::sleep,
    time::{Duration, Instant},
};

use balancer_common::{
    map_types::Forwarding,
    verdict::{DropReason, Signal},
};
use balancer_config::config::Protocol;
use balancer_control::io::{BackendId, Passive};
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    rig::{Rig, Service, Setup, Target, backend_id},
};

use crate::rows::{self, rows};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const RST: u8 = 4;
/// A time that is longer than the largest possible delay of the program's clock.
const CLOCK: Duration = Duration::from_millis(20);

/// For each family: the service, the backend of the service, and a client address without a port.
const NAT: [(&str, &str, &str); 2] =
    [("198.51.100.10:80", "10.0.0.11:80", "203.0.113.7"), ("[2001:db8::10]:80", "[fd00::11]:80", "[2001:db8:c::7]")];
const DSR: (&str, &str, &str) = ("198.51.100.20:80", "10.0.0.21:80", "203.0.113.7");
/// The UDP service, the backend of the service, and a client address without a port.
const DATAGRAMS: (&str, &str, &str) = ("198.51.100.30:53", "10.0.0.31:53", "203.0.113.7");
/// The number of packets in a flood, unless `BALANCER_FLOOD` sets another number; the module `release` has more.
const FLOOD: u32 = 200_000;

fn services() -> Vec<Service> {
    let of = |(address, at, _), protocol, forwarding| Service {
        address,
        protocol,
        forwarding,
        target: Target::SameInterface(at),
    };
    let tcp = Protocol::Tcp;
    vec![
        of(NAT[0], tcp, Forwarding::Nat),
        of(NAT[1], tcp, Forwarding::Nat),
        of(DSR, tcp, Forwarding::Dsr),
        of(DATAGRAMS, Protocol::Udp, Forwarding::Nat),
    ]
}

/// Lets the program report signs of failure, and withhold resets for the time `withhold`.
fn watch(rig: &mut Rig, withhold: Option<Duration>) {
    for (address, at, _) in NAT.into_iter().chain([DSR, DATAGRAMS]) {
        rig.suspect(address, at, withhold.map(|withhold| Passive { withhold })).expect("a backend");
    }
}

/// Runs a test in a new namespace. The rig's program withholds resets for the time `withhold`.
fn with_rig(withhold: Option<Duration>, test: impl FnOnce(Rig) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let mut rig = Rig::new(&services()).expect("a rig");
        watch(&mut rig, withhold);
        test(rig);
    });
    thread.join().expect("the thread panicked");
}

/// The backends that the program has reported since the last call.
fn reports(rig: &mut Rig) -> Vec<(BackendId, u16)> {
    rig.suspects().expect("a ring")
}

/// Returns a segment from the backend to the client's port, with the given sequence number.
fn answer((_, at, client): (&str, &str, &str), port: u16, flags: u8, sequence: u32) -> Vec<u8> {
    let frame = Frame::tcp(at, &format!("{client}:{port}"), flags);
    let header = if frame.source.is_ipv4() { 34 } else { 54 };
    let mut bytes = frame.bytes();
    bytes[header + 4..header + 8].copy_from_slice(&sequence.to_be_bytes());
    bytes
}

fn syn((vip, _, client): (&str, &str, &str), port: u16) -> Vec<u8> {
    Frame::tcp(&format!("{client}:{port}"), vip, SYN).bytes()
}

fn action(rig: &Rig, frame: &[u8]) -> u32 {
    rig.run(frame).expect("a run").action
}

fn signs(index: usize, signal: Signal) -> Vec<(BackendId, u16)> {
    vec![(backend_id(index), signal as u16)]
}

fn when_a_backend_refuses_a_connection_then_the_reset_is_withheld_and_the_controller_told_once(rig: &mut Rig) {
    watch(rig, Some(Duration::from_secs(5)));
    for (index, case) in NAT.into_iter().enumerate() {
        for port in 40_000..40_100 {
            assert_eq!(action(rig, &answer(case, port, RST | ACK, 0)), XDP_DROP, "{case:?}");
        }
        assert_eq!(reports(rig), signs(index, Signal::Refused));
        assert_eq!(rig.withheld(index), 100);
        assert_eq!(rig.drops(DropReason::Withheld).expect("counters"), 100 * (index as u64 + 1));
    }
}

fn when_a_reset_ends_a_connection_then_it_reaches_the_client(rig: &mut Rig) {
    watch(rig, Some(Duration::from_secs(5)));
    for case in NAT {
        for (flags, sequence) in [(RST, 7), (RST, 0), (RST | ACK, 7), (ACK, 0), (SYN | ACK, 0)] {
            assert_eq!(action(rig, &answer(case, 40_000, flags, sequence)), XDP_TX, "{case:?}: {flags}, {sequence}");
        }
    }
    assert_eq!(reports(rig), []);
}

fn when_the_backend_works_then_the_next_reset_reaches_the_client(rig: &mut Rig) {
    watch(rig, Some(Duration::from_secs(5)));
    for (index, case) in NAT.into_iter().enumerate() {
        let refused = |port| action(rig, &answer(case, port, RST | ACK, 0));
        assert_eq!(refused(40_000), XDP_DROP);
        rig.works(index);
        assert_eq!([refused(40_001), refused(40_002)], [XDP_TX; 2], "{case:?}");
        assert_eq!(rig.withheld(index), 1);
    }
}

fn when_the_time_is_over_then_resets_reach_the_client(rig: &mut Rig) {
    watch(rig, Some(Duration::from_millis(200)));
    let refused = || action(rig, &answer(NAT[0], 40_000, RST | ACK, 0));
    assert_eq!(refused(), XDP_DROP);
    sleep(Duration::from_millis(200) + CLOCK);
    assert_eq!([refused(), refused()], [XDP_TX; 2]);
}

fn when_it_is_switched_off_then_nothing_is_withheld_and_nobody_told(rig: &mut Rig) {
    watch(rig, None);
    for case in NAT {
        assert_eq!(action(rig, &answer(case, 40_000, RST | ACK, 0)), XDP_TX, "{case:?}");
    }
    for port in 40_000..40_010 {
        assert_eq!(action(rig, &syn(DSR, port)), XDP_TX);
    }
    sleep(Duration::from_millis(200) + CLOCK);
    assert_eq!(action(rig, &syn(DSR, 50_000)), XDP_TX);
    assert_eq!(reports(rig), []);
    watch(rig, Some(Duration::ZERO));
    assert_eq!(action(rig, &answer(NAT[0], 40_000, RST | ACK, 0)), XDP_TX);
    assert_eq!(reports(rig), signs(0, Signal::Refused), "it is checked all the same");
}

fn when_nobody_goes_on_with_its_handshake_then_the_controller_is_told(rig: &mut Rig) {
    watch(rig, Some(Duration::ZERO));
    for (index, case) in NAT.into_iter().chain([DSR]).enumerate() {
        for port in 40_000..40_003 {
            assert_eq!(action(rig, &syn(case, port)), XDP_TX);
        }
        assert_eq!(reports(rig), [], "they may be about to be answered");
        sleep(Duration::from_millis(200) + CLOCK);
        action(rig, &syn(case, 40_003));
        assert_eq!(reports(rig), signs(index, Signal::Unanswered), "{case:?}");
        action(rig, &syn(case, 40_004));
        assert_eq!(reports(rig), [], "once in a second");
    }
}

fn when_clients_go_on_with_their_handshakes_then_the_backend_is_left_alone(rig: &mut Rig) {
    watch(rig, Some(Duration::ZERO));
    for case in NAT.into_iter().chain([DSR]) {
        for round in 0..4 {
            for port in 40_000..40_010 {
                action(rig, &syn(case, port));
            }
            // The first packet shows the program that the backend answers.
            let (vip, _, client) = case;
            action(rig, &Frame::tcp(&format!("{client}:{}", 40_000 + round), vip, ACK).bytes());
            sleep(Duration::from_millis(100));
        }
    }
    assert_eq!(reports(rig), []);
}

fn when_the_only_client_sends_its_syn_again_then_the_controller_is_told(rig: &mut Rig) {
    watch(rig, Some(Duration::ZERO));
    action(rig, &syn(DSR, 40_000));
    action(rig, &syn(DSR, 40_000));
    sleep(Duration::from_millis(950));
    assert_eq!(reports(rig), []);
    action(rig, &syn(DSR, 40_000));
    assert_eq!(reports(rig), signs(2, Signal::Unanswered));
}

fn when_an_error_says_that_a_backend_cannot_be_reached_then_the_controller_is_told(rig: &mut Rig) {
    watch(rig, Some(Duration::ZERO));
    for (index, (_, at, client)) in NAT.into_iter().enumerate() {
        let client = format!("{client}:40000");
        let error = |message, code| {
            let mut quoted = Frame::tcp(&client, at, SYN).packet();
            quoted.truncate(48);
            let source = at.replace(":80", ":0");
            let destination = client.replace(":40000", ":0");
            Frame { payload: quoted, ..Frame::icmp(&source, &destination, message, code, [0; 4]) }.bytes()
        };
        let (too_big, unreachable) = if index == 0 { ((3, 4), (3, 3)) } else { ((2, 0), (1, 4)) };
        assert_eq!(action(rig, &error(too_big.0, too_big.1)), XDP_TX);
        assert_eq!(reports(rig), []);
        assert_eq!(action(rig, &error(unreachable.0, unreachable.1)), XDP_TX);
        assert_eq!(reports(rig), signs(index, Signal::Unreachable));
    }
}

/// Returns an ICMP error from `source` to the client about the client's packet `quoted`.
fn unreachable(source: &str, case: (&str, &str, &str), quoted: &Frame) -> Vec<u8> {
    let (_, _, client) = case;
    let mut payload = quoted.packet();
    payload.truncate(48);
    let (message, code) = if quoted.source.is_ipv4() { (3, 3) } else { (1, 4) };
    Frame { payload, ..Frame::icmp(source, &format!("{client}:0"), message, code, [0; 4]) }.bytes()
}

fn when_a_port_is_unreachable_for_datagrams_then_the_controller_is_told(rig: &mut Rig) {
    watch(rig, Some(Duration::ZERO));
    let (_, at, client) = DATAGRAMS;
    let quoted = Frame::udp(&format!("{client}:40000"), at);
    assert_eq!(action(rig, &unreachable("10.0.0.31:0", DATAGRAMS, &quoted)), XDP_TX);
    assert_eq!(reports(rig), signs(3, Signal::Unreachable));
}

fn when_the_datagram_that_could_not_be_delivered_was_fragmented_then_the_controller_is_told(rig: &mut Rig) {
    for later in [false, true] {
        rig.reset().expect("a rig as new");
        watch(rig, Some(Duration::ZERO));
        let (_, at, client) = DATAGRAMS;
        let whole = Frame { payload: vec![7; 3000], ..Frame::udp(&format!("{client}:40000"), at) };
        let quoted = &whole.fragments(1480, 9)[usize::from(later)];
        assert_eq!(quoted.fragment_offset != 0, later);
        assert_eq!(action(rig, &unreachable("10.0.0.31:0", DATAGRAMS, quoted)), XDP_TX);
        assert_eq!(reports(rig), signs(3, Signal::Unreachable), "later: {later}");
    }
}

/// Returns the largest allowed number of reports about one backend since `since`.
fn budget(since: Instant) -> usize {
    usize::try_from(since.elapsed().as_secs()).expect("not that long") + 2
}

fn flood(usual: u32) -> u32 {
    env::var("BALANCER_FLOOD").ok().and_then(|flood| flood.parse().ok()).unwrap_or(usual)
}

/// Nonexistent clients never complete handshakes, so the program reports the backend, but only a limited number of
/// times.
fn the_controller_is_told_once_a_second(syns: u32) {
    with_rig(Some(Duration::from_secs(1)), move |mut rig| {
        let begun = Instant::now();
        let mut told = Vec::new();
        let mut frame = syn(DSR, 40_000);
        for _ in 0..2 {
            for number in 0..flood(syns) {
                frame[26..30].copy_from_slice(&(0x1400_0000 | number).to_be_bytes());
                frame[34..36].copy_from_slice(&(number as u16).to_be_bytes());
                assert_eq!(action(&rig, &frame), XDP_TX);
                if number % 10_000 == 0 {
                    told.extend(reports(&mut rig));
                }
            }
            sleep(Duration::from_secs(1));
        }
        told.extend(reports(&mut rig));
        assert!((1..=budget(begun)).contains(&told.len()), "{} in {:?}", told.len(), begun.elapsed());
        assert!(told.iter().all(|sign| *sign == signs(2, Signal::Unanswered)[0]), "of no other backend: {told:?}");
        assert_eq!(rig.drops(DropReason::Withheld).expect("counters"), 0);
    });
}

#[test]
fn when_forged_syns_come_twice_then_the_controller_is_told_once_a_second() {
    the_controller_is_told_once_a_second(FLOOD);
}

/// The backend has closed the port on purpose, and the first health checks detect the closed port.
#[test]
fn when_a_client_is_refused_a_hundred_thousand_times_then_it_learns_so_and_checks_are_few() {
    with_rig(Some(Duration::from_secs(5)), |mut rig| {
        for (index, case) in NAT.into_iter().enumerate() {
            let begun = Instant::now();
            let refused = answer(case, 40_000, RST | ACK, 0);
            assert_eq!(action(&rig, &refused), XDP_DROP);
            rig.works(index);
            let mut told = reports(&mut rig);
            for _ in 0..flood(FLOOD) / 2 {
                assert_eq!(action(&rig, &refused), XDP_TX);
            }
            told.extend(reports(&mut rig));
            assert!((1..=budget(begun)).contains(&told.len()), "{told:?}");
            assert_eq!(rig.withheld(index), 1);
        }
    });
}

fn when_resets_and_errors_come_from_elsewhere_then_nothing_is_withheld_and_nobody_told(rig: &mut Rig) {
    watch(rig, Some(Duration::from_secs(5)));
    for (index, case) in NAT.into_iter().enumerate() {
        let (vip, at, client) = case;
        let client = format!("{client}:40000");
        let stranger = if index == 0 { "192.0.2.66:80" } else { "[2001:db8:f::66]:80" };
        let other_port = at.replace(":80", ":81");
        let zero = |frame: Frame| {
            let header = if frame.source.is_ipv4() { 34 } else { 54 };
            let mut bytes = frame.bytes();
            bytes[header + 4..header + 8].fill(0);
            bytes
        };
        // The resets go to the VIP, as a client's resets do, or go to a client from an unknown host or from another
        // port of the backend.
        for (from, to, wanted) in [
            (client.as_str(), vip, XDP_TX),
            (stranger, client.as_str(), XDP_PASS),
            (&other_port, client.as_str(), XDP_PASS),
        ] {
            let forged = zero(Frame::tcp(from, to, RST | ACK));
            assert_eq!(action(rig, &forged), wanted, "{from} to {to}");
        }
        // The ICMP error goes to the VIP, and quotes the VIP's answer.
        let answer = Frame::tcp(vip, &client, SYN | ACK);
        let mut payload = answer.packet();
        payload.truncate(48);
        let (message, code) = if index == 0 { (3, 1) } else { (1, 3) };
        let (from, to) = (client.replace(":40000", ":0"), vip.replace(":80", ":0"));
        let error = Frame { payload, ..Frame::icmp(&from, &to, message, code, [0; 4]) }.bytes();
        assert_eq!(action(rig, &error), XDP_TX, "goes to the backend");
        // The ICMP error quotes a packet to another host.
        let quoted = Frame::tcp(&client, stranger, SYN);
        let stranger = stranger.replace(":80", ":0");
        assert_eq!(action(rig, &unreachable(&stranger, case, &quoted)), XDP_PASS);
    }
    assert_eq!(reports(rig), []);
    assert_eq!(rig.drops(DropReason::Withheld).expect("counters"), 0);
}

#[test]
fn when_packets_show_that_a_backend_may_have_failed_then_the_controller_is_told() {
    rows::run(
        services(),
        Setup::default(),
        rows![
            when_a_backend_refuses_a_connection_then_the_reset_is_withheld_and_the_controller_told_once,
            when_a_reset_ends_a_connection_then_it_reaches_the_client,
            when_the_backend_works_then_the_next_reset_reaches_the_client,
            when_the_time_is_over_then_resets_reach_the_client,
            when_nobody_goes_on_with_its_handshake_then_the_controller_is_told,
            when_clients_go_on_with_their_handshakes_then_the_backend_is_left_alone,
            when_the_only_client_sends_its_syn_again_then_the_controller_is_told,
            when_an_error_says_that_a_backend_cannot_be_reached_then_the_controller_is_told,
            when_a_port_is_unreachable_for_datagrams_then_the_controller_is_told,
            when_resets_and_errors_come_from_elsewhere_then_nothing_is_withheld_and_nobody_told,
            when_it_is_switched_off_then_nothing_is_withheld_and_nobody_told,
            when_the_datagram_that_could_not_be_delivered_was_fragmented_then_the_controller_is_told
        ],
    );
}
