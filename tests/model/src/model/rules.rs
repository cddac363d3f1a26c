//! Applies rules for client prefixes to packets. The longest prefix that contains the client's address determines the
//! rule.

use std::net::IpAddr;

use balancer_control::io::{RuleAction, RuleSpec};

use super::State;

/// The decision of a rule about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The rule sends the client to the given backend, which takes clients.
    Pin(u16),
    /// The rule spreads the client's connections by address and port.
    Spread,
    /// The rule drops the client's packets.
    Deny,
    /// The program steers the client as if there were no rule, although the rule may have pinned the client before.
    Fallen,
}

impl State {
    /// Replaces the rules of a service. A new rule continues the counters of the previous rule for the same prefix.
    pub fn set_rules(&mut self, index: usize, rules: &[RuleSpec]) {
        let service = &mut self.services[index];
        service.rules = rules.to_vec();
        let id = service.spec.id.0;
        let there = |prefix| rules.iter().any(|rule| rule.prefix == prefix);
        self.counters.rules.retain(|&(of, prefix), _| of != id || there(prefix));
    }

    /// Returns the decision of a service's rules about the client at `source`. If `peeks` is true, the function does
    /// not count the packet.
    pub(super) fn rule(&mut self, index: usize, source: IpAddr, peeks: bool) -> Option<Rule> {
        let service = &self.services[index];
        let holding = service.rules.iter().filter(|rule| rule.prefix.contains(&source));
        let &RuleSpec { prefix, action } = holding.max_by_key(|rule| rule.prefix.prefix_len())?;
        let rule = match action {
            RuleAction::Spread => Rule::Spread,
            RuleAction::Deny => Rule::Deny,
            RuleAction::Pin(backend) => backend
                .and_then(|id| self.backends.get(&id.0))
                .filter(|backend| backend.takes_pinned)
                .map_or(Rule::Fallen, |backend| Rule::Pin(backend.id.0)),
        };
        let said = &mut self.counters.ruled[usize::from(peeks)];
        match rule {
            Rule::Pin(_) => said.pinned += 1,
            Rule::Spread => said.spread += 1,
            Rule::Deny => said.denied += 1,
            Rule::Fallen => said.fallen_back += 1,
        }
        if !peeks {
            let id = service.spec.id.0;
            let stats = self.counters.rules.entry((id, prefix)).or_default();
            if rule == Rule::Fallen {
                stats.fallbacks += 1;
                *self.counters.fallbacks.entry(id).or_default() += 1;
            } else {
                stats.packets += 1;
            }
        }
        Some(rule)
    }
}
