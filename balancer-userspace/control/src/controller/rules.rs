//! Rules for client prefixes: adds, removes, expires and merges them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::map_types::MAX_RULES;
use balancer_config::{
    config::ServiceConfig, listeners::Family, names::BackendName, rule::RuleConfig, shared::by_name, validate::Valid,
};
use ipnet::IpNet;

use super::Controller;
use crate::{
    io::{Command, Refused, Report, ReportLevel, ServiceId},
    merge::{MergedRules, merge_rules},
    rules::{self, Action, Rule, Rules},
    service::Service,
};

/// Rules of services, by the name of the service.
#[derive(Default)]
pub(super) struct AllRules {
    merged: BTreeMap<String, MergedRules>,
    /// The number of rules of services that have no rules in the file now and had none in the file before.
    others: usize,
}

impl Controller {
    pub(super) fn add_rule(
        &mut self,
        service: &str,
        prefix: IpNet,
        action: Action,
        ttl: Option<Duration>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let of = self.service(service)?;
        let of = self.leg(service, Family::of(prefix.addr())).unwrap_or(of);
        rules::check_prefix(service, of.family(), prefix)?;
        rules::check_ttl(ttl)?;
        if let Action::Pin { backend } = &action {
            self.backend(&BackendName { service: service.to_owned(), backend: backend.clone() })?;
        }
        let there = self.services.iter().map(|service| service.rules().len()).sum::<usize>();
        if there >= MAX_RULES as usize && of.rules().get(prefix).is_none() {
            return Err(rules::too_many());
        }
        let rule = Rule::new(RuleConfig { prefix, action, ttl }, now);
        if of.is_part_of_a_client(&rule) {
            let (why, length) = (of.less_than_a_client(prefix), prefix.prefix_len());
            return Err(Refused::Invalid(format!(
                "{why}, all of which would move: pin that, or have clients told apart by {length} bits (client_prefix)"
            )));
        }
        let mut message = format!("rule {service} {prefix} {}", rule.action);
        if let Some(ttl) = ttl {
            message += &format!(" for {}", humantime::format_duration(ttl));
        }
        if let Some(old) = self.rules_mut(service, prefix).and_then(|rules| rules.set(rule.clone())) {
            message += &format!(", replaces {}", old.action);
        }
        let of = self.leg(service, Family::of(prefix.addr())).map_or_else(|| self.service(service), Ok)?;
        if let Some(reason) = of.inactive(&rule) {
            message += &format!("; it is not active: {reason}");
        }
        Ok((message, self.reconcile(|other| other.name() == service, Vec::new(), None, now).commands))
    }

    pub(super) fn remove_rule(
        &mut self,
        service: &str,
        prefix: IpNet,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        self.service(service)?;
        let Some(rule) = self.rules_mut(service, prefix).and_then(|rules| rules.remove(prefix)) else {
            return Err(Refused::NotFound(format!(
                "service {service} has no rule for {prefix}; see \"balancer rule list {service}\""
            )));
        };
        let message = format!("rule {service} {prefix} {} removed", rule.action);
        Ok((message, self.reconcile(|other| other.name() == service, Vec::new(), None, now).commands))
    }

    pub(super) fn end_rules(&mut self, now: Instant) -> Vec<Command> {
        let mut concerned = Vec::new();
        let mut reports = Vec::new();
        for service in self.services.those_mut(|service| service.rules().next_end().is_some_and(|end| end <= now)) {
            for rule in service.take_ended_rules(now) {
                let message = format!("rule {} {} {} ended", service.name(), rule.prefix, rule.action);
                let about = Some(BackendName { service: service.name().to_owned(), backend: String::new() });
                reports.push(Command::Report(Report { level: ReportLevel::Info, about, message, moves: None }));
                concerned.push(service.id());
            }
        }
        if concerned.is_empty() {
            return Vec::new();
        }
        let mut commands = self.reconcile(|service| concerned.contains(&service.id()), Vec::new(), None, now).commands;
        commands.extend(reports);
        commands
    }

    /// Merges the rules of `file` into the current rules of those services that have rules in the file or had some.
    /// Returns the merged rules and the differences between the rules. `before` and `present` are the services under
    /// their old and under their new names.
    pub(super) fn merge_all_rules(
        &self,
        before: &[Arc<ServiceConfig>],
        present: &[Arc<ServiceConfig>],
        base: &[Arc<ServiceConfig>],
        file: &Valid,
        reset: bool,
        now: Instant,
    ) -> Result<(AllRules, Vec<String>), Refused> {
        let said = |services: &[Arc<ServiceConfig>]| services.iter().any(|service| !service.rules.is_empty());
        if !said(base) && !said(file) && !reset {
            return Ok(Default::default());
        }
        let base = by_name(base);
        let old: HashMap<&str, (&Arc<ServiceConfig>, &Arc<ServiceConfig>)> =
            before.iter().zip(present).map(|(old, new)| (new.name.as_str(), (old, new))).collect();
        let (mut all, mut differences) = (AllRules::default(), Vec::new());
        for service in file.iter() {
            let mut rules = Rules::default();
            if let Some((old, new)) = old.get(service.name.as_str()) {
                rules = self.rules_of(&old.name);
                let renamed = old.backends.iter().zip(&new.backends).filter(|(old, new)| old.name != new.name);
                renamed.for_each(|(old, new)| rules.rename(&old.name, &new.name));
            }
            let before = base.get(service.name.as_str()).map_or([].as_slice(), |service| &service.rules);
            let before = if reset { as_if_written(&rules, before) } else { before.to_vec() };
            if before.is_empty() && service.rules.is_empty() {
                all.others += rules.len();
                continue;
            }
            let mut merged = merge_rules(&service.name, &before, &rules, &service.rules, now);
            differences.append(&mut merged.differences);
            all.merged.insert(service.name.clone(), merged);
        }
        let count = all.others + all.merged.values().map(|merged| merged.rules.len()).sum::<usize>();
        if count > MAX_RULES as usize { Err(rules::too_many()) } else { Ok((all, differences)) }
    }

    /// Gives services their merged rules, so that each part of a service gets the rules of its address family. The
    /// first part also stores rules of a family for which the service has no listener. Returns the services with
    /// changed rules, and the numbers of rules added, removed and changed.
    pub(super) fn set_rules(&mut self, all: &AllRules) -> (Vec<ServiceId>, [usize; 3]) {
        let (mut touched, mut counts) = (Vec::new(), [0; 3]);
        for (name, merged) in &all.merged {
            counts.iter_mut().zip(merged.counts).for_each(|(sum, count)| *sum += count);
            let families: Vec<Family> = self.legs(name).map(Service::family).collect();
            for (number, family) in families.iter().copied().enumerate() {
                let rules = merged.rules.those(|prefix| {
                    let theirs = Family::of(prefix.addr());
                    theirs == family || number == 0 && !families.contains(&theirs)
                });
                let other = |service: &Service| {
                    service.name() == name && service.family() == family && *service.rules() != rules
                };
                for service in self.services.those_mut(other) {
                    touched.push(service.id());
                    rules.clone_into(service.rules_mut());
                }
            }
        }
        (touched, counts)
    }

    pub(super) fn rules_of(&self, service: &str) -> Rules {
        let mut rules = Rules::default();
        self.legs(service).for_each(|leg| rules.extend(leg.rules()));
        rules
    }

    /// The set that contains the rule for a prefix: in the part of the service for the prefix's family, or otherwise in
    /// the first part, where the rule waits.
    fn rules_mut(&mut self, service: &str, prefix: IpNet) -> Option<&mut Rules> {
        let family = Family::of(prefix.addr());
        let about = self.services.iter().position(|other| other.name() == service && other.family() == family);
        let index = about.or_else(|| self.services.iter().position(|other| other.name() == service))?;
        self.services.get_mut(index).map(Service::rules_mut)
    }
}

/// The rules that replace the rules of the previous file, so that the new file overrides every rule: all current rules,
/// and all expired rules.
fn as_if_written(rules: &Rules, before: &[RuleConfig]) -> Vec<RuleConfig> {
    let ended = before.iter().filter(|rule| rules.has_ended(rule.prefix)).cloned();
    rules.iter().map(Rule::written).chain(ended).collect()
}
