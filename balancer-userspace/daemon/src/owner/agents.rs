//! Agents of backends: decides which ones to query, and uses their answers.

use std::{collections::BTreeMap, net::SocketAddr};

use balancer_config::{
    agent::{Answer, Said},
    names::BackendName,
};
use balancer_control::{
    io::Change,
    service::{Backend, Service, WordsOf},
    snapshot::AgentSnapshot,
};
use balancer_dataplane::Dataplane;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Owner;
use crate::agents::{Agent, Agents};

/// The last answer of each agent.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<BackendName, Last>);

#[derive(Debug)]
struct Last {
    /// The time of the last valid answer or, if there is none, of the first query.
    at: Instant,
    /// Why there has been no valid answer since then.
    silent: Option<String>,
}

impl<D: Dataplane> Owner<D> {
    /// The agents to query; none unless `asks`: in a fleet only the leader queries agents.
    pub fn agents(&self, asks: bool) -> Agents {
        let mut agents = Agents::new();
        for service in self.controller.services().iter().filter(|_| asks) {
            let Some(config) = service.agents() else { continue };
            for backend in service.backends() {
                let at = SocketAddr::new(backend.address().ip(), config.port);
                // In a service with both families, an agent is queried once, at the address of the first family.
                agents.entry(service.name_of(backend)).or_insert(Agent { at, interval: config.interval });
            }
        }
        agents
    }

    /// Records the `X-Load` header of a check's answer, or its absence. Returns the change that results. If the
    /// balancer queries agents, only the agents' reports count.
    pub fn load_said(&mut self, name: BackendName, words: Option<&[u8]>) -> Option<Change> {
        if self.controller.words_of(&name) != Some(WordsOf::Checks) {
            return None;
        }
        match words.map(Answer::parse) {
            Some(Ok(answer)) => self.agent_answered(name, Ok(answer)),
            // The header may have this name but another meaning.
            Some(Err(_)) if !self.heard.0.contains_key(&name) => None,
            Some(Err(why)) => self.agent_answered(name, Err(format!("its X-Load {why}"))),
            None => {
                self.heard.0.remove(&name);
                let before = self.controller.agent_said(&name)?;
                (!before.is_nothing()).then(|| Change::Agent { name, said: Said::default() })
            }
        }
    }

    /// Records an answer, or the reason why there is none. Returns the change that results.
    pub fn agent_answered(&mut self, name: BackendName, answer: Result<Answer, String>) -> Option<Change> {
        let Some(before) = self.controller.agent_said(&name) else {
            self.heard.0.remove(&name);
            return None;
        };
        let now = Instant::now();
        let last = self.heard.0.entry(name.clone()).or_insert(Last { at: now, silent: None });
        match answer {
            Ok(answer) => {
                if last.silent.take().is_some() {
                    info!("the agent of backend {name} answers again");
                }
                last.at = now;
                let said = before.after(&answer);
                (said != before).then_some(Change::Agent { name, said })
            }
            Err(why) => {
                if last.silent.is_none() {
                    warn!("the agent of backend {name} is silent, what it said last stays in force ({before}): {why}");
                }
                last.silent = Some(why);
                None
            }
        }
    }

    /// Forgets agents that the balancer no longer queries.
    pub fn forget_agents(&mut self, wanted: &Agents) {
        let Self { heard, controller, .. } = self;
        let is_heard = |name: &BackendName| controller.words_of(name) == Some(WordsOf::Checks);
        heard.0.retain(|name, _| wanted.contains_key(name) || is_heard(name));
    }

    /// The states of the agents of a service, by backend.
    pub(super) fn agent_snapshots(&self, service: &Service) -> Vec<Option<AgentSnapshot>> {
        let snapshot = |name: BackendName, backend: &Backend| {
            let last = self.heard.0.get(&name);
            match service.words_of(backend)? {
                WordsOf::Agents => {}
                WordsOf::Checks => {
                    last.map(|_| ()).or_else(|| backend.agent().map(|_| ()))?;
                }
            }
            let silent = last.and_then(|last| last.silent.clone());
            let heard = last.map(|last| last.at.elapsed()).filter(|_| silent.is_none());
            Some(AgentSnapshot { said: backend.agent().cloned().unwrap_or_default(), heard, silent })
        };
        service.backends().iter().map(|backend| snapshot(service.name_of(backend), backend)).collect()
    }
}
