//! Findings about requests to connect that the doctor sent like those of clients. The backends of these findings answer
//! this machine's own connections.

#[cfg(test)]
mod tests;

use super::{
    backends::is_of,
    cases::{AT, Case, HOST, joined, name},
    general,
    replies::route,
    replies_come_in_by,
    vips::are_elsewhere,
};
use crate::{
    facts::{Arrival, Attempt, Backend, Controller, Facts, Link, Outcome},
    finding::{Cure, Finding, Kind, Tried, Unseen},
};

pub(super) fn findings(facts: &Facts, controller: &Controller, others: &[Finding]) -> Vec<Finding> {
    let explained = |backend: &Backend| others.iter().any(|finding| finding.backends.contains(&name(backend)));
    let (mut cases, mut general) = (Vec::new(), Vec::new());
    for backend in facts.backends.iter().filter(|of| of.answers_the_balancer() && !explained(of)) {
        let Some(attempt) = &backend.attempt else { continue };
        let Attempt { source, answer, .. } = attempt;
        let Some(Arrival { ifindex, refused, dropped }) = answer else {
            let connects = connects(backend, controller);
            let is_here = !are_elsewhere(&backend.service, facts, controller);
            cases.extend((connects && is_here).then(|| unanswered(backend, attempt)));
            continue;
        };
        if !controller.after.interfaces.iter().any(|view| view.ifindex == *ifindex) {
            general.extend(facts.link(*ifindex).map(|Link { name, .. }| {
                let seen = format!("the answer to a request to connect from {source} came in by {name}");
                replies_come_in_by(name, seen, controller)
            }));
        } else if let Some(reason) = dropped {
            general.push(dropping(reason, &source.to_string()));
        } else if *refused {
            cases.push(not_listening(backend));
        }
    }
    general.extend(joined(cases));
    general
}

/// Whether the backend answers this machine's own connections: the doctor's, or else those of the checks.
fn connects(backend: &Backend, controller: &Controller) -> bool {
    let mut checks = controller.health.iter().filter(|view| is_of(view, backend));
    let is_up = || checks.all(|view| view.verdict == "up");
    backend.direct.as_ref().map_or_else(is_up, |direct| direct.outcome == Outcome::Connected)
}

fn unanswered<'a>(backend: &'a Backend, Attempt { source, network, .. }: &Attempt) -> Case<'a> {
    let is_nat = backend.forwarding == "nat";
    let look = format!("# to see the route of the answers: ip route get {source}");
    let others = format!("# or a firewall there drops packets of {source}: nft list ruleset");
    let others = [others].into_iter().chain((is_nat && network.is_none()).then(|| {
        "# or the server has routes only to networks of real clients: balancer doctor --try=CLIENT".to_owned()
    }));
    let route = route(backend, *network).filter(|_| is_nat);
    let what = if is_nat {
        "replies do not come back through the balancer".to_owned()
    } else {
        format!("requests from {source}, the address that it sees of clients, have no answer")
    };
    Case::new(
        backend,
        Kind::Replies,
        what,
        format!("no answer came to a request to connect from {source}, while connections from this machine succeed"),
        Cure::elsewhere(HOST, &route.into_iter().chain([look]).chain(others).collect::<Vec<_>>()),
    )
}

fn dropping(reason: &str, source: &str) -> Finding {
    general(
        Kind::Replies,
        format!("this machine drops replies of backends ({reason})"),
        format!("the program dropped the answer to a request to connect from {source}"),
        Cure::here(&[
            format!("# to see the rules and routes to such a client: ip rule; ip route get {source}"),
            "# what the reasons mean: balancer help troubleshooting".to_owned(),
        ]),
    )
}

fn not_listening(backend: &Backend) -> Case<'_> {
    let port = backend.attempt.as_ref().map_or(0, |attempt| attempt.to.port());
    Case::new(
        backend,
        Kind::Server,
        format!("nothing listens on port {port}, to which the program sends the packets of clients"),
        format!("a request to connect to port {port} was refused, while connections to {AT} succeed"),
        Cure::elsewhere(HOST, &[format!("# to see what listens: ss -ltn 'sport = :{port}'")]),
    )
}

/// The services whose backends answer another machine.
pub(super) fn not_here(facts: &Facts, controller: &Controller) -> Vec<Unseen> {
    let silent = |backend: &&Backend| backend.attempt.as_ref().is_some_and(|attempt| attempt.answer.is_none());
    let mut services: Vec<&str> = facts.backends.iter().filter(silent).map(|of| of.service.as_str()).collect();
    services.dedup();
    services.retain(|service| are_elsewhere(service, facts, controller));
    let why = "another machine has the VIP, and servers may answer that machine";
    services.iter().map(|service| Unseen::new(format!("answers to clients of service {service}"), why)).collect()
}

/// The requests, each with the interface by which its answer came.
pub(super) fn tried(facts: &Facts) -> Vec<Tried> {
    let each = facts.backends.iter().filter_map(|backend| {
        let Attempt { source, to, answer, .. } = backend.attempt.as_ref()?;
        let by = answer.as_ref().map(|answer| facts.link(answer.ifindex).map_or("an interface", |link| &link.name));
        Some(Tried {
            service: backend.service.clone(),
            backend: backend.name.clone(),
            source: *source,
            to: *to,
            as_client: backend.forwarding == "nat",
            answered_by: by.map(str::to_owned),
        })
    });
    each.collect()
}
