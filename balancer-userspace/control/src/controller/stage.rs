//! An order of commands in which every step is safe.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    io::{Command, RuleSpec, ServiceId, ServiceSpec},
    service::Service,
};

/// The position of a command in the order. Commands of earlier stages come first; commands of the same stage keep their
/// relative order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The stage that watches the next hops of backends.
    Watch,
    /// The stage that writes rows of backends before a table names these backends.
    Rows,
    /// The stage that removes the last rules of a service, before the directory says that the service has no rules.
    LastRules,
    /// The stage that writes tables of services that are not published yet.
    FirstTables,
    /// The stage that publishes the directory of services if something was added, so that the program can translate
    /// replies before it forwards packets.
    LargerDirectory,
    /// The stage that writes rows of backends with a new address: replies from the new address arrive only after the
    /// first packet to it.
    MovedRows,
    /// The stage that writes tables of services that are already published.
    Tables,
    /// The stage that publishes the directory of services if something was only removed.
    SmallerDirectory,
    /// The stage that writes rules, after the directory says that the service has rules.
    Rules,
    /// The stage that removes the checks and the rows of removed backends, which no table names any more.
    Removed,
    /// The stage that releases next hops which are no longer needed.
    Unwatch,
    /// The stage that starts the health checks of other backends.
    Checks,
    /// The stage that reports lines to the operator.
    Reports,
}

#[derive(Debug, Default)]
pub(super) struct Staged(Vec<(Stage, Command)>);

impl Staged {
    pub(super) fn add(&mut self, stage: Stage, command: Command) {
        self.0.push((stage, command));
    }

    /// Adds the table of a service; `published` says whether the service is already published.
    pub(super) fn swap(&mut self, service: &Service, published: bool) {
        let (table, home) = service.tables();
        let stage = if published { Stage::Tables } else { Stage::FirstTables };
        self.add(stage, Command::SwapTable { service: service.id(), table, home });
    }

    pub(super) fn set_rules(&mut self, service: ServiceId, rules: Arc<[RuleSpec]>) {
        let stage = if rules.is_empty() { Stage::LastRules } else { Stage::Rules };
        self.add(stage, Command::SetRules { service, rules });
    }

    /// Adds the directory of services, which was `old` before this change.
    pub(super) fn publish(&mut self, old: &[ServiceSpec], new: Vec<ServiceSpec>) {
        let stage = if grows(old, &new) { Stage::LargerDirectory } else { Stage::SmallerDirectory };
        self.add(stage, Command::PublishServices(new));
    }

    pub(super) fn in_order(mut self) -> Vec<Command> {
        self.0.sort_by_key(|&(stage, _)| stage);
        self.0.into_iter().map(|(_, command)| command).collect()
    }
}

/// Whether `new` contains a service, backend or address that is not in `old`.
fn grows(old: &[ServiceSpec], new: &[ServiceSpec]) -> bool {
    let old: HashMap<ServiceId, &ServiceSpec> = old.iter().map(|spec| (spec.id, spec)).collect();
    new.iter().any(|spec| {
        old.get(&spec.id).is_none_or(|old| {
            let known: HashSet<_> = old.backends.iter().collect();
            spec.backends.iter().any(|backend| !known.contains(backend))
        })
    })
}
