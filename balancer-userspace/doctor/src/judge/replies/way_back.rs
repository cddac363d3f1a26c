//! Faults of this machine that keep replies of `nat` and `snat` backends from clients: routes, neighbours, interfaces,
//! and packets that the program drops.

use std::{collections::BTreeMap, net::IpAddr};

use balancer_common::verdict::DropReason;

use super::Waited;
use crate::{
    facts::{Controller, Facts, Mac, Neighbour, Untranslated, Way, WayBack},
    finding::{Cure, Finding, Kind},
    judge::{general, links, replies_come_in_by},
};

/// The reasons for which the program drops only replies, each with a look that shows more.
const OF_REPLIES: [(DropReason, &str); 3] = [
    (DropReason::NoRoute, "# to see the rules and routes to a client: ip rule; ip route get CLIENT"),
    (DropReason::NoNeighbour, "# to see the neighbours towards the clients: ip route get CLIENT; ip neigh show"),
    (
        DropReason::WrongInterface,
        "# replies must come in by the interface that leads to their backend: ip route get BACKEND",
    ),
];

pub(super) fn findings(facts: &Facts, controller: &Controller, waited: &[Waited<'_>]) -> Vec<Finding> {
    if waited.is_empty() {
        return Vec::new();
    }
    let concerned = |of: &&WayBack| waited.iter().any(|waited| waited.backend.service == of.service);
    let mut findings: Vec<Finding> = Vec::new();
    for way in facts.ways_back.iter().filter(concerned) {
        // Many clients are behind one fault.
        let found = of(facts, way).filter(|new| !findings.iter().any(|old| old.kind == new.kind));
        findings.extend(found);
    }
    if findings.is_empty() {
        findings.extend(untranslated(facts, controller, waited));
    }
    if findings.is_empty() {
        findings.extend(OF_REPLIES.into_iter().filter_map(|reason| dropped(controller, reason)));
    }
    findings
}

/// Returns a finding if this machine has no route to any recent client of a service. Without handshakes, as with UDP,
/// nothing else shows that replies are lost.
pub(super) fn without_handshakes(facts: &Facts) -> Option<Finding> {
    facts.ways_back.iter().find_map(|way| {
        let of_service = |of: &&WayBack| of.service == way.service;
        let none = facts.ways_back.iter().filter(of_service).all(|of| matches!(of.way, Way::None(_)));
        let Way::None(why) = &way.way else { return None };
        let translated = facts.backends.iter().any(|of| of.service == way.service && of.answers_the_balancer());
        (none && translated).then(|| no_route(way.client, &format!("`{}` says: {why}", way.lookup)))
    })
}

/// Returns the first problem on the way to a client.
fn of(facts: &Facts, WayBack { client, way, lookup, neighbour, .. }: &WayBack) -> Option<Finding> {
    let (ifindex, next_hop) = match way {
        Way::Local => return None,
        Way::None(why) => return Some(no_route(*client, &format!("`{lookup}` says: {why}"))),
        Way::Known { ifindex, next_hop } => (*ifindex, *next_hop),
    };
    let link = facts.link(ifindex)?;
    if !(link.up && link.carrier) {
        return Some(links::passes_nothing(link));
    }
    wrong_neighbour(*client, &link.name, next_hop, neighbour.as_ref()?)
}

fn no_route(client: IpAddr, seen: &str) -> Finding {
    general(
        Kind::Route,
        format!("this machine has no route for replies to clients such as {client}"),
        seen.to_owned(),
        Cure::here(&[
            format!("# to see what forbids it, if anything: ip rule; ip route show table all match {client}"),
            "# for clients' whole prefix, take what forbids it away, or:".to_owned(),
            "ip route replace PREFIX via GATEWAY".to_owned(),
        ]),
    )
}

fn wrong_neighbour(
    client: IpAddr,
    interface: &str,
    next_hop: IpAddr,
    Neighbour { known, permanent, answered }: &Neighbour,
) -> Option<Finding> {
    let written = |mac: &Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    match (known, answered.first()) {
        // A client on the link that does not answer may have gone.
        (None, None) if next_hop != client => Some(general(
            Kind::Neighbour,
            format!("{next_hop}, to which replies to clients such as {client} go, does not answer on {interface}"),
            format!("no machine answered ARP requests for {next_hop} on {interface}"),
            Cure::elsewhere(
                &format!("{next_hop}, or on the switch between"),
                &[format!("# check that {next_hop} runs, and that its cable, switch port, VLAN and address are right")],
            ),
        )),
        (Some(known), Some(right)) if !answered.contains(known) => {
            let (known, right) = (written(known), written(right));
            let how = if *permanent { "a permanent entry" } else { "the entry" };
            Some(general(
                Kind::NeighbourEntry,
                format!("replies to clients such as {client} go to the wrong hardware address, {known}"),
                format!(
                    "the neighbour table has {how} for {next_hop} with {known}, and {right} answers ARP requests for it"
                ),
                Cure::fixable(
                    &format!("ip neigh del {next_hop} dev {interface}"),
                    &format!("ip neigh replace {next_hop} lladdr {known} dev {interface} nud permanent"),
                ),
            ))
        }
        _ => None,
    }
}

/// Returns a finding if backends' replies arrived during the examination and the program did not translate them: the
/// program is not where they arrive, or the kernel does not tell it how to reach the clients.
fn untranslated(facts: &Facts, controller: &Controller, waited: &[Waited<'_>]) -> Option<Finding> {
    let all: Vec<&Untranslated> = waited.iter().flat_map(|of| &of.backend.untranslated).collect();
    let attached = |of: &&&Untranslated| controller.after.interfaces.iter().any(|view| view.ifindex == of.ifindex);
    if let Some(Untranslated { ifindex, client }) = all.iter().find(attached) {
        let interface = facts.link(*ifindex).map_or("an interface", |link| link.name.as_str());
        let seen = format!("replies to {client} came in by {interface}, and the program passed them on as they were");
        return Some(no_route(*client, &seen));
    }
    let Untranslated { ifindex, client } = all.first()?;
    let name = &facts.link(*ifindex)?.name;
    Some(replies_come_in_by(name, format!("replies to {client} were seen on {name}"), controller))
}

/// Returns a finding if the program dropped replies during the examination.
fn dropped(controller: &Controller, (reason, look): (DropReason, &str)) -> Option<Finding> {
    let count = |drops: &BTreeMap<String, u64>| drops.get(reason.label()).copied().unwrap_or(0);
    let packets = count(&controller.after.drops).saturating_sub(count(&controller.before.drops));
    (packets > 0).then(|| {
        general(
            Kind::Replies,
            format!("this machine drops replies of backends ({})", reason.label()),
            format!("the program dropped {packets} replies during the examination"),
            Cure::here(&[look.to_owned(), "# to see each packet: balancer trace --service SVC".to_owned()]),
        )
    })
}
