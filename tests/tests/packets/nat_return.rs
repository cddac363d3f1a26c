//! Tests of replies from `nat` backends: the program restores the VIP, and finds the path to the client in the kernel's
//! routes.

use balancer_common::{handover::Handed, verdict::DropReason};
use balancer_testkit::{
    frame::{ACK, Frame, SYN, Transport},
    rig::{IN_MAC, ROUTER_MAC, Rig, Setup},
};

use crate::{
    cases::{Case, Then, handed, services},
    rows::{self, Row, rows},
};

/// Returns a backend's reply in the form that the client receives.
pub(crate) fn restored(frame: &Frame, vip: &str) -> Frame {
    Frame {
        destination_mac: ROUTER_MAC,
        source_mac: IN_MAC,
        source: vip.parse().expect("an address"),
        ttl: frame.ttl - 1,
        ..frame.clone()
    }
}

fn when_a_nat_backend_replies_then_the_source_is_restored(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (backend, vip, clients) in [
        ("10.0.0.21:8080", "198.51.100.20:80", ["203.0.113.7:40000", "10.9.8.7:40000"]),
        ("[fd00::21]:8080", "[2001:db8::20]:80", ["[2001:db8:c::7]:40000", "[2001:db8:c:1::7]:1"]),
    ] {
        for client in clients {
            for flags in [SYN | ACK, ACK, ACK | 1, 4] {
                let reply = Frame::tcp(backend, client, flags);
                let name = format!("{backend} to {client}, flags {flags}");
                cases.push(Case::new(name, &reply, Then::Tx(restored(&reply, vip).bytes())));
            }
        }
    }
    for (backend, vip, client) in [
        ("10.0.0.22:5353", "198.51.100.20:53", "203.0.113.7:40000"),
        ("[fd00::22]:5353", "[2001:db8::20]:53", "[2001:db8:c::7]:40000"),
    ] {
        let reply = Frame::udp(backend, client);
        cases.push(Case::new(format!("{backend} udp"), &reply, Then::Tx(restored(&reply, vip).bytes())));
        let reply = Frame::new(backend, client, Transport::UdpWithoutChecksum);
        cases.push(Case::new(
            format!("{backend} udp without checksum"),
            &reply,
            Then::Tx(restored(&reply, vip).bytes()),
        ));
    }
    let reply = Frame::tcp("10.0.0.32:12345", "203.0.113.7:40000", SYN | ACK);
    cases.push(Case::new("every port", &reply, Then::Tx(restored(&reply, "198.51.100.31:12345").bytes())));
    cases
}

fn when_a_reply_cannot_be_sent_then_it_is_passed_or_counted(_: &mut Rig) -> Vec<Case> {
    vec![
        Case::new(
            "the answer to the balancer's own health check",
            &Frame::tcp("10.0.0.21:8080", "10.0.0.1:50000", SYN | ACK),
            Then::Pass,
        ),
        Case::new(
            "the answer to the balancer's own health check, IPv6",
            &Frame::tcp("[fd00::21]:8080", "[fd00::1]:50000", SYN | ACK),
            Then::Pass,
        ),
        Case::new("another port of a backend", &Frame::tcp("10.0.0.21:22", "203.0.113.7:40000", ACK), Then::Pass),
        Case::new("another protocol", &Frame::udp("10.0.0.21:8080", "203.0.113.7:40000"), Then::Pass),
        Case::new("a dsr backend", &Frame::tcp("10.0.0.11:80", "203.0.113.7:40000", ACK), Then::Pass),
        Case::new(
            "no route to the client: the kernel tells the backend",
            &Frame::tcp("10.0.0.21:8080", "192.0.2.1:40000", ACK),
            Then::Pass,
        ),
        Case::new(
            "the route to the client says unreachable",
            &Frame::tcp("10.0.0.21:8080", "192.0.2.200:40000", ACK),
            Then::Drop(DropReason::NoRoute),
        ),
        Case::new(
            "TTL used up",
            &Frame { ttl: 1, ..Frame::tcp("10.0.0.21:8080", "203.0.113.7:40000", ACK) },
            Then::Drop(DropReason::TtlExceeded),
        ),
    ]
}

/// The kernel resolves the neighbour of the reply, and then sends the reply.
fn when_the_neighbour_of_a_reply_is_unknown_then_it_is_handed_over(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (backend, vip, client) in [
        ("10.0.0.21:8080", "198.51.100.20:80", "203.0.113.66:40000"),
        ("[fd00::21]:8080", "[2001:db8::20]:80", "[2001:db8:c::66]:40000"),
    ] {
        let reply = Frame::tcp(backend, client, SYN | ACK);
        let then = Then::Handed(handed(rig, &restored(&reply, vip), Handed::Client).bytes());
        cases.push(Case::new(format!("{backend} to {client}"), &reply, then));
        let last_hop = Frame { ttl: 1, ..reply };
        cases.push(Case::new(
            format!("{backend} to {client}, TTL used up"),
            &last_hop,
            Then::Drop(DropReason::TtlExceeded),
        ));
    }
    cases
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_nat_backend_replies_then_the_source_is_restored,
    when_a_reply_cannot_be_sent_then_it_is_passed_or_counted,
    when_the_neighbour_of_a_reply_is_unknown_then_it_is_handed_over
];

#[test]
fn when_nat_backends_reply_then_replies_leave_as_the_routes_say() {
    rows::run(services(), Setup::default(), ROWS);
}
