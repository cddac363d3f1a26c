//! Drop-ins: services that the controller keeps beside the services of the configuration file.

use std::{sync::Arc, time::Instant};

use balancer_config::{config::ServiceConfig, shared::shared, validate::Valid};

use super::{Controller, settings::Differences};
use crate::{
    io::{Command, Refused},
    report::NOTHING_CHANGED,
    state::DropIns,
};

impl Controller {
    /// The texts of the drop-ins, by name.
    #[must_use]
    pub fn drop_ins(&self) -> &DropIns {
        &self.drop_ins
    }

    pub fn services_of_drop_in<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of = self.file.of_drop_ins().filter(move |service| service.drop_in.as_deref() == Some(name));
        of.map(|service| service.name.as_str())
    }

    /// Whether the last applied configuration file has exactly these services.
    #[must_use]
    pub fn has_applied(&self, file: &Valid) -> bool {
        self.file.iter().filter(|service| service.drop_in.is_none()).eq(file.iter())
    }

    /// Replaces a drop-in; without `services`, removes the drop-in.
    pub(super) fn set_drop_in(
        &mut self,
        name: String,
        text: String,
        mut services: Vec<ServiceConfig>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        for service in &mut services {
            service.drop_in = Some(name.clone());
        }
        let is_part = |service: &ServiceConfig| service.drop_in.as_ref() == Some(&name);
        let others = self.file.only(|service| !is_part(service));
        if let Some(other) = others.iter().find(|other| services.iter().any(|service| service.name == other.name)) {
            return Err(Refused::Conflict(format!("service {} is in {} already", other.name, other.origin())));
        }
        if let Some(lack) = self.settings.lacks(&services) {
            return Err(Refused::Conflict(lack));
        }
        let is_removed = services.is_empty();
        let all = others.with(shared(services))?;
        let title = format!("drop-in {name} {}", if is_removed { "removed" } else { "applied" });
        let mut done = self.apply_services(all, &title, &Differences::default(), false, now)?;
        if done.0 == NOTHING_CHANGED {
            done.0 = format!("{title}: nothing changed");
        }
        if is_removed {
            Arc::make_mut(&mut self.drop_ins).remove(&name);
        } else {
            Arc::make_mut(&mut self.drop_ins).insert(name, text);
        }
        Ok(done)
    }

    /// Returns the services of the file and of all drop-ins. If a service of a drop-in contradicts the file or an earlier
    /// drop-in, the function leaves this service out, and returns a line that gives the reason.
    #[must_use]
    pub fn with_drop_ins(&self, file: Valid) -> (Valid, Vec<String>) {
        if let Ok(all) = file.with(self.file.of_drop_ins().cloned()) {
            return (all, Vec::new());
        }
        let (mut all, mut left_out) = (file, Vec::new());
        for service in self.file.of_drop_ins() {
            match all.with([Arc::clone(service)]) {
                Ok(more) => all = more,
                Err(problem) => {
                    left_out.push(format!("service {} of {} is left out: {problem}", service.name, service.origin()));
                }
            }
        }
        (all, left_out)
    }
}
