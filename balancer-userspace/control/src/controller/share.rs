//! The share of a service's clients that the balancer steers.

use std::{sync::Arc, time::Instant};

use balancer_common::{map_types::Forwarding, share::WHOLE};
use balancer_config::names::BackendName;

use super::Controller;
use crate::{
    io::{Command, Refused, Report, ReportLevel},
    service::Service,
};

impl Controller {
    pub(super) fn set_steer(
        &mut self,
        service: &str,
        steer: u8,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let (mut services, index) = self.edit(service)?;
        let Some(config) = services.get_mut(index).map(Arc::make_mut) else {
            return Err(self.no_service(service));
        };
        if steer > WHOLE {
            let text = format!("steer = {steer} is out of range; give a percentage of clients, 0 to 100");
            return Err(Refused::Invalid(text));
        }
        let before = config.steer;
        if before == steer {
            return Ok((format!("service {service} has steer {steer} already: nothing changed"), Vec::new()));
        }
        config.steer = steer;
        let about = BackendName { service: service.to_owned(), backend: String::new() };
        let (_, reconciled) = self.configure(services, Some(&about), now)?;
        Ok((told(service, before, steer), reconciled.commands))
    }

    /// Stops looking for connections that are older than the last change of a service's share, once this change is old
    /// enough.
    pub(super) fn settle_shares(&mut self, now: Instant) -> Vec<Command> {
        let mut concerned = Vec::new();
        let mut reports = Vec::new();
        for service in self.services.those_mut(|service| service.share_settles(now)) {
            concerned.push(service.id());
            service.settle_share();
            reports.push(reconciled(service));
        }
        if concerned.is_empty() {
            return Vec::new();
        }
        let mut commands = self.reconcile(|service| concerned.contains(&service.id()), Vec::new(), None, now).commands;
        commands.extend(reports);
        commands
    }
}

/// Returns the line that describes the effect of a change of a service's share, in percent.
fn told(service: &str, before: u8, steer: u8) -> String {
    let what = match steer {
        0 => "the host gets every new connection; counters show what the balancer would have done".to_owned(),
        WHOLE => "every client is steered".to_owned(),
        _ if steer > before => format!("{}% more of the clients are steered, and no client moves", steer - before),
        _ => format!("{}% of the clients go back to the host", before - steer),
    };
    format!("service {service} steer {before} → {steer}: {what}")
}

fn reconciled(service: &Service) -> Command {
    let (name, percent) = (service.label(), service.share().now);
    // A `snat` service looks for no connections of the host, because it knows its own.
    let message = if service.forwarding() == Forwarding::Snat && percent < WHOLE {
        format!("service {name} has steered {percent}% of its clients for an hour")
    } else {
        format!(
            "service {name} steers {percent}% of its clients; the program no longer looks for connections from before \
             the change"
        )
    };
    let about = Some(BackendName { service: service.name().to_owned(), backend: String::new() });
    Command::Report(Report { level: ReportLevel::Info, about, message, moves: None })
}
