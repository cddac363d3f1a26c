//! The effects of reports from backends' agents. An agent can take away what the operator and the checks allow, but
//! never add to it.

use balancer_config::{
    agent::Said,
    config::CheckKind,
    states::{Admin, Forced},
};

use super::{Backend, Service};

/// The source of reports about a backend's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordsOf {
    /// The source is an agent that the balancer queries.
    Agents,
    /// The source is the answers to the backend's HTTP checks, if they contain the header.
    Checks,
}

impl Backend {
    /// Returns the report of the backend's agent that is in effect; `None`: no agent reduces anything.
    #[must_use]
    pub fn agent(&self) -> Option<&Said> {
        self.agent.as_deref()
    }

    pub(crate) fn hear(&mut self, said: Said) {
        self.agent = Some(said).filter(|said| !said.is_nothing()).map(Box::new);
    }

    /// Returns the weight that determines the number of the backend's slots: the configured weight, reduced by the
    /// backend's agent.
    #[must_use]
    pub fn effective_weight(&self) -> u16 {
        self.agent().map_or(self.config.weight, |said| said.weight(self.config.weight))
    }

    /// Returns the administrative state in effect: the operator's state or the agent's state, whichever allows less.
    #[must_use]
    pub fn effective_admin(&self) -> Admin {
        self.agent().map_or(self.admin, |said| said.admin(self.admin))
    }

    /// Returns the verdict that overrides the checks, if the operator or the agent has set one. The operator's verdict
    /// takes precedence over the agent's verdict.
    #[must_use]
    pub fn effective_forced(&self) -> Option<Forced> {
        let by_agent = || self.agent().is_some_and(|said| said.down.is_some()).then_some(Forced::Down);
        self.forced.or_else(by_agent)
    }

    /// Returns the reason why the backend is down regardless of the results of its checks.
    pub(super) fn forced_down_by(&self) -> String {
        match self.agent().and_then(|said| said.down.as_deref()).filter(|_| self.forced.is_none()) {
            None => "forced down by operator".to_owned(),
            Some("") => "its agent says down".to_owned(),
            Some(why) => format!("its agent says down: {why}"),
        }
    }

    /// The reason why the backend takes fewer clients than the operator and the checks allow; empty if there is no
    /// reason.
    pub(super) fn lowered(&self) -> String {
        let Some(said) = self.agent() else { return String::new() };
        if said.admin(self.admin) != self.admin {
            format!("its agent says {}", said.admin.word())
        } else if said.percent < 100 && self.admin == Admin::Ready {
            format!("its agent says {}%", said.percent)
        } else {
            String::new()
        }
    }
}

impl Service {
    /// Returns the source of reports about a backend's capacity; `None` if the backend has no source. If the balancer
    /// queries agents, it ignores all other sources.
    #[must_use]
    pub fn words_of(&self, backend: &Backend) -> Option<WordsOf> {
        let has_answers = || matches!(self.check_config(backend).kind, CheckKind::Http(_));
        match &self.settings.agent {
            Some(_) => Some(WordsOf::Agents),
            None => has_answers().then_some(WordsOf::Checks),
        }
    }

    /// Forgets all reports about the service's backends, because the source of the reports has changed.
    pub(super) fn forget_words(&mut self) {
        self.backends.iter_mut().for_each(|backend| backend.agent = None);
    }

    /// Forgets the reports about those backends that have no source of reports any more.
    pub(crate) fn drop_words(&mut self) {
        let silent: Vec<bool> = self.backends.iter().map(|backend| self.words_of(backend).is_none()).collect();
        for (backend, _) in self.backends.iter_mut().zip(silent).filter(|(_, is_silent)| *is_silent) {
            backend.agent = None;
        }
    }
}
