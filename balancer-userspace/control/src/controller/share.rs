//! The share of a service's clients that the balancer steers.

use std::{sync::Arc, time::Instant};

use balancer_common::share::WHOLE;
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
            return Err(Refused::Invalid(format!("steer is a share of the clients in percent, 0 to 100, not {steer}")));
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
        0 => "every new connection goes to the host, what would be steered is counted".to_owned(),
        WHOLE => "every client is steered".to_owned(),
        _ if steer > before => format!("{}% of the clients more are steered, none moves", steer - before),
        _ => format!("{}% of the clients go back to the host", before - steer),
    };
    format!("service {service} steer {before} → {steer}: {what}")
}

fn reconciled(service: &Service) -> Command {
    let message = format!(
        "service {} steers {}% of its clients; connections from before that was so are looked for no longer",
        service.label(),
        service.share().now
    );
    let about = Some(BackendName { service: service.name().to_owned(), backend: String::new() });
    Command::Report(Report { level: ReportLevel::Info, about, message, moves: None })
}
