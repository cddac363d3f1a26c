//! An order of commands that is safe at every step.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    io::{Command, RuleSpec, ServiceId, ServiceSpec},
    service::Service,
};

/// The position of a command in the order. Earlier stages come first; commands of the same stage keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Watching next hops of backends.
    Watch,
    /// Writing rows of backends, before a table names them.
    Rows,
    /// Removing a service's last rules, before the directory says that it has none.
    LastRules,
    /// Writing tables of services that are not published yet.
    FirstTables,
    /// Publishing the directory of services if something was added: replies can be translated before packets are
    /// forwarded.
    LargerDirectory,
    /// Writing rows of backends with a new address: their replies come from the new address after the first packet.
    MovedRows,
    /// Writing tables of the other services.
    Tables,
    /// Publishing the directory of services if something was only removed.
    SmallerDirectory,
    /// Writing rules, once the directory says that the service has rules.
    Rules,
    /// Removing checks and rows of removed backends, which no table names any more.
    Removed,
    /// Releasing next hops that are no longer needed.
    Unwatch,
    /// Starting health checks of other backends.
    Checks,
    /// Reporting lines to the operator.
    Reports,
}

/// Commands with their stages.
#[derive(Debug, Default)]
pub(super) struct Staged(Vec<(Stage, Command)>);

impl Staged {
    pub(super) fn add(&mut self, stage: Stage, command: Command) {
        self.0.push((stage, command));
    }

    /// Adds the table of a service that is either already `published` or not yet.
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
