//! Tests of a connection table that is full, and of a table under attack.

mod release;

use std::{collections::HashMap, net::Ipv4Addr};

use balancer_common::{map_types::Forwarding, verdict::DropReason};
use balancer_config::{config::Protocol, snat::SnatConfig};
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    rig::{Rig, Service, Setup, TUNNEL_SOURCE_V4, Target},
};

const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;
const PORTS: (u16, u16) = (10_240, 32_767);
const SERVERS: [(&str, &str); 4] = [
    ("198.51.100.10:80", "10.0.0.11:8080"),
    ("198.51.100.11:80", "10.0.0.12:8080"),
    ("198.51.100.12:80", "10.0.0.13:8080"),
    ("198.51.100.13:80", "10.0.0.14:8080"),
];

fn with_rig(flows: u32, addresses: &'static [Ipv4Addr], test: impl FnOnce(Rig) + Send + 'static) {
    let run = move || {
        let services = SERVERS.map(|(address, at)| Service {
            address,
            protocol: Protocol::Tcp,
            forwarding: Forwarding::Snat,
            target: Target::SameInterface(at),
        });
        let addresses = addresses.iter().map(|&address| address.into()).collect();
        let snat = SnatConfig { addresses, ports: Some(PORTS), ..SnatConfig::default() };
        test(Rig::with(&services, &Setup { flows, snat, ..Setup::default() }).expect("a rig"));
    };
    std::thread::spawn(run).join().expect("the thread panicked");
}

/// Returns the client with the given number; each client has a different port.
fn client(number: u32) -> String {
    let [_, a, b, c] = (number / 8).to_be_bytes();
    format!("10.{}.{b}.{c}:{}", a + 1, 40_000 + number % 8)
}

fn segment(number: u32, flags: u8) -> Vec<u8> {
    let (vip, _) = SERVERS[number as usize % SERVERS.len()];
    Frame::tcp(&client(number), vip, flags).bytes()
}

/// Returns the client's address and port in the form in which the backend sees them.
fn sent(rig: &Rig, number: u32, flags: u8) -> (Ipv4Addr, u16) {
    let ran = rig.run(&segment(number, flags)).expect("a run");
    assert_eq!(ran.action, XDP_TX, "client {number}");
    let [a, b, c, d] = [26, 27, 28, 29].map(|at| ran.frame[at]);
    (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([ran.frame[34], ran.frame[35]]))
}

fn connect(rig: &Rig, number: u32) -> (Ipv4Addr, u16) {
    let (address, port) = sent(rig, number, SYN);
    let (_, backend) = SERVERS[number as usize % SERVERS.len()];
    let answer = Frame::tcp(backend, &format!("{address}:{port}"), SYN | ACK);
    assert_eq!(rig.run(&answer.bytes()).expect("a run").action, XDP_TX, "client {number}");
    assert_eq!(sent(rig, number, ACK), (address, port));
    (address, port)
}

const TWO: [Ipv4Addr; 2] = [TUNNEL_SOURCE_V4, Ipv4Addr::new(10, 0, 0, 2)];
const ONE: [Ipv4Addr; 1] = [TUNNEL_SOURCE_V4];

fn all_live_at_once(addresses: &'static [Ipv4Addr], connections: u32) {
    with_rig(262_144, addresses, move |rig| {
        let mut ends = HashMap::new();
        for number in 0..connections {
            let end = connect(&rig, number);
            assert!(addresses.contains(&end.0));
            let before = ends.insert((number as usize % SERVERS.len(), end), number);
            assert_eq!(before, None, "one end for two");
        }
        for (&(_, end), &number) in &ends {
            assert_eq!(sent(&rig, number, ACK), end, "client {number}");
        }
        let counts = rig.flows().sweep();
        assert_eq!(
            (counts.entries, counts.of_backends.values().sum::<u64>()),
            (connections.into(), connections.into())
        );
    });
}

#[test]
fn when_sixty_thousand_connections_share_one_address_then_all_of_them_live() {
    all_live_at_once(&ONE, 60_000);
}

#[test]
fn when_a_hundred_thousand_connections_share_two_addresses_then_all_of_them_live() {
    all_live_at_once(&TWO, 100_000);
}

/// Sends SYNs of many clients to which no backend answers, and after each thousandth a segment of a live connection.
fn none_that_carries_data_is_lost(segments: u32) {
    const LIVE: u32 = 1000;
    with_rig(65_536, &ONE, move |rig| {
        let ends: Vec<_> = (0..LIVE).map(|number| connect(&rig, number)).collect();
        for number in 0..segments {
            let _ = rig.run(&segment(1_000_000 + number, SYN)).expect("a run");
            if number % 1000 == 0 {
                let live = number / 1000 % LIVE;
                assert_eq!(sent(&rig, live, ACK), ends[live as usize], "after {number}");
            }
        }
        for (number, end) in (0..LIVE).zip(&ends) {
            assert_eq!(sent(&rig, number, ACK), *end, "client {number}");
        }
        // The program serves a new client during the attack.
        connect(&rig, LIVE);
        println!("{} without a port", rig.drops(DropReason::NoPort).expect("counters"));
    });
}

#[test]
fn when_segments_open_connections_that_nobody_answers_then_none_that_carries_data_is_lost() {
    none_that_carries_data_is_lost(200_000);
}

#[test]
fn when_all_ports_of_a_backend_but_one_are_held_then_the_next_connection_gets_that_one() {
    const RST: u8 = 4;
    let of_first_server = |number: u32| number * SERVERS.len() as u32;
    with_rig(65_536, &ONE, move |rig| {
        let ports = u32::from(PORTS.1 - PORTS.0) + 1;
        let ends: Vec<_> = (0..ports).map(|number| connect(&rig, of_first_server(number))).collect();
        let dropped = || rig.drops(DropReason::NoPort).expect("counters");
        for number in 0..100 {
            let next = segment(of_first_server(ports + number), SYN);
            assert_eq!(rig.run(&next).expect("a run").action, XDP_DROP);
            assert_eq!(dropped(), u64::from(number) + 1);
            let ended = number * 201;
            sent(&rig, of_first_server(ended), RST);
            assert_eq!(connect(&rig, of_first_server(ports + number)), ends[ended as usize], "{number}");
        }
        assert_eq!(sent(&rig, of_first_server(1), ACK), ends[1]);
    });
}

#[test]
fn when_the_table_is_full_of_connections_that_carry_data_then_the_next_is_dropped() {
    with_rig(1024, &ONE, |rig| {
        let mut ends = Vec::new();
        for number in 0..4000 {
            if rig.run(&segment(number, SYN)).expect("a run").action != XDP_TX {
                continue;
            }
            ends.push((number, connect(&rig, number)));
        }
        let full = rig.drops(DropReason::FlowTableFull).expect("counters");
        assert_eq!(ends.len() as u64 + full, 4000);
        for &(number, end) in &ends {
            assert_eq!(sent(&rig, number, ACK), end, "client {number} of {}", ends.len());
        }
        // The connection table has 1.5 times as many rows as the configured number of connections.
        assert!((1024..=1536).contains(&ends.len()), "{}", ends.len());
    });
}
