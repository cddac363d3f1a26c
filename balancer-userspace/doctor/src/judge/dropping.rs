//! The filters of this machine that may drop packets to or from a backend: chains of the firewall, and filters of `tc`.

use super::cases::{Case, OWN};
use crate::{
    facts::{Backend, Chain, Direction, Facts, Filters, TcFilter, Way},
    finding::{Cure, Kind},
};

/// The direction of packets that this machine drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// The packets come from a backend.
    Arriving,
    /// The packets are for a backend.
    Leaving,
}

const ALL_RULES: &str = "# to see all rules: nft list ruleset; iptables-save";

/// Returns the case that this machine drops packets. The words `does` continue a sentence about this machine.
pub(super) fn dropping<'a>(
    facts: &Facts,
    backend: &'a Backend,
    passage: Passage,
    does: String,
    seen: String,
) -> Case<'a> {
    let v4 = backend.address.is_ipv4();
    let Filters { chains, legacy, tc } = &facts.filters;
    let ifindex = if let Way::Known { ifindex, .. } = backend.way { ifindex } else { 0 };
    let interface = facts.link(ifindex).map_or("INTERFACE", |link| link.name.as_str());
    let concerned: Vec<&Chain> = chains.iter().flatten().filter(|chain| sees(chain, passage, v4)).collect();
    let tc: Vec<&TcFilter> =
        tc.iter().filter(|of| of.ifindex == ifindex && of.direction == direction(passage)).collect();
    let named = concerned.iter().map(|chain| format!("chain {} ({})", chain.place, chain.hook));
    let named = named.chain(tc.iter().map(|filter| format!("a tc filter on {interface} ({})", filter.name)));
    let named: Vec<String> = named.collect();
    let legacy_look = legacy.then(|| "# to see the rules of iptables-legacy: iptables-legacy-save".to_owned());
    let accepts = concerned.iter().map(|chain| accept(chain, backend));
    let (kind, why, commands) = if !tc.is_empty() {
        let looks = accepts.map(|command| format!("# if the chain drops them: {command}"));
        let look = format!("# to see what the filter drops: tc -s filter show dev {interface} {}", word(passage));
        (Kind::Dropped, named.join(", or "), [look].into_iter().chain(looks).chain(legacy_look).collect())
    } else if !concerned.is_empty() {
        let commands = accepts.chain(legacy_look).chain([ALL_RULES.to_owned()]).collect();
        (Kind::Firewall, named.join(", or "), commands)
    } else if *legacy {
        (Kind::Firewall, "a rule of iptables-legacy".to_owned(), legacy_look.into_iter().collect())
    } else if chains.is_none() {
        (Kind::Firewall, "a firewall".to_owned(), vec![by_iptables(passage, v4), ALL_RULES.to_owned()])
    } else {
        let looks = no_filter(passage, interface);
        return Case::new(
            backend,
            Kind::Dropped,
            format!("this machine {does}"),
            format!("{seen}; no chain of nftables drops packets there, and no filter of tc"),
            Cure::here(&looks),
        );
    };
    Case::new(backend, kind, format!("this machine {does}; most likely, {why} does"), seen, Cure::here(&commands))
}

/// Whether packets in this direction pass the chain.
fn sees(chain: &Chain, passage: Passage, v4: bool) -> bool {
    let hooks: &[&str] = match passage {
        Passage::Arriving => &["ingress", "prerouting", "input"],
        Passage::Leaving => &["output", "postrouting", "egress"],
    };
    let other_family = if v4 { "ip6 " } else { "ip " };
    hooks.contains(&chain.hook.as_str()) && !chain.place.starts_with(other_family)
}

const fn direction(passage: Passage) -> Direction {
    match passage {
        Passage::Arriving => Direction::Ingress,
        Passage::Leaving => Direction::Egress,
    }
}

const fn word(passage: Passage) -> &'static str {
    match passage {
        Passage::Arriving => "ingress",
        Passage::Leaving => "egress",
    }
}

/// The command that makes a chain accept the packets.
fn accept(chain: &Chain, backend: &Backend) -> String {
    let family = if backend.address.is_ipv4() { "ip" } else { "ip6" };
    let Chain { place, hook } = chain;
    match hook.as_str() {
        "input" => format!("nft insert rule {place} ct state established,related accept"),
        // Connections are not known yet where such chains may be.
        "ingress" | "prerouting" => {
            let port = backend.address.port();
            format!("nft insert rule {place} {family} saddr {OWN} tcp sport {port} accept")
        }
        _ => format!("nft insert rule {place} {family} daddr {OWN} accept"),
    }
}

fn by_iptables(passage: Passage, v4: bool) -> String {
    let tables = if v4 { "iptables" } else { "ip6tables" };
    match passage {
        Passage::Arriving => format!("{tables} -I INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"),
        Passage::Leaving => format!("{tables} -I OUTPUT -d {OWN} -j ACCEPT"),
    }
}

/// The causes if no chain and no filter is known that drops packets, most likely first.
fn no_filter(passage: Passage, interface: &str) -> Vec<String> {
    let program = format!("# or a BPF program on {interface} drops them: bpftool net show dev {interface}");
    match passage {
        Passage::Arriving => vec![
            format!(
                "# most likely first: the reverse-path filter (the larger one counts): sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.{}.rp_filter",
                interface.replace('.', "/")
            ),
            program,
        ],
        Passage::Leaving => {
            vec![format!("# most likely first: traffic control: tc -s qdisc show dev {interface}"), program]
        }
    }
}
