//! Explains the verdict on a packet, from the observed packet and the controller's view of the services.

use std::{collections::HashMap, fmt::Write as _, net::IpAddr};

use balancer_api::{
    model::{BackendView, ClientRule, ServiceView},
    trace::{HopView, TracedPacket},
};
use balancer_common::{
    handover::Handed,
    map_types::Mac,
    verdict::{Decision, DropReason, MoveCause, Verdict},
};
use balancer_config::listeners::Listener;
use serde::Serialize;

use super::{Observation, frame::Frame};

/// The XDP actions of `linux/bpf.h`.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// The known interfaces, services and backends, from which packets are explained.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) services: Vec<ServiceView>,
    /// The names of interfaces by index.
    pub(crate) interfaces: HashMap<u32, String>,
    pub(crate) hops: Vec<HopView>,
}

/// The direction of a packet, relative to the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    ToBackend,
    ToClient,
    /// The program itself answers the packet.
    Answered,
    /// The packet goes to the kernel of the balancer's host.
    ToHost,
    Nowhere,
}

/// The path of a packet through the balancer, with reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Explanation {
    pub(crate) interface: String,
    pub(crate) queue: u32,
    /// The packet as it arrived; absent if the frame contains no IP packet.
    pub(crate) packet: Option<Frame>,
    /// The length of the arriving frame in bytes.
    pub(crate) length: u32,
    pub(crate) direction: Direction,
    pub(crate) service: Option<String>,
    pub(crate) listener: Option<String>,
    pub(crate) client: Option<IpAddr>,
    /// The method by which the program chose the backend, as counted in `balancer_decisions_total`; absent if the
    /// packet begins no connection.
    pub(crate) decision: Option<&'static str>,
    pub(crate) backend: Option<String>,
    /// The decision based on the QUIC connection ID, as in the API; absent if the packet is not for a QUIC listener.
    pub(crate) connection_id: Option<String>,
    pub(crate) moved_from: Option<String>,
    /// The cause of the client's move to another backend, as counted in `balancer_moves_total`.
    pub(crate) cause: Option<&'static str>,
    pub(crate) rule: Option<ClientRule>,
    /// The slot of the lookup table that the client maps to.
    pub(crate) slot: Option<u32>,
    /// The client's entry in the client table before the packet; absent if unknown.
    pub(crate) memory: Option<Memory>,
    /// Whether this packet created the client's entry in the client table.
    pub(crate) recorded: bool,
    /// The reason for the choice of the backend, in words.
    pub(crate) why: String,
    pub(crate) next_hop: Option<NextHop>,
    /// The verdict on the packet, as counted in `balancer_packets_seen_total`.
    pub(crate) verdict: &'static str,
    /// The reason for dropping the packet, as counted in `balancer_drops_total`.
    pub(crate) reason: Option<&'static str>,
    /// The packet as it departed; absent if the program did not send it.
    pub(crate) left: Option<Frame>,
    /// The time in microseconds for which the program ran, including the observation.
    pub(crate) microseconds: f64,
}

/// An entry of the client table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Memory {
    pub(crate) known: bool,
    pub(crate) backend: Option<String>,
    pub(crate) last_seen_seconds_ago: Option<u64>,
}

/// The next hop to which a frame was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct NextHop {
    pub(crate) interface: Option<String>,
    pub(crate) mac: String,
    /// The address of the backend, if the frame was sent to a backend.
    pub(crate) address: Option<IpAddr>,
}

/// Returns the verdict on a packet, in the categories of the program's counters.
fn verdict(observation: &Observation, known: &Known) -> Verdict {
    let head = &observation.head;
    // If this machine is the backend, the backend's row names no interface.
    let is_local = |id| known.hops.iter().any(|hop| hop.id == id && hop.ifindex.is_none());
    match head.action {
        XDP_PASS if head.backend.is_some_and(is_local) => Verdict::Local,
        XDP_DROP if head.drop.is_some() => Verdict::Drop,
        XDP_PASS if is_changed(observation) => Verdict::Handed,
        XDP_PASS => Verdict::Pass,
        XDP_TX => Verdict::Tx,
        XDP_REDIRECT => Verdict::Redirect,
        _ => Verdict::Aborted,
    }
}

fn is_changed(Observation { head, came, left }: &Observation) -> bool {
    head.came_length != head.left_length || came != left
}

/// Explains the path of an observed packet.
pub(crate) fn explain(observation: &Observation, known: &Known) -> Explanation {
    let Observation { head, came, left } = observation;
    let verdict = verdict(observation, known);
    let (packet, after) = (Frame::parse(came), Frame::parse(left));
    let is_gone = matches!(verdict, Verdict::Drop | Verdict::Aborted);
    let direction = direction(verdict, head, packet.as_ref(), after.as_ref(), known);
    let (place, client) = place(direction, packet.as_ref(), after.as_ref(), known);
    let service = place.map(|(service, _)| service);
    let hop = hop(observation, verdict, direction, service, after.as_ref(), known);
    let backend = service.and_then(|service| match direction {
        Direction::ToClient => backend_at(service, packet.as_ref()?.source?, packet.as_ref()?.source_port),
        Direction::ToBackend | Direction::Answered | Direction::ToHost | Direction::Nowhere => {
            hop.and_then(|hop| backend_at(service, hop.address, hop.port))
        }
    });
    let moved_from = service.and_then(|service| backend_of(service, head.moved_from?, known));
    let cause = cause(head);
    let reason = labelled(DropReason::ALL, DropReason::label, head.drop.as_deref());
    let mut this = Explanation {
        interface: known.interfaces.get(&head.ifindex).cloned().unwrap_or_else(|| format!("#{}", head.ifindex)),
        queue: head.queue,
        length: head.came_length,
        direction,
        service: service.map(|service| service.name.clone()),
        listener: place.and_then(|(_, listener)| listener).map(|listener| listener.to_string()),
        client,
        decision: decision(head).map(|decision| decision.label()),
        backend: backend.map(|backend| backend.name.clone()),
        connection_id: head.connection_id.clone(),
        moved_from: moved_from.map(|backend| backend.name.clone()),
        cause: cause.map(|cause| cause.label()),
        rule: None,
        slot: None,
        memory: None,
        recorded: has(head, "recorded"),
        why: String::new(),
        next_hop: next_hop(observation, verdict, hop, known),
        verdict: verdict.label(),
        reason: reason.map(|reason| reason.label()),
        left: after.filter(|_| !is_gone),
        microseconds: head.left.saturating_sub(head.came) as f64 / 1000.0,
        packet,
    };
    this.why = why(&this, head, verdict, reason, service);
    this
}

/// Returns the enum variant with this label.
fn labelled<T: Copy>(all: &[T], label: impl Fn(T) -> &'static str, text: Option<&str>) -> Option<T> {
    let text = text?;
    all.iter().copied().find(|&of| label(of) == text)
}

fn decision(head: &TracedPacket) -> Option<Decision> {
    labelled(Decision::ALL, Decision::label, head.decision.as_deref())
}

fn cause(head: &TracedPacket) -> Option<MoveCause> {
    labelled(MoveCause::ALL, MoveCause::label, head.cause.as_deref())
}

/// Whether the reported changes to the client's entry include this one.
fn has(head: &TracedPacket, word: &str) -> bool {
    head.memory.iter().any(|of| of == word)
}

fn direction(
    verdict: Verdict,
    head: &TracedPacket,
    came: Option<&Frame>,
    left: Option<&Frame>,
    known: &Known,
) -> Direction {
    let is_vip = |address: Option<IpAddr>| address.is_some_and(|address| known.has_vip(address));
    match verdict {
        Verdict::Drop | Verdict::Aborted => Direction::Nowhere,
        Verdict::Pass => Direction::ToHost,
        Verdict::Tx | Verdict::Redirect | Verdict::Handed | Verdict::Local => {
            if head.answered.is_some() {
                Direction::Answered
            } else if is_vip(came.and_then(|frame| frame.destination)) {
                Direction::ToBackend
            } else if is_vip(left.and_then(|frame| frame.source)) {
                Direction::ToClient
            } else {
                // An ICMP error about a packet of a connection may come from a router, so only the quoted packet
                // identifies the connection.
                let quoted = left.and_then(|frame| frame.about.as_ref());
                if quoted.is_some_and(|frame| is_vip(frame.destination)) {
                    Direction::ToClient
                } else {
                    Direction::ToBackend
                }
            }
        }
    }
}

type Place<'a> = Option<(&'a ServiceView, Option<Listener>)>;

/// Returns the service, the listener and the client of a packet.
fn place<'a>(
    direction: Direction,
    came: Option<&Frame>,
    left: Option<&Frame>,
    known: &'a Known,
) -> (Place<'a>, Option<IpAddr>) {
    if direction == Direction::ToClient {
        let Some(left) = left else { return (None, None) };
        // An ICMP error that goes to a client quotes a packet from this client.
        return match &left.about {
            Some(about) => (known.at(about, End::Destination), left.destination),
            None => (known.at(left, End::Source), left.destination),
        };
    }
    let Some(came) = came else { return (None, None) };
    match &came.about {
        // If an ICMP error quotes a reply, the source of the quoted reply is the VIP, and its destination is the
        // client.
        Some(about) => (known.at(about, End::Source), about.destination),
        None => {
            let place = known.at(came, End::Destination);
            (place, came.source)
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

impl Known {
    fn listeners(&self) -> impl Iterator<Item = (&ServiceView, Listener)> {
        self.services.iter().flat_map(|service| {
            let parsed = service.listeners.iter().filter_map(|view| view.listener.parse().ok());
            parsed.map(move |listener| (service, listener))
        })
    }

    pub(crate) fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.listeners().map(|(_, listener)| listener.address)
    }

    fn has_vip(&self, address: IpAddr) -> bool {
        self.vips().any(|vip| vip == address)
    }

    /// Returns the service and listener at one end of a packet; only the service if no listener matches and no other
    /// service has the address.
    fn at(&self, frame: &Frame, end: End) -> Place<'_> {
        let (address, port) = match end {
            End::Source => (frame.source?, frame.source_port),
            End::Destination => (frame.destination?, frame.destination_port),
        };
        let of_address = || self.listeners().filter(move |(_, listener)| listener.address == address);
        let exact = of_address()
            .filter(|(_, listener)| {
                Some(listener.protocol.transport()) == frame.layer4()
                    && port.is_some_and(|port| listener.ports.contains(port))
            })
            .min_by_key(|(_, listener)| listener.ports.width());
        if let Some((service, listener)) = exact {
            return Some((service, Some(listener)));
        }
        if port.is_some() && frame.layer4().is_some() {
            return None;
        }
        let mut services = of_address().map(|(service, _)| service);
        let first = services.next()?;
        services.all(|service| service.name == first.name).then_some((first, None))
    }
}

/// Returns the row of the backend that the program used for the packet.
fn hop<'a>(
    observation: &Observation,
    verdict: Verdict,
    direction: Direction,
    service: Option<&ServiceView>,
    left: Option<&Frame>,
    known: &'a Known,
) -> Option<&'a HopView> {
    let by_id = |id: u16| known.hops.iter().find(|hop| hop.id == id);
    if let Some(id) = observation.head.backend {
        return by_id(id);
    }
    if direction != Direction::ToBackend {
        return None;
    }
    let mac = mac(&observation.left)?;
    if verdict == Verdict::Handed
        && let Some(Handed::Backend(id)) = Handed::of(mac)
    {
        return by_id(id);
    }
    let destination = left?.destination?;
    let service = service?;
    let mut of_service = known.hops.iter().filter(|hop| backend_at(service, hop.address, hop.port).is_some());
    if known.has_vip(destination) {
        of_service.find(|hop| hop.in_use && hop.mac.as_deref() == Some(&*text(mac)))
    } else {
        of_service.find(|hop| hop.address == destination)
    }
}

fn mac(frame: &[u8]) -> Option<Mac> {
    frame.first_chunk().copied()
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn next_hop(observation: &Observation, verdict: Verdict, hop: Option<&HopView>, known: &Known) -> Option<NextHop> {
    let mac = match verdict {
        Verdict::Tx | Verdict::Redirect => text(mac(&observation.left)?),
        // A packet that is passed to the kernel for sending has a mark and not the backend's hardware address.
        Verdict::Handed => hop?.mac.clone()?,
        Verdict::Pass | Verdict::Local | Verdict::Drop | Verdict::Aborted => return None,
    };
    let ifindex = if verdict == Verdict::Tx { Some(observation.head.ifindex) } else { hop.and_then(|hop| hop.ifindex) };
    Some(NextHop {
        interface: ifindex.and_then(|ifindex| known.interfaces.get(&ifindex)).cloned(),
        mac,
        address: hop.map(|hop| hop.address),
    })
}

/// Returns the backend of the service with this address. If several backends have this address, the port decides.
fn backend_at(service: &ServiceView, address: IpAddr, port: Option<u16>) -> Option<&BackendView> {
    let places = |backend: &BackendView| {
        let families = backend.families.iter().map(|of| of.address.clone());
        families.chain([backend.address.clone()]).filter_map(|text| parse(&text)).collect::<Vec<_>>()
    };
    let mut at = service.backends.iter().filter(|backend| places(backend).iter().any(|(of, _)| *of == address));
    let first = at.next()?;
    let exact = |backend: &&BackendView| places(backend).contains(&(address, port));
    if exact(&first) { Some(first) } else { at.find(exact).or(Some(first)) }
}

fn parse(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse() {
        return Some((address, None));
    }
    let place: std::net::SocketAddr = text.parse().ok()?;
    Some((place.ip(), Some(place.port())))
}

fn backend_of<'a>(service: &'a ServiceView, id: u16, known: &Known) -> Option<&'a BackendView> {
    let hop = known.hops.iter().find(|hop| hop.id == id)?;
    backend_at(service, hop.address, hop.port)
}

fn why(
    this: &Explanation,
    head: &TracedPacket,
    verdict: Verdict,
    reason: Option<DropReason>,
    service: Option<&ServiceView>,
) -> String {
    let mut text = match (reason, this.direction) {
        (Some(reason), _) => dropped(reason).to_owned(),
        (None, Direction::Nowhere) => "the program could not send it".to_owned(),
        (None, Direction::Answered) => match head.answered.as_deref() {
            Some("echo") => "an echo request, which the balancer answers",
            Some("too_big") => "too big for the path to the backend; its sender gets an ICMP error",
            Some("rejected") => "no backend takes it; its sender gets a reset or an ICMP error",
            _ => "the balancer answers it",
        }
        .to_owned(),
        (None, Direction::ToHost) => passed(this, service),
        (None, Direction::ToClient) => "a reply, which gets the service's address again".to_owned(),
        (None, Direction::ToBackend) => chosen(this, head),
    };
    if has(head, "full") {
        text.push_str("; not recorded: there is no room in the client table");
    } else if has(head, "limited") {
        text.push_str("; not recorded: too many newcomers at once");
    } else if has(head, "evicted") {
        text.push_str("; recorded in the place of another client");
    } else if has(head, "recorded") {
        text.push_str("; recorded");
    }
    if verdict == Verdict::Handed {
        text.push_str("; the kernel sends it");
    }
    text
}

fn passed(this: &Explanation, service: Option<&ServiceView>) -> String {
    let text = match service {
        Some(service) if service.steer < 100 => "left to this host, which serves the clients that are not steered",
        Some(_) => "left to this host",
        None if this.packet.as_ref().is_some_and(|packet| packet.layer4().is_some()) => {
            "left to this host: no listener has this address, port and protocol"
        }
        None => "left to this host: it belongs to no service",
    };
    text.to_owned()
}

fn chosen(this: &Explanation, head: &TracedPacket) -> String {
    match head.connection_id.as_deref() {
        Some("named") => "its connection ID names this backend".to_owned(),
        Some("taught") => "its connection ID names this backend, where its client is known from now on".to_owned(),
        Some("unknown") => format!("{}; its connection ID names no server", by_address(this, head)),
        Some("gone") => {
            format!("{}; the backend that its connection ID names takes no packets of it", by_address(this, head))
        }
        Some("none") => format!("{}; it has no connection ID of a server", by_address(this, head)),
        _ => by_address(this, head),
    }
}

/// The reason why the client's address leads to the backend, if no connection ID decided.
fn by_address(this: &Explanation, head: &TracedPacket) -> String {
    let from = this.moved_from.as_deref().unwrap_or("another backend");
    match decision(head) {
        Some(Decision::Kept) => "a known client stays at its backend".to_owned(),
        Some(Decision::Moved) => {
            let cause = cause(head).map_or("", moved);
            format!("a known client leaves {from}{cause}")
        }
        Some(Decision::New) => "a new client: the lookup table decides".to_owned(),
        Some(Decision::Pinned) => "a rule pins the client".to_owned(),
        Some(Decision::Stateless) => "the lookup table alone decides".to_owned(),
        None if this.packet.as_ref().is_some_and(|packet| packet.about.is_some()) => {
            "an error about a packet of this backend".to_owned()
        }
        None if head.connection_id.is_some() => "its client's address decides".to_owned(),
        None => "of a connection that goes on".to_owned(),
    }
}

const fn moved(cause: MoveCause) -> &'static str {
    match cause {
        MoveCause::Down => ": it has failed",
        MoveCause::Drain => ": its drain has ended",
        MoveCause::Maint => ": it is in maintenance",
        MoveCause::Removed => ": it was removed",
        MoveCause::Failback => ": its home backend is back",
        MoveCause::Rule => ": a rule sends it elsewhere",
        MoveCause::Forgotten => ": it was forgotten on request",
    }
}

const fn dropped(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Malformed => "shorter than its headers say, or its headers contradict themselves",
        DropReason::NoBackend => "the service has no backend",
        DropReason::AllDown => "no backend of the service takes packets",
        DropReason::FragmentUnknown => "a fragment whose first part was not seen",
        DropReason::TtlExceeded => "its TTL or hop limit is used up",
        DropReason::NoNextHop => "the next hop of the backend is not known",
        DropReason::NoRoute => "this host has no route to the client",
        DropReason::NoNeighbour => "the client's next hop has not answered for seconds",
        DropReason::TooBig => "too big for its path, and too many such packets to answer",
        DropReason::NoHeadroom => "the driver leaves no room for an outer header",
        DropReason::Denied => "a rule denies the client",
        DropReason::WrongInterface => "a backend's packet that came in by another interface than leads to it",
        DropReason::Martian => "from an address that no client can have",
        DropReason::EchoLimited => "one of too many echo requests at once",
        DropReason::Withheld => "a backend refuses the connection, and is checked before the client learns it",
        DropReason::FlowUnknown => "of no connection that is known, and it opens none",
        DropReason::NoPort => "all addresses and ports of the pool are taken for the backend",
        DropReason::FlowTableFull => "the table of connections is full",
    }
}

impl Explanation {
    /// Formats the explanation as one line, which becomes the comment of a captured packet.
    pub(crate) fn comment(&self) -> String {
        let mut text = format!("service {}", self.service.as_deref().unwrap_or("-"));
        if let Some(listener) = &self.listener {
            let _ = write!(text, " at {listener}");
        }
        if let Some(client) = self.client {
            let _ = write!(text, ", client {client}");
        }
        if let Some(backend) = &self.backend {
            let _ = write!(text, ", backend {backend}");
        }
        let _ = write!(text, ": {} ({}", self.why, self.verdict);
        if let Some(reason) = self.reason {
            let _ = write!(text, ", {reason}");
        }
        text.push(')');
        text
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use serde_json::json;

    use super::*;

    const CLIENT: [u8; 4] = [10, 1, 0, 1];
    const VIP: [u8; 4] = [10, 2, 0, 10];
    const SERVER: [u8; 4] = [10, 0, 0, 12];

    fn backend(name: &str, address: &str) -> serde_json::Value {
        json!({
            "name": name, "address": address, "weight": 100, "backup": false, "admin": "ready", "health": "up",
            "state": "up", "reason": "", "slots": 1, "known_clients": 0, "connections": 0, "packets": 0, "bytes": 0
        })
    }

    fn known() -> Known {
        let service = json!({
            "name": "web", "address": "10.2.0.10:80", "protocol": "tcp", "forwarding": "nat", "table_size": 2,
            "listeners": [{"listener": "10.2.0.10:80/tcp"}, {"listener": "10.2.0.10:53/udp"}, {"listener": "10.2.0.10:443/quic"}],
            "table_generation": 1, "backends": [backend("web1", "10.0.0.11:8080"), backend("web2", "10.0.0.12:8080")]
        });
        let hop = |id: u16, last: u8| HopView {
            id,
            address: IpAddr::from([10, 0, 0, last]),
            port: Some(8080),
            ifindex: Some(3),
            mac: Some(text([2, 0, 0, 0, 0, last])),
            in_use: true,
        };
        Known {
            services: vec![serde_json::from_value(service).unwrap()],
            interfaces: [(2, "eth0".to_owned()), (3, "eth1".to_owned())].into(),
            hops: vec![hop(1, 11), hop(2, 12)],
        }
    }

    fn tcp(mac: Mac, (from, from_port): ([u8; 4], u16), (to, to_port): ([u8; 4], u16)) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([4; 6], mac).ipv4(from, to, 64);
        builder.tcp(from_port, to_port, 1, 1000).syn().write(&mut frame, &[]).unwrap();
        frame
    }

    fn datagram(mac: Mac, to: [u8; 4]) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([4; 6], mac).ipv4(CLIENT, to, 64);
        builder.udp(40_000, 443).write(&mut frame, &[0x41; 30]).unwrap();
        frame
    }

    fn explained(head: TracedPacket, came: Vec<u8>, left: Vec<u8>) -> Explanation {
        let (came_length, left_length) = (came.len() as u32, left.len() as u32);
        let head = TracedPacket { ifindex: 2, came_length, left_length, ..head };
        explain(&Observation { head, came, left }, &known())
    }

    fn request() -> Vec<u8> {
        tcp([9; 6], (CLIENT, 40_000), (VIP, 80))
    }

    fn forwarded() -> Vec<u8> {
        tcp([2, 0, 0, 0, 0, 12], (CLIENT, 40_000), (SERVER, 8080))
    }

    #[test]
    fn when_counters_have_changed_then_backend_decision_and_move_are_theirs() {
        let head = TracedPacket {
            action: XDP_REDIRECT,
            backend: Some(2),
            decision: Some("moved".to_owned()),
            moved_from: Some(1),
            cause: Some("down".to_owned()),
            ..TracedPacket::default()
        };
        let of = explained(head, request(), forwarded());
        assert_eq!(
            of.comment(),
            "service web at 10.2.0.10:80/tcp, client 10.1.0.1, backend web2: a known client leaves web1: it has failed \
             (redirect)"
        );
        assert_eq!((of.decision, of.cause, of.moved_from.as_deref()), (Some("moved"), Some("down"), Some("web1")));
        let hop = of.next_hop.unwrap();
        assert_eq!((hop.interface.as_deref(), hop.mac.as_str()), (Some("eth1"), "02:00:00:00:00:0c"));
    }

    #[test]
    fn when_a_connection_id_has_been_read_then_it_is_told_what_it_decided() {
        for (word, decision, expected) in [
            ("named", None, "its connection ID names this backend"),
            ("named", Some("kept"), "its connection ID names this backend"),
            ("taught", None, "its connection ID names this backend, where its client is known from now on"),
            ("unknown", None, "its client's address decides; its connection ID names no server"),
            (
                "gone",
                Some("kept"),
                "a known client stays at its backend; the backend that its connection ID names takes no packets of it",
            ),
            ("none", Some("new"), "a new client: the lookup table decides; it has no connection ID of a server"),
        ] {
            let head = TracedPacket {
                action: XDP_REDIRECT,
                backend: Some(2),
                connection_id: Some(word.to_owned()),
                decision: decision.map(str::to_owned),
                ..TracedPacket::default()
            };
            let of = explained(head, datagram([9; 6], VIP), datagram([2, 0, 0, 0, 0, 12], VIP));
            assert_eq!((of.why.as_str(), of.connection_id.as_deref()), (expected, Some(word)));
            assert_eq!((of.service.as_deref(), of.backend.as_deref()), (Some("web"), Some("web2")));
            assert_eq!(of.listener.as_deref(), Some("10.2.0.10:443/quic"));
        }
    }

    #[test]
    fn when_no_counter_tells_the_backend_then_the_frame_does() {
        let head = TracedPacket { action: XDP_TX, ..TracedPacket::default() };
        let of = explained(head.clone(), request(), forwarded());
        assert_eq!((of.backend.as_deref(), of.decision), (Some("web2"), None));
        assert_eq!(of.why, "of a connection that goes on");
        // The hardware address identifies the backend, as it does with `dsr`.
        let of = explained(head, request(), tcp([2, 0, 0, 0, 0, 11], (CLIENT, 40_000), (VIP, 80)));
        assert_eq!(of.backend.as_deref(), Some("web1"));
        // A mark identifies the backend if the packet is passed to the kernel for sending.
        let head = TracedPacket { action: XDP_PASS, ..TracedPacket::default() };
        let marked = tcp(Handed::Backend(1).destination(), (CLIENT, 40_000), ([10, 0, 0, 11], 8080));
        let of = explained(head, request(), marked);
        assert_eq!((of.verdict, of.backend.as_deref()), ("handed", Some("web1")));
        assert!(of.why.ends_with("; the kernel sends it"), "{}", of.why);
    }

    #[test]
    fn when_a_reply_passes_then_service_client_and_backend_are_those_of_its_connection() {
        let head = TracedPacket { action: XDP_REDIRECT, ..TracedPacket::default() };
        let reply = tcp([9; 6], (SERVER, 8080), (CLIENT, 40_000));
        let of = explained(head, reply, tcp([8; 6], (VIP, 80), (CLIENT, 40_000)));
        assert_eq!(of.direction, Direction::ToClient);
        assert_eq!((of.service.as_deref(), of.backend.as_deref()), (Some("web"), Some("web2")));
        assert_eq!(of.client, Some(CLIENT.into()));
        assert_eq!(of.next_hop.unwrap().interface, None, "the kernel's table of routes told it");
    }

    #[test]
    fn when_every_reason_is_counted_then_it_is_told_and_nothing_leaves() {
        for reason in DropReason::ALL {
            let drop = Some(reason.label().to_owned());
            let head = TracedPacket { action: XDP_DROP, drop, ..TracedPacket::default() };
            let of = explained(head, request(), request());
            assert_eq!((of.verdict, of.reason, of.left), ("drop", Some(reason.label()), None));
        }
        let of = explained(TracedPacket { action: XDP_DROP, ..TracedPacket::default() }, request(), request());
        assert_eq!((of.verdict, of.why.as_str()), ("aborted", "the program could not send it"));
    }

    #[test]
    fn when_no_listener_takes_a_packet_for_a_vip_then_it_is_of_no_service() {
        let other = tcp([9; 6], (CLIENT, 40_000), (VIP, 81));
        let of = explained(TracedPacket { action: XDP_PASS, ..TracedPacket::default() }, other.clone(), other);
        assert_eq!((of.verdict, of.service), ("pass", None));
        assert!(of.why.contains("no listener has this address, port and protocol"), "{}", of.why);
        let of = explained(TracedPacket { action: XDP_PASS, ..TracedPacket::default() }, vec![0; 60], vec![0; 60]);
        assert_eq!((of.packet, of.service), (None, None));
    }

    #[test]
    fn when_backends_share_an_address_then_the_port_tells_them_apart() {
        let mut known = known();
        known.services[0].backends[0].address = "10.0.0.12:9090".to_owned();
        let at = |port| backend_at(&known.services[0], SERVER.into(), Some(port)).map(|backend| backend.name.as_str());
        assert_eq!([at(8080), at(9090), at(1)], [Some("web2"), Some("web1"), Some("web1")]);
    }
}
