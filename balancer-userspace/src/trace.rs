//! The command `balancer trace`.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, Write as _},
    net::IpAddr,
};

use balancer_api::{
    client::Client,
    model::{ClientQuery, ClientView},
};
use humantime::format_rfc3339_micros;
use ipnet::IpNet;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Failure,
    observe::{
        self, Asked, Session,
        explain::{Direction, Explanation, Memory},
    },
    output,
};

/// The number of bytes that the trace reports per frame: enough for all headers, including those of a packet in a
/// tunnel and those that an ICMP error quotes.
const SNAPLEN: u32 = 256;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The client's address, or a prefix of several clients
    #[arg(value_name = "CLIENT", value_parser = observe::client, required_unless_present = "service")]
    client: Option<IpNet>,
    /// Show only packets of this service, from every client or from CLIENT
    #[arg(long, value_name = "SVC")]
    service: Option<String>,
    /// End after this number of packets [default: until Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let asked = Asked {
        service: args.service.clone(),
        client: args.client,
        snaplen: SNAPLEN,
        count: args.count.unwrap_or(u64::MAX),
    };
    let mut memory = Memories::new(client);
    if let Some(only) = args.client.filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len()) {
        memory.remember(only.addr(), args.service.as_deref()).await;
    }
    let mut session = Session::open(client, &asked).await?;
    writeln!(io::stderr(), "tracing; Ctrl-C ends it")?;
    while let Some((observation, mut explanation)) = session.next().await? {
        memory.add(&mut explanation).await;
        let time = format_rfc3339_micros(session.time(observation.head.came)).to_string();
        output::print(&if args.json { json(&time, &explanation)? } else { text(&time, &explanation) })?;
    }
    let lost = session.end().await;
    if lost > 0 {
        writeln!(io::stderr(), "balancer: {lost} frames are not shown, because they came too fast")?;
    }
    Ok(())
}

/// The controller's last answer about each client, with the time of the query.
struct Memories<'a> {
    api: &'a Client,
    last: HashMap<(String, IpAddr), (ClientView, Instant)>,
}

impl<'a> Memories<'a> {
    /// The maximum number of clients whose answers are kept.
    const MOST: usize = 10_000;

    fn new(api: &'a Client) -> Self {
        Self { api, last: HashMap::new() }
    }

    /// Queries the controller about a client before packets of the client arrive, so that the trace knows the client's
    /// earlier state.
    async fn remember(&mut self, address: IpAddr, service: Option<&str>) {
        let query = ClientQuery { address, service: service.map(str::to_owned) };
        let asked = Instant::now();
        // If the address is not a client of any service, the trace continues without an answer.
        for view in self.api.client(&query).await.unwrap_or_default() {
            self.last.insert((view.service.clone(), address), (view, asked));
        }
    }

    /// Adds to an explanation the rule, the slot, and the client's entry before the packet.
    async fn add(&mut self, of: &mut Explanation) {
        let (Some(service), Some(address)) = (of.service.clone(), of.client) else { return };
        if of.direction == Direction::ToClient {
            return;
        }
        if self.last.len() >= Self::MOST {
            self.last.clear();
        }
        let key = (service, address);
        let before = self.last.get(&key).cloned();
        self.remember(address, Some(&key.0)).await;
        let now = self.last.get(&key).map(|(view, _)| view);
        let view = now.or(before.as_ref().map(|(view, _)| view));
        of.slot = view.map(|view| view.slot);
        of.rule = view.and_then(|view| view.rule.clone());
        // The decision is more reliable than the answer, because another packet may have arrived between the answer and
        // this packet.
        of.memory = match (decided(of), before.map(|(view, asked)| memory(&view, asked))) {
            (Some(decided), Some(seen)) if decided.known == seen.known => Some(seen),
            (decided, seen) => decided.or(seen),
        };
    }
}

fn memory(view: &ClientView, asked: Instant) -> Memory {
    Memory {
        known: view.known,
        // The backend in the view is the backend at which the client is known, unless a rule decides.
        backend: view.backend.clone().filter(|_| view.known && view.why == "known"),
        last_seen_seconds_ago: view.last_seen_seconds_ago.map(|ago| ago + asked.elapsed().as_secs()),
    }
}

/// Derives the client's entry before the packet from the decision about the packet.
fn decided(of: &Explanation) -> Option<Memory> {
    let (known, backend) = match of.decision? {
        "kept" => (true, of.backend.clone()),
        "moved" => (true, of.moved_from.clone()),
        "new" => (false, None),
        _ => return None,
    };
    Some(Memory { known, backend, last_seen_seconds_ago: None })
}

fn json(time: &str, explanation: &Explanation) -> Result<String, io::Error> {
    #[derive(Serialize)]
    struct Line<'a> {
        time: &'a str,
        #[serde(flatten)]
        explanation: &'a Explanation,
    }
    Ok(format!("{}\n", serde_json::to_string(&Line { time, explanation })?))
}

/// Formats a line about the packet, and a line about each decision.
fn text(time: &str, of: &Explanation) -> String {
    let packet = of.packet.as_ref().map_or_else(|| "no packet of IP".to_owned(), ToString::to_string);
    let mut text = format!("{time} {} {packet}, {} bytes\n", of.interface, of.length);
    if let Some(service) = &of.service {
        let listener = of.listener.as_deref().map(|listener| format!(" at {listener}")).unwrap_or_default();
        let slot = of.slot.map(|slot| format!(", slot {slot}")).unwrap_or_default();
        let rule = of.rule.as_ref().map(|rule| format!(", rule {} {}", rule.action, rule.prefix)).unwrap_or_default();
        let memory = of.memory.as_ref().map(known).unwrap_or_default();
        let client = of.client.map(|client| format!(", client {client}")).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  service {service}{listener}{client}{slot}{rule}{memory}");
    }
    let backend = of.backend.as_deref().map(|backend| format!("backend {backend}: ")).unwrap_or_default();
    let _ = writeln!(text, "  {backend}{}", of.why);
    let reason = of.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let _ = write!(text, "  {}{reason}", of.verdict);
    if let Some(hop) = &of.next_hop {
        let by = hop.interface.as_deref().map(|name| format!(" by {name}")).unwrap_or_default();
        let _ = write!(text, "{by} to {}", hop.mac);
    }
    if let Some(left) = of.left.as_ref().filter(|left| Some(*left) != of.packet.as_ref()) {
        let _ = write!(text, ": {left}");
    }
    text.push('\n');
    text
}

fn known(memory: &Memory) -> String {
    if !memory.known {
        return ", not known before".to_owned();
    }
    let at = memory.backend.as_deref().map(|backend| format!(" at {backend}")).unwrap_or_default();
    let ago = memory.last_seen_seconds_ago.map(|ago| format!(", last recorded {ago} s before")).unwrap_or_default();
    format!(", known{at}{ago}")
}
