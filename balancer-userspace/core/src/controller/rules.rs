//! Rules for client prefixes: adding, removing, ending, and what stands behind each.

use std::time::{Duration, Instant};

use balancer_common::map_types::MAX_RULES;
use balancer_model::{listeners::Family, names::BackendName};
use ipnet::IpNet;

use super::Controller;
use crate::{
    io::{Command, Refused, Report, ReportLevel},
    rules::{self, Action, Rule, Rules},
    service::Service,
};

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
        if let Action::Pin { backend } = &action {
            self.backend(&BackendName { service: service.to_owned(), backend: backend.clone() })?;
        }
        let there = self.services.iter().map(|service| service.rules().len()).sum::<usize>();
        if there >= MAX_RULES as usize && of.rules().get(prefix).is_none() {
            return Err(rules::too_many());
        }
        let rule = Rule { prefix, action, ends: ttl.map(|ttl| now + ttl) };
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
        Ok((message, self.settle(|other| other.name() == service, Vec::new(), None, now).commands))
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
        Ok((message, self.settle(|other| other.name() == service, Vec::new(), None, now).commands))
    }

    /// Ends the rules whose time is over.
    pub(super) fn end_rules(&mut self, now: Instant) -> Vec<Command> {
        let mut concerned = Vec::new();
        let mut reports = Vec::new();
        for service in self.services.those_mut(|service| service.rules().next_end().is_some_and(|end| end <= now)) {
            for rule in service.rules_mut().take_ended(now) {
                let message = format!("rule {} {} {} ended", service.name(), rule.prefix, rule.action);
                let about = Some(BackendName { service: service.name().to_owned(), backend: String::new() });
                reports.push(Command::Report(Report { level: ReportLevel::Info, about, message, moves: None }));
                concerned.push(service.id());
            }
        }
        if concerned.is_empty() {
            return Vec::new();
        }
        let mut commands = self.settle(|service| concerned.contains(&service.id()), Vec::new(), None, now).commands;
        commands.extend(reports);
        commands
    }

    /// Where the rule for a prefix is: in the part of the service that it is about, or else in the first, where it waits.
    fn rules_mut(&mut self, service: &str, prefix: IpNet) -> Option<&mut Rules> {
        let family = Family::of(prefix.addr());
        let about = self.services.iter().position(|other| other.name() == service && other.family() == family);
        let index = about.or_else(|| self.services.iter().position(|other| other.name() == service))?;
        self.services.get_mut(index).map(Service::rules_mut)
    }
}
