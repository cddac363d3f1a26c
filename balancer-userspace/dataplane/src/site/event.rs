//! Random sequences of events at a site.

use std::time::Duration;

use balancer_common::{map_types::Forwarding, verdict::Signal};
use proptest::prelude::*;

use super::server::Fault;

/// The number of servers of the site.
pub(super) const SERVERS: usize = 4;

/// What happens at a site: each event, and the time until the next one.
#[derive(Clone, Debug)]
pub(super) struct Story {
    pub(super) forwarding: Forwarding,
    /// Determines when clients and checks come.
    pub(super) seed: u64,
    pub(super) events: Vec<(Event, Duration)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// These servers (a bit mask) have a fault for this time.
    Fault(u8, Fault, Duration),
    /// The list lacks the target of a server for this time.
    Unlisted(usize, Duration),
    /// The target of a server has another name at the same address.
    Renamed(usize),
    /// The operator drains a server, or ends its drain.
    Drain(usize, bool),
    /// The operator steers this share of the clients.
    Steer(u8),
    /// Another program reports a part of the clients at other servers.
    Import(usize),
    /// Datagrams of QUIC connections come from the addresses of known clients; the connections are at this server.
    Quic(usize),
    /// Somebody forges packets for this time.
    Forged(Forgery, Duration),
}

/// What somebody forges, many times a second.
#[derive(Clone, Copy, Debug)]
pub(super) enum Forgery {
    /// Packets that are signs of a server's failure.
    Signs(usize, Signal),
    /// Segments of no connection, from the addresses of known clients.
    Segments,
    /// SYNs from the addresses of known clients.
    Syns,
    /// SYNs from addresses that nobody knows.
    Flood,
}

fn milliseconds(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn forgery() -> impl Strategy<Value = Forgery> {
    let signal = prop_oneof![Just(Signal::Refused), Just(Signal::Unreachable), Just(Signal::Unanswered)];
    prop_oneof![
        2 => (0..SERVERS, signal).prop_map(|(server, signal)| Forgery::Signs(server, signal)),
        1 => Just(Forgery::Segments),
        1 => Just(Forgery::Syns),
        1 => Just(Forgery::Flood),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let servers = prop_oneof![4 => (0..SERVERS).prop_map(|server| 1u8 << server), 1 => 1..1u8 << SERVERS];
    let fault = prop_oneof![
        3 => Just(Fault::Pauses),
        3 => Just(Fault::Restarts),
        1 => Just(Fault::Overloaded),
        1 => Just(Fault::Cut),
    ];
    let server = || 0..SERVERS;
    prop_oneof![
        8 => (servers, fault, milliseconds(100..=5000)).prop_map(|(servers, fault, time)| Event::Fault(servers, fault, time)),
        1 => (server(), milliseconds(500..=45_000)).prop_map(|(server, time)| Event::Unlisted(server, time)),
        1 => server().prop_map(Event::Renamed),
        1 => (server(), any::<bool>()).prop_map(|(server, drain)| Event::Drain(server, drain)),
        1 => prop_oneof![Just(100u8), 0..=100u8].prop_map(Event::Steer),
        1 => server().prop_map(Event::Import),
        1 => server().prop_map(Event::Quic),
        2 => (forgery(), milliseconds(100..=4000)).prop_map(|(forgery, time)| Event::Forged(forgery, time)),
    ]
}

pub(super) fn story() -> impl Strategy<Value = Story> {
    let forwarding = prop_oneof![
        Just(Forwarding::Dsr),
        Just(Forwarding::Nat),
        Just(Forwarding::Snat),
        Just(Forwarding::Ipip),
        Just(Forwarding::Gue),
    ];
    let events = prop::collection::vec((event(), milliseconds(0..=6000)), 1..=12);
    (forwarding, any::<u64>(), events).prop_map(|(forwarding, seed, events)| Story { forwarding, seed, events })
}
