//! Sends requests to connect to backends like those that the program sends for clients, and finds out by which interface
//! the answers come. Neither the program nor a backend keeps anything of them: the requests do not pass the program, and
//! resets end them.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use balancer_api::{
    client::{Client, ClientError},
    trace::{BeginTrace, LEAST_SNAPLEN, TracedPacket},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use tokio::time::Instant;

use super::{
    packets::{Heard, RST, SYN, heard, packet, tcp},
    pretend::{self, Pretended},
    probe::{Target, port},
    wire::{Note, Wire},
};
use crate::{
    facts::{Arrival, Attempt, Backend, Facts, Mac, Outcome},
    finding::Unseen,
};

/// The time after which the doctor repeats an unanswered request.
const ROUND: Duration = Duration::from_millis(400);
const ROUNDS: u32 = 4;
/// The time between questions for traced packets.
const BETWEEN: Duration = Duration::from_millis(50);
/// The number of bytes of traced frames: enough for the headers behind two VLAN tags, with TCP options.
const SNAPLEN: u32 = 2 * LEAST_SNAPLEN;

/// The clients whose requests the doctor sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// A client that was seen recently; without one, the doctor sends nothing.
    Seen,
    /// A client that was seen recently, or else an address that no client has.
    Chosen,
    /// The client with this address.
    Named(IpAddr),
}

struct Request {
    /// The index of the backend in the list of backends.
    index: usize,
    source: SocketAddr,
    /// The prefix of the route to the client.
    network: Option<IpNet>,
    to: SocketAddr,
    /// Whether a reset means that clients are not served.
    serves: bool,
    ifindex: u32,
    mac: Mac,
    answer: Option<Arrival>,
}

/// Tries all backends, and adds the results to the facts.
pub(super) async fn attempt(client: &Client, wire: &mut Wire, targets: &[Target], clients: Clients, facts: &mut Facts) {
    of_probes(facts);
    let mut all = from_pools(targets, facts);
    ask(wire, None, &mut all).await;
    for v4 in [true, false] {
        let mut requests = match as_client(targets, clients, v4, facts).await {
            Ok(requests) => requests,
            Err(unseen) => {
                facts.unseen.push(unseen);
                continue;
            }
        };
        let Some(source) = requests.first().map(|of| of.source.ip()) else { continue };
        if let Err(error) = traced(client, wire, source, &mut requests).await {
            facts.unseen.push(Unseen::new(format!("answers to the client {source}"), error.to_string()));
            continue;
        }
        all.extend(requests);
    }
    for Request { index, source, network, to, answer, .. } in all {
        if let Some(backend) = facts.backends.get_mut(index) {
            backend.attempt = Some(Attempt { source: source.ip(), network, to, answer });
        }
    }
}

/// The probes to VIPs that backends have are requests like those of clients already. Their source is an address of this
/// machine, because answers to clients of other networks do not pass this machine.
fn of_probes(facts: &mut Facts) {
    for backend in &mut facts.backends {
        let (Some(probe), Some(to), Some(source)) = (&backend.service_probe, backend.vip, backend.source) else {
            continue;
        };
        let Some(outcome) = &probe.tcp else { continue };
        let refused = *outcome == Outcome::Refused;
        let answer = probe.by.map(|ifindex| Arrival { ifindex, refused, dropped: None });
        backend.attempt = Some(Attempt { source, network: None, to, answer });
    }
}

/// Requests to `snat` backends from the addresses that these see. Their ports are not those of the pool, so that no
/// client's connection has the same ends.
fn from_pools(targets: &[Target], facts: &Facts) -> Vec<Request> {
    let mut requests = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        let Some(backend) = facts.backends.get(target.index).filter(|of| of.forwarding == "snat") else { continue };
        let own = backend.address.ip();
        let pool = facts.pools.iter().find(|of| of.service == backend.service && of.address.is_ipv4() == own.is_ipv4());
        let ports = pool.and_then(|of| of.ports).unwrap_or((0, 0));
        let source = SocketAddr::new(pool.map_or(target.source, |of| of.address), port(number));
        if (ports.0..=ports.1).contains(&source.port()) {
            continue;
        }
        requests.extend(request(target, backend, source, None));
    }
    requests
}

/// Requests to `nat` backends of an address family, from an address of another network.
async fn as_client(targets: &[Target], clients: Clients, v4: bool, facts: &Facts) -> Result<Vec<Request>, Unseen> {
    let of_family = |backend: &&Backend| backend.forwarding == "nat" && backend.address.is_ipv4() == v4;
    let concerned: Vec<(usize, &Target, &Backend)> = targets
        .iter()
        .enumerate()
        .filter_map(|(number, target)| {
            let backend = facts.backends.get(target.index).filter(of_family)?;
            target.translated.is_some().then_some((number, target, backend))
        })
        .collect();
    if concerned.is_empty() {
        return Ok(Vec::new());
    }
    let chosen = match clients {
        Clients::Named(address) if address.is_ipv4() == v4 => Some(pretend::named(address).await),
        Clients::Named(_) => None,
        Clients::Seen => match pretend::seen(facts, v4) {
            Some(seen) => Some(seen),
            None => return Ok(Vec::new()),
        },
        Clients::Chosen => pretend::client(facts, v4).await,
    };
    let Some(Pretended { address, network }) = chosen else {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let why = "no route of this machine leads to clients; name an address that clients have: --try=CLIENT";
        return Err(Unseen::new(format!("answers to clients over {family}"), why));
    };
    let each = concerned.into_iter().filter_map(|(number, target, backend)| {
        request(target, backend, SocketAddr::new(address, port(number)), network)
    });
    Ok(each.collect())
}

fn request(target: &Target, backend: &Backend, source: SocketAddr, network: Option<IpNet>) -> Option<Request> {
    let near = backend.neighbour.as_ref();
    let mac = target.entry.and_then(|entry| entry.mac).or_else(|| near?.answered.first().copied())?;
    let (to, serves) = target.translated?;
    let Target { index, ifindex, .. } = *target;
    Some(Request { index, source, network, to, serves, ifindex, mac, answer: None })
}

/// Sends requests of one client while the controller traces that client's packets: the program takes the answers, so that
/// the kernel does not see them.
async fn traced(client: &Client, wire: &mut Wire, source: IpAddr, requests: &mut [Request]) -> Result<(), ClientError> {
    let wanted = BeginTrace { service: None, client: Some(IpNet::from(source).to_string()), snaplen: SNAPLEN };
    let trace = client.trace(&wanted).await?.trace;
    ask(wire, Some((client, trace)), requests).await;
    client.end_trace(trace).await?;
    Ok(())
}

/// Sends requests until all have answers, and repeats them a few times.
async fn ask(wire: &mut Wire, trace: Option<(&Client, u64)>, requests: &mut [Request]) {
    let mut notes = Vec::new();
    for _ in 0..ROUNDS {
        for of in requests.iter().filter(|of| of.answer.is_none()) {
            of.send(wire, SYN);
        }
        let until = Instant::now() + ROUND;
        while Instant::now() < until && requests.iter().any(|of| of.answer.is_none()) {
            wire.listen_until(until.min(Instant::now() + BETWEEN), &mut notes).await;
            // If the controller does not answer, the answers stay unknown, as those that do not come.
            let packets = match trace {
                Some((client, trace)) => client.traced(trace, Duration::ZERO).await.map(|view| view.packets),
                None => Ok(Vec::new()),
            };
            packets.iter().flatten().for_each(|packet| take(requests, of_trace(packet)));
            notes.drain(..).for_each(|note| take(requests, of_wire(&note)));
        }
    }
    for of in requests.iter() {
        of.send(wire, RST);
    }
}

impl Request {
    /// Sends a segment. If the interface refuses it, the request stays without an answer.
    fn send(&self, wire: &Wire, flags: u8) {
        let sequence = if flags == SYN { 1 } else { 2 };
        let _ = wire.send(self.ifindex, self.mac, &tcp(self.source, self.to, sequence, flags, 0));
    }
}

/// A segment that arrived at this machine.
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    arrival: Arrival,
}

fn of_trace(traced: &TracedPacket) -> Option<Segment> {
    let frame = STANDARD.decode(&traced.came_frame).ok()?;
    segment(heard(packet(&frame)?)?, traced.ifindex, traced.drop.clone())
}

fn of_wire(note: &Note) -> Option<Segment> {
    if note.outgoing { None } else { segment(note.heard.clone(), note.ifindex, None) }
}

fn segment(heard: Heard, ifindex: u32, dropped: Option<String>) -> Option<Segment> {
    let Heard::Tcp { from, to, flags, .. } = heard else { return None };
    Some(Segment { from, to, arrival: Arrival { ifindex, refused: flags & RST != 0, dropped } })
}

fn take(requests: &mut [Request], segment: Option<Segment>) {
    let Some(Segment { from, to, arrival }) = segment else { return };
    let waiting = |of: &&mut Request| (of.to, of.source) == (from, to) && of.answer.is_none();
    if let Some(of) = requests.iter_mut().find(waiting) {
        of.answer = Some(Arrival { refused: arrival.refused && of.serves, ..arrival });
    }
}
