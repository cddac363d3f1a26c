//! What is measured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use balancer_bench::asm::Size;
use balancer_common::map_types::Forwarding;
use balancer_core::io::BackendId;
use balancer_model::config::Protocol;
use balancer_testkit::frame::{ACK, Frame, SYN, Transport};

use crate::{
    feeder::{Clients, Feed},
    scene::Place,
};

/// Where the source address is.
const V4_SOURCE: i16 = 26;
/// Where the source address's second word is.
const V6_SOURCE: i16 = 26;
/// An outer header is written over it, and whether a frame is for this machine is read from eight bytes.
const MAC: (i16, Size) = (0, Size::Double);
const V4_TYPE: (i16, Size) = (12, Size::Half);
const V4_TTL: (i16, Size) = (22, Size::Half);
const V4_PORTS: (i16, Size) = (34, Size::Word);
const V6_HOP_LIMIT: (i16, Size) = (20, Size::Half);
const V6_SOURCE_END: (i16, Size) = (30, Size::Double);
const V6_DESTINATION: [(i16, Size); 2] = [(38, Size::Double), (46, Size::Double)];
const V6_PORTS: (i16, Size) = (54, Size::Word);

/// Who gets replies, by family.
const CLIENTS: [&str; 2] = ["172.16.0.1:40000", "[2001:db8:c:1::9]:40000"];
const FIRST_V4: u32 = u32::from_be_bytes([172, 16, 0, 1]);
/// Of datagrams: services have one key here, and so an entry for a client of one of them is in another's way.
const FIRST_OF_DATAGRAMS: u32 = u32::from_be_bytes([172, 32, 0, 1]);
const FIRST_V6: u32 = u32::from_be_bytes([0, 12, 0, 1]);
const MILLION: u32 = 1_000_000;

/// A service that a path goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// VIP and port.
    pub(crate) address: &'static str,
    /// TCP or UDP.
    pub(crate) protocol: Protocol,
    /// How packets reach the backends.
    pub(crate) forwarding: Forwarding,
    /// Whether clients are remembered.
    pub(crate) remembers: bool,
}

impl Service {
    fn is_v6(&self) -> bool {
        self.address.starts_with('[')
    }
}

const fn service(address: &'static str, protocol: Protocol, forwarding: Forwarding, remembers: bool) -> Service {
    Service { address, protocol, forwarding, remembers }
}

/// Every service; their index is their id.
pub(crate) const SERVICES: [Service; 11] = [
    service("198.51.100.1:80", Protocol::Tcp, Forwarding::Dsr, false),
    service("[2001:db8:f::1]:80", Protocol::Tcp, Forwarding::Dsr, false),
    service("198.51.100.2:80", Protocol::Tcp, Forwarding::Dsr, true),
    service("[2001:db8:f::2]:80", Protocol::Tcp, Forwarding::Dsr, true),
    service("198.51.100.1:53", Protocol::Udp, Forwarding::Dsr, false),
    service("198.51.100.2:53", Protocol::Udp, Forwarding::Dsr, true),
    service("198.51.100.3:80", Protocol::Tcp, Forwarding::Nat, false),
    service("198.51.100.4:80", Protocol::Tcp, Forwarding::Ipip, false),
    service("198.51.100.5:80", Protocol::Tcp, Forwarding::Gue, false),
    service("198.51.100.6:80", Protocol::Tcp, Forwarding::Dsr, false),
    service("[2001:db8:f::3]:80", Protocol::Tcp, Forwarding::Nat, false),
];

/// Backends of each service.
pub(crate) const BACKENDS: u16 = 8;

/// The backends of a service.
pub(crate) fn backends(service: usize) -> impl Iterator<Item = BackendId> {
    (1..=BACKENDS).map(move |number| BackendId(service as u16 * BACKENDS + number))
}

/// Where a backend listens: of the family of its service.
pub(crate) fn backend(id: BackendId) -> SocketAddr {
    let service = usize::from((id.0 - 1) / BACKENDS);
    let ip = if SERVICES[service].is_v6() {
        Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(id.0)).into()
    } else {
        Ipv4Addr::from_bits(u32::from_be_bytes([10, 0, 0, 0]) | u32::from(id.0)).into()
    };
    SocketAddr::new(ip, 8080)
}

/// The service with a rule, which concerns none of the clients.
pub(crate) const RULED: usize = 9;

/// One way through the program.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// What it is called.
    pub(crate) name: String,
    /// What it is to cost, in words.
    pub(crate) target: &'static str,
    /// Where it is measured.
    pub(crate) scene: Place,
    /// Its service; `None`: the packet is nobody's.
    pub(crate) service: Option<usize>,
    /// Where its packets come from.
    pub(crate) clients: Clients,
    /// Whether its packets are a backend's, to a client.
    pub(crate) replies: bool,
    /// Of its TCP segments.
    flags: u8,
    /// What makes the next packet; `None`: the program's own output.
    pub(crate) feed: Option<Feed>,
    /// Bytes that the program puts in front.
    pub(crate) grows: i32,
}

impl Path {
    /// The first packet.
    pub(crate) fn frame(&self) -> Vec<u8> {
        self.packet(self.flags).bytes()
    }

    /// The backend that its replies come from.
    fn replier(&self) -> Option<SocketAddr> {
        backends(self.service?).next().map(backend)
    }

    fn packet(&self, flags: u8) -> Frame {
        let service = self.service.map(|index| &SERVICES[index]);
        let v6 = self.service.is_some_and(|index| SERVICES[index].is_v6());
        let udp = service.is_some_and(|service| service.protocol == Protocol::Udp);
        let transport = if udp { Transport::Udp } else { Transport::Tcp(flags) };
        let nobody = if self.name.contains("IPv6") { "[2001:db8:e::1]:80" } else { "203.0.113.9:80" };
        let destination = service.map_or(nobody, |service| service.address);
        let source = if v6 || self.name.contains("IPv6") {
            "[2001:db8:c:1::9]:40000".to_owned()
        } else {
            format!("{}:40000", Ipv4Addr::from_bits(self.clients.first))
        };
        let (source, destination) = match self.replier() {
            Some(backend) if self.replies => (backend.to_string(), CLIENTS[usize::from(v6)]),
            _ => (source, destination),
        };
        let mut frame = Frame::new(&source, destination, transport);
        frame.payload = vec![0; 18];
        frame
    }

    /// The same packet as one that opens a connection, for every client.
    pub(crate) fn opening(&self) -> (Vec<u8>, Feed) {
        (self.packet(SYN).bytes(), Feed { clients: self.clients, restores: Vec::new() })
    }
}

fn path(name: &str, target: &'static str, service: Option<usize>) -> Path {
    let v6 = service.is_some_and(|index| SERVICES[index].is_v6());
    let clients = if v6 {
        Clients { at: V6_SOURCE, first: FIRST_V6, count: 1 }
    } else {
        Clients { at: V4_SOURCE, first: FIRST_V4, count: 1 }
    };
    Path {
        name: name.to_owned(),
        target,
        scene: Place::Settled,
        service,
        clients,
        replies: false,
        flags: ACK,
        feed: None,
        grows: 0,
    }
}

impl Path {
    /// How many clients its packets come from.
    pub(crate) fn clients(&self) -> u32 {
        self.clients.count
    }

    fn fed(mut self, count: u32, restores: &[(i16, Size)]) -> Self {
        self.clients.count = count;
        self.feed = Some(Feed { clients: self.clients, restores: restores.to_vec() });
        self
    }

    fn of_many(self) -> Self {
        self.fed(MILLION, &[])
    }

    /// From the service's first backend to a client.
    fn replying(mut self, restores: &[(i16, Size)]) -> Self {
        self.replies = true;
        self.clients.first = match self.replier().map(|backend| backend.ip()) {
            Some(IpAddr::V4(address)) => address.to_bits(),
            Some(IpAddr::V6(address)) => (address.to_bits() >> 64) as u32,
            None => 0,
        };
        self.fed(1, restores)
    }

    fn opening_each(mut self) -> Self {
        self.flags = SYN;
        self
    }

    fn elsewhere(mut self) -> Self {
        self.scene = Place::Exceptions;
        self
    }

    fn growing(mut self, by: i32) -> Self {
        self.grows = by;
        self
    }
}

/// The name of the path that others are compared with.
pub(crate) const REFERENCE: &str = "IPv4 TCP dsr, no memory";

/// A service with a million known clients, and a packet of theirs.
pub(crate) fn known() -> Path {
    path("known clients", "", Some(2)).of_many()
}

/// The ways through the program that are measured with real frames, all of a million clients.
pub(crate) fn live() -> [Path; 4] {
    [
        path("TCP `dsr`, memory", "", Some(2)).of_many(),
        path("TCP `ipip`, no memory", "", Some(7)).of_many(),
        Path { name: "UDP `dsr`, memory".to_owned(), ..known_by_datagrams() },
        path("TCP `nat`, no memory", "", Some(6)).of_many(),
    ]
}

/// A service of datagrams with a million known clients, and a packet of theirs.
pub(crate) fn known_by_datagrams() -> Path {
    let mut path = path("known clients of datagrams", "", Some(5));
    path.clients.first = FIRST_OF_DATAGRAMS;
    path.of_many()
}

/// What a yardstick is measured with: a segment of one client's.
pub(crate) fn of_one_client(name: &str) -> Path {
    path(name, "", Some(0))
}

/// What a yardstick is measured with: a segment of each of a million clients.
pub(crate) fn of_a_million_clients(name: &str) -> Path {
    path(name, "", Some(0)).of_many()
}

/// Every path, in the order of the report.
pub(crate) fn all() -> Vec<Path> {
    vec![
        path("not ours, IPv4 → pass", "half of Katran's 48", None),
        path("not ours, IPv6 → pass", "half of Katran's 48", None),
        path(REFERENCE, "25; a quarter of Katran's 112", Some(0)),
        path("IPv4 TCP dsr, no memory, 1 client (fed)", "", Some(0)).fed(1, &[]),
        path("IPv4 TCP dsr, no memory, 1M clients (fed)", "as one client", Some(0)).of_many(),
        path("IPv6 TCP dsr, no memory", "0.4 of Katran's 158", Some(1)),
        path("IPv4 TCP dsr, memory settled, 1 client", "32", Some(2)),
        path("IPv4 TCP dsr, memory settled, 1 client (fed)", "", Some(2)).fed(1, &[]),
        path("IPv4 TCP dsr, memory settled, 1M clients (fed)", "32; 1.3 of one client", Some(2)).of_many(),
        path("IPv6 TCP dsr, memory settled, 1 client", "", Some(3)),
        path("IPv4 TCP dsr, all exceptions, 1 client", "", Some(2)).elsewhere(),
        path("IPv4 TCP dsr, all exceptions, 1M clients (fed)", "half of Katran's 435", Some(2)).elsewhere().of_many(),
        path("IPv4 TCP dsr, memory, SYN, 1 client", "", Some(2)).opening_each(),
        path("IPv4 TCP dsr, memory, SYN, 1M clients (fed)", "", Some(2)).opening_each().of_many(),
        path("IPv4 TCP dsr, a rule for others", "no memory + 4", Some(RULED)),
        path("IPv4 UDP dsr, no memory", "", Some(4)),
        path("IPv4 UDP dsr, memory, 1 client", "", Some(5)),
        path("IPv4 UDP dsr, memory, 1 client (fed)", "", Some(5)).fed(1, &[]),
        path("IPv4 TCP nat (fed)", "dsr + 8", Some(6)).fed(1, &[V4_TTL, V4_PORTS]),
        path("IPv6 TCP nat (fed)", "IPv6 dsr + 8", Some(10))
            .fed(1, &[V6_HOP_LIMIT, V6_DESTINATION[0], V6_DESTINATION[1], V6_PORTS]),
        path("IPv4 TCP nat, reply (fed)", "60", Some(6)).replying(&[V4_TTL, V4_PORTS]),
        path("IPv6 TCP nat, reply (fed)", "", Some(10)).replying(&[V6_HOP_LIMIT, V6_SOURCE_END, V6_PORTS]),
        path("IPv4 TCP ipip (fed)", "0.4 of Katran", Some(7)).fed(1, &[MAC, V4_TYPE, V4_TTL]).growing(20),
        path("IPv4 TCP gue (fed)", "a quarter of Katran's 322", Some(8)).fed(1, &[MAC, V4_TYPE, V4_TTL]).growing(28),
    ]
}
