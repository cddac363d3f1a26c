//! Changes made at run time: the differences between the services and the configuration file.

use std::{collections::BTreeMap, fmt};

use balancer_config::{config::ServiceConfig, rule::RuleConfig, words::counted};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::rules::Rules;

/// A kind of object that users can change at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The object is the share of a service's clients that the balancer steers.
    Service,
    /// The object is a listener of a service.
    Listener,
    /// The object is a backend of a service.
    Backend,
    /// The object is a rule of a service.
    Rule,
}

impl What {
    /// All kinds of objects, in the order in which the output lists them.
    pub const ALL: [Self; 4] = [Self::Service, Self::Listener, Self::Backend, Self::Rule];

    /// The name of the kind: `service`, `listener`, `backend` or `rule`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Listener => "listener",
            Self::Backend => "backend",
            Self::Rule => "rule",
        }
    }
}

/// An object that users have changed at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTimeChange {
    /// The kind of the changed object.
    pub what: What,
    /// The name of the changed object: `web`, `web 198.51.100.10:443/tcp`, `web/web1` or `web 203.0.113.0/24`.
    pub name: String,
    /// The present value and the value in the file, such as `weight 50 (file: 100)`.
    pub change: String,
}

impl fmt::Display for RunTimeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.what.word(), self.name, self.change)
    }
}

/// Returns a text such as `3 backends, 1 rule`, or an empty text if there are no changes.
#[must_use]
pub fn summary(changes: &[RunTimeChange]) -> Option<String> {
    let count = |what| changes.iter().filter(|change| change.what == what).count();
    let counts = What::ALL.map(|what| (count(what), what.word()));
    let parts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| counted(*count, word));
    Some(parts.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
}

/// The differences between a service's settings and the `file`.
pub(crate) fn of_service(file: &ServiceConfig, now: &ServiceConfig) -> Vec<RunTimeChange> {
    let mut changes = Vec::new();
    let mut add =
        |what, name: String, change: &str| changes.push(RunTimeChange { what, name, change: change.to_owned() });
    if now.steer != file.steer {
        add(What::Service, file.name.clone(), &format!("steer {} (file: {})", now.steer, file.steer));
    }
    if let (Some(here), Some(of_file)) = (&now.quic, &file.quic)
        && here.current != of_file.current
    {
        let [here, of_file] = [here, of_file].map(|quic| quic.current.config);
        add(What::Service, file.name.clone(), &format!("quic key of config {here} (file: {of_file})"));
    }
    for listener in now.listen.iter().filter(|listener| !file.listen.contains(listener)) {
        add(What::Listener, format!("{} {listener}", file.name), "added");
    }
    for listener in file.listen.iter().filter(|listener| !now.listen.contains(listener)) {
        add(What::Listener, format!("{} {listener}", file.name), "removed");
    }
    changes
}

/// The differences between a service's backends and the `file`. `states` contains the states that the operator has set.
pub(crate) fn of_backends(
    file: &ServiceConfig,
    now: &ServiceConfig,
    mut states: BTreeMap<String, String>,
) -> Vec<RunTimeChange> {
    let change = |name: &str, texts: Vec<String>| RunTimeChange {
        what: What::Backend,
        name: format!("{}/{name}", file.name),
        change: texts.join(", "),
    };
    let written: BTreeMap<&str, _> = file.backends.iter().map(|backend| (backend.name.as_str(), backend)).collect();
    let mut changes = Vec::new();
    for backend in &now.backends {
        let mut texts = Vec::new();
        match written.get(backend.name.as_str()) {
            None => match &backend.discovered {
                Some(listed) if listed.weight != backend.weight => {
                    texts.push(format!("weight {} (discovered: {})", backend.weight, listed.weight));
                }
                Some(_) => {}
                None => texts.push("added".to_owned()),
            },
            Some(of_file) => {
                let [here, there] = [(now, backend), (file, *of_file)].map(|(of, backend)| of.shown_address(backend));
                if here != there {
                    texts.push(format!("at {here} (file: {there})"));
                }
                if backend.weight != of_file.weight {
                    texts.push(format!("weight {} (file: {})", backend.weight, of_file.weight));
                }
                if backend.limits != of_file.limits {
                    texts.push(format!("{} (file: {})", backend.limits, of_file.limits));
                }
            }
        }
        texts.extend(states.remove(&backend.name));
        if !texts.is_empty() {
            changes.push(change(&backend.name, texts));
        }
    }
    let there = |name: &str| now.backends.iter().any(|backend| backend.name == name);
    let gone = file.backends.iter().filter(|backend| !there(&backend.name));
    changes.extend(gone.map(|backend| change(&backend.name, vec!["removed".to_owned()])));
    changes
}

/// The differences between a service's rules and the `file`.
pub(crate) fn of_rules(service: &str, file: &[RuleConfig], now: &Rules) -> Vec<RunTimeChange> {
    let mut all: BTreeMap<IpNet, [Option<RuleConfig>; 2]> = BTreeMap::new();
    for rule in file {
        all.entry(rule.prefix).or_default()[0] = Some(rule.clone());
    }
    for rule in now.iter() {
        all.entry(rule.prefix).or_default()[1] = Some(rule.written());
    }
    let change = |(prefix, rules): (IpNet, [Option<RuleConfig>; 2])| {
        let change = match rules {
            [Some(file), Some(here)] if file == here => return None,
            [Some(file), Some(here)] => format!("{here} (file: {file})"),
            [Some(_), None] if now.has_ended(prefix) => return None,
            [Some(file), None] => format!("{file} removed"),
            [None, Some(here)] => format!("{here} added"),
            [None, None] => return None,
        };
        Some(RunTimeChange { what: What::Rule, name: format!("{service} {prefix}"), change })
    };
    all.into_iter().filter_map(change).collect()
}
