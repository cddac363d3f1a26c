//! Reads the sections `[[service.rule]]` of a service.

use std::{net::IpAddr, time::Duration};

use foldhash::HashMap;
use ipnet::IpNet;

use super::{
    findings::Findings,
    section::{Located, Section},
};
use crate::{
    config::ServiceConfig,
    listeners::Family,
    names::nearest,
    rule::{Action, LEAST_TTL, RuleConfig, foreign, less_than_a_client},
    value,
};

/// A rule, with the positions that a report about a conflict with its service needs.
pub(super) struct PlacedRule {
    rule: RuleConfig,
    prefix_at: usize,
    backend_at: usize,
}

#[derive(Clone, Copy)]
enum Word {
    Pin,
    Spread,
    Deny,
}

/// Reads a rule; `None` if the rule is invalid. The function adds errors to `findings`.
pub(super) fn rule(mut section: Section<'_>, findings: &mut Findings<'_>) -> Option<PlacedRule> {
    let at = section.at;
    section.require("prefix", "prefix = \"192.0.2.0/24\"", findings);
    section.require("action", "action = \"pin\", \"spread\" or \"deny\"", findings);
    let prefix = section.text("prefix", findings, value::prefix);
    let words = [("pin", Word::Pin), ("spread", Word::Spread), ("deny", Word::Deny)];
    let action = section.text("action", findings, |text| value::word("action", text, &words));
    let backend = section.text("backend", findings, value::name);
    let ttl = section.text("ttl", findings, ttl);
    section.finish(findings);

    let (prefix, action) = (prefix?, action?);
    let backend_at = backend.as_ref().map_or(at, |backend| backend.at);
    let action = match (action.value, backend) {
        (Word::Pin, Some(Located { value: backend, .. })) => Action::Pin { backend },
        (Word::Pin, None) => {
            let text = "action = \"pin\" names no backend; add backend = \"…\", one of this service";
            findings.error(action.at, text.to_owned());
            return None;
        }
        (Word::Spread | Word::Deny, Some(backend)) => {
            findings.error(backend.at, "backend is for action = \"pin\" alone; remove it".to_owned());
            return None;
        }
        (Word::Spread, None) => Action::Spread,
        (Word::Deny, None) => Action::Deny,
    };
    Some(PlacedRule {
        rule: RuleConfig { prefix: prefix.value, action, ttl: ttl.map(|ttl| ttl.value) },
        prefix_at: prefix.at,
        backend_at,
    })
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = value::duration(text)?;
    if ttl < LEAST_TTL {
        return Err(format!("ttl = {} is too short; give \"1s\" and more, or leave it out", value::quoted(text)));
    }
    Ok(ttl)
}

/// Adds those of the `rules` that are valid in `service` to this service, in the order of their prefixes, and reports
/// the other rules.
pub(super) fn put(rules: Vec<PlacedRule>, service: &mut ServiceConfig, findings: &mut Findings<'_>) {
    let mut first_at = HashMap::default();
    for PlacedRule { rule, prefix_at, backend_at } in rules {
        if let Some(at) = first_at.insert(rule.prefix, prefix_at) {
            let text = format!("{} has a rule on line {}; remove one of them", rule.prefix, findings.line(at));
            findings.error(prefix_at, text);
            continue;
        }
        if let Some(text) = unfit(&rule, service) {
            findings.error(prefix_at, text);
        } else if let Some(text) = unknown_backend(&rule, service) {
            findings.error(backend_at, text);
        } else {
            service.rules.push(rule);
        }
    }
    service.rules.sort_by_key(|rule| rule.prefix);
}

/// Returns the reason why the prefix is invalid in this service; `None`: the prefix is valid.
fn unfit(rule: &RuleConfig, service: &ServiceConfig) -> Option<String> {
    let prefix: IpNet = rule.prefix;
    if let Some(text) = foreign(&service.name, &service.families(), prefix) {
        return Some(format!("{text}; remove the rule, or give the service a listener of that family"));
    }
    let length = match prefix.addr() {
        IpAddr::V4(_) => service.client_prefix.v4,
        IpAddr::V6(_) => service.client_prefix.v6,
    };
    let Action::Pin { .. } = rule.action else { return None };
    let why = less_than_a_client(&service.name, prefix, length).filter(|_| !service.remember.is_zero())?;
    let (family, bits) = (if Family::of(prefix.addr()) == Family::V4 { "v4" } else { "v6" }, prefix.prefix_len());
    Some(format!("{why}, all of which would move; pin that, or have client_prefix = {{ {family} = {bits} }}"))
}

fn unknown_backend(rule: &RuleConfig, service: &ServiceConfig) -> Option<String> {
    let Action::Pin { backend } = &rule.action else { return None };
    let mut names = service.backends.iter().map(|backend| backend.name.as_str());
    if names.clone().any(|name| name == backend) {
        return None;
    }
    let hint = match nearest(backend, names.clone()) {
        Some(name) => format!("did you mean {name:?}?"),
        None if names.next().is_none() => "the service has no backend".to_owned(),
        None => "name one of the service's backends".to_owned(),
    };
    Some(format!(
        "the rule pins to {}, which is no backend of service {}; {hint}",
        value::quoted(backend),
        service.name
    ))
}
