//! Applies the bounds that follow from the loads of backends.

use std::{collections::BTreeMap, time::Instant};

use balancer_config::bounded::Bound;

use super::Controller;
use crate::{
    io::{Command, Refused},
    moves::Moves,
    report,
};

impl Controller {
    /// Sets which backends of a service give slots away.
    pub(super) fn bound(
        &mut self,
        name: &str,
        bounds: &BTreeMap<String, Bound>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let Some(rule) = self.service(name)?.bounded_load().copied() else {
            return Err(Refused::Conflict(format!("service {name} has no bounded_load")));
        };
        let given_back: Vec<String> = self
            .service(name)?
            .backends()
            .iter()
            .filter(|backend| backend.bound().is_some() && !bounds.contains_key(backend.name()))
            .map(|backend| format!("{} has all its slots again", backend.name()))
            .collect();
        let bound = bounds.iter().map(|(backend, bound)| format!("{backend} {bound} of {}", rule.by.word()));
        let what = bound.chain(given_back).collect::<Vec<_>>().join(", ");
        self.services.those_mut(|service| service.name() == name).for_each(|service| service.set_bounds(bounds));
        let reconciled = self.reconcile(|service| service.name() == name, Vec::new(), None, now);
        let none = Moves::default();
        let moved = |service: &crate::service::Service| {
            let moves = reconciled.moves.get(&service.id()).unwrap_or(&none);
            format!("{}{}", service.prefix(), report::moved(moves, service.table_size()))
        };
        let moved = self.legs(name).map(moved).collect::<Vec<_>>().join(", ");
        let what = if what.is_empty() { "no backend gives slots away".to_owned() } else { what };
        Ok((format!("service {name}, bounded load: {what}: {moved}"), reconciled.commands))
    }
}
