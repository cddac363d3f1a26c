//! Adds listeners to services and removes them.

use std::{sync::Arc, time::Instant};

use balancer_config::{config::ServiceConfig, listeners::Listener, names::BackendName, validate};

use super::Controller;
use crate::io::{Command, Refused};

impl Controller {
    pub(super) fn add_listener(
        &mut self,
        service: &str,
        listener: Listener,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let (mut services, index) = self.edit(service)?;
        let Some(config) = services.get_mut(index).map(Arc::make_mut) else {
            return Err(self.no_service(service));
        };
        if config.listen.contains(&listener) {
            return Ok((format!("service {service} listens on {listener} already: nothing changed"), Vec::new()));
        }
        config.listen.push(listener);
        // If two listeners collide, the error must name the requested listener as the cause, and not the existing
        // listener.
        let mut asked_last = services.clone();
        asked_last[index..].rotate_left(1);
        validate::services(&asked_last, &self.file)?;
        self.relisten(services, service, &format!("listens on {listener}"), now)
    }

    pub(super) fn remove_listener(
        &mut self,
        service: &str,
        listener: Listener,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let (mut services, index) = self.edit(service)?;
        let Some(config) = services.get_mut(index).map(Arc::make_mut) else {
            return Err(self.no_service(service));
        };
        let known: Vec<String> = config.listen.iter().map(Listener::to_string).collect();
        if !config.listen.contains(&listener) {
            let what = format!("listener of service {service}:");
            return Err(Refused::not_found(&what, &listener.to_string(), known.iter().map(String::as_str)));
        }
        if config.listen.len() == 1 {
            return Err(Refused::Conflict(format!(
                "{listener} is the only listener of service {service}: add another one first, or remove the service from \
                 the file"
            )));
        }
        config.listen.retain(|other| *other != listener);
        self.relisten(services, service, &format!("no longer listens on {listener}"), now)
    }

    fn relisten(
        &mut self,
        services: Vec<Arc<ServiceConfig>>,
        service: &str,
        what: &str,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let about = BackendName { service: service.to_owned(), backend: String::new() };
        let (_, reconciled) = self.configure(services, Some(&about), now)?;
        let moved: u64 = reconciled.moves.values().map(|moves| u64::from(moves.total())).sum();
        Ok((format!("service {service} {what}: {moved} slots moved"), reconciled.commands))
    }
}
