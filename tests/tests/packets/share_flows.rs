//! Tests of `snat` services that share their clients with the host: a packet of a known connection goes on with its
//! connection at every share, and a packet of no connection goes by the share.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use balancer_common::{
    features::Features,
    map_types::{Forwarding, ShareStats},
    share::{Share, Side, place},
    verdict::{Decision, DropReason},
};
use balancer_config::{
    config::Protocol,
    snat::{IdleTimes, SnatConfig},
};
use balancer_testkit::{
    frame::{ACK, Frame, SYN, Transport},
    rig::{Rig, Service, Setup, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6, Target, backend_mac},
};

use crate::{
    icmp_errors::error,
    rows::{self, rows},
    share::tag,
};

const FIN: u8 = 1;
const RST: u8 = 4;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// A service with its only backend.
#[derive(Clone, Copy, Debug)]
struct Server {
    index: usize,
    vip: &'static str,
    backend: &'static str,
    protocol: Protocol,
}

const fn server(index: usize, vip: &'static str, backend: &'static str, protocol: Protocol) -> Server {
    Server { index, vip, backend, protocol }
}

/// Each pair of address families, for TCP and for UDP.
const SERVERS: [Server; 8] = [
    server(0, "198.51.100.10:80", "10.0.0.11:8080", Protocol::Tcp),
    server(1, "[2001:db8::10]:80", "[fd00::11]:8080", Protocol::Tcp),
    server(2, "198.51.100.11:80", "[fd00::12]:8080", Protocol::Tcp),
    server(3, "[2001:db8::11]:80", "10.0.0.12:8080", Protocol::Tcp),
    server(4, "198.51.100.10:53", "10.0.0.21:5353", Protocol::Udp),
    server(5, "[2001:db8::10]:53", "[fd00::21]:5353", Protocol::Udp),
    server(6, "198.51.100.11:53", "[fd00::22]:5353", Protocol::Udp),
    server(7, "[2001:db8::11]:53", "10.0.0.22:5353", Protocol::Udp),
];

/// The steady shares, and the shares within an hour of a step up, a step down, or both.
const SHARES: [Share; 6] = [
    Share::always(0),
    Share { now: 0, least: 0, most: 50 },
    Share::always(50),
    Share { now: 50, least: 25, most: 75 },
    Share { now: 100, least: 50, most: 100 },
    Share::ALL,
];
const SIDES: [Side; 4] = [Side::Steered, Side::Came, Side::Left, Side::Host];

const fn is_steered(side: Side) -> bool {
    matches!(side, Side::Steered | Side::Came)
}

impl Server {
    const fn is_tcp(self) -> bool {
        matches!(self.protocol, Protocol::Tcp)
    }

    fn vip(self) -> SocketAddr {
        self.vip.parse().expect("an address")
    }

    /// The addresses of clients of this service's family.
    fn clients(self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.vip().is_ipv4();
        (1..=250u16).map(move |host| {
            let text = if v4 { format!("10.7.0.{host}") } else { format!("2001:db8:c:{host:x}::7") };
            text.parse().expect("an address")
        })
    }

    /// A client on one side of a share; `None`: the share has no such side.
    fn client(self, share: Share, side: Side) -> Option<IpAddr> {
        self.clients().find(|&client| share.side(tag(client)) == side)
    }

    fn there(self, client: SocketAddr, flags: u8) -> Frame {
        let transport = if self.is_tcp() { Transport::Tcp(flags) } else { Transport::Udp };
        Frame::new(&client.to_string(), self.vip, transport)
    }

    /// A router's error about a packet from the VIP to a client.
    fn error_about(self, client: SocketAddr) -> Frame {
        let quoted = Frame { source: self.vip(), destination: client, payload: vec![5; 64], ..self.there(client, ACK) };
        let (router, kind) = if client.is_ipv4() {
            ("192.0.2.77:0", ("port unreachable", 3, 3, [0; 4]))
        } else {
            ("[2001:db8:ff::77]:0", ("port unreachable", 1, 4, [0; 4]))
        };
        error(router, &quoted, 80, kind)
    }

    fn opens(self, rig: &Rig, client: SocketAddr) {
        assert_eq!(self.fate(rig, &self.there(client, SYN)), Fate::Backend, "{client}");
    }

    /// Runs a frame, and returns where the frame goes.
    fn fate(self, rig: &Rig, frame: &Frame) -> Fate {
        let drops = || DropReason::ALL.iter().map(|&reason| rig.drops(reason).expect("counters")).collect::<Vec<_>>();
        let before = drops();
        let ran = rig.run(&frame.bytes()).expect("a run");
        match ran.action {
            XDP_PASS if ran.frame == frame.bytes() => Fate::Host,
            XDP_TX if ran.frame.starts_with(&backend_mac(self.index)) => Fate::Backend,
            XDP_TX if ran.frame.starts_with(&frame.source_mac) => Fate::Reset,
            XDP_DROP => {
                let counted = drops();
                let reasons = DropReason::ALL.iter().zip(before.iter().zip(&counted));
                let mut reasons = reasons.filter(|(_, (before, after))| before != after).map(|(&reason, _)| reason);
                Fate::Dropped(reasons.next().expect("a reason"))
            }
            action => panic!("action {action}: {frame:?} became {:02x?}", ran.frame),
        }
    }

    /// The segment or datagram that the backend sends to the end that it sees.
    fn back(self, seen: SocketAddr, flags: u8) -> Frame {
        let transport = if self.is_tcp() { Transport::Tcp(flags) } else { Transport::Udp };
        Frame::new(self.backend, &seen.to_string(), transport)
    }

    /// Runs a frame that goes to the backend, and returns the end that the backend sees.
    fn seen(self, rig: &Rig, frame: &Frame) -> SocketAddr {
        let ran = rig.run(&frame.bytes()).expect("a run");
        assert_eq!(ran.action, XDP_TX, "{frame:?}");
        let v4 = self.backend.starts_with("10.");
        let at = 14 + if v4 { 20 } else { 40 };
        let port = u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]]);
        if v4 { (TUNNEL_SOURCE_V4, port).into() } else { (TUNNEL_SOURCE_V6, port).into() }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Backend,
    Host,
    /// The program answers the segment with a reset.
    Reset,
    Dropped(DropReason),
}

/// The kind of packet that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A segment with these flags, or a datagram.
    Whole(u8),
    /// A segment or datagram in two VLANs.
    Tagged(u8),
    /// A first fragment, after which the others arrive.
    Parts(u8),
    /// A later fragment whose first fragment has not arrived.
    Later,
    /// An ICMP error about a packet from the VIP.
    Error,
    /// An ICMP error that quotes only the later fragment of a packet.
    ErrorAboutPart,
}

const KINDS: [Kind; 12] = [
    Kind::Whole(SYN),
    Kind::Whole(ACK),
    Kind::Whole(SYN | ACK),
    Kind::Whole(FIN | ACK),
    Kind::Whole(RST),
    Kind::Tagged(SYN),
    Kind::Tagged(ACK),
    Kind::Parts(SYN),
    Kind::Parts(ACK),
    Kind::Later,
    Kind::Error,
    Kind::ErrorAboutPart,
];

impl Kind {
    /// The flags of the segment; `None`: the packet has none.
    const fn flags(self) -> Option<u8> {
        match self {
            Self::Whole(flags) | Self::Tagged(flags) | Self::Parts(flags) => Some(flags),
            Self::Later | Self::Error | Self::ErrorAboutPart => None,
        }
    }

    /// Where the packet of a client on this side goes.
    fn expected(self, server: Server, share: Share, side: Side, known: bool) -> Fate {
        let steered = is_steered(side);
        let has_flow = known && !matches!(self, Self::Later | Self::ErrorAboutPart);
        let opens = self.flags().is_some_and(|flags| flags == SYN || !server.is_tcp());
        if has_flow || opens && steered {
            return Fate::Backend;
        }
        match self {
            Self::Later if steered => Fate::Dropped(DropReason::FragmentUnknown),
            _ if !share.is_all() => Fate::Host,
            Self::ErrorAboutPart => Fate::Dropped(DropReason::FragmentUnknown),
            Self::Error | Self::Whole(RST) => Fate::Dropped(DropReason::FlowUnknown),
            Self::Whole(_) | Self::Tagged(_) | Self::Parts(_) | Self::Later => Fate::Reset,
        }
    }

    fn run(self, rig: &Rig, server: Server, client: SocketAddr) -> Fate {
        let long = |flags| Frame { payload: vec![7; 200], ..server.there(client, flags) };
        let number = u32::from(client.port());
        match self {
            Self::Whole(flags) => server.fate(rig, &server.there(client, flags)),
            Self::Tagged(flags) => server.fate(rig, &Frame { vlans: vec![7, 8], ..server.there(client, flags) }),
            Self::Parts(flags) => {
                let parts = long(flags).fragments(64, number);
                let fate = server.fate(rig, &parts[0]);
                if matches!(fate, Fate::Backend | Fate::Host) {
                    for part in &parts[1..] {
                        assert_eq!(server.fate(rig, part), fate, "a later fragment");
                    }
                }
                fate
            }
            Self::Later => server.fate(rig, &long(ACK).fragments(64, number)[1]),
            Self::Error => server.fate(rig, &server.error_about(client)),
            Self::ErrorAboutPart => {
                let whole = Frame { source: server.vip(), destination: client, ..long(ACK) };
                let part = whole.fragments(64, number).remove(1);
                let (router, kind) = if client.is_ipv4() {
                    ("192.0.2.77:0", ("fragmentation needed", 3, 4, [0, 0, 5, 0]))
                } else {
                    ("[2001:db8:ff::77]:0", ("packet too big", 2, 0, [0, 0, 5, 0]))
                };
                server.fate(rig, &error(router, &part, 80, kind))
            }
        }
    }
}

fn share_all(rig: &mut Rig, share: Share) {
    SERVERS.iter().for_each(|server| rig.share(server.vip, share).expect("shares"));
}

/// A packet that arrives: the connection of the client is open if `known`.
struct Arrival {
    server: Server,
    side: Side,
    known: bool,
    kind: Kind,
    client: SocketAddr,
}

/// Every kind of packet of a client on every side, each from a port of its own.
fn arrivals(share: Share) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    for server in SERVERS {
        for side in SIDES {
            let Some(client) = server.client(share, side) else { continue };
            for known in [false, true] {
                for kind in KINDS {
                    if !server.is_tcp() && kind.flags().is_some_and(|flags| flags != ACK) {
                        continue;
                    }
                    let client = SocketAddr::new(client, 30_000 + arrivals.len() as u16);
                    arrivals.push(Arrival { server, side, known, kind, client });
                }
            }
        }
    }
    arrivals
}

fn when_packets_of_any_kind_arrive_at_any_share_then_known_connections_go_on_and_others_go_by_the_share(rig: &mut Rig) {
    let mut wrong = Vec::new();
    for share in SHARES {
        rig.reset().expect("a rig as new");
        let arrivals = arrivals(share);
        arrivals.iter().filter(|arrival| arrival.known).for_each(|of| of.server.opens(rig, of.client));
        share_all(rig, share);
        for Arrival { server, side, known, kind, client } in arrivals {
            let expected = kind.expected(server, share, side, known);
            let fate = kind.run(rig, server, client);
            if fate != expected {
                wrong.push(format!("{share:?} {side:?} {known} {kind:?} {}: {fate:?} not {expected:?}", server.vip));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Shares at which the program does not steer a client: the client was steered within the last hour, was never steered,
/// or is watched.
fn shares_without(client: IpAddr) -> Vec<Share> {
    let place = place(tag(client));
    let mut shares = vec![Share { now: 0, least: 0, most: 100 }, Share::always(0)];
    shares.extend((place > 0).then(|| Share::always(place)));
    shares
}

fn when_connections_are_open_then_both_ways_go_on_at_every_share(rig: &mut Rig) {
    for server in SERVERS {
        let client = SocketAddr::new(server.client(Share::ALL, Side::Steered).expect("a client"), 40_000);
        let seen = server.seen(rig, &server.there(client, SYN));
        for share in shares_without(client.ip()).into_iter().chain(SHARES) {
            rig.share(server.vip, share).expect("shares");
            let back = rig.run(&server.back(seen, SYN | ACK).bytes()).expect("a run");
            assert_eq!(back.action, XDP_TX, "{server:?} {share:?}");
            assert_eq!(server.seen(rig, &server.there(client, ACK)), seen, "{server:?} {share:?}");
        }
    }
}

fn when_a_client_that_left_opens_its_closed_connection_again_then_the_host_gets_all_segments(rig: &mut Rig) {
    for server in SERVERS.into_iter().filter(|server| server.is_tcp()) {
        let client = server.clients().find(|&client| place(tag(client)) > 0).expect("a client");
        for (number, share) in (0..).zip(shares_without(client)) {
            for (port, closes_first) in [(50_000 + number, "the client"), (51_000 + number, "the backend")] {
                let client = SocketAddr::new(client, port);
                rig.share(server.vip, Share::ALL).expect("shares");
                let seen = server.seen(rig, &server.there(client, SYN));
                let back = |rig: &Rig, flags| rig.run(&server.back(seen, flags).bytes()).expect("a run").action;
                assert_eq!(back(rig, SYN | ACK), XDP_TX);
                server.opens_on(rig, client, ACK);
                rig.share(server.vip, share).expect("shares");
                if closes_first == "the client" {
                    server.opens_on(rig, client, FIN | ACK);
                    assert_eq!(back(rig, FIN | ACK), XDP_TX);
                } else {
                    assert_eq!(back(rig, FIN | ACK), XDP_TX);
                    server.opens_on(rig, client, FIN | ACK);
                }
                for flags in [SYN, ACK, FIN | ACK] {
                    let fate = server.fate(rig, &server.there(client, flags));
                    assert_eq!(fate, Fate::Host, "{server:?} {share:?} {closes_first} closed first: {flags}");
                }
                assert_eq!(back(rig, FIN | ACK), XDP_PASS, "a late segment of the backend");
                assert_eq!(server.fate(rig, &server.there(client, ACK)), Fate::Host);
            }
        }
    }
}

impl Server {
    fn opens_on(self, rig: &Rig, client: SocketAddr, flags: u8) {
        assert_eq!(self.fate(rig, &self.there(client, flags)), Fate::Backend, "{client} {flags}");
    }
}

fn when_a_client_that_came_opens_a_connection_then_its_connections_to_the_host_go_on(rig: &mut Rig) {
    let share = Share { now: 100, least: 0, most: 100 };
    for server in SERVERS.into_iter().filter(|server| server.is_tcp()) {
        rig.share(server.vip, share).expect("shares");
        let client = server.client(share, Side::Came).expect("a client");
        let [own, other] = [40_000, 40_001].map(|port| SocketAddr::new(client, port));
        assert_eq!(server.fate(rig, &server.there(own, ACK)), Fate::Host);
        server.opens(rig, other);
        server.opens_on(rig, other, ACK);
        assert_eq!(server.fate(rig, &server.there(own, ACK)), Fate::Host);
        // The client may open another connection from the port of one with the host.
        server.opens(rig, own);
        server.opens_on(rig, own, ACK);
        let ShareStats { unsteered, host_connections } = rig.passed(server.vip).expect("counters");
        assert_eq!((unsteered, host_connections), (0, 2), "{server:?}");
    }
}

fn when_the_backend_of_an_open_connection_fails_then_its_client_gets_a_reset_at_every_share(rig: &mut Rig) {
    for server in SERVERS.into_iter().filter(|server| server.is_tcp()) {
        let client = server.clients().next().expect("a client");
        for (port, share) in (40_000..).zip(shares_without(client)) {
            let client = SocketAddr::new(client, port);
            rig.share(server.vip, Share::ALL).expect("shares");
            server.opens(rig, client);
            rig.share(server.vip, share).expect("shares");
            rig.keep_known(server.vip, server.backend, false).expect("a backend");
            assert_eq!(server.fate(rig, &server.there(client, ACK)), Fate::Reset, "{server:?} {share:?}");
            assert_eq!(server.fate(rig, &server.there(client, SYN)), Fate::Host, "{server:?} {share:?}");
            rig.keep_known(server.vip, server.backend, true).expect("a backend");
        }
    }
}

fn when_a_service_is_watched_then_packets_count_as_if_steered_and_no_connection_begins(rig: &mut Rig) {
    share_all(rig, Share::always(0));
    for server in SERVERS {
        let client = SocketAddr::new(server.clients().next().expect("a client"), 40_000);
        for (number, flags) in (1..).zip([SYN, ACK, FIN | ACK]) {
            let frame = server.there(client, flags);
            assert_eq!(server.fate(rig, &frame), Fate::Host);
            let stats = rig.backend_stats(server.index).expect("counters");
            let connections = u64::from(server.is_tcp());
            let counted = (stats.packets, stats.connections, stats.decisions[Decision::Stateless.index()]);
            assert_eq!(counted, (number, connections, connections), "{server:?}");
        }
        assert_eq!(rig.passed(server.vip).expect("counters"), ShareStats::default());
    }
    assert_eq!(rig.flows().sweep().entries, 0);
}

fn when_clients_pass_to_the_host_then_packets_are_counted_and_impossible_sources_pass(rig: &mut Rig) {
    for server in SERVERS {
        let client = server.clients().find(|&client| place(tag(client)) > 0).expect("a client");
        rig.share(server.vip, Share::always(place(tag(client)))).expect("shares");
        let client = SocketAddr::new(client, 40_000);
        for flags in [SYN, ACK] {
            assert_eq!(server.fate(rig, &server.there(client, flags)), Fate::Host);
        }
        assert_eq!(rig.passed(server.vip).expect("counters"), ShareStats { unsteered: 2, host_connections: 0 });
        rig.share(server.vip, Share::always(0)).expect("shares");
        let itself = SocketAddr::new(server.vip().ip(), 1);
        assert_eq!(server.fate(rig, &server.there(itself, SYN)), Fate::Host);
        rig.share(server.vip, Share::ALL).expect("shares");
        assert_eq!(server.fate(rig, &server.there(itself, SYN)), Fate::Dropped(DropReason::Martian));
        assert_eq!(rig.flows().sweep().entries, 0, "{server:?}");
    }
}

fn when_clients_have_been_with_the_host_then_they_are_known_once_they_are_steered(rig: &mut Rig) {
    const CLIENTS: usize = 32;
    for (server, other) in [(SERVERS[0], "10.0.0.13"), (SERVERS[1], "fd00::13")] {
        rig.remember(server.vip, Duration::from_secs(3600)).expect("memory");
        let clients: Vec<_> =
            server.clients().take(2 * CLIENTS).map(|client| SocketAddr::new(client, 40_000)).collect();
        let (known, new) = clients.split_at(CLIENTS);
        for (share, clients) in
            [(Share::always(0), &known[..16]), (Share { now: 0, least: 0, most: 100 }, &known[16..])]
        {
            rig.share(server.vip, share).expect("shares");
            for &client in clients {
                assert_eq!(server.fate(rig, &server.there(client, SYN)), Fate::Host);
            }
        }
        rig.add_backend(server.vip, 20 + server.index, other.parse().expect("an address"), true).expect("a backend");
        rig.share(server.vip, Share::ALL).expect("shares");
        let stays = |client: &&SocketAddr| {
            let ran = rig.run(&server.there(**client, SYN).bytes()).expect("a run");
            ran.frame.starts_with(&backend_mac(server.index))
        };
        assert_eq!(known.iter().filter(stays).count(), CLIENTS, "{server:?}");
        let unknown = new.iter().filter(stays).count();
        assert!((1..CLIENTS).contains(&unknown), "{server:?}: {unknown}");
    }
}

#[test]
fn when_snat_services_share_their_clients_with_the_host_then_each_side_keeps_its_connections() {
    let services = SERVERS.map(|Server { vip, backend, protocol, .. }| Service {
        address: vip,
        protocol,
        forwarding: Forwarding::Snat,
        target: Target::SameInterface(backend),
    });
    let hour = Duration::from_secs(3600);
    let idle = IdleTimes { tcp: hour, udp: hour, udp_once: hour, half_open: hour, closing: hour };
    let snat = SnatConfig { ports: Some((20_000, 59_999)), idle, ..SnatConfig::default() };
    rows::run(
        services.into(),
        Setup { features: Features::SHARE | Features::MEMORY, snat, flows: 1 << 12, ..Setup::default() },
        rows![
            when_packets_of_any_kind_arrive_at_any_share_then_known_connections_go_on_and_others_go_by_the_share,
            when_connections_are_open_then_both_ways_go_on_at_every_share,
            when_a_client_that_left_opens_its_closed_connection_again_then_the_host_gets_all_segments,
            when_a_client_that_came_opens_a_connection_then_its_connections_to_the_host_go_on,
            when_the_backend_of_an_open_connection_fails_then_its_client_gets_a_reset_at_every_share,
            when_a_service_is_watched_then_packets_count_as_if_steered_and_no_connection_begins,
            when_clients_pass_to_the_host_then_packets_are_counted_and_impossible_sources_pass,
            when_clients_have_been_with_the_host_then_they_are_known_once_they_are_steered
        ],
    );
}
