//! A contest between the program and a model of `snat` connections: random packets of clients, backends and routers,
//! for each pair of address families and both protocols. The model learns from the program only the port that a new
//! connection gets, and checks that no other connection of the backend has this port.
//!
//! `BALANCER_MODEL_SEED` selects other packets.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use balancer_common::{
    flows::{FlowWord, IdleTicks, Life, Numbers, Phase, Segment, expendable, is_good, of_port},
    map_types::Forwarding,
    verdict::DropReason,
};
use balancer_config::{
    config::Protocol,
    snat::{IdleTimes, SnatConfig},
};
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, SYN, Transport, options},
    rig::{IN_MAC, ROUTER_MAC, Rig, Service, Setup, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6, Target, backend_mac},
    variable,
};
use fastrand::Rng;

use crate::{families::crossed, icmp_errors};

const FIN: u8 = 1;
const RST: u8 = 4;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// So few ports that connections sometimes take those of ended ones.
const PORTS: (u16, u16) = (20_000, 20_249);
const FLOWS: u32 = 1 << 16;
const STEPS: usize = 100_000;
/// The number of steps in which clients use the same ports.
const ERA: usize = 5000;
/// The least number of occurrences of each event.
const EACH: usize = 20;
/// A time at which the last packets of a connection whose word has the time 0 have arrived.
const LATER: u32 = 10;
/// No connection ends by its age.
const IDLE: IdleTicks = IdleTicks { tcp: 100, udp: 100, udp_once: 100, half_open: 100, closing: 100 };

/// VIPs, and their backends: each pair of address families, for TCP and for UDP.
const SERVERS: [(&str, &str, Protocol); 8] = [
    ("198.51.100.10:80", "10.0.0.11:8080", Protocol::Tcp),
    ("[2001:db8::10]:80", "[fd00::11]:8080", Protocol::Tcp),
    ("198.51.100.11:80", "[fd00::12]:8080", Protocol::Tcp),
    ("[2001:db8::11]:80", "10.0.0.12:8080", Protocol::Tcp),
    ("198.51.100.10:53", "10.0.0.21:5353", Protocol::Udp),
    ("[2001:db8::10]:53", "[fd00::21]:5353", Protocol::Udp),
    ("198.51.100.11:53", "[fd00::22]:5353", Protocol::Udp),
    ("[2001:db8::11]:53", "10.0.0.22:5353", Protocol::Udp),
];

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A connection, whose life the tests of `balancer-common` compare with those of its ends.
#[derive(Clone, Copy, Debug)]
struct Flow {
    port: u16,
    life: Life,
}

impl Flow {
    const fn word(self) -> FlowWord {
        FlowWord::new(0, self.life.state, 0)
    }

    /// Whether a packet that may open a connection begins another one.
    fn has_ended(self) -> bool {
        self.word().phase() == Phase::Closing
    }

    /// Whether no other connection may take the ended connection's port, because the backend may keep it in TIME-WAIT.
    const fn rests(self) -> bool {
        !self.word().may_go(LATER, &IdleTicks { tcp: 0, udp: 0, udp_once: 0, half_open: 0, closing: 1 })
    }

    /// Whether a connection with the numbers `opening` may take this one's port some time after its last packet.
    const fn leaves(self, opening: Numbers) -> bool {
        let word = self.word();
        let lets_in = word.lets_in(self.life.numbers, opening);
        word.leaves(LATER, lets_in) || is_good(of_port(word, expendable(word, 0, LATER, &IDLE), lets_in))
    }
}

/// What a frame says about its connection.
fn segment(frame: &Frame, by_client: bool) -> Segment {
    let Transport::Tcp(flags) = frame.transport else {
        return Segment { by_client, datagram: true, ..Segment::default() };
    };
    let has = |flag: u8| flags & flag != 0;
    Segment {
        by_client,
        datagram: false,
        syn: has(SYN),
        fin: has(FIN),
        rst: has(RST),
        ack: has(ACK),
        sequence: frame.sequence,
        acknowledgement: frame.acknowledgement,
        length: frame.payload.len() as u32,
        stamp: if by_client && (has(SYN) || has(FIN)) { frame.stamp.unwrap_or(0) } else { 0 },
    }
}

#[derive(Default)]
struct Model {
    /// The present connections by service and client.
    flows: BTreeMap<(usize, SocketAddr), Flow>,
    /// Earlier connections by service and port: the backend may keep them in TIME-WAIT, and the client has opened
    /// another connection since.
    resting: BTreeMap<(usize, u16), Flow>,
    events: BTreeMap<&'static str, usize>,
}

impl Model {
    /// Removes and returns the connection that has a port to the backend of a service.
    fn take(&mut self, service: usize, port: u16) -> Option<Flow> {
        let present = self.flows.iter().find(|((of, _), flow)| *of == service && flow.port == port);
        match present.map(|(&ends, _)| ends) {
            Some(ends) => self.flows.remove(&ends),
            None => self.resting.remove(&(service, port)),
        }
    }
}

struct Contest {
    rig: Rig,
    /// The number of times that the clients have taken other ports.
    era: u16,
    rng: Rng,
    model: Model,
}

fn pool(service: usize, port: u16) -> SocketAddr {
    let v4 = address(SERVERS[service].1).is_ipv4();
    if v4 { (TUNNEL_SOURCE_V4, port).into() } else { (TUNNEL_SOURCE_V6, port).into() }
}

fn router(v4: bool) -> &'static str {
    if v4 { "192.0.2.77:0" } else { "[2001:db8:ff::77]:0" }
}

impl Contest {
    fn event(&mut self, name: &'static str) {
        *self.model.events.entry(name).or_default() += 1;
    }

    /// Returns a random packet between two ends; a TTL of 1 is rare.
    fn packet(&mut self, source: SocketAddr, destination: SocketAddr, protocol: Protocol, flags: u8) -> Frame {
        let Self { rng, .. } = self;
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp(flags),
            Protocol::Udp | Protocol::Quic if source.is_ipv4() && rng.u8(..4) == 0 => Transport::UdpWithoutChecksum,
            Protocol::Udp | Protocol::Quic => Transport::Udp,
        };
        let mut frame = Frame::new(&source.to_string(), &destination.to_string(), transport);
        frame.payload = (0..rng.usize(..90)).map(|_| rng.u8(..)).collect();
        frame.ttl = if rng.u8(..40) == 0 { 1 } else { rng.u8(2..) };
        frame.tos = rng.u8(..);
        if rng.u8(..8) == 0 {
            frame.vlans = vec![rng.u16(1..4095); rng.usize(1..3)];
        }
        if source.is_ipv4() {
            (frame.id, frame.dont_fragment) = (rng.u16(..), rng.bool());
            frame.options = vec![1; 4 * rng.usize(..4).saturating_sub(1)];
        } else {
            frame.flow_label = rng.u32(..1 << 20);
            if rng.u8(..4) == 0 {
                frame.extensions = vec![options(DESTINATION_OPTIONS, rng.usize(1..4))];
            }
        }
        frame
    }

    /// Gives a segment of a connection the numbers that its other end expects, or sometimes others.
    fn number(&mut self, frame: &mut Frame, flow: Flow, by_client: bool) {
        let Transport::Tcp(flags) = frame.transport else { return };
        let numbers = flow.life.numbers;
        if by_client {
            frame.stamp = (self.rng.u8(..3) == 0).then(|| self.rng.u32(1..8));
            frame.sequence = if flags & SYN != 0 { self.rng.u32(..) } else { numbers.next };
            frame.acknowledgement = numbers.other;
        } else {
            frame.acknowledgement = numbers.next;
        }
        let odds = if flags & RST == 0 { 12 } else { 3 };
        match self.rng.u8(..odds) {
            0 => frame.sequence = self.rng.u32(..),
            1 if by_client => frame.acknowledgement = self.rng.u32(..),
            _ => {}
        }
        if by_client && frame.sequence != numbers.next && flags & RST != 0 {
            self.event("forged reset");
        }
    }

    /// Returns a random client. After some time, clients use other ports: an ended connection keeps its row for a
    /// while, and all connections with the same ends have their rows in the same two buckets.
    fn client(&mut self, service: usize) -> SocketAddr {
        let (host, port) = (self.rng.u8(1..3), 40_000 + 4 * self.era + self.rng.u16(..4));
        let v4 = address(SERVERS[service].0).is_ipv4();
        address(&if v4 { format!("10.7.0.{host}:{port}") } else { format!("[2001:db8:c::{host}]:{port}") })
    }

    /// Returns a random present connection, in most cases one of the ports that the clients use now.
    fn any(&mut self) -> Option<(usize, SocketAddr, Flow)> {
        let first = if self.rng.u8(..8) == 0 { 0 } else { 40_000 + 4 * self.era };
        let mut flows = self.model.flows.iter().filter(|((_, client), _)| client.port() >= first);
        let count = flows.clone().count();
        let at = if count == 0 { return None } else { self.rng.usize(..count) };
        flows.nth(at).map(|(&(service, client), &flow)| (service, client, flow))
    }

    fn step(&mut self, number: usize) {
        self.era = (number / ERA) as u16;
        match self.rng.u8(..10) {
            0..=4 => self.by_client(),
            5..=7 => self.by_backend(),
            8 => self.error(true),
            _ => self.error(false),
        }
    }

    fn flags(&mut self) -> u8 {
        const FLAGS: [u8; 7] = [SYN, SYN, ACK, ACK, FIN | ACK, FIN | ACK, FIN | ACK];
        if self.rng.u8(..30) == 0 { RST } else { FLAGS[self.rng.usize(..FLAGS.len())] }
    }

    fn by_client(&mut self) {
        let service = self.rng.usize(..SERVERS.len());
        let (vip, _, protocol) = SERVERS[service];
        let client = self.client(service);
        let known = self.model.flows.get(&(service, client)).copied();
        let begins_anew = known.is_some_and(Flow::has_ended) && self.rng.u8(..4) > 0;
        let flags = if begins_anew { SYN } else { self.flags() };
        let mut frame = self.packet(client, address(vip), protocol, flags);
        let opens = protocol == Protocol::Udp || flags == SYN;
        if let Some(flow) = known {
            self.number(&mut frame, flow, true);
        }
        let present = known.filter(|flow| !(opens && flow.has_ended()));
        let Some(mut flow) = present else {
            // The program opens the connection before it looks at the TTL.
            frame.ttl = frame.ttl.max(2);
            return if opens { self.opens(service, client, &frame) } else { self.unknown(&frame, flags) };
        };
        if frame.ttl == 1 {
            return self.dropped(&frame, DropReason::TtlExceeded);
        }
        let ran = self.rig.run(&frame.bytes()).expect("a run");
        self.sent(service, flow.port, &frame, ran.action, &ran.frame);
        flow.life = flow.life.after(segment(&frame, true));
        self.model.flows.insert((service, client), flow);
        self.event("continued");
    }

    fn opens(&mut self, service: usize, client: SocketAddr, frame: &Frame) {
        let ran = self.rig.run(&frame.bytes()).expect("a run");
        let v4 = pool(service, 0).is_ipv4();
        let longer = if frame.source.is_ipv4() == v4 {
            frame.options.len() + frame.extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
        } else {
            0
        };
        let at = 14 + 4 * frame.vlans.len() + if v4 { 20 } else { 40 } + longer;
        let port = u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]]);
        assert!((PORTS.0..=PORTS.1).contains(&port), "{port}: {frame:?}");
        let opening = segment(frame, true);
        if let Some(ended) = self.model.flows.get(&(service, client)).copied() {
            let begins_again = ended.word().begins_again(ended.life.numbers, opening.opening());
            assert_eq!(port == ended.port, begins_again, "{ended:?} {frame:?}");
            if ended.rests() {
                self.event(if begins_again { "let in" } else { "opened beside a rest" });
            } else {
                self.event("opened without a rest");
            }
            self.model.flows.remove(&(service, client));
            if !begins_again {
                self.model.resting.insert((service, ended.port), ended);
            }
        }
        if let Some(left) = self.model.take(service, port) {
            assert!(left.leaves(opening.opening()), "port {port} rests or is taken by {left:?}: {frame:?}");
            self.event("took a port");
        }
        self.sent(service, port, frame, ran.action, &ran.frame);
        self.model.flows.insert((service, client), Flow { port, life: Life::opened_by(opening) });
        self.event("opened");
    }

    fn sent(&mut self, service: usize, port: u16, frame: &Frame, action: u32, got: &[u8]) {
        let to = crossed(frame, pool(service, port), address(SERVERS[service].1), got);
        let to = Frame { destination_mac: backend_mac(service), source_mac: IN_MAC, ..checked(to) };
        assert_eq!((action, got), (XDP_TX, &to.bytes()[..]), "{frame:?}");
    }

    /// Sends a segment of no known connection, which the program answers with a reset, within its limits.
    fn unknown(&mut self, frame: &Frame, flags: u8) {
        if flags & RST != 0 {
            return self.dropped(frame, DropReason::FlowUnknown);
        }
        let action = self.rig.run(&frame.bytes()).expect("a run").action;
        assert!([XDP_TX, XDP_DROP].contains(&action), "{action}: {frame:?}");
        self.event(if action == XDP_TX { "reset" } else { "unknown" });
    }

    fn dropped(&mut self, frame: &Frame, reason: DropReason) {
        let before = self.rig.drops(reason).expect("counters");
        assert_eq!(self.rig.run(&frame.bytes()).expect("a run").action, XDP_DROP, "{frame:?}");
        assert_eq!(self.rig.drops(reason).expect("counters"), before + 1, "{reason:?} {frame:?}");
        self.event(if reason == DropReason::FlowUnknown { "unknown" } else { "used up" });
    }

    fn by_backend(&mut self) {
        let Some((service, client, mut flow)) = self.any() else { return };
        let (vip, backend, protocol) = SERVERS[service];
        let answers = flow.word().phase() == Phase::HalfOpen && self.rng.u8(..4) > 0;
        let flags = if answers { SYN | ACK } else { self.flags() };
        if self.rng.u8(..8) == 0 {
            // No present connection has this port.
            let ports: HashSet<u16> =
                self.model.flows.iter().filter(|((of, _), _)| *of == service).map(|(_, flow)| flow.port).collect();
            let other = self.rng.u16(PORTS.0..=PORTS.1);
            if !ports.contains(&other) {
                let frame = self.packet(address(backend), pool(service, other), protocol, flags).bytes();
                let ran = self.rig.run(&frame).expect("a run");
                assert_eq!((ran.action, ran.frame), (XDP_PASS, frame));
                self.event("passed");
            }
            return;
        }
        let mut frame = self.packet(address(backend), pool(service, flow.port), protocol, flags);
        self.number(&mut frame, flow, false);
        if frame.ttl == 1 {
            return self.dropped(&frame, DropReason::TtlExceeded);
        }
        let ran = self.rig.run(&frame.bytes()).expect("a run");
        let to = crossed(&frame, address(vip), client, &ran.frame);
        let to = Frame { destination_mac: ROUTER_MAC, source_mac: IN_MAC, ..checked(to) };
        assert_eq!((ran.action, ran.frame), (XDP_TX, to.bytes()), "{frame:?}");
        flow.life = flow.life.after(segment(&frame, false));
        self.model.flows.insert((service, client), flow);
        self.event("answered");
    }

    /// Sends an error about a packet of a connection, which a router sends to the balancer.
    fn error(&mut self, to_client: bool) {
        let Some((service, client, flow)) = self.any() else { return };
        let (vip, backend, protocol) = SERVERS[service];
        let [vip, backend, pool] = [address(vip), address(backend), pool(service, flow.port)];
        let (told, heard, mac) = if to_client {
            ((pool, backend), (client, vip), ROUTER_MAC)
        } else {
            ((vip, client), (backend, pool), backend_mac(service))
        };
        let mut quoted = self.packet(told.0, told.1, protocol, ACK);
        (quoted.options, quoted.extensions, quoted.vlans) = (vec![], vec![], vec![]);
        if quoted.transport == Transport::UdpWithoutChecksum {
            quoted.transport = Transport::Udp;
        }
        let [from, to] = [told.0, heard.0].map(|end| end.is_ipv4());
        let unreachable = |v4| if v4 { ("", 3, 3, [0; 4]) } else { ("", 1, 4, [0; 4]) };
        let ip = |v4| if v4 { 20 } else { 40 };
        // The program does not translate a checksum that the quote contains only half.
        let rest = 4 * self.rng.usize(2..20);
        let frame = icmp_errors::error(router(from), &quoted, ip(from) + rest, unreachable(from));
        let frame = Frame { tos: 0xc0, ..frame };
        let ran = self.rig.run(&frame.bytes()).expect("a run");
        let id = |at: usize| u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]]);
        let mut as_sent = Frame { source: heard.0, destination: heard.1, ..quoted.clone() };
        if from != to {
            as_sent.flow_label = 0;
            if to {
                (as_sent.id, as_sent.dont_fragment) = (id(14 + 20 + 8 + 4), false);
            }
        }
        let mut expected = icmp_errors::error(router(to), &as_sent, ip(to) + rest, unreachable(to));
        if from != to && to {
            (expected.id, expected.dont_fragment) = (id(14 + 4), false);
        }
        let expected = Frame {
            source: SocketAddr::new(heard.1.ip(), 0),
            ttl: frame.ttl - 1,
            tos: 0xc0,
            destination_mac: mac,
            source_mac: IN_MAC,
            ..expected
        };
        assert_eq!((ran.action, ran.frame), (XDP_TX, expected.bytes()), "{quoted:?}");
        self.event(if to_client { "error to a client" } else { "error to a backend" });
    }
}

/// A datagram over IPv6 has a checksum.
fn checked(frame: Frame) -> Frame {
    if frame.source.is_ipv6() && frame.transport == Transport::UdpWithoutChecksum {
        return Frame { transport: Transport::Udp, ..frame };
    }
    frame
}

#[test]
fn when_random_packets_of_connections_arrive_then_the_program_agrees_with_the_model() {
    let seed = variable::number("BALANCER_MODEL_SEED").expect("a seed").unwrap_or(7);
    let services: Vec<Service> = SERVERS
        .map(|(vip, backend, protocol)| Service {
            address: vip,
            protocol,
            forwarding: Forwarding::Snat,
            target: Target::SameInterface(backend),
        })
        .into();
    let play = move || {
        let hour = Duration::from_secs(3600);
        let idle = IdleTimes { tcp: hour, udp: hour, udp_once: hour, half_open: hour, closing: hour };
        let snat = SnatConfig { ports: Some(PORTS), idle, ..SnatConfig::default() };
        let rig = Rig::with(&services, &Setup { flows: FLOWS, snat, ..Setup::default() }).expect("a rig");
        let mut contest = Contest { rig, era: 0, rng: Rng::with_seed(seed), model: Model::default() };
        (0..STEPS / 2).for_each(|number| contest.step(number));
        // From now on, connections may take the ports of those that have ended so far.
        std::thread::sleep(Duration::from_secs(3));
        (STEPS / 2..STEPS).for_each(|number| contest.step(number));
        let events = contest.model.events;
        println!("seed {seed}: {events:?}");
        assert_eq!(events.len(), 14, "{events:?}");
        assert!(events.values().all(|&times| times > EACH), "{events:?}");
    };
    std::thread::spawn(play).join().expect("the thread panicked");
}
