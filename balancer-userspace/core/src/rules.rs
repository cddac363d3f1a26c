//! Rules for client prefixes: what there is, which one decides, when they end.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Instant};

use balancer_common::map_types::MAX_RULES;
use balancer_model::{listeners::Family, value::host_bits, words::grouped};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::refused::Refused;

/// What becomes of the clients of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// They go to one backend, while that takes clients.
    Pin {
        /// Its name in the service.
        backend: String,
    },
    /// Each connection goes its own way, by its source port as well.
    Spread,
    /// They are dropped.
    Deny,
}

impl Action {
    /// `pin`, `spread` or `deny`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Spread => "spread",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin { backend } => write!(f, "pin {backend}"),
            Self::Spread | Self::Deny => f.write_str(self.word()),
        }
    }
}

/// A rule of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whose clients, by their address before it is masked. No host bits.
    pub prefix: IpNet,
    /// What becomes of them.
    pub action: Action,
    /// When it ends by itself; `None`: not before it is removed.
    pub ends: Option<Instant>,
}

/// The rules of a service, at most one for a prefix.
#[derive(Clone, Debug, Default)]
pub struct Rules(BTreeMap<IpNet, Rule>);

impl Rules {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All, in the order of their prefixes.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.values()
    }

    /// The rule for exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: IpNet) -> Option<&Rule> {
        self.0.get(&prefix)
    }

    /// Adds a rule; gives the one for the same prefix that it replaces.
    pub fn set(&mut self, rule: Rule) -> Option<Rule> {
        self.0.insert(rule.prefix, rule)
    }

    /// Takes the rule for exactly this prefix away.
    pub fn remove(&mut self, prefix: IpNet) -> Option<Rule> {
        self.0.remove(&prefix)
    }

    /// A backend is called otherwise now.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        for rule in self.0.values_mut() {
            if let Action::Pin { backend } = &mut rule.action
                && backend == from
            {
                to.clone_into(backend);
            }
        }
    }

    /// The rule that decides about `client`: the one with the longest prefix that holds it, of those that `count`.
    pub fn longest(&self, client: IpAddr, count: impl Fn(&Rule) -> bool) -> Option<&Rule> {
        let bits = if client.is_ipv4() { 32 } else { 128 };
        let rule = |length| self.0.get(&IpNet::new(client, length).ok()?.trunc()).filter(|rule| count(rule));
        (0..=bits).rev().find_map(rule)
    }

    /// Whether some rule pins clients.
    #[must_use]
    pub fn pins(&self) -> bool {
        self.iter().any(|rule| matches!(rule.action, Action::Pin { .. }))
    }

    /// When the next rule ends by itself.
    #[must_use]
    pub fn next_end(&self) -> Option<Instant> {
        self.iter().filter_map(|rule| rule.ends).min()
    }

    /// Takes away the rules whose time is over.
    pub fn take_ended(&mut self, now: Instant) -> Vec<Rule> {
        let over = |rule: &&Rule| rule.ends.is_some_and(|ends| ends <= now);
        let prefixes: Vec<IpNet> = self.iter().filter(over).map(|rule| rule.prefix).collect();
        prefixes.into_iter().filter_map(|prefix| self.remove(prefix)).collect()
    }
}

/// Whether `prefix` can be a rule's in a service whose VIP is `vip`.
///
/// # Errors
/// [`Refused::Invalid`] says what would be right.
pub fn check_prefix(service: &str, ours: Family, prefix: IpNet) -> Result<(), Refused> {
    if prefix.trunc() != prefix {
        return Err(Refused::Invalid(host_bits(prefix)));
    }
    let theirs = Family::of(prefix.addr());
    if theirs != ours {
        return Err(Refused::Invalid(format!(
            "service {service} is {ours}: {prefix} is {theirs} and holds none of its clients"
        )));
    }
    Ok(())
}

/// What to say when no rule more can be added.
pub(crate) fn too_many() -> Refused {
    Refused::Conflict(format!("there are {} rules, and no room for more: remove some first", grouped(MAX_RULES)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_model::fixture::now;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn rule(prefix: &str, action: Action, ends: Option<Instant>) -> Rule {
        Rule { prefix: net(prefix), action, ends }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let mut rules = Rules::default();
        for (prefix, backend) in [("0.0.0.0/0", "a"), ("10.0.0.0/8", "b"), ("10.1.2.0/24", "c"), ("10.1.2.3/32", "d")] {
            assert_eq!(rules.set(rule(prefix, Action::Pin { backend: backend.to_owned() }, None)), None);
        }
        rules.set(rule("2001:db8::/32", Action::Deny, None));
        let of = |client: &str| rules.longest(client.parse().unwrap(), |_| true).map(|rule| rule.action.to_string());
        for (client, action) in [
            ("192.0.2.1", "pin a"),
            ("10.2.2.3", "pin b"),
            ("10.1.2.4", "pin c"),
            ("10.1.2.3", "pin d"),
            ("2001:db8::1", "deny"),
        ] {
            assert_eq!(of(client).as_deref(), Some(action), "{client}");
        }
        assert_eq!(of("2001:db9::1"), None);
    }

    #[test]
    fn a_prefix_has_one_rule_and_ended_ones_go() {
        let mut rules = Rules::default();
        let start = now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let first = rule("10.0.0.0/8", Action::Deny, at(5));
        assert_eq!(rules.set(first.clone()), None);
        assert_eq!(rules.set(rule("10.0.0.0/8", Action::Spread, at(9))), Some(first));
        rules.set(rule("10.1.0.0/16", Action::Deny, at(3)));
        rules.set(rule("10.2.0.0/16", Action::Deny, None));
        assert_eq!((rules.len(), rules.next_end()), (3, at(3)));
        let prefixes = |ended: Vec<Rule>| ended.iter().map(|rule| rule.prefix.to_string()).collect::<Vec<_>>();
        assert_eq!(prefixes(rules.take_ended(start + Duration::from_secs(2))), [""; 0]);
        assert_eq!(prefixes(rules.take_ended(start + Duration::from_secs(3))), ["10.1.0.0/16"]);
        assert_eq!(prefixes(rules.take_ended(start + Duration::from_secs(60))), ["10.0.0.0/8"]);
        assert_eq!((rules.len(), rules.next_end()), (1, None));
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        let refused = |prefix| check_prefix("web", Family::V4, net(prefix)).unwrap_err();
        assert_eq!(
            refused("10.1.2.3/24").to_string(),
            "10.1.2.3/24 has bits set behind its first 24; write 10.1.2.0/24, or 10.1.2.3/32 for the one address"
        );
        assert_eq!(
            refused("2001:db8::/32").to_string(),
            "service web is IPv4: 2001:db8::/32 is IPv6 and holds none of its clients"
        );
    }
}
