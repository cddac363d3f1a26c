//! The paths through the kernel program that the benchmark measures.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use balancer_bench::asm::Size;
use balancer_common::{quic::QuicFormat, verdict::Verdict};
use balancer_config::config::Protocol;
use balancer_testkit::frame::{ACK, Frame, SYN, Transport};

use crate::{
    feeder::{Clients, Feed},
    many,
    scene::Place,
    services::{
        DATAGRAMS, ELSEWHERE, FLOWING, GUE, GUE_V6, IPIP, IPIP_V6, MEMORY, MEMORY_V6, NAT, NAT_V6, PINNED, PLAIN,
        PLAIN_V6, PRESENTED, QUIC, REMEMBERED_DATAGRAMS, REPLYING, RULED, RULED_MEMORY, RULED_NEARBY, SERVICES,
        Service, backend, backends,
    },
};

/// The offset of the IPv4 source address in a frame, or of the second word of an IPv6 source address.
const SOURCE: i16 = 26;
/// The offset of the first word of an IPv6 source address in a frame.
const V6_SITE: i16 = 22;
const V4_DESTINATION: i16 = 30;
/// The offset of the first word of an IPv6 destination address in a frame.
const V6_DESTINATION_SITE: i16 = 38;
/// The position of the MAC addresses, which an outer header overwrites. The program reads eight bytes at this position
/// to decide whether a frame is for the balancer's machine.
const MAC: (i16, Size) = (0, Size::Double);
const TYPE: (i16, Size) = (12, Size::Half);
/// The size of a VLAN tag, in bytes.
const TAG: i16 = 4;
const V4_PORTS: (i16, Size) = (34, Size::Word);
const V6_SOURCE: [(i16, Size); 2] = [(22, Size::Double), (30, Size::Double)];
const V6_DESTINATION: [(i16, Size); 2] = [(38, Size::Double), (46, Size::Double)];
const V6_PORTS: (i16, Size) = (54, Size::Word);

const CLIENT_V6: &str = "[2001:db8:c:1::9]:40000";
const FIRST_V4: u32 = u32::from_be_bytes([172, 16, 0, 1]);
/// The first address of clients that send datagrams. The address is far from `FIRST_V4`, because all services have the
/// same hash key: otherwise, clients of different services would replace each other's entries.
const FIRST_OF_DATAGRAMS: u32 = u32::from_be_bytes([172, 32, 0, 1]);
const FIRST_V6: u32 = u32::from_be_bytes([0, 12, 0, 1]);
const MILLION: u32 = 1_000_000;
/// A prime number, so that clients at this distance from each other are all clients of a range.
const STEP: u32 = 611_953;
const FEW: u32 = 1 << 16;

/// A kind of packet that takes one path through the program.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) name: String,
    /// The expected cost in ns, as text.
    pub(crate) wanted: &'static str,
    /// The scene in which the benchmark measures the path.
    pub(crate) scene: Place,
    /// The expected outcome of the path's packets.
    pub(crate) end: End,
    /// The clients of the path's packets.
    pub(crate) clients: Clients,
    packet: Frame,
    /// The packet that the benchmark sends through the program once before each run.
    before: Option<Frame>,
    /// The feeder's changes to the next packet; `None` if the program leaves packets unchanged.
    pub(crate) feed: Option<Feed>,
    /// The number of bytes that the program adds in front of the packet.
    pub(crate) grows: i32,
}

/// The outcome that the benchmark expects for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The program passes the packet, because the packet is not for a service.
    Passed,
    /// The packet reaches a backend of the service.
    AtBackend(usize),
    /// The packet leaves by the interface on which it arrived.
    Sent,
}

impl End {
    /// Returns the verdict under which the interface's counters count the packet.
    pub(crate) fn verdict(self) -> Verdict {
        match self {
            Self::Passed => Verdict::Pass,
            Self::AtBackend(service) if SERVICES[service].elsewhere => Verdict::Redirect,
            Self::AtBackend(_) | Self::Sent => Verdict::Tx,
        }
    }
}

impl Path {
    /// Returns the first packet of the path.
    pub(crate) fn frame(&self) -> Vec<u8> {
        self.packet.bytes()
    }

    /// Returns the packet that the program gets once before each run.
    pub(crate) fn before(&self) -> Option<Vec<u8>> {
        self.before.as_ref().map(Frame::bytes)
    }

    /// Returns a packet that opens a connection of the path's first client, and the feeder's changes for the other
    /// clients.
    pub(crate) fn opening(&self) -> (Vec<u8>, Feed) {
        let is_tcp = matches!(self.packet.transport, Transport::Tcp(_));
        let transport = if is_tcp { Transport::Tcp(SYN) } else { self.packet.transport };
        let opening = Frame { transport, ..self.packet.clone() };
        let restores = self.feed.as_ref().map_or_else(|| vec![ttl(&opening)], |feed| feed.restores.clone());
        (opening.bytes(), Feed { clients: self.clients, restores })
    }

    /// The number of clients of the path's packets.
    pub(crate) fn clients(&self) -> u32 {
        self.clients.count
    }

    fn new(name: &str, end: End, packet: Frame) -> Self {
        let (beside, first) = match packet.source.ip() {
            IpAddr::V4(address) => (V4_DESTINATION, address.to_bits()),
            IpAddr::V6(address) => (V6_SITE, (address.to_bits() >> 64) as u32),
        };
        let clients = Clients { at: SOURCE, beside, first, count: 1, step: 1, turn: None };
        Self {
            name: name.to_owned(),
            wanted: "",
            scene: Place::Settled,
            end,
            clients,
            packet,
            before: None,
            feed: None,
            grows: 0,
        }
    }

    fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    fn wanted(self, wanted: &'static str) -> Self {
        Self { wanted, ..self }
    }

    fn at(self, scene: Place) -> Self {
        Self { scene, ..self }
    }

    fn out_of_order(mut self) -> Self {
        self.clients.step = STEP;
        self
    }

    fn growing(self, by: i32) -> Self {
        Self { grows: by, ..self }
    }

    fn after(self, before: Frame) -> Self {
        Self { before: Some(before), ..self }
    }

    /// Adds a feeder that restores the fields in `restores`, and the TTL, which forwarding decreases.
    fn fed(mut self, count: u32, restores: &[(i16, Size)]) -> Self {
        self.clients.count = count;
        let restores = [&[ttl(&self.packet)], restores].concat();
        self.feed = Some(Feed { clients: self.clients, restores });
        self
    }

    fn of_many(self) -> Self {
        self.fed(MILLION, &[])
    }

    fn opening_each(mut self) -> Self {
        self.packet.transport = Transport::Tcp(SYN);
        self
    }

    fn tagged(mut self) -> Self {
        self.packet.vlans = vec![100];
        let at = |offset| offset + TAG;
        let Clients { at: address, beside, .. } = self.clients;
        self.clients = Clients { at: at(address), beside: at(beside), ..self.clients };
        self.fed(1, &[])
    }
}

/// The offset of the TTL or hop limit, with the protocol and checksum fields next to it. The program reads and writes
/// the TTL and its adjacent fields together.
fn ttl(frame: &Frame) -> (i16, Size) {
    let tags = if frame.vlans.is_empty() { 0 } else { TAG };
    if frame.source.is_ipv4() { (22 + tags, Size::Word) } else { (20 + tags, Size::Half) }
}

fn frame(source: &str, destination: &str, transport: Transport) -> Frame {
    Frame { payload: vec![0; 18], ..Frame::new(source, destination, transport) }
}

fn client_v4(first: u32) -> String {
    format!("{}:40000", Ipv4Addr::from_bits(first))
}

/// Returns a path with a packet from one client to a service.
fn to(name: &str, service: usize) -> Path {
    let address = SERVICES[service].address.to_string();
    let (source, transport) = match SERVICES[service].protocol {
        Protocol::Udp | Protocol::Quic => (client_v4(FIRST_OF_DATAGRAMS), Transport::Udp),
        Protocol::Tcp if SERVICES[service].is_v6() => (CLIENT_V6.to_owned(), Transport::Tcp(ACK)),
        Protocol::Tcp => (client_v4(FIRST_V4), Transport::Tcp(ACK)),
    };
    Path::new(name, End::AtBackend(service), frame(&source, &address, transport)).fed(1, &[])
}

/// Returns a path with a packet that is for no service.
fn foreign(name: &str, source: &str, destination: &str) -> Path {
    Path::new(name, End::Passed, frame(source, destination, Transport::Tcp(ACK)))
}

/// Returns a path with a packet from the service's first backend to a client.
fn reply(name: &str, service: usize) -> Path {
    let v6 = SERVICES[service].is_v6();
    let backend =
        backends(service).map(|id| backend(id, v6)).next().unwrap_or(SocketAddr::new(IpAddr::from([0; 4]), 0));
    let client = if v6 { CLIENT_V6.to_owned() } else { client_v4(FIRST_V4) };
    let packet = frame(&backend.to_string(), &client, Transport::Tcp(ACK));
    Path::new(name, End::Sent, packet)
}

/// Returns a path with replies to each of a million clients, whose next hops are not cached.
fn reply_to_many(name: &str, service: usize) -> Path {
    let mut path = reply(name, service);
    if SERVICES[service].is_v6() {
        path.clients = Clients {
            at: V6_DESTINATION_SITE + 4,
            beside: V6_DESTINATION_SITE,
            first: FIRST_V6,
            count: 1,
            step: 1,
            turn: None,
        };
        path.fed(MILLION, &[V6_SOURCE[0], V6_SOURCE[1], V6_PORTS])
    } else {
        path.clients = Clients { at: V4_DESTINATION, beside: SOURCE, first: FIRST_V4, count: 1, step: 1, turn: None };
        path.fed(MILLION, &[V4_PORTS])
    }
}

/// Returns a path with a packet to each of a thousand services.
pub(crate) fn to_each_service() -> Path {
    let vip = many::service(0).address.to_string();
    let packet = frame(&client_v4(FIRST_V4), &vip, Transport::Tcp(ACK));
    let mut path = Path::new("IPv4 TCP dsr, memory settled, 1,000 services", End::Sent, packet);
    path.scene = Place::ManyServices;
    path.clients =
        Clients { at: V4_DESTINATION, beside: SOURCE, first: many::FIRST_VIP, count: 1, step: 1, turn: None };
    path.fed(many::SERVICES.into(), &[])
}

/// Returns the two fragments of a datagram.
fn fragments() -> [Frame; 2] {
    let datagram = frame(&client_v4(FIRST_OF_DATAGRAMS), &SERVICES[DATAGRAMS].address.to_string(), Transport::Udp);
    let part = |number: usize| datagram.fragments(16, 7).swap_remove(number);
    [part(0), part(1)]
}

/// A router's error to the VIP about a packet to a client.
fn error_about_a_reply() -> Frame {
    let unreachable = Transport::Icmp(3, 1, [0; 4]);
    let vip = SERVICES[PLAIN].address.to_string();
    let mut quoted = frame(&vip, &client_v4(FIRST_V4), Transport::Tcp(ACK)).packet();
    quoted.truncate(28);
    Frame { payload: quoted, ..Frame::new("203.0.113.9:0", &vip, unreachable) }
}

/// The name of the path with which the report compares all other paths.
pub(crate) const REFERENCE: &str = "IPv4 TCP dsr, no memory";

/// Returns a path with packets from a million known clients to a service.
pub(crate) fn known() -> Path {
    to("known clients", MEMORY).of_many()
}

/// Returns the path of [`known`] with IPv6 packets.
pub(crate) fn known_over_v6() -> Path {
    to("known clients over IPv6", MEMORY_V6).of_many()
}

/// Returns the path of [`known`] through a service with a rule that pins other clients.
pub(crate) fn known_beside_a_rule() -> Path {
    to("known clients beside a rule", RULED_MEMORY).of_many()
}

/// Returns the path of [`known`] with datagrams.
pub(crate) fn known_by_datagrams() -> Path {
    to("known clients of datagrams", REMEMBERED_DATAGRAMS).of_many()
}

/// Returns a path with packets from clients that send one packet every five seconds: see [`crate::paced`].
pub(crate) fn paced() -> Path {
    known().named("IPv4 TCP dsr, memory, a packet every 5 s, 1M clients").wanted("settled × 1.3")
}

/// Returns paths with so few clients that the packets and the clients' entries fit into a second-level cache.
pub(crate) fn few() -> [Path; 2] {
    let of_few = |name, path: Path| path.fed(FEW, &[]).named(name);
    [
        of_few("IPv4 TCP dsr, memory settled, 64k clients, a small table", to("", MEMORY)),
        of_few("IPv4 TCP dsr, memory, SYN, 64k clients, a small table", to("", MEMORY).opening_each()).wanted("90"),
    ]
}

/// Returns the paths that the benchmark measures with real frames, each with a million clients.
pub(crate) fn live() -> [Path; 4] {
    [
        to("TCP `dsr`, memory", MEMORY).of_many(),
        to("TCP `ipip`, no memory", IPIP).of_many(),
        to("UDP `dsr`, memory", REMEMBERED_DATAGRAMS).of_many(),
        to("TCP `nat`, no memory", NAT).of_many(),
    ]
}

/// Returns a yardstick's path: one TCP segment from one client.
pub(crate) fn of_one_client(name: &str) -> Path {
    to(name, PLAIN)
}

/// Returns a yardstick's path: one TCP segment from each of a million clients.
pub(crate) fn of_a_million_clients(name: &str) -> Path {
    to(name, PLAIN).of_many()
}

/// Returns a path of the same clients as [`of_a_million_clients`], in another order.
pub(crate) fn of_a_million_clients_out_of_order(name: &str) -> Path {
    to(name, PLAIN).out_of_order().of_many()
}

/// Returns all paths, in the order of the report.
pub(crate) fn all() -> Vec<Path> {
    [
        not_ours(),
        remembering_nobody(),
        remembering(),
        datagrams(),
        connections(),
        ruled(),
        translated(),
        flowing(),
        tunnelled(),
        known_devices(),
        rare(),
    ]
    .concat()
}

fn not_ours() -> Vec<Path> {
    vec![
        foreign("not ours, IPv4 → pass", &client_v4(FIRST_V4), "203.0.113.9:80").wanted("6"),
        foreign("not ours, IPv6 → pass", CLIENT_V6, "[2001:db8:e::1]:80").wanted("6"),
    ]
}

fn remembering_nobody() -> Vec<Path> {
    vec![
        to(REFERENCE, PLAIN).wanted("17"),
        to("IPv4 TCP dsr, no memory, 1M clients", PLAIN).of_many().wanted("19"),
        to("IPv6 TCP dsr, no memory", PLAIN_V6),
        to("IPv4 TCP dsr, no memory, VLAN tag", PLAIN).tagged(),
        to("IPv4 TCP dsr, no memory, redirect", ELSEWHERE),
    ]
}

fn remembering() -> Vec<Path> {
    let exceptions = |name| to(name, MEMORY).at(Place::Exceptions);
    vec![
        to("IPv4 TCP dsr, memory settled, 1 client", MEMORY).wanted("17"),
        to("IPv4 TCP dsr, memory settled, 1M clients", MEMORY).of_many().wanted("22"),
        to("IPv6 TCP dsr, memory settled, 1 client", MEMORY_V6).wanted("20"),
        known_over_v6().named("IPv6 TCP dsr, memory settled, 1M clients").at(Place::OverV6).wanted("25"),
        to_each_service(),
        exceptions("IPv4 TCP dsr, all exceptions, 1 client"),
        exceptions("IPv4 TCP dsr, all exceptions, 1M clients").of_many(),
        to("IPv4 TCP dsr, memory, SYN, 1 client", MEMORY).opening_each().wanted("35"),
        to("IPv4 TCP dsr, memory, SYN, 1M clients", MEMORY).opening_each().of_many().wanted("170"),
        to("IPv6 TCP dsr, memory, SYN, 1 client", MEMORY_V6).opening_each(),
    ]
}

fn datagrams() -> Vec<Path> {
    let many = known_by_datagrams().named("IPv4 UDP dsr, memory, 1M clients");
    vec![
        to("IPv4 UDP dsr, no memory", DATAGRAMS),
        to("IPv4 UDP dsr, memory, 1 client", REMEMBERED_DATAGRAMS).wanted("30"),
        many.at(Place::Datagrams).wanted("60"),
    ]
}

/// Returns paths with QUIC packets of a connection to a service's first backend, and with packets whose connection ID
/// names no backend.
fn connections() -> Vec<Path> {
    let ids = ["readable", "encrypted, one block", "encrypted, three passes"];
    let named =
        QUIC.into_iter().zip(ids).map(|(service, ids)| quic(&format!("QUIC dsr, memory, IDs {ids}"), service, true));
    let flood = quic("QUIC dsr, memory, an ID of nobody, one block", QUIC[1], false);
    named.chain([flood]).collect()
}

fn quic(name: &str, service: usize, named: bool) -> Path {
    let mut path = to(name, service);
    if let (Some(config), Some(backend)) = (SERVICES[service].quic_config(), backends(service).next()) {
        let format = QuicFormat::new(8, config.nonce_length, config.current.key.map(|key| key.0));
        let server = config.derived_id(&backend.0.to_string());
        let first = config.current.config << 5;
        let mut id = format.id(first, server.bytes(), &[9; 10][..config.nonce_length.into()]);
        if !named {
            id[3] ^= 1;
        }
        path.packet.payload = [&[0x41], &id[..config.id_length().into()], &[0; 24]].concat();
    }
    path
}

fn ruled() -> Vec<Path> {
    vec![
        to("IPv4 TCP dsr, a rule for others", RULED).wanted("no memory + 4"),
        to("IPv4 TCP dsr, a rule for neighbours", RULED_NEARBY),
        to("IPv4 TCP dsr, memory, pinned by a rule", PINNED),
        to("IPv4 TCP dsr, memory settled, a pin for others, 1 client", RULED_MEMORY)
            .at(Place::Ruled)
            .wanted("settled + 1"),
        known_beside_a_rule()
            .named("IPv4 TCP dsr, memory settled, a pin for others, 1M clients")
            .at(Place::Ruled)
            .wanted("settled + 1"),
    ]
}

/// Returns paths for which the program knows the properties of the interface.
fn known_devices() -> Vec<Path> {
    let below = [MAC, TYPE];
    let all = vec![
        to("IPv4 TCP dsr, no memory, known interface", PLAIN).wanted("dsr + 2"),
        to("IPv4 TCP dsr, no memory, known interface, VLAN tag", PLAIN).tagged(),
        to("IPv4 TCP dsr, no memory, known interface, redirect", ELSEWHERE).wanted("redirect + 2"),
        to("IPv4 TCP dsr, memory, known interface, 1 client", MEMORY).wanted("settled + 2"),
        to("IPv4 TCP nat, known interface", NAT).fed(1, &[V4_PORTS]).wanted("nat + 2"),
        to("IPv4 TCP ipip, known interface", IPIP).fed(1, &below).growing(20).wanted("ipip + 2"),
        to("IPv4 TCP gue, known interface", GUE).fed(1, &below).growing(28).wanted("gue + 2"),
    ];
    all.into_iter().map(|path| path.at(Place::Devices)).collect()
}

fn translated() -> Vec<Path> {
    vec![
        to("IPv4 TCP nat", NAT).fed(1, &[V4_PORTS]).wanted("dsr + 4"),
        to("IPv4 TCP nat, 1M clients", NAT).fed(MILLION, &[V4_PORTS]).wanted("dsr + 4"),
        to("IPv6 TCP nat", NAT_V6).fed(1, &[V6_DESTINATION[0], V6_DESTINATION[1], V6_PORTS]),
        reply("IPv4 TCP nat, reply", NAT).fed(1, &[V4_PORTS]).wanted("60"),
        reply_to_many("IPv4 TCP nat, reply, 1M clients", NAT),
        reply("IPv6 TCP nat, reply", NAT_V6).fed(1, &[V6_SOURCE[1], V6_PORTS]),
        reply_to_many("IPv6 TCP nat, reply, 1M clients", NAT_V6),
    ]
}

/// The offset of the payload of a TCP segment over IPv4.
const V4_PAYLOAD: i16 = 54;

/// Returns a path with the connections of a million clients, each of which has a flow.
pub(crate) fn flows() -> Path {
    through(&FLOWING[0], "IPv4 TCP snat, 1M flows").fed(MILLION, &[V4_PORTS]).wanted("hash + LRU")
}

/// Returns a path with the connection of one client.
pub(crate) fn flow() -> Path {
    through(&FLOWING[0], "IPv4 TCP snat").fed(1, &[V4_PORTS]).wanted("2 nat")
}

/// Returns a path with the connection of one client to an IPv6 backend.
pub(crate) fn crossing() -> Path {
    let header = [14, 16, 18, 20].map(|offset| (offset, Size::Half));
    let restores = [&[MAC, TYPE][..], &header, &[V4_PORTS]].concat();
    through(&FLOWING[1], "IPv4 TCP snat, IPv6 backend").fed(1, &restores).growing(20)
}

/// Returns a path with the connection of one client, whose replies the benchmark measures.
pub(crate) fn replied_to() -> Path {
    through(&FLOWING[REPLYING], "").fed(1, &[V4_PORTS])
}

/// Returns a path with replies to the client of [`replied_to`].
fn reply_of_flow() -> Path {
    let backend = backends(REPLYING).map(|id| backend(id, false)).next();
    let backend = backend.unwrap_or(SocketAddr::new(IpAddr::from([0; 4]), 0));
    let packet = frame(&backend.to_string(), &PRESENTED.to_string(), Transport::Tcp(ACK));
    Path::new("IPv4 TCP snat, reply", End::Sent, packet).at(Place::Flows).fed(1, &[V4_PORTS])
}

fn through(service: &Service, name: &str) -> Path {
    let vip = service.address.to_string();
    let mut packet = frame(&client_v4(FIRST_V4), &vip, Transport::Tcp(ACK));
    packet.payload[..4].copy_from_slice(&FIRST_V4.to_be_bytes());
    let mut path = Path::new(name, End::Sent, packet).at(Place::Flows);
    path.clients.turn = Some(V4_PAYLOAD);
    path
}

fn flowing() -> Vec<Path> {
    vec![flow(), flows(), crossing(), reply_of_flow()]
}

fn tunnelled() -> Vec<Path> {
    let below = [MAC, TYPE];
    vec![
        to("IPv4 TCP ipip", IPIP).fed(1, &below).growing(20).wanted("34"),
        to("IPv4 TCP ipip, 1M clients", IPIP).fed(MILLION, &below).growing(20).wanted("40"),
        to("IPv6 TCP ipip", IPIP_V6).fed(1, &below).growing(40),
        to("IPv4 TCP gue", GUE).fed(1, &below).growing(28).wanted("38"),
        to("IPv4 TCP gue, 1M clients", GUE).fed(MILLION, &below).growing(28).wanted("44"),
        to("IPv6 TCP gue", GUE_V6).fed(1, &below).growing(48),
    ]
}

/// Returns the paths of packets that are not complete TCP or UDP packets.
fn rare() -> Vec<Path> {
    let [first, later] = fragments();
    let end = End::AtBackend(DATAGRAMS);
    [
        Path::new("IPv4 UDP dsr, first fragment, beyond the limit", end, first.clone()),
        Path::new("IPv4 UDP dsr, later fragment", end, later).after(first),
        Path::new("IPv4 ICMP error about a reply, dsr", End::AtBackend(PLAIN), error_about_a_reply()),
    ]
    .into_iter()
    .map(|path| path.fed(1, &[]))
    .collect()
}

/// Returns the first client of each path that leads to a service.
#[cfg(test)]
pub(crate) fn first_clients() -> impl Iterator<Item = IpAddr> {
    let to_service = |path: &Path| matches!(path.end, End::AtBackend(_));
    all().into_iter().filter(to_service).map(|path| path.packet.source.ip())
}
