//! The rules of a service for client prefixes, and the effect of these rules, given the service's backends.

use std::sync::Arc;

use std::time::Instant;

use balancer_config::{listeners::Family, rule::less_than_a_client};
use ipnet::IpNet;

use super::{Backend, Service};
use crate::{
    io::{RuleAction, RuleSpec},
    rules::{Action, Rule, Rules},
};

impl Service {
    /// Returns the service's rules for client prefixes.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) const fn rules_mut(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// The reason why `rule` has no effect at present; `None`: it has an effect.
    #[must_use]
    pub fn inactive(&self, rule: &Rule) -> Option<String> {
        if Family::of(rule.prefix.addr()) != self.family {
            return Some(format!("service {} has no clients of its family", self.name()));
        }
        if self.is_part_of_a_client(rule) {
            return Some(self.less_than_a_client(rule.prefix));
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

    /// Whether a pin covers only some of the addresses that the service remembers as one client. A client has only one
    /// entry in the client table, so such a pin would move all addresses of the client, and two such pins would move
    /// the client with every packet.
    pub(crate) fn is_part_of_a_client(&self, rule: &Rule) -> bool {
        let pins = matches!(rule.action, Action::Pin { .. });
        pins && self.remembers()
            && Family::of(rule.prefix.addr()) == self.family
            && rule.prefix.prefix_len() > self.client_prefix()
    }

    /// The reason why a pin of only some of a client's addresses is useless.
    pub(crate) fn less_than_a_client(&self, prefix: IpNet) -> String {
        less_than_a_client(self.name(), prefix, self.client_prefix()).unwrap_or_default()
    }

    /// Removes the rules of the service that have expired.
    pub(crate) fn take_ended_rules(&mut self, now: Instant) -> Vec<Rule> {
        self.rules.take_ended(&self.settings.rules, now)
    }

    /// Whether the configuration file contains the same rule.
    #[must_use]
    pub fn is_in_file(&self, rule: &Rule) -> bool {
        self.settings.rules.contains(&rule.written())
    }

    /// Returns the service's rules in the form that the kernel program needs.
    pub(crate) fn rule_specs(&self) -> Arc<[RuleSpec]> {
        let ours = self.rules.iter().filter(|rule| Family::of(rule.prefix.addr()) == self.family);
        let ours = ours.filter(|rule| !self.is_part_of_a_client(rule));
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
