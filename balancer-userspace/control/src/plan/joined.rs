//! Joins plans of services: a service with both address families is two services in the core, but users see one plan
//! for it.

use super::{Planned, PlannedMove, PlannedService};

impl Planned {
    /// Joins the adjacent parts of each service, and adds up their slots and tables.
    #[must_use]
    pub fn joined(self) -> Self {
        let mut services: Vec<PlannedService> = Vec::with_capacity(self.services.len());
        for service in self.services {
            match services.last_mut().filter(|first| first.service == service.service) {
                Some(first) => first.add(service),
                None => services.push(service),
            }
        }
        Self { services, ..self }
    }
}

impl PlannedService {
    /// Adds the plan for the other part of the service. The data about listeners is the same in both parts, so it stays
    /// unchanged.
    fn add(&mut self, other: Self) {
        self.table_size_before += other.table_size_before;
        self.table_size += other.table_size;
        self.slots_moved += other.slots_moved;
        self.needless_slots_moved += other.needless_slots_moved;
        self.known_clients_moved += other.known_clients_moved;
        self.known_clients_draining += other.known_clients_draining;
        self.known_clients_forgotten += other.known_clients_forgotten;
        self.known_clients_taken_over += other.known_clients_taken_over;
        self.known_clients_sent_back += other.known_clients_sent_back;
        self.coming.served += other.coming.served;
        self.coming.reported += other.coming.reported;
        self.coming.guessed += other.coming.guessed;
        self.forgotten_because = self.forgotten_because.or(other.forgotten_because);
        for moved in other.moves {
            let same = |known: &&mut PlannedMove| (&known.from, &known.to) == (&moved.from, &moved.to);
            match self.moves.iter_mut().find(same) {
                Some(known) => {
                    known.slots += moved.slots;
                    known.clients += moved.clients;
                }
                None => self.moves.push(moved),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_common::{client_table::Entry, map_types::Forwarding};
    use balancer_config::{
        config::ServiceConfig,
        fixture::{config, name, service},
        listeners::Listener,
        states::Admin,
    };

    use super::*;
    use crate::{
        controller_test::Bench,
        fixture::next_hop,
        io::{Change, Event},
        service::{Backend, Service},
    };

    const V4: &str = "198.51.100.10:80";
    const V6: &str = "[2001:db8::10]:80";

    fn listeners(all: &[&str]) -> Vec<Listener> {
        all.iter().map(|listener| listener.parse().unwrap()).collect()
    }

    /// A service of three backends, each of which has addresses of both families.
    fn shop(listen: &[&str]) -> ServiceConfig {
        let backends = ["a 10.0.0.11:0", "b 10.0.0.12:0", "c 10.0.0.13:0"];
        let mut shop = service("shop", V4, Forwarding::Dsr, &backends);
        for (number, backend) in (11..).zip(&mut shop.backends) {
            backend.address6 = Some(format!("[fd00::{number}]:0").parse().unwrap());
        }
        ServiceConfig { listen: listeners(listen), remember: Duration::from_secs(3600), ..shop }.normalised()
    }

    fn bench(listen: &[&str]) -> Bench {
        let (mut bench, _) = Bench::new(vec![shop(listen)]);
        assert!(!bench.controller.services().is_empty(), "the configuration is refused");
        for address in (11..=13).flat_map(|number| [format!("10.0.0.{number}"), format!("fd00::{number}")]) {
            let event = Event::NextHop { address: address.parse().unwrap(), next_hop: Ok(next_hop(1)) };
            bench.controller.handle(event, bench.now);
        }
        bench
    }

    /// The plan of a change for a service in which every slot of both tables has a known client at its backend.
    fn plan(bench: &Bench, change: Change) -> PlannedService {
        let all: Vec<(usize, Vec<u16>)> = bench
            .controller
            .services()
            .iter()
            .map(|part| (part.live_table().len(), part.live_table().to_vec()))
            .collect();
        let planned = bench.controller.plan(change, bench.now).unwrap().counted(|count| {
            for (size, table) in &all {
                for (place, &id) in table.iter().enumerate() {
                    let tag = ((place as u64 * (1 << 32)).div_ceil(*size as u64)) as u32;
                    count(Entry::new(tag, id, 1), Duration::ZERO, false);
                }
            }
        });
        let [of] = <[PlannedService; 1]>::try_from(planned.joined().services).unwrap();
        of
    }

    /// The number of a backend's slots in both tables together.
    fn slots(bench: &Bench, backend: &str) -> u32 {
        let of = |part: &Service| {
            let id = part.backends().iter().find(|of| of.name() == backend).map(Backend::id).unwrap();
            part.live_table().iter().filter(|&&slot| slot == id.0).count() as u32
        };
        bench.controller.services().iter().map(of).sum()
    }

    /// The listeners before a change, the change, and the listeners that the change adds and removes.
    type Case<'a> = (&'a [&'a str], Change, &'a [&'a str], &'a [&'a str]);

    fn reload(listen: &[&str]) -> Change {
        Change::Reload(Box::new(config(vec![shop(listen)])))
    }

    #[test]
    fn when_listeners_are_added_or_removed_then_they_are_named_and_no_client_moves() {
        const MORE: &str = "198.51.100.10:443/udp";
        let of = |text: &str| ("shop".to_owned(), text.parse::<Listener>().unwrap());
        let ((service, more), (_, v4)) = (of(MORE), of(V4));
        let cases: [Case<'_>; 5] = [
            (&[V4, V6], Change::AddListener { service: service.clone(), listener: more }, &[MORE], &[]),
            (&[V4, V6, MORE], Change::RemoveListener { service: service.clone(), listener: v4 }, &[], &[V4]),
            (&[V4, V6], reload(&[MORE, V6]), &[MORE], &[V4]),
            (&[V4], reload(&[V4, V6]), &[V6], &[]),
            (&[V4, V6], Change::AddListener { service, listener: v4 }, &[], &[]),
        ];
        for (listen, change, added, removed) in cases {
            let mut bench = bench(listen);
            let plan = plan(&bench, change.clone());
            assert_eq!(
                (plan.listeners_added.clone(), plan.listeners_removed.clone()),
                (listeners(added), listeners(removed))
            );
            assert_eq!(plan.does_something(), added.len() + removed.len() > 0);
            assert_eq!((plan.slots_moved, plan.known_clients_moved, plan.known_clients_forgotten), (0, 0, 0));
            assert!(plan.moves.is_empty() && !plan.removed, "{plan:?}");
            bench.change(change).unwrap();
            assert_eq!(bench.service().slots_moved(), (0, 0));
        }
    }

    #[test]
    fn when_a_service_has_both_families_then_slots_and_clients_are_added_up() {
        let bench = bench(&[V4, V6]);
        let at = slots(&bench, "a");
        let change = Change::SetAdmin { name: name("shop/a"), admin: Admin::Maint, timeout: None };
        let plan = plan(&bench, change);
        assert_eq!((plan.slots_moved, plan.known_clients_moved, plan.table_size), (at, at.into(), 2 * 65_537));
        let to: Vec<_> = plan.moves.iter().map(|moves| (moves.from.as_deref(), moves.to.as_deref())).collect();
        assert_eq!(to, [(Some("a"), Some("b")), (Some("a"), Some("c"))]);
        assert_eq!(plan.moves.iter().map(|moves| moves.slots).sum::<u32>(), at);
        assert_eq!(plan.moves.iter().map(|moves| moves.clients).sum::<u64>(), u64::from(at));
    }

    #[test]
    fn when_a_service_loses_a_family_then_it_is_not_removed() {
        let bench = bench(&[V4, V6]);
        let last = Change::RemoveListener { service: "shop".to_owned(), listener: V6.parse().unwrap() };
        for change in [last, reload(&[V4])] {
            let plan = plan(&bench, change);
            assert_eq!((plan.removed, plan.listeners_removed), (false, listeners(&[V6])));
            assert_eq!((plan.known_clients_forgotten, plan.known_clients_moved), (65_537, 0));
            assert_eq!(plan.forgotten_because, Some("it would have no listener of their family any more"));
        }
        let other = plan(&self::bench(&[V4]), reload(&[V6]));
        assert_eq!((other.removed, other.known_clients_forgotten), (false, 65_537));
        assert_eq!((other.listeners_added, other.listeners_removed), (listeners(&[V6]), listeners(&[V4])));
        let gone = plan(&bench, Change::Reload(Box::new(config(Vec::new()))));
        assert_eq!((gone.removed, gone.known_clients_forgotten), (true, 2 * 65_537));
        assert_eq!((gone.listeners_added, gone.listeners_removed), (Vec::new(), Vec::new()));
        assert_eq!(gone.forgotten_because, Some("the service is removed"));
    }
}
