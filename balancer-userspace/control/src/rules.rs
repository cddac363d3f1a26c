//! Rules for client prefixes: the set of rules of a service, the choice of the rule that decides, and the expiry of
//! rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::map_types::MAX_RULES;
pub use balancer_config::rule::Action;
use balancer_config::{
    listeners::Family,
    rule::{LEAST_TTL, RuleConfig, foreign},
    value::host_bits,
    words::grouped,
};
use ipnet::IpNet;

use crate::refused::Refused;

/// A rule of a service for a client prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The prefix of the clients' unmasked addresses, without host bits.
    pub prefix: IpNet,
    /// How the rule treats these clients.
    pub action: Action,
    /// The lifetime that the rule had when it was added; `None`: the rule stays until it is removed.
    pub ttl: Option<Duration>,
    /// The time at which the rule expires; `None`: the rule never expires.
    pub ends: Option<Instant>,
}

impl Rule {
    /// A rule that a user adds at this moment.
    #[must_use]
    pub fn new(RuleConfig { prefix, action, ttl }: RuleConfig, now: Instant) -> Self {
        Self { prefix, action, ttl, ends: ttl.map(|ttl| now + ttl) }
    }

    /// The rule in the form that the configuration file uses.
    #[must_use]
    pub fn written(&self) -> RuleConfig {
        RuleConfig { prefix: self.prefix, action: self.action.clone(), ttl: self.ttl }
    }
}

/// The rules of a service, at most one rule for each prefix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    there: BTreeMap<IpNet, Rule>,
    /// The prefixes of those rules in the configuration file that have expired. These expired rules do not return while
    /// the file stays the same.
    ended: BTreeSet<IpNet>,
}

impl Rules {
    #[must_use]
    pub fn len(&self) -> usize {
        self.there.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.there.is_empty()
    }

    /// Iterates over the rules in the order of their prefixes.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.there.values()
    }

    /// The rule for exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: IpNet) -> Option<&Rule> {
        self.there.get(&prefix)
    }

    /// Adds a rule, and returns the earlier rule for the same prefix, which it replaces.
    pub fn set(&mut self, rule: Rule) -> Option<Rule> {
        self.ended.remove(&rule.prefix);
        self.there.insert(rule.prefix, rule)
    }

    /// Removes the rule for exactly this prefix.
    pub fn remove(&mut self, prefix: IpNet) -> Option<Rule> {
        self.there.remove(&prefix)
    }

    /// Renames a backend in the rules that pin clients to it.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        self.there.values_mut().for_each(|rule| rule.action.rename(from, to));
    }

    /// The rule that decides about `client`: the rule with the longest matching prefix among the rules for which
    /// `count` returns true.
    pub fn longest(&self, client: IpAddr, count: impl Fn(&Rule) -> bool) -> Option<&Rule> {
        let bits = if client.is_ipv4() { 32 } else { 128 };
        let rule = |length| self.there.get(&IpNet::new(client, length).ok()?.trunc()).filter(|rule| count(rule));
        (0..=bits).rev().find_map(rule)
    }

    /// Whether some rule pins clients to a backend.
    #[must_use]
    pub fn pins(&self) -> bool {
        self.iter().any(|rule| matches!(rule.action, Action::Pin { .. }))
    }

    /// The time at which the next rule expires.
    #[must_use]
    pub fn next_end(&self) -> Option<Instant> {
        self.iter().filter_map(|rule| rule.ends).min()
    }

    /// Removes the rules that have expired. Records the expiry of those rules that are `written` in the configuration
    /// file.
    pub fn take_ended(&mut self, written: &[RuleConfig], now: Instant) -> Vec<Rule> {
        let over = |rule: &&Rule| rule.ends.is_some_and(|ends| ends <= now);
        let prefixes: Vec<IpNet> = self.iter().filter(over).map(|rule| rule.prefix).collect();
        let ended: Vec<Rule> = prefixes.into_iter().filter_map(|prefix| self.remove(prefix)).collect();
        let of_file = ended.iter().filter(|rule| written.contains(&rule.written()));
        self.ended.extend(of_file.map(|rule| rule.prefix));
        ended
    }

    /// The prefixes of those rules in the configuration file that have expired.
    pub fn ended(&self) -> impl Iterator<Item = IpNet> {
        self.ended.iter().copied()
    }

    /// Whether the rule for this prefix in the configuration file has expired.
    #[must_use]
    pub fn has_ended(&self, prefix: IpNet) -> bool {
        self.ended.contains(&prefix)
    }

    /// Records that the rule for this prefix in the configuration file has expired.
    pub fn note_ended(&mut self, prefix: IpNet) {
        self.ended.insert(prefix);
    }

    /// Adds the rules of `other` to this set.
    pub fn extend(&mut self, other: &Self) {
        other.iter().cloned().for_each(|rule| drop(self.set(rule)));
        self.ended.extend(other.ended().filter(|prefix| !self.there.contains_key(prefix)));
    }

    /// The rules of this set whose prefixes are `wanted`.
    #[must_use]
    pub fn those(&self, wanted: impl Fn(IpNet) -> bool) -> Self {
        Self {
            there: self.there.iter().filter(|(prefix, _)| wanted(**prefix)).map(|(k, v)| (*k, v.clone())).collect(),
            ended: self.ended().filter(|prefix| wanted(*prefix)).collect(),
        }
    }
}

/// Checks whether a rule may have `prefix` in a service with a VIP of family `ours`.
///
/// # Errors
/// Returns [`Refused::Invalid`] with a message that describes a valid prefix.
pub fn check_prefix(service: &str, ours: Family, prefix: IpNet) -> Result<(), Refused> {
    if prefix.trunc() != prefix {
        return Err(Refused::Invalid(host_bits(prefix)));
    }
    foreign(service, &[ours], prefix).map_or(Ok(()), |text| Err(Refused::Invalid(text)))
}

/// Checks the time after which a rule ends: a shorter one is a mistake, after which moved clients would stay moved.
///
/// # Errors
/// Returns [`Refused::Invalid`] with a message that describes a valid time.
pub(crate) fn check_ttl(ttl: Option<Duration>) -> Result<(), Refused> {
    match ttl {
        Some(ttl) if ttl < LEAST_TTL => {
            let ttl = humantime::format_duration(ttl);
            Err(Refused::Invalid(format!("ttl {ttl} is too short; give 1s and more, or leave it out")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Returns the error for a rule that cannot be added because there is no room for more rules.
pub(crate) fn too_many() -> Refused {
    Refused::Conflict(format!("there are {} rules, the maximum: remove some first", grouped(MAX_RULES)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_config::fixture::now;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn rule(prefix: &str, action: Action, ends: Option<Instant>) -> Rule {
        Rule { prefix: net(prefix), action, ttl: None, ends }
    }

    #[test]
    fn when_prefixes_overlap_then_the_longest_decides() {
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
    fn when_a_prefix_gets_another_rule_then_it_replaces_the_first_and_ended_rules_go() {
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
        assert_eq!(prefixes(rules.take_ended(&[], start + Duration::from_secs(2))), [""; 0]);
        assert_eq!(prefixes(rules.take_ended(&[], start + Duration::from_secs(3))), ["10.1.0.0/16"]);
        assert_eq!(prefixes(rules.take_ended(&[], start + Duration::from_secs(60))), ["10.0.0.0/8"]);
        assert_eq!((rules.len(), rules.next_end()), (1, None));
    }

    #[test]
    fn when_a_prefix_is_refused_then_the_error_says_what_would_be_right() {
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
