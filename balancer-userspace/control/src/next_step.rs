//! Reasons against steering more of a service's clients.

use balancer_config::states::BackendState;

use crate::{
    io::Refused,
    served::HandshakeCounts,
    snapshot::{BackendSnapshot, ServiceSnapshot},
};

/// The facts about a service that decide whether the balancer should steer more of its clients.
#[derive(Debug)]
struct Facts<'a> {
    service: &'a str,
    /// The handshakes of all its clients in the last minute.
    handshakes: HandshakeCounts,
    /// Whether a backend is up, or may be.
    has_backend: bool,
    /// The interface without the program by which a backend's replies arrive, with the name of the backend.
    unattached: Option<(&'a str, &'a str)>,
}

/// Whether the balancer should steer `steer` percent of a service's clients.
///
/// # Errors
/// Refuses a larger share than the present one if clients would not be served.
pub fn check(service: &ServiceSnapshot, steer: u8) -> Result<(), Refused> {
    let fault = (steer > service.share.now).then(|| Facts::of(service).fault()).flatten();
    fault.map_or(Ok(()), |fault| {
        Err(Refused::Conflict(format!("nothing was changed: {fault}; to steer more clients all the same, use --force")))
    })
}

const fn may_be_up(backend: &BackendSnapshot) -> bool {
    matches!(backend.state, BackendState::Up | BackendState::Checking)
}

impl<'a> Facts<'a> {
    fn of(service: &'a ServiceSnapshot) -> Self {
        let up = || service.backends.iter().filter(|backend| may_be_up(backend));
        Self {
            service: &service.name,
            handshakes: service.backends.iter().map(|backend| backend.handshakes).sum(),
            has_backend: up().next().is_some(),
            unattached: up().find_map(|backend| Some((backend.unattached.as_deref()?, backend.name.as_str()))),
        }
    }

    /// Returns the reason why clients would not be served; `None`: no reason is known.
    fn fault(&self) -> Option<String> {
        let Self { service, handshakes, has_backend, unattached } = self;
        if !has_backend {
            return Some(format!("no backend of {service} is up: `balancer health show {service}` shows the checks"));
        }
        if let Some((interface, backend)) = unattached {
            return Some(format!(
                "replies of {service}/{backend} come in by {interface}, which lacks the program: name {interface} in \
                 `interfaces` as well"
            ));
        }
        handshakes.fail().then(|| {
            let (percent, tries) = (handshakes.completed * 100 / handshakes.tries(), handshakes.tries());
            format!(
                "clients of {service} completed {percent}% of {tries} handshakes in the last minute: `balancer doctor \
                 {service}` looks for the cause"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Facts<'static> {
        let handshakes = HandshakeCounts { completed: 10, unanswered: 10 };
        Facts { service: "web", handshakes, has_backend: true, unattached: None }
    }

    #[test]
    fn when_a_fault_of_a_service_is_known_then_it_speaks_against_steering_more_clients() {
        let handshakes = HandshakeCounts { completed: 3, unanswered: 27 };
        for (facts, fault) in [
            (sound(), None),
            (
                Facts { handshakes, ..sound() },
                Some("clients of web completed 10% of 30 handshakes in the last minute: `balancer doctor web` looks"),
            ),
            (Facts { handshakes: HandshakeCounts { completed: 0, unanswered: 19 }, ..sound() }, None),
            (
                Facts { has_backend: false, handshakes, ..sound() },
                Some("no backend of web is up: `balancer health show web`"),
            ),
            (
                Facts { unattached: Some(("lb1", "web2")), ..sound() },
                Some("replies of web/web2 come in by lb1, which lacks the program: name lb1 in `interfaces` as well"),
            ),
        ] {
            let found = facts.fault();
            assert_eq!(found.is_some(), fault.is_some(), "{found:?}");
            assert!(found.is_none_or(|found| found.starts_with(fault.unwrap_or_default())), "{facts:?}");
        }
    }
}
