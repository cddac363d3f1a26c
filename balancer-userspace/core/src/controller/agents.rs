//! The words of backends' agents.

use std::time::Instant;

use balancer_model::{agent::Said, names::BackendName};

use super::Controller;
use crate::io::{Command, Refused};

impl Controller {
    /// Returns what the agent of a backend has said so far. `None`: it has no agent, or is not there.
    #[must_use]
    pub fn agent_said(&self, name: &BackendName) -> Option<Said> {
        self.legs(&name.service).find(|service| service.agents().is_some())?;
        Some(self.backend(name).ok()?.agent().cloned().unwrap_or_default())
    }

    /// Puts in force what the agent of a backend says.
    pub(super) fn hear(
        &mut self,
        name: &BackendName,
        said: Said,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        self.backend(name)?;
        let Some(before) = self.agent_said(name) else {
            return Err(Refused::Conflict(format!("service {} asks no agents", name.service)));
        };
        if before == said {
            return Ok((format!("the agent of backend {name} says {said} as before: nothing changed"), Vec::new()));
        }
        let what = format!("has an agent that says {said}");
        self.parts_mut(name).for_each(|backend| backend.hear(said.clone()));
        let settled = self.settle_around(name, now);
        Ok((self.done(name, &what, &settled), settled.commands))
    }
}
