//! Handles the reports from backends' agents.

use std::time::Instant;

use balancer_config::{agent::Said, names::BackendName};

use super::Controller;
use crate::{
    io::{Command, Refused},
    service::WordsOf,
};

impl Controller {
    /// Returns the source that reports the capacity of a backend; `None` if no source reports it, or if the backend
    /// does not exist.
    #[must_use]
    pub fn words_of(&self, name: &BackendName) -> Option<WordsOf> {
        let service = self.legs(&name.service).next()?;
        service.words_of(service.backends().iter().find(|backend| backend.name() == name.backend)?)
    }

    /// Returns what the agent of a backend has reported so far; `None` if the backend has no agent or does not exist.
    #[must_use]
    pub fn agent_said(&self, name: &BackendName) -> Option<Said> {
        self.words_of(name)?;
        Some(self.backend(name).ok()?.agent().cloned().unwrap_or_default())
    }

    /// Applies the report of a backend's agent.
    pub(super) fn hear(
        &mut self,
        name: &BackendName,
        said: Said,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        self.backend(name)?;
        let Some(before) = self.agent_said(name) else {
            return Err(Refused::Conflict(format!("service {} asks no agents and has no HTTP check", name.service)));
        };
        if before == said {
            return Ok((format!("the agent of backend {name} says {said} as before: nothing changed"), Vec::new()));
        }
        let what = format!("has an agent that says {said}");
        self.parts_mut(name).for_each(|backend| backend.hear(said.clone()));
        let reconciled = self.reconcile_around(name, now);
        Ok((self.done(name, &what, &reconciled), reconciled.commands))
    }
}
