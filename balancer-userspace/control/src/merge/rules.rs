//! Merges the rules of a service: the rules of the old file, the rules at run time, and the rules of the new file.

use std::{collections::BTreeMap, time::Instant};

use balancer_config::rule::RuleConfig;
use ipnet::IpNet;

use crate::rules::{Rule, Rules};

/// The result of merging the rules of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MergedRules {
    pub rules: Rules,
    /// The numbers of rules that were added, removed and changed.
    pub counts: [usize; 3],
    /// The differences between the file and the run-time state, one line each.
    pub differences: Vec<String>,
}

/// Merges the rules of `service` in the `file` into the `present` rules, where `base` is the previous file. An
/// unchanged rule keeps its expiry.
#[must_use]
pub fn merge_rules(
    service: &str,
    base: &[RuleConfig],
    present: &Rules,
    file: &[RuleConfig],
    now: Instant,
) -> MergedRules {
    let mut merged = MergedRules::default();
    let base: BTreeMap<IpNet, &RuleConfig> = base.iter().map(|rule| (rule.prefix, rule)).collect();
    let mut others = present.clone();
    for rule in file {
        let prefix = rule.prefix;
        let tell = |what: String| format!("rule {service} {prefix} {what}");
        let (before, here) = (base.get(&prefix).copied(), others.remove(prefix));
        let says_the_same = before == Some(rule);
        let Some(here) = here else {
            if says_the_same && present.has_ended(prefix) {
                merged.rules.note_ended(prefix);
            } else if says_the_same {
                merged.differences.push(tell(format!("{rule} was removed at run time and stays removed")));
            } else {
                if before.is_some() && !present.has_ended(prefix) {
                    let text = "was removed at run time, the file has changed it since: it is back";
                    merged.differences.push(tell(text.to_owned()));
                }
                merged.rules.set(Rule::new(rule.clone(), now));
            }
            continue;
        };
        let written = here.written();
        if written == *rule {
            merged.rules.set(here);
        } else if before == Some(&written) {
            merged.rules.set(Rule::new(rule.clone(), now));
        } else if says_the_same {
            merged
                .differences
                .push(tell(format!("{written} was set at run time and is kept, the file says {rule} as before")));
            merged.rules.set(here);
        } else {
            merged
                .differences
                .push(tell(format!("{written} was set at run time, the file now says otherwise: {rule}")));
            merged.rules.set(Rule::new(rule.clone(), now));
        }
    }
    for rule in others.iter() {
        let tell = |what: &str| format!("rule {service} {} {} {what}", rule.prefix, rule.written());
        if base.contains_key(&rule.prefix) {
            merged.differences.push(tell("is no longer in the file: removed"));
        } else {
            merged.differences.push(tell("was added at run time and is kept"));
            merged.rules.set(rule.clone());
        }
    }
    merged.counts = counts(present, &merged.rules);
    merged
}

/// The numbers of rules that are only in the second set, only in the first set, and in both sets with differences.
fn counts(before: &Rules, after: &Rules) -> [usize; 3] {
    let missing = |rules: &Rules, from: &Rules| rules.iter().filter(|rule| from.get(rule.prefix).is_none()).count();
    let other = |rule: &&Rule| before.get(rule.prefix).is_some_and(|old| old.written() != rule.written());
    [missing(after, before), missing(before, after), after.iter().filter(other).count()]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_config::{fixture, rule::Action};

    use super::*;

    /// Rules from `PREFIX ACTION [SECONDS]` lines; `pin a` is written `a`.
    fn written(lines: &[&str]) -> Vec<RuleConfig> {
        let one = |line: &&str| {
            let mut words = line.split(' ');
            let prefix = format!("10.0.0.{}/32", words.next().unwrap()).parse().unwrap();
            let action = match words.next().unwrap() {
                "deny" => Action::Deny,
                "spread" => Action::Spread,
                backend => Action::Pin { backend: backend.to_owned() },
            };
            RuleConfig { prefix, action, ttl: words.next().map(|ttl| Duration::from_secs(ttl.parse().unwrap())) }
        };
        lines.iter().map(one).collect()
    }

    fn rules(lines: &[&str], at: Instant) -> Rules {
        let mut rules = Rules::default();
        written(lines).into_iter().for_each(|rule| drop(rules.set(Rule::new(rule, at))));
        rules
    }

    #[test]
    fn when_the_file_is_read_again_then_it_wins_for_the_rules_that_it_has_changed() {
        type Case<'a> = (&'a str, [&'a [&'a str]; 4], &'a [&'a str]);
        // Each case contains its name, the rules ([old file, run time, new file, result]), and the reported
        // differences.
        let cases: &[Case<'_>] = &[
            ("nothing changed", [&["1 deny"], &["1 deny"], &["1 deny"], &["1 deny"]], &[]),
            ("added in the file", [&[], &[], &["1 deny"], &["1 deny"]], &[]),
            ("changed in the file", [&["1 deny"], &["1 deny"], &["1 a"], &["1 a"]], &[]),
            (
                "removed in the file",
                [&["1 deny"], &["1 deny"], &[], &[]],
                &["rule web 10.0.0.1/32 deny is no longer in the file: removed"],
            ),
            (
                "added at run time",
                [&[], &["1 deny 60"], &[], &["1 deny 60"]],
                &["rule web 10.0.0.1/32 deny for 1m was added at run time and is kept"],
            ),
            ("added in both alike", [&[], &["1 deny"], &["1 deny"], &["1 deny"]], &[]),
            (
                "added in both",
                [&[], &["1 deny"], &["1 a"], &["1 a"]],
                &["rule web 10.0.0.1/32 deny was set at run time, the file now says otherwise: pin a"],
            ),
            (
                "removed at run time",
                [&["1 deny"], &[], &["1 deny"], &[]],
                &["rule web 10.0.0.1/32 deny was removed at run time and stays removed"],
            ),
            (
                "removed at run time, changed in the file",
                [&["1 deny"], &[], &["1 a"], &["1 a"]],
                &["rule web 10.0.0.1/32 was removed at run time, the file has changed it since: it is back"],
            ),
            ("removed in both", [&["1 deny"], &[], &[], &[]], &[]),
            (
                "changed at run time",
                [&["1 deny"], &["1 a"], &["1 deny"], &["1 a"]],
                &["rule web 10.0.0.1/32 pin a was set at run time and is kept, the file says deny as before"],
            ),
            (
                "changed at run time, removed in the file",
                [&["1 deny"], &["1 a"], &[], &[]],
                &["rule web 10.0.0.1/32 pin a is no longer in the file: removed"],
            ),
            ("changed in both alike", [&["1 deny"], &["1 a"], &["1 a"], &["1 a"]], &[]),
            (
                "changed in both",
                [&["1 deny"], &["1 a"], &["1 b"], &["1 b"]],
                &["rule web 10.0.0.1/32 pin a was set at run time, the file now says otherwise: pin b"],
            ),
            ("another end in the file", [&["1 deny"], &["1 deny"], &["1 deny 60"], &["1 deny 60"]], &[]),
        ];
        let at = fixture::now();
        for (what, [base, present, file, expected], told) in cases {
            let merged = merge_rules("web", &written(base), &rules(present, at), &written(file), at);
            assert_eq!(merged.rules, rules(expected, at), "{what}");
            assert_eq!(merged.differences, *told, "{what}");
        }
    }

    #[test]
    fn when_the_time_of_a_rule_of_the_file_is_over_then_it_comes_back_only_once_the_file_changes_it() {
        let start = fixture::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let file = written(&["1 deny 60", "2 a"]);
        let mut present = merge_rules("web", &[], &Rules::default(), &file, start).rules;
        let again = merge_rules("web", &file, &present, &file, later(30));
        assert_eq!((again.rules, again.counts), (present.clone(), [0; 3]));
        assert_eq!(present.take_ended(&file, later(60)).len(), 1);
        let again = merge_rules("web", &file, &present, &file, later(90));
        assert_eq!((again.rules.clone(), again.differences), (present.clone(), Vec::new()));
        assert_eq!((again.rules.len(), again.counts), (1, [0; 3]));
        let changed = written(&["1 deny 61", "2 a"]);
        let again = merge_rules("web", &file, &present, &changed, later(90));
        assert_eq!((again.rules.len(), again.rules.next_end(), again.counts), (2, Some(later(151)), [1, 0, 0]));
        assert_eq!(again.differences, [""; 0]);
    }
}
