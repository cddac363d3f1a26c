//! Sends probes to neighbours, VIPs and backends, to all of them in each round, and records the answers.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use balancer_config::config::Protocol;
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    netlink::Entry,
    packets::{ACK, Heard, Outer, RST, SYN, echo, tcp, who_has},
    wire::{Note, Wire},
};
use crate::facts::{
    Backend, Direct, Facts, Mac, Neighbour, Outcome, Path, ServiceProbe, Unsteered, Untranslated, Vip, Way, WayBack,
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
/// The number of kinds of pings that the doctor sends to a backend.
const KINDS: u16 = 4;
const VIP_ECHO: u16 = 0;
const BARE_ECHO: u16 = 1;
const SMALL: u16 = 2;
const LARGE: u16 = 3;
/// The minimum MTU of a link, for IPv4 and for IPv6.
const SMALLEST: [u32; 2] = [576, 1280];
/// The number of packet sizes that the doctor tries for a backend, after which the MTU is known to the byte.
const HALVINGS: u32 = 16;
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
    notes: Vec<Note>,
}

/// Sends all probes, and adds the results to the facts.
pub(super) async fn probe(wire: &mut Wire, targets: &[Target], asked: &[Asked], facts: &mut Facts) {
    let connects: Vec<_> = targets.iter().map(|target| connect(target, &facts.backends)).collect();
    let mut probe = Probe {
        wire,
        targets,
        asked,
        next_hops: facts.ways_back.iter().filter_map(|of| next_hop(facts, of)).collect(),
        backends: &facts.backends,
        id: std::process::id() as u16,
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
    let directs: Vec<_> =
        outcomes.into_iter().enumerate().map(|(number, outcome)| Some(probe.direct(number, outcome?))).collect();
    let answers: Vec<_> = asked.iter().map(|asked| (asked.index, probe.owners(asked))).collect();
    let unsteered: Vec<_> = facts.vips.iter().map(|vip| probe.unsteered(vip)).collect();
    let untranslated: Vec<_> = facts.backends.iter().map(|of| probe.untranslated(of, facts)).collect();
    let near: Vec<_> = facts.ways_back.iter().map(|of| probe.neighbour_of(of)).collect();
    for (number, target) in targets.iter().enumerate() {
        let Some(backend) = facts.backends.get_mut(target.index) else { continue };
        (backend.neighbour, backend.service_probe) = found[number].clone();
        backend.direct.clone_from(&directs[number]);
        backend.path = paths[number];
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
fn connect(target: &Target, backends: &[Backend]) -> Option<JoinHandle<Outcome>> {
    let address = backends.get(target.index)?.address;
    target.direct.then(|| {
        tokio::spawn(async move {
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(_connected)) => Outcome::Connected,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Refused,
                Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                    Outcome::NotSent(error.to_string())
                }
                Ok(Err(_)) | Err(_) => Outcome::Silent,
            }
        })
    })
}

impl Probe<'_> {
    async fn rounds(&mut self) {
        for round in 0..ROUNDS {
            self.send();
            self.listen(Instant::now() + ROUND).await;
            if round + 1 >= SILENT_ROUNDS && self.is_answered() {
                break;
            }
        }
        self.hang_up();
    }

    async fn listen(&mut self, until: Instant) {
        loop {
            tokio::select! {
                () = self.wire.listen(&mut self.notes) => {}
                () = sleep_until(until) => return,
            }
        }
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
        let packet = tcp(SocketAddr::new(source, port(number)), vip, sequence, 0, flags);
        self.hand_over(target, &target.outer.put_on(&packet, target.source, backend, port(number)));
    }

    fn hand_over(&self, target: &Target, packet: &[u8]) {
        let answered = match target.next_hop {
            IpAddr::V4(next_hop) => self.answers_of(next_hop, target.ifindex),
            IpAddr::V6(_) => Vec::new(),
        };
        let known = target.entry.and_then(|entry| entry.mac);
        if let Some(mac) = known.or(answered.first().copied()) {
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

    fn is_answered(&self) -> bool {
        (0..self.targets.len()).all(|number| {
            let target = &self.targets[number];
            let near = match target.next_hop {
                IpAddr::V4(next_hop) => !self.answers_of(next_hop, target.ifindex).is_empty(),
                IpAddr::V6(_) => true,
            };
            let vip = target.vip.is_none_or(|(_, is_tcp)| {
                self.echoed(number, VIP_ECHO) && (!is_tcp || self.tcp(number) != Outcome::Silent)
            });
            near && vip && self.echoed(number, SMALL) && self.echoed(number, LARGE)
        })
    }

    fn incoming(&self) -> impl Iterator<Item = &Note> {
        self.notes.iter().filter(|note| !note.outgoing)
    }

    /// The hardware addresses of hosts that answered ARP for an address.
    fn answers_of(&self, wanted: Ipv4Addr, on: u32) -> Vec<Mac> {
        let mut found = Vec::new();
        for note in self.incoming().filter(|note| note.ifindex == on) {
            if let Heard::Arp { address, mac } = note.heard
                && address == wanted
                && !found.contains(&mac)
            {
                found.push(mac);
            }
        }
        found
    }

    fn echoed(&self, number: usize, kind: u16) -> bool {
        self.has_echo(sequence(number, kind))
    }

    fn has_echo(&self, wanted: u16) -> bool {
        self.incoming()
            .any(|note| matches!(note.heard, Heard::Echo { id, sequence, .. } if id == self.id && sequence == wanted))
    }

    /// Returns the outcome of the SYN to the VIP at a backend.
    fn tcp(&self, number: usize) -> Outcome {
        let Some((vip, _)) = self.targets[number].vip else { return Outcome::Silent };
        let answers = self.incoming().filter_map(|note| match note.heard {
            Heard::Tcp { from, to, flags, .. } if from == vip && to.port() == port(number) => Some(flags),
            Heard::Tcp { .. } | Heard::Arp { .. } | Heard::Echo { .. } | Heard::Unreachable { .. } => None,
        });
        let outcome = |flags: u8| match flags {
            reset if reset & RST != 0 => Some(Outcome::Refused),
            accepted if accepted & (SYN | ACK) == SYN | ACK => Some(Outcome::Connected),
            _ => None,
        };
        answers.filter_map(outcome).next().unwrap_or_default()
    }

    fn neighbour(&self, number: usize) -> Option<Neighbour> {
        let target = &self.targets[number];
        let IpAddr::V4(next_hop) = target.next_hop else { return None };
        Some(Neighbour {
            known: target.entry.and_then(|entry| entry.mac),
            permanent: target.entry.is_some_and(|entry| entry.permanent),
            answered: self.answers_of(next_hop, target.ifindex),
        })
    }

    fn direct(&self, number: usize, outcome: Outcome) -> Direct {
        let address = self.backends[self.targets[number].index].address;
        let mut direct = Direct { outcome, ..Direct::default() };
        for note in &self.notes {
            let Heard::Tcp { from, to, flags, checksum_right } = note.heard else { continue };
            if note.outgoing && to == address && flags & SYN != 0 {
                direct.left = true;
            } else if !note.outgoing && from == address {
                direct.came = true;
                direct.checksum_wrong |= !checksum_right;
            }
        }
        direct
    }

    fn service(&self, number: usize) -> Option<ServiceProbe> {
        let target = &self.targets[number];
        let (_, is_tcp) = target.vip?;
        target.vip_source?;
        let backend = self.backends[target.index].address.ip();
        let tries_bare = target.is_near(backend) && target.outer != Outer::None;
        Some(ServiceProbe {
            echo: self.echoed(number, VIP_ECHO),
            bare_echo: tries_bare.then(|| self.echoed(number, BARE_ECHO)),
            tcp: is_tcp.then(|| self.tcp(number)),
            refused_outer: self.incoming().any(|note| {
                matches!(note.heard, Heard::Unreachable { target: to, protocol, .. }
                    if to == backend && target.outer.is(protocol))
            }),
        })
    }

    /// Finds the size of the largest packet that reaches a backend. The function returns `None` if the backend does not
    /// answer small packets.
    async fn path(&mut self, number: usize) -> Option<Path> {
        let wanted = self.targets[number].largest;
        if self.echoed(number, LARGE) {
            return Some(Path { wanted, passed: wanted });
        }
        if !self.echoed(number, SMALL) {
            return None;
        }
        let target = &self.targets[number];
        let backend = self.backends[target.index].address.ip();
        let smallest = SMALLEST[usize::from(backend.is_ipv6())].min(wanted);
        let (mut passed, mut lost) = (smallest, wanted);
        for try_number in 0..HALVINGS {
            let size = passed.midpoint(lost);
            if size <= passed {
                break;
            }
            // The numbers of these pings are above the numbers of all targets.
            let number = (u16::MAX - try_number as u16).wrapping_sub(number as u16 * HALVINGS as u16);
            if self.passes(target, backend, number, size).await { passed = size } else { lost = size }
        }
        Some(Path { wanted, passed })
    }

    async fn passes(&mut self, target: &Target, backend: IpAddr, number: u16, size: u32) -> bool {
        for _ in 0..2 {
            self.hand_over(target, &echo(target.source, backend, self.id, number, size as usize));
            let until = Instant::now() + ROUND / 2;
            while Instant::now() < until && !self.has_echo(number) {
                self.listen(until.min(Instant::now() + ROUND / 20)).await;
            }
            if self.has_echo(number) {
                return true;
            }
        }
        false
    }

    /// SYN packets of clients to a VIP that reached the doctor's socket because the program did not steer the packets.
    fn unsteered(&self, vip: &Vip) -> Vec<Unsteered> {
        let mut found: Vec<Unsteered> = Vec::new();
        for note in self.incoming() {
            let Heard::Tcp { to, flags, .. } = note.heard else { continue };
            let is_for = vip.listeners.iter().any(|listener| {
                listener.protocol == Protocol::Tcp && listener.address == to.ip() && listener.ports.contains(to.port())
            });
            if !is_for || flags & (SYN | ACK) != SYN {
                continue;
            }
            let (ifindex, for_another) = (note.ifindex, note.for_another);
            match found.iter_mut().find(|known| (known.ifindex, known.for_another) == (ifindex, for_another)) {
                Some(known) => known.packets += 1,
                None => found.push(Unsteered { ifindex, for_another, packets: 1 }),
            }
        }
        found
    }

    /// Replies of a `nat` backend to clients that reached the doctor's socket because the program did not translate
    /// them. Answers to `snat` connections have an address of this machine, as the answers to checks have.
    fn untranslated(&self, backend: &Backend, facts: &Facts) -> Vec<Untranslated> {
        let mut found: Vec<Untranslated> = Vec::new();
        for note in self.incoming().filter(|note| backend.forwarding == "nat" && !note.for_another) {
            let Heard::Tcp { from, to, flags, .. } = note.heard else { continue };
            let reply = Untranslated { ifindex: note.ifindex, client: to.ip() };
            let is_reply = from.ip() == backend.address.ip() && flags & (SYN | ACK) == SYN | ACK;
            if is_reply && !facts.is_own(to.ip()) && !found.contains(&reply) {
                found.push(reply);
            }
        }
        found
    }

    /// The hardware addresses that answered ARP for the neighbour on the way back to a client.
    fn neighbour_of(&self, way: &WayBack) -> Vec<Mac> {
        match way.way {
            Way::Known { ifindex, next_hop: IpAddr::V4(next_hop) } => self.answers_of(next_hop, ifindex),
            Way::Known { .. } | Way::Local | Way::None(_) => Vec::new(),
        }
    }

    /// The hosts that have a VIP, each with the interface towards the host.
    fn owners(&self, asked: &Asked) -> Vec<(u32, Mac)> {
        let on = asked.interfaces.iter();
        on.flat_map(|(ifindex, _)| self.answers_of(asked.address, *ifindex).into_iter().map(|mac| (*ifindex, mac)))
            .collect()
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

fn port(number: usize) -> u16 {
    FIRST_PORT + (number % usize::from(PORTS)) as u16
}

fn sequence(number: usize, kind: u16) -> u16 {
    number as u16 * KINDS + kind
}

/// The entries of the kernel's neighbour table.
pub(super) type Entries = HashMap<(u32, IpAddr), Entry>;
