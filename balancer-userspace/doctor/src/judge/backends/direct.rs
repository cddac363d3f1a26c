//! Findings about the connection of this machine to the backend's own address, which resembles the connection of a
//! health check.

use crate::{
    facts::{Backend, Controller, Direct, Facts, Outcome, Way},
    finding::{Cure, Kind},
    judge::{
        backends::rejected,
        cases::{AT, Case, HOST},
        dropping::{Passage, dropping},
    },
};

pub(super) fn direct<'a>(facts: &Facts, backend: &'a Backend) -> Option<Case<'a>> {
    let Direct { outcome, left, came, checksum_wrong, rejected: error } = backend.direct.as_ref()?;
    let from_elsewhere = error.filter(|error| !facts.is_own(error.from));
    if let Some(error) = from_elsewhere
        && *outcome != Outcome::Connected
    {
        return Some(rejected(backend, AT, error));
    }
    match outcome {
        Outcome::Connected => None,
        Outcome::Refused if *left => Some(Case::new(
            backend,
            Kind::Server,
            format!("nothing listens on {AT}"),
            format!("a connection to {AT} was refused"),
            Cure::elsewhere(
                HOST,
                &[
                    format!("# start the server that listens on {AT}"),
                    format!("# to see what listens: ss -ltn 'sport = :{}'", backend.address.port()),
                ],
            ),
        )),
        Outcome::Refused => {
            let seen = format!("a connection to {AT} was refused, and no packet left by an interface");
            Some(dropping(facts, backend, Passage::Leaving, format!("rejects packets to {AT}"), seen))
        }
        Outcome::NotSent(why) => {
            let what = format!("does not let packets to {AT} out");
            Some(dropping(facts, backend, Passage::Leaving, what, format!("connecting to {AT}: {why}")))
        }
        Outcome::Silent if *came && *checksum_wrong => Some(unfinished(backend)),
        Outcome::Silent if *came => {
            let seen = format!("{AT} answered a request to connect, and this machine's kernel did not get the answer");
            Some(dropping(facts, backend, Passage::Arriving, format!("drops what comes back from {AT}"), seen))
        }
        Outcome::Silent if !*left => {
            let seen = format!("this machine began a connection to {AT}, and no packet left by an interface");
            Some(dropping(facts, backend, Passage::Leaving, format!("drops packets to {AT}"), seen))
        }
        Outcome::Silent => Some(Case::new(
            backend,
            Kind::Server,
            format!("no answer comes from {AT}"),
            format!("a request to connect to {AT} left, and nothing came back"),
            Cure::elsewhere(
                HOST,
                &[format!(
                    "# check that the server runs, and that no firewall there drops packets to {AT}: ss -ltn 'sport = :{}'; nft list ruleset",
                    backend.address.port()
                )],
            ),
        )),
    }
}

/// Returns a finding if the replies of a `nat` or `snat` backend have unfinished checksums: the program loses the
/// kernel's mark of an unfinished checksum. On this machine's own connections, the packets keep the mark.
pub(super) fn checksum<'a>(backend: &'a Backend, controller: &Controller) -> Option<Case<'a>> {
    let Way::Known { ifindex, .. } = backend.way else { return None };
    let native = controller.after.interfaces.iter().any(|view| view.ifindex == ifindex && view.xdp_mode == "native");
    let wrong = backend.direct.as_ref().is_some_and(|direct| direct.checksum_wrong);
    (native && wrong && backend.answers_the_balancer()).then(|| unfinished(backend))
}

fn unfinished(backend: &Backend) -> Case<'_> {
    Case::new(
        backend,
        Kind::Checksum,
        "packets arrive with checksums that are not computed".to_owned(),
        format!("{AT} answered, with a wrong checksum"),
        Cure::elsewhere(HOST, &["ethtool -K INTERFACE tx off".to_owned()]),
    )
}
