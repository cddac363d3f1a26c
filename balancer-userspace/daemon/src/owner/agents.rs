//! Agents of backends: this module decides which agents the balancer queries, and uses their answers.

use std::{collections::BTreeMap, net::SocketAddr};

use balancer_checks::agents::{Agent, Agents};
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

/// The last answer of each backend's agent.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<BackendName, Last>);

#[derive(Debug)]
struct Last {
    /// The time of the last valid answer, or of the first query if no valid answer has arrived.
    at: Instant,
    /// The reason why no valid answer has arrived since that time.
    silent: Option<String>,
}

impl<D: Dataplane> Owner<D> {
    /// The agents that the balancer should query. The result is empty if `asks` is false, because only the leader of a
    /// fleet queries agents.
    pub fn agents(&self, asks: bool) -> Agents {
        let mut agents = Agents::new();
        for service in self.controller.services().iter().filter(|_| asks) {
            let Some(config) = service.agents() else { continue };
            for backend in service.backends() {
                let at = SocketAddr::new(backend.address().ip(), config.port);
                // In a service with both address families, the balancer queries each agent once, at the address of the
                // first family.
                agents.entry(service.name_of(backend)).or_insert(Agent { at, interval: config.interval });
            }
        }
        agents
    }

    /// Records the header `X-Load` in the answer to a check, or that the answer has no such header. The function
    /// returns the resulting change of the backend. If the balancer queries agents, it ignores `X-Load`.
    pub fn load_said(&mut self, name: BackendName, words: Option<&[u8]>) -> Option<Change> {
        if self.controller.words_of(&name) != Some(WordsOf::Checks) {
            return None;
        }
        match words.map(Answer::parse) {
            Some(Ok(answer)) => self.agent_answered(name, Ok(answer)),
            // The header may have another meaning for this server.
            Some(Err(_)) if !self.heard.0.contains_key(&name) => None,
            Some(Err(why)) => self.agent_answered(name, Err(format!("its header X-Load {why}"))),
            None => {
                self.heard.0.remove(&name);
                let before = self.controller.agent_said(&name)?;
                (!before.is_nothing()).then(|| Change::Agent { name, said: Said::default() })
            }
        }
    }

    /// Records the answer of an agent, or the reason why the agent did not answer. The function returns the resulting
    /// change of the backend.
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
                    let kept = format!("its last answer stays in force ({before})");
                    warn!("the agent of backend {name} does not answer: {why}; {kept}");
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

    /// The states of the agents of a service's backends, in the order of the backends.
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
