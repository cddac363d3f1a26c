//! Plans: predicts the moves that a change would cause by making the change in a copy of the controller.

mod joined;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::{
    client::slot,
    client_table::Entry,
    map_types::{ALL_DOWN, MOST_BACKEND_ROWS, NO_BACKEND},
    memory::{Steering, steer},
    share::{self, Share},
    verdict::{CauseIndex, MoveCause},
};
use balancer_config::{config::Failback, listeners::Listener, words::counted};

use crate::{
    controller::Controller,
    forgets::Forgets,
    full,
    io::{Change, Command, Event, NextHop, Refused, ServiceId},
    moves::Moves,
    report,
    run_time::RunTimeChange,
    service::{Backend, Service},
};

/// The effects of a planned change.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The message that the controller would return for the change.
    pub message: String,
    /// Further lines about effects on objects that the change does not name.
    pub reports: Vec<String>,
    /// For a configuration file: the changes that users have made at run time so far.
    pub changed: Vec<RunTimeChange>,
    /// The effects on each service; a service with both address families appears in this list as two services.
    pub services: Vec<ServicePlan>,
}

/// A plan that includes the numbers of affected known clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The message, the same as in [`Plan`].
    pub message: String,
    /// The reports, the same as in [`Plan`].
    pub reports: Vec<String>,
    /// The run-time changes, the same as in [`Plan`].
    pub changed: Vec<RunTimeChange>,
    /// The services, as in [`Plan`], with their known clients.
    pub services: Vec<PlannedService>,
}

/// The effects of a planned change on one service, including the numbers of affected known clients.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedService {
    pub service: String,
    /// The number of slots before the change.
    pub table_size_before: u32,
    /// The number of slots after the change.
    pub table_size: u32,
    /// The number of slots that would get another backend in the live table.
    pub slots_moved: u32,
    /// The number of slots that would move although the shares of their old and new backend stay the same.
    pub needless_slots_moved: u32,
    /// The number of known clients that would move immediately.
    pub known_clients_moved: u64,
    /// The number of known clients that would stay at a draining backend until its deadline.
    pub known_clients_draining: u64,
    /// The number of known clients that the balancer would forget.
    pub known_clients_forgotten: u64,
    /// The reason why the balancer would forget clients, if it would forget any client.
    pub forgotten_because: Option<&'static str>,
    /// The share of clients that the balancer steers, in percent, before and after the change.
    pub steer: [u8; 2],
    /// The number of known clients that the balancer would start to steer.
    pub known_clients_taken_over: u64,
    /// These clients, by how their backends are known.
    pub coming: ComingClients,
    /// The number of known clients that would return to the host.
    pub known_clients_sent_back: u64,
    pub removed: bool,
    /// The listeners that the change would add; empty if it would remove the whole service.
    pub listeners_added: Vec<Listener>,
    /// The listeners that the change would remove; empty if it would remove the whole service.
    pub listeners_removed: Vec<Listener>,
    /// The moves, grouped by old and new backend.
    pub moves: Vec<PlannedMove>,
}

/// The numbers of known clients that the balancer would start to steer, by how their backends are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComingClients {
    /// The clients that the balancer has steered within the last hour.
    pub served: u64,
    /// The clients whose backends another program has reported.
    pub reported: u64,
    /// The clients that the balancer has only watched: their backends are those of the lookup table, and the host may
    /// serve them at others.
    pub guessed: u64,
}

/// The slots and clients that move from one backend to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// The backend that loses the slots and clients; `None`: they had no backend before.
    pub from: Option<String>,
    /// The backend that gets the slots and clients; `None`: the program would drop the clients' packets.
    pub to: Option<String>,
    /// The number of slots of the live table that move.
    pub slots: u32,
    /// The number of known clients that move.
    pub clients: u64,
}

impl PlannedService {
    /// Whether the change affects any slot, known client or listener.
    #[must_use]
    pub const fn does_something(&self) -> bool {
        self.slots_moved > 0
            || self.known_clients_moved > 0
            || self.known_clients_draining > 0
            || self.known_clients_forgotten > 0
            || self.steer[0] != self.steer[1]
            || !self.listeners_added.is_empty()
            || !self.listeners_removed.is_empty()
    }
}

/// The effects of a planned change on one service.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    pub service: String,
    /// The index of the service.
    pub id: ServiceId,
    moves: Moves,
    before: Side,
    /// The service after the change; `None`: the change removes the service or the service's last listener of this
    /// family.
    after: Option<Side>,
    removed: bool,
    listeners_added: Vec<Listener>,
    listeners_removed: Vec<Listener>,
    /// The names of the service's backends by id, including backends before and backends after the change.
    names: HashMap<u16, String>,
    /// The clients that the service forgets because of the change.
    forgets: Option<Forgets>,
    /// The share of clients that the balancer steers now, and those of the last hour.
    recent: Share,
}

/// The state of a service before or after the change.
#[derive(Clone, Debug)]
struct Side {
    table: Arc<[u16]>,
    home: Option<Arc<[u16]>>,
    failback: bool,
    /// The backends that keep known clients.
    keeps: HashSet<u16>,
    /// The backends that keep known clients only until a deadline.
    drains: HashSet<u16>,
    /// The share of clients that the balancer steers.
    share: Share,
}

/// The numbers of known clients, by present and future backend of the clients.
#[derive(Clone, Debug, Default)]
struct Census {
    moved: BTreeMap<(u16, u16), u64>,
    draining: u64,
    forgotten: u64,
    taken_over: u64,
    sent_back: u64,
    coming: ComingClients,
}

impl Controller {
    /// Predicts the effects that `change` would have now, for each service. The plan assumes that the next hop of an
    /// added backend is known.
    ///
    /// # Errors
    /// Returns [`Refused`] if the controller would refuse the change.
    pub fn plan(&self, change: Change, now: Instant) -> Result<Plan, Refused> {
        self.plan_and_make(change, now).map(|(plan, _)| plan)
    }

    /// Plans as [`plan_and_make`](Self::plan_and_make) does, and includes the effects that limits of backends would
    /// have immediately.
    ///
    /// # Errors
    /// Returns [`Refused`] if the controller would refuse the change.
    pub fn plan_with_limits(&self, change: Change, now: Instant) -> Result<(Plan, Self), Refused> {
        self.planned(change, now, Self::reach_limits)
    }

    /// Plans as [`plan`](Self::plan) does, and also returns the copy of the controller that has made the change.
    ///
    /// # Errors
    /// Returns [`Refused`] if the controller would refuse the change.
    pub fn plan_and_make(&self, change: Change, now: Instant) -> Result<(Plan, Self), Refused> {
        self.planned(change, now, |_, _, _| Ok(Vec::new()))
    }

    /// Marks backends of changed services in a `copy`, which has made a change, as full if they have reached their
    /// limit of clients or connections. Returns the messages and the commands of the copy.
    fn reach_limits(&self, copy: &mut Self, now: Instant) -> Result<Vec<(String, Vec<Command>)>, Refused> {
        let mut names: Vec<String> = Vec::new();
        for service in self.services().touched_since(copy.services()) {
            let bounds = copy.legs(service.name()).any(Service::bounds_clients);
            if bounds && !names.iter().any(|name| name == service.name()) {
                names.push(service.name().to_owned());
            }
        }
        let mut reached = Vec::new();
        for service in names {
            if let Some(full) = full::Watch::default().look(&full::members(copy.legs(&service)), now) {
                reached.push(copy.change(Change::Full { service, full }, now)?);
            }
        }
        Ok(reached)
    }

    fn planned(
        &self,
        change: Change,
        now: Instant,
        follows: impl FnOnce(&Self, &mut Self, Instant) -> Result<Vec<(String, Vec<Command>)>, Refused>,
    ) -> Result<(Plan, Self), Refused> {
        let is_file = matches!(change, Change::Reload(_) | Change::Reset(_));
        let changed = if is_file { self.changed_at_run_time() } else { Vec::new() };
        let mut copy = self.as_one_that_decides();
        let (mut message, mut commands) = copy.change(change, now)?;
        let watched =
            |command: &Command| if let Command::WatchNextHop(address) = command { Some(*address) } else { None };
        for address in commands.iter().filter_map(watched).collect::<Vec<_>>() {
            commands.extend(copy.handle(Event::NextHop { address, next_hop: Ok(some_next_hop(address)) }, now));
        }
        for (said, more) in follows(self, &mut copy, now)? {
            message += &format!("; then {said}");
            commands.extend(more);
        }
        let reports = commands
            .into_iter()
            .filter_map(|command| if let Command::Report(report) = command { Some(report.message) } else { None });
        let touched: HashSet<ServiceId> = self.services().touched_since(copy.services()).map(Service::id).collect();
        let services = self.services().iter().map(|before| {
            if !touched.contains(&before.id()) {
                return ServicePlan::none(before);
            }
            let after = copy.services().with_id(before.id());
            let all = before.backends().iter().chain(after.into_iter().flat_map(Service::backends));
            let gone = self.gone().iter().filter(|gone| gone.row.service == before.id());
            let stays = after.or_else(|| self.other_part(before, &copy));
            let forgets = before.spec().forgets(after.map(Service::spec).as_ref());
            ServicePlan {
                service: stays.unwrap_or(before).name().to_owned(),
                id: before.id(),
                moves: after.map(|after| after.moves_since(before)).unwrap_or_default(),
                before: Side::of(before),
                after: after.map(Side::of),
                removed: stays.is_none(),
                listeners_added: stays.map(|stays| listeners_beyond(before, stays)).unwrap_or_default(),
                listeners_removed: stays.map(|stays| listeners_beyond(stays, before)).unwrap_or_default(),
                names: all
                    .map(|backend| (backend.id().0, backend.name().to_owned()))
                    .chain(gone.map(|gone| (gone.row.id.0, gone.name.clone())))
                    .collect(),
                forgets: if after.is_none() && stays.is_some() {
                    forgets.map(|_| Forgets::Everybody("it would have no listener of their family any more"))
                } else {
                    forgets
                },
                recent: before.share(),
            }
        });
        let services = services.collect();
        Ok((Plan { message, reports: reports.collect(), changed, services }, copy))
    }

    /// Returns the remaining part, in `copy`, of the service to which the removed `part` belonged.
    fn other_part<'a>(&self, part: &Service, copy: &'a Self) -> Option<&'a Service> {
        let parts: Vec<ServiceId> =
            self.services().iter().filter(|other| other.name() == part.name()).map(Service::id).collect();
        let same = copy.services().iter().find(|service| parts.contains(&service.id()));
        same.or_else(|| copy.services().iter().find(|service| service.name() == part.name()))
    }
}

/// The listeners of `more` that `service` does not have.
fn listeners_beyond(service: &Service, more: &Service) -> Vec<Listener> {
    let present: HashSet<Listener> = service.listeners().map(|(listener, _)| listener).collect();
    more.listeners().map(|(listener, _)| listener).filter(|listener| !present.contains(listener)).collect()
}

impl Plan {
    /// Counts the known clients that the change affects. `entries` supplies the entries of known clients, each with the
    /// time since the client was seen, and with whether another program has reported the client; an entry counts for the
    /// service of its backend.
    #[must_use]
    pub fn counted(self, entries: impl FnOnce(&mut dyn FnMut(Entry, Duration, bool))) -> Planned {
        let Self { mut message, reports, changed, services } = self;
        let mut owners: Vec<Option<usize>> = vec![None; MOST_BACKEND_ROWS as usize];
        for (index, service) in services.iter().enumerate() {
            for &id in service.names.keys() {
                if let Some(owner) = owners.get_mut(usize::from(id)) {
                    *owner = Some(index);
                }
            }
        }
        let mut censuses = vec![Census::default(); services.len()];
        // If the change affects no service, no client needs counting.
        if services.iter().any(|service| !service.names.is_empty()) {
            entries(&mut |entry, seen, reported| {
                let owner = owners.get(usize::from(entry.backend())).copied().flatten();
                let of = owner.and_then(|index| Some((services.get(index)?, censuses.get_mut(index)?)));
                if let Some((service, census)) = of {
                    service.count(entry, seen, census);
                    service.count_coming(entry, reported, census);
                }
            });
        }
        let services: Vec<PlannedService> =
            services.iter().zip(&censuses).map(|(service, census)| service.with(census)).collect();
        message += &clients_moved(&services);
        message += &clients_changing_sides(&services);
        message += &report::clients_forgotten(services.iter().map(|of| of.known_clients_forgotten).sum());
        Planned { message, reports, changed, services }
    }
}

/// Returns the number of known clients that move as part of a sentence, or an empty text if no client moves.
#[must_use]
pub fn clients_moved(services: &[PlannedService]) -> String {
    match services.iter().map(|of| of.known_clients_moved).sum::<u64>() {
        0 => String::new(),
        moved => format!(", {} moved", counted(moved as usize, "known client")),
    }
}

/// Returns the number of known clients that move from the balancer to the host or back as part of a sentence, or an
/// empty text if there is none.
#[must_use]
pub fn clients_changing_sides(services: &[PlannedService]) -> String {
    let said = |sum: u64, what: &str| {
        if sum == 0 { String::new() } else { format!(", {} {what}", counted(sum as usize, "known client")) }
    };
    said(services.iter().map(|of| of.known_clients_taken_over).sum(), "taken over")
        + &said(services.iter().map(|of| of.known_clients_sent_back).sum(), "sent back")
}

/// A next hop that suits every forwarding mode; the plan does not depend on its addresses.
const fn some_next_hop(address: IpAddr) -> NextHop {
    NextHop {
        ifindex: 1,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
        source: Some(address),
        gateway: None,
        local: false,
    }
}

impl Side {
    fn of(service: &Service) -> Self {
        let ids = |which: fn(&Backend) -> bool| -> HashSet<u16> {
            service.backends().iter().filter(|backend| which(backend)).map(|backend| backend.id().0).collect()
        };
        let (table, home) = service.tables();
        Self {
            table,
            home,
            failback: service.failback() == Failback::Return,
            keeps: ids(Backend::keeps_known),
            drains: ids(|backend| backend.drain_deadline().is_some()),
            share: Share::always(service.share().now),
        }
    }

    /// The backend of a client in the live table.
    fn live(&self, entry: Entry) -> Option<u16> {
        let place = slot(entry.0, self.table.len() as u32) as usize;
        self.table.get(place).copied().filter(|&live| live != ALL_DOWN && live != NO_BACKEND)
    }

    /// The backend that a known client's next connection would reach.
    fn steer(&self, entry: Entry) -> Option<u16> {
        let place = slot(entry.0, self.table.len() as u32) as usize;
        let live = self.table.get(place).copied().filter(|&live| live != ALL_DOWN);
        let home = self.home.as_ref().and_then(|home| home.get(place).copied());
        let packet = Steering {
            live,
            live_is_home: live.is_some() && home == live,
            entry: Some(entry),
            keeps_known: self.keeps.contains(&entry.backend()),
            cause: CauseIndex(MoveCause::Down as u8),
            opens: true,
            failback: self.failback,
            // An entry does not show which rule applies to its client. A client that a rule pins to another backend has
            // already moved.
            pinned: false,
            now: entry.last_seen(),
        };
        steer(&packet).backend
    }
}

impl ServicePlan {
    /// Returns the plan for a service that the change does not affect, so that its clients need not be counted.
    fn none(service: &Service) -> Self {
        let (table, _) = service.tables();
        let (keeps, drains) = (HashSet::new(), HashSet::new());
        let share = Share::always(service.share().now);
        let side = Side { table, home: None, failback: false, keeps, drains, share };
        Self {
            service: service.name().to_owned(),
            id: service.id(),
            moves: Moves::default(),
            before: side.clone(),
            after: Some(side),
            removed: false,
            listeners_added: Vec::new(),
            listeners_removed: Vec::new(),
            names: HashMap::new(),
            forgets: None,
            recent: service.share(),
        }
    }

    /// Counts a known client of this service, given the client's entry. If a client is about to move anyway, the change
    /// does not move it.
    fn count(&self, entry: Entry, seen: Duration, census: &mut Census) {
        let at = entry.backend();
        let forgets = self.forgets.filter(|forgets| forgets.includes(seen));
        census.forgotten += u64::from(forgets.is_some());
        let Some(after) = self.after.as_ref().filter(|_| forgets.is_none_or(|forgets| forgets.table_says_where()))
        else {
            return;
        };
        let [was, will] = [&self.before, after].map(|side| side.share.side(entry.tag()) == share::Side::Steered);
        census.taken_over += u64::from(will && !was);
        census.sent_back += u64::from(was && !will);
        if self.before.steer(entry) != Some(at) {
            return;
        }
        let to = if forgets.is_some() { after.live(entry) } else { after.steer(entry) };
        match to {
            Some(to) if to == at => {
                let begins = after.drains.contains(&at) && !self.before.drains.contains(&at);
                census.draining += u64::from(begins && forgets.is_none());
            }
            to => *census.moved.entry((at, to.unwrap_or(ALL_DOWN))).or_default() += 1,
        }
    }

    /// Counts a known client that the balancer would begin to steer, by how its backend is known.
    fn count_coming(&self, entry: Entry, reported: bool, census: &mut Census) {
        let side = |share: Share| share.side(entry.tag());
        let comes = self.after.as_ref().is_some_and(|after| side(after.share) == share::Side::Steered);
        if !comes || side(self.before.share) == share::Side::Steered {
            return;
        }
        let was_steered = side(self.recent) != share::Side::Host;
        *match (was_steered, reported) {
            (true, _) => &mut census.coming.served,
            (false, true) => &mut census.coming.reported,
            (false, false) => &mut census.coming.guessed,
        } += 1;
    }

    /// The effects of the plan, including the known clients that the census has counted.
    fn with(&self, census: &Census) -> PlannedService {
        let name = |id: u16| match id {
            NO_BACKEND | ALL_DOWN => None,
            id => self.names.get(&id).cloned(),
        };
        let mut pairs: BTreeMap<(u16, u16), (u32, u64)> = BTreeMap::new();
        for &(from, to) in self.moves.pairs() {
            pairs.entry((from, to)).or_default().0 += 1;
        }
        for (&pair, &clients) in &census.moved {
            pairs.entry(pair).or_default().1 += clients;
        }
        let moves = pairs.into_iter().map(|((from, to), (slots, clients))| PlannedMove {
            from: name(from),
            to: name(to),
            slots,
            clients,
        });
        PlannedService {
            service: self.service.clone(),
            removed: self.removed,
            listeners_added: self.listeners_added.clone(),
            listeners_removed: self.listeners_removed.clone(),
            table_size_before: self.before.table.len() as u32,
            table_size: self.after.as_ref().unwrap_or(&self.before).table.len() as u32,
            slots_moved: self.moves.total(),
            needless_slots_moved: self.moves.needless(),
            known_clients_moved: census.moved.values().sum(),
            known_clients_draining: census.draining,
            known_clients_forgotten: census.forgotten,
            forgotten_because: self.forgets.filter(|_| census.forgotten > 0).map(|forgets| forgets.why()),
            steer: [self.before.share.now, self.after.as_ref().unwrap_or(&self.before).share.now],
            known_clients_taken_over: census.taken_over,
            coming: census.coming,
            known_clients_sent_back: census.sent_back,
            moves: moves.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use balancer_common::map_types::Forwarding;
    use balancer_config::{
        config::ServiceConfig,
        fixture::{backend, config, name, service, web},
        states::Admin,
    };

    use super::*;
    use crate::{controller_test::Bench, fixture::next_hop};

    #[test]
    fn when_a_change_is_planned_then_making_it_does_the_same() {
        let mut file = web();
        file.backends.push(backend("web5", "10.0.0.15:8080"));
        let address = "10.0.0.16".parse().unwrap();
        let add = Change::Add {
            name: name("web/web6"),
            address,
            address6: None,
            port: Some(8080),
            weight: None,
            backup: false,
            limits: Default::default(),
        };
        for change in [
            Change::SetWeight { name: name("web/web1"), weight: 300 },
            Change::SetAdmin { name: name("web/web2"), admin: Admin::Drain, timeout: None },
            Change::Reload(Box::new(config(vec![file]))),
            add,
        ] {
            let mut bench = Bench::web();
            let plan = bench.controller.plan(change.clone(), bench.now).unwrap().counted(|_| {});
            let [of] = plan.services.as_slice() else { panic!("{plan:?}") };
            assert_eq!(of.moves.iter().map(|moves| moves.slots).sum::<u32>(), of.slots_moved);
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

    #[test]
    fn when_clients_are_counted_then_each_counts_in_its_backends_service() {
        let remember = Duration::from_secs(60);
        let shop = service("shop", "198.51.100.11:80", Forwarding::Nat, &["shop1 10.0.0.21:80", "shop2 10.0.0.22:80"]);
        let services = [web(), shop].map(|service| ServiceConfig { remember, ..service });
        let (mut bench, _) = Bench::new(services.to_vec());
        for backend in ["web/web1", "web/web2", "shop/shop1", "shop/shop2"] {
            bench.pass(backend);
        }
        let change = Change::Remove { name: name("shop/shop1"), force: true };
        let known = [("web/web1", 5), ("web/web2", 6), ("shop/shop1", 7), ("shop/shop2", 8)];
        let ids = known.map(|(backend, clients)| (bench.id(backend).0, clients));
        let planned = bench.controller.plan(change, bench.now).unwrap().counted(|count| {
            // No backend has the last id.
            for (id, clients) in ids.into_iter().chain([(9000, 9)]) {
                (0..clients).for_each(|client| count(Entry::new(client << 24, id, 1), Duration::ZERO, false));
            }
        });
        let moved: Vec<_> = planned.services.iter().map(|of| (of.service.as_str(), of.known_clients_moved)).collect();
        assert_eq!(moved, [("web", 0), ("shop", 7)]);
    }
}
