//! Sends probes to neighbours, VIPs and backends, to all of them in each round, and records the answers.

mod answers;
mod path;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::TcpSocket,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    netlink::Entry,
    packets::{Outer, RST, SYN, datagram, echo, tcp, who_has},
    wire::{self, Note, Wire},
};
use crate::{
    facts::{Backend, Facts, Mac, Outcome, Vip, Way, WayBack},
    finding::Unseen,
};

/// The time after which the doctor repeats an unanswered probe.
const ROUND: Duration = Duration::from_millis(400);
const ROUNDS: u32 = 5;
/// The number of rounds without an answer after which the doctor assumes that no other host has the VIP.
const SILENT_ROUNDS: u32 = 3;
/// The time limit of a connection attempt, equal to the duration of all rounds.
const CONNECT: Duration = Duration::from_millis(2000);
/// The first source port of probes, which is above the ports that kernels choose for connections.
const FIRST_PORT: u16 = 61_000;
const PORTS: u16 = 4_000;
/// The first source port of requests to connect that have the largest size.
const FIRST_LARGE_PORT: u16 = FIRST_PORT + PORTS / 2;
/// The number of rounds in which the doctor sends datagrams, which servers may take for requests of clients.
const DATAGRAMS: u32 = 2;
/// The number of kinds of pings that the doctor sends to a backend.
const KINDS: u16 = 4;
const VIP_ECHO: u16 = 0;
const BARE_ECHO: u16 = 1;
const SMALL: u16 = 2;
const LARGE: u16 = 3;
/// The maximum number of backends that the doctor probes. If there are more backends, the report says so.
pub(super) const MOST: usize = 256;

/// The probes that the doctor sends to a backend.
pub(super) struct Target {
    /// The index of the backend in the list of backends.
    pub(super) index: usize,
    pub(super) ifindex: u32,
    pub(super) own_mac: Mac,
    pub(super) next_hop: IpAddr,
    pub(super) entry: Option<Entry>,
    /// This machine's source address for packets to the backend.
    pub(super) source: IpAddr,
    /// This machine's source address in the VIP's address family; `None` if this machine has no such address, in which
    /// case the doctor does not probe the VIP.
    pub(super) vip_source: Option<IpAddr>,
    pub(super) outer: Outer,
    /// Whether the doctor connects to the backend's own address.
    pub(super) direct: bool,
    /// The VIP at the backend that the doctor probes; the flag tells whether it also probes TCP.
    pub(super) vip: Option<(SocketAddr, bool)>,
    /// The address and UDP port to which the doctor sends datagrams: at the VIP if the backend has it, or else at the
    /// backend.
    pub(super) udp: Option<SocketAddr>,
    /// `nat` and `snat`: an address and TCP port of the backend that answers clients, and whether the program sends the
    /// packets of clients to this port.
    pub(super) translated: Option<(SocketAddr, bool)>,
    /// The size of the largest packet that clients may send on the path to the backend.
    pub(super) largest: u32,
}

/// A VIP, and the interfaces on which the doctor sends ARP requests for the VIP.
pub(super) struct Asked {
    pub(super) index: usize,
    pub(super) address: Ipv4Addr,
    pub(super) interfaces: Vec<(u32, Mac)>,
}

struct Probe<'a> {
    wire: &'a mut Wire,
    targets: &'a [Target],
    asked: &'a [Asked],
    /// The neighbours on the ways back to clients, each with its interface and this machine's hardware address there.
    next_hops: Vec<(u32, Mac, Ipv4Addr)>,
    backends: &'a [Backend],
    id: u16,
    /// The source ports of the connections to backends' own addresses.
    ports: Vec<Option<u16>>,
    notes: Vec<Note>,
}

/// A connection of this machine to a backend's own address.
struct Begun {
    port: u16,
    outcome: JoinHandle<Outcome>,
}

/// Sends all probes, and adds the results to the facts.
pub(super) async fn probe(wire: &mut Wire, targets: &[Target], asked: &[Asked], facts: &mut Facts) {
    let (mut ports, mut connects) = (Vec::new(), Vec::new());
    for target in targets {
        let begun = connect(target, &facts.backends);
        ports.push(begun.as_ref().map(|begun| begun.port));
        connects.push(begun.map(|begun| begun.outcome));
    }
    let mut probe = Probe {
        wire,
        targets,
        asked,
        next_hops: facts.ways_back.iter().filter_map(|of| next_hop(facts, of)).collect(),
        backends: &facts.backends,
        id: std::process::id() as u16,
        ports,
        notes: Vec::new(),
    };
    probe.rounds().await;
    let mut outcomes = Vec::new();
    for connect in connects {
        outcomes.push(match connect {
            Some(connect) => connect.await.ok(),
            None => None,
        });
    }
    let mut paths = Vec::new();
    for number in 0..targets.len() {
        paths.push(probe.path(number).await);
    }
    let found: Vec<_> = (0..targets.len()).map(|number| (probe.neighbour(number), probe.service(number))).collect();
    let datagrams: Vec<_> = (0..targets.len()).map(|number| probe.datagram(number)).collect();
    let directs: Vec<_> =
        outcomes.into_iter().enumerate().map(|(number, outcome)| Some(probe.direct(number, outcome?))).collect();
    let answers: Vec<_> = asked.iter().map(|asked| (asked.index, probe.owners(asked))).collect();
    let unsteered: Vec<_> = facts.vips.iter().map(|vip| probe.unsteered(vip)).collect();
    let untranslated: Vec<_> = facts.backends.iter().map(|of| probe.untranslated(of, facts)).collect();
    let overrun = probe.notes.len() >= wire::MOST;
    let near: Vec<_> = facts.ways_back.iter().map(|of| probe.neighbour_of(of)).collect();
    for (number, target) in targets.iter().enumerate() {
        let Some(backend) = facts.backends.get_mut(target.index) else { continue };
        backend.neighbour.clone_from(&found[number].0);
        backend.path = paths[number];
        // Answers may be among the packets that were not recorded.
        if !overrun {
            backend.service_probe.clone_from(&found[number].1);
            backend.direct.clone_from(&directs[number]);
            backend.datagram = datagrams[number];
        }
    }
    if overrun {
        let why = "too many connections began at this machine during the examination; run doctor again";
        facts.unseen.push(Unseen::new("what probes to backends met", why));
    }
    for (backend, untranslated) in facts.backends.iter_mut().zip(untranslated) {
        backend.untranslated = untranslated;
    }
    for (way, answered) in facts.ways_back.iter_mut().zip(near) {
        if let Some(neighbour) = &mut way.neighbour {
            neighbour.answered = answered;
        }
    }
    for (vip, unsteered) in facts.vips.iter_mut().zip(unsteered) {
        vip.unsteered = unsteered;
    }
    for (index, answered) in answers {
        let Some(Vip { answered: known, asked, .. }) = facts.vips.get_mut(index) else { continue };
        (*known, *asked) = (answered, true);
    }
}

/// Starts a connection through the kernel's TCP stack.
fn connect(target: &Target, backends: &[Backend]) -> Option<Begun> {
    let address = backends.get(target.index).filter(|_| target.direct)?.address;
    let (socket, any) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4().ok()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        SocketAddr::V6(_) => (TcpSocket::new_v6().ok()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    // The port tells answers to this connection from those to health checks.
    socket.bind(SocketAddr::new(any, 0)).ok()?;
    let port = socket.local_addr().ok()?.port();
    let outcome = tokio::spawn(async move {
        match timeout(CONNECT, socket.connect(address)).await {
            Ok(Ok(_connected)) => Outcome::Connected,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Refused,
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Outcome::NotSent(error.to_string()),
            Ok(Err(_)) | Err(_) => Outcome::Silent,
        }
    });
    Some(Begun { port, outcome })
}

impl Probe<'_> {
    async fn rounds(&mut self) {
        for round in 0..ROUNDS {
            self.send();
            if round < DATAGRAMS {
                (0..self.targets.len()).for_each(|number| self.send_datagram(number));
            }
            self.listen(Instant::now() + ROUND).await;
            if round + 1 >= SILENT_ROUNDS && self.is_answered() {
                break;
            }
        }
        self.hang_up();
    }

    async fn listen(&mut self, until: Instant) {
        self.wire.listen_until(until, &mut self.notes).await;
    }

    /// Sends those probes that have no answer yet. If an interface refuses a probe, the probe remains without an
    /// answer.
    fn send(&self) {
        for asked in self.asked {
            for (ifindex, mac) in &asked.interfaces {
                let _ = self.wire.ask(*ifindex, &who_has(*mac, asked.address));
            }
        }
        for (ifindex, own_mac, address) in &self.next_hops {
            if self.answers_of(*address, *ifindex).is_empty() {
                let _ = self.wire.ask(*ifindex, &who_has(*own_mac, *address));
            }
        }
        for number in 0..self.targets.len() {
            self.send_to(number);
        }
    }

    fn send_to(&self, number: usize) {
        let target = &self.targets[number];
        let backend = self.backends[target.index].address.ip();
        if let IpAddr::V4(next_hop) = target.next_hop
            && self.answers_of(next_hop, target.ifindex).is_empty()
        {
            let _ = self.wire.ask(target.ifindex, &who_has(target.own_mac, next_hop));
        }
        for (kind, length) in [(SMALL, 0), (LARGE, target.largest)] {
            if !self.echoed(number, kind) {
                let packet = echo(target.source, backend, self.id, sequence(number, kind), length as usize);
                self.hand_over(target, &packet);
            }
        }
        let Some((vip, is_tcp)) = target.vip else { return };
        let Some(source) = target.vip_source else { return };
        if !self.echoed(number, VIP_ECHO) {
            let packet = echo(source, vip.ip(), self.id, sequence(number, VIP_ECHO), 0);
            self.hand_over(target, &target.outer.put_on(&packet, target.source, backend, port(number)));
        }
        if target.is_near(backend) && target.outer != Outer::None && !self.echoed(number, BARE_ECHO) {
            self.hand_over(target, &echo(source, vip.ip(), self.id, sequence(number, BARE_ECHO), 0));
        }
        if is_tcp && self.tcp(number) == Outcome::Silent {
            self.segment(number, source, vip, SYN);
        }
    }

    /// Sends a TCP segment to the VIP at a backend.
    fn segment(&self, number: usize, source: IpAddr, vip: SocketAddr, flags: u8) {
        let target = &self.targets[number];
        let backend = self.backends[target.index].address.ip();
        let sequence = if flags == SYN { 1 } else { 2 };
        let packet = tcp(SocketAddr::new(source, port(number)), vip, sequence, flags, 0);
        self.hand_over(target, &target.outer.put_on(&packet, target.source, backend, port(number)));
    }

    /// Sends an empty datagram to a UDP port of the service, by the path of clients' packets.
    fn send_datagram(&self, number: usize) {
        let target = &self.targets[number];
        let Some(to) = target.udp else { return };
        let backend = self.backends[target.index].address.ip();
        if to.ip() == backend {
            self.hand_over(target, &datagram(SocketAddr::new(target.source, port(number)), to));
        } else if let Some(source) = target.vip_source {
            let packet = datagram(SocketAddr::new(source, port(number)), to);
            self.hand_over(target, &target.outer.put_on(&packet, target.source, backend, port(number)));
        }
    }

    /// Whether the doctor can send packets to a backend, because it knows the hardware address of the next hop.
    fn can_send(&self, target: &Target) -> bool {
        self.hardware_address(target).is_some()
    }

    fn hardware_address(&self, target: &Target) -> Option<Mac> {
        let answered = match target.next_hop {
            IpAddr::V4(next_hop) => self.answers_of(next_hop, target.ifindex),
            IpAddr::V6(_) => Vec::new(),
        };
        target.entry.and_then(|entry| entry.mac).or(answered.first().copied())
    }

    fn hand_over(&self, target: &Target, packet: &[u8]) {
        if let Some(mac) = self.hardware_address(target) {
            let _ = self.wire.send(target.ifindex, mac, packet);
        }
    }

    /// Closes the connections that servers have accepted.
    fn hang_up(&self) {
        for number in 0..self.targets.len() {
            if let (Some((vip, _)), Some(source)) = (self.targets[number].vip, self.targets[number].vip_source)
                && self.tcp(number) == Outcome::Connected
            {
                self.segment(number, source, vip, RST);
            }
        }
    }
}

impl Target {
    /// Whether the backend itself is the neighbour, and not a gateway.
    fn is_near(&self, backend: IpAddr) -> bool {
        self.next_hop == backend
    }

    /// The route to a backend, if it is known.
    pub(super) const fn way(backend: &Backend) -> Option<(u32, IpAddr)> {
        match backend.way {
            Way::Known { ifindex, next_hop } => Some((ifindex, next_hop)),
            Way::Local | Way::None(_) => None,
        }
    }
}

/// The neighbour on the way back to a client, if the doctor asks for it by ARP.
fn next_hop(facts: &Facts, way: &WayBack) -> Option<(u32, Mac, Ipv4Addr)> {
    match way.way {
        Way::Known { ifindex, next_hop: IpAddr::V4(next_hop) } => Some((ifindex, facts.link(ifindex)?.mac?, next_hop)),
        Way::Known { .. } | Way::Local | Way::None(_) => None,
    }
}

pub(super) fn port(number: usize) -> u16 {
    FIRST_PORT + (number % usize::from(PORTS)) as u16
}

fn large_port(number: usize) -> u16 {
    FIRST_LARGE_PORT + (number % usize::from(PORTS / 2)) as u16
}

fn sequence(number: usize, kind: u16) -> u16 {
    number as u16 * KINDS + kind
}

/// The entries of the kernel's neighbour table.
pub(super) type Entries = HashMap<(u32, IpAddr), Entry>;
