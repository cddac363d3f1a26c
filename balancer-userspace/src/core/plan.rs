//! What a change would move, without making it.

use std::{collections::BTreeMap, time::Instant};

use balancer_common::map_types::{ALL_DOWN, NO_BACKEND};

use crate::core::{
    controller::Controller,
    io::{BackendId, Change, Command, Event, NextHop, Refused},
};

/// What a change would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What would be said of it.
    pub message: String,
    /// Further lines: what it would bring about beyond what it names.
    pub reports: Vec<String>,
    /// The services in which slots would move.
    pub services: Vec<ServicePlan>,
}

/// What a change would move in a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    /// The service's name.
    pub service: String,
    /// M, after the change.
    pub table_size: u32,
    /// Slots that would move.
    pub slots_moved: u32,
    /// Those of them whose old and new backend have not changed.
    pub needless_slots_moved: u32,
    /// From whom to whom (`None`: nobody), and how many slots.
    pub moves: Vec<(Option<String>, Option<String>, u32)>,
}

impl Controller {
    /// What `change` would do now. A backend that it adds counts as reachable.
    ///
    /// # Errors
    /// [`Refused`] as the change itself.
    pub fn plan(&self, change: Change, now: Instant) -> Result<Plan, Refused> {
        let mut after = self.clone();
        let (message, mut commands) = after.change(change, now)?;
        let watched =
            |command: &Command| if let Command::WatchNextHop(address) = command { Some(*address) } else { None };
        for address in commands.iter().filter_map(watched).collect::<Vec<_>>() {
            let next_hop = NextHop { ifindex: 0, source_mac: [0; 6], destination_mac: [0; 6], mtu: 1500, source: None };
            commands.extend(after.handle(Event::NextHop { address, next_hop: Ok(next_hop) }, now));
        }
        let reports = commands
            .into_iter()
            .filter_map(|command| if let Command::Report(report) = command { Some(report.message) } else { None });
        let name = |id: u16| match id {
            NO_BACKEND | ALL_DOWN => None,
            id => self.name_of(BackendId(id)).or_else(|| after.name_of(BackendId(id))).map(str::to_owned),
        };
        let mut services = Vec::new();
        for service in after.services() {
            let Some(before) = self.services().iter().find(|before| before.id() == service.id()) else { continue };
            let moves = service.moves_since(before);
            if moves.total() == 0 {
                continue;
            }
            let mut pairs: BTreeMap<(u16, u16), u32> = BTreeMap::new();
            for &pair in moves.pairs() {
                *pairs.entry(pair).or_default() += 1;
            }
            services.push(ServicePlan {
                service: service.name().to_owned(),
                table_size: service.table_size(),
                slots_moved: moves.total(),
                needless_slots_moved: moves.needless(),
                moves: pairs.into_iter().map(|((from, to), slots)| (name(from), name(to), slots)).collect(),
            });
        }
        Ok(Plan { message, reports: reports.collect(), services })
    }
}

#[cfg(test)]
mod tests {
    use crate::core::{
        controller_test::Bench,
        fixture::{backend, config, name, next_hop, web},
        io::{Admin, Change, Event},
    };

    #[test]
    fn a_plan_is_what_then_happens() {
        let mut file = web();
        file.backends.push(backend("web5", "10.0.0.15:8080"));
        let address = "10.0.0.16".parse().unwrap();
        let add = Change::Add { name: name("web/web6"), address, port: Some(8080), weight: None, backup: false };
        for change in [
            Change::SetWeight { name: name("web/web1"), weight: 300 },
            Change::SetAdmin { name: name("web/web2"), admin: Admin::Drain, timeout: None },
            Change::Reload(Box::new(config(vec![file]))),
            add,
        ] {
            let mut bench = Bench::web();
            let plan = bench.controller.plan(change.clone(), bench.now).unwrap();
            let [of] = plan.services.as_slice() else { panic!("{plan:?}") };
            assert_eq!(of.moves.iter().map(|moves| moves.2).sum::<u32>(), of.slots_moved);
            assert_eq!(bench.service().slots_moved(), (0, 0), "nothing was changed");
            bench.change(change).unwrap();
            for address in ["10.0.0.15", "10.0.0.16"] {
                let event = Event::NextHop { address: address.parse().unwrap(), next_hop: Ok(next_hop(1)) };
                bench.controller.handle(event, bench.now);
            }
            let (required, needless) = bench.service().slots_moved();
            assert_eq!((required + needless, needless), (of.slots_moved.into(), of.needless_slots_moved.into()));
        }
    }
}
