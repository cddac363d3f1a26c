//! A service's rules for client prefixes, and what they come to with its backends as they are.

use std::sync::Arc;

use balancer_model::listeners::Family;

use super::{Backend, Service};
use crate::{
    io::{RuleAction, RuleSpec},
    rules::{Action, Rule, Rules},
};

impl Service {
    /// Its rules for client prefixes.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) const fn rules_mut(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// Why `rule` decides about nobody just now, if so.
    #[must_use]
    pub fn inactive(&self, rule: &Rule) -> Option<String> {
        if Family::of(rule.prefix.addr()) != self.family {
            return Some(format!("service {} has no clients of its family", self.name()));
        }
        let Action::Pin { backend: name } = &rule.action else { return None };
        match self.backends.iter().find(|backend| backend.name() == name) {
            None => Some(format!("there is no backend {name}")),
            Some(backend) if backend.takes_pinned() => None,
            Some(backend) => {
                let reason = if backend.reason().is_empty() { "" } else { &format!(" ({})", backend.reason()) };
                Some(format!("backend {name} is {}{reason}", backend.state().word()))
            }
        }
    }

    /// What the kernel should know of its rules.
    pub(crate) fn rule_specs(&self) -> Arc<[RuleSpec]> {
        let ours = self.rules.iter().filter(|rule| Family::of(rule.prefix.addr()) == self.family);
        ours.map(|rule| RuleSpec {
            prefix: rule.prefix,
            action: match &rule.action {
                Action::Pin { backend: name } => {
                    RuleAction::Pin(self.backends.iter().find(|backend| backend.name() == name).map(Backend::id))
                }
                Action::Spread => RuleAction::Spread,
                Action::Deny => RuleAction::Deny,
            },
        })
        .collect()
    }
}
