//! Tests of states that a member of a fleet can apply only in part.

use std::time::UNIX_EPOCH;

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::ServiceConfig,
    fixture::{backend, name, service, web},
    states::Admin,
};

use crate::{
    as_far::{Limits, Read, ReadState, Unread, as_far_as_possible},
    controller_test::Bench,
    room::{Room, lines},
    state::{Clocks, SavedService, SavedState},
};

const UNLIMITED: Limits<'static> = Limits { room: None, refused: None };

fn shop() -> ServiceConfig {
    service("shop", "198.51.100.20:80", Forwarding::Nat, &["shop1 10.1.0.1:8080", "shop2 10.1.0.2:8080"])
}

fn state(bench: &Bench) -> SavedState {
    bench.controller.agreed_state(Clocks { now: bench.now, wall: UNIX_EPOCH })
}

fn read(state: SavedState, understands: impl Fn(&SavedService) -> bool) -> ReadState {
    let (state, services) = state.with_services(());
    let read = |service: SavedService| {
        if understands(&service) {
            return Read::Whole(Box::new(service));
        }
        let ids = service.backends.iter().map(|backend| backend.id).collect();
        let (name, why) = (service.settings.name, "unknown word".to_owned());
        Read::Unread(Unread { id: service.id, name, ids, backends: service.backends, why })
    };
    state.with_services(services.into_iter().map(read).collect()).0
}

/// The state after a change to both services, and the state before.
fn changed() -> (SavedState, SavedState) {
    let (mut bench, _) = Bench::new(vec![web(), shop()]);
    let before = state(&bench);
    let larger = ServiceConfig { table_size: 131_071.into(), ..shop() };
    let mut more = larger;
    more.backends.push(backend("shop3", "10.1.0.3:8080"));
    more.backends.remove(1);
    bench.reload(vec![web(), more]).unwrap();
    bench.admin("shop/shop1", Admin::Drain);
    bench.admin("web/web2", Admin::Drain);
    (state(&bench), before)
}

/// Asserts that the shop has its earlier settings, its earlier address, and the new state of its backend.
fn shop_stays(applied: &SavedState, after: &SavedState, before: &SavedState) {
    assert_eq!(applied.services[0], after.services[0]);
    let (shop, was, now) = (&applied.services[1], &before.services[1], &after.services[1]);
    assert_eq!(shop.settings, was.settings);
    // The removed backend is gone, and the added backend is missing.
    assert_eq!(shop.backends.iter().map(|of| of.config.name.as_str()).collect::<Vec<_>>(), ["shop1"]);
    assert_eq!((shop.backends[0].admin, shop.backends[0].id), (Admin::Drain, now.backends[0].id));
    let strange = now.backends.iter().map(|backend| backend.id).filter(|id| *id != shop.backends[0].id);
    assert_eq!(strange.count(), 1);
}

#[test]
fn when_everything_can_be_applied_then_the_state_is_unchanged() {
    let (after, before) = changed();
    let room =
        Room { lines: 99_999, services: 9, listeners: 99, returns: 99, backends: 16_384, flows: false, grows: false };
    for limits in [UNLIMITED, Limits { room: Some(&room), refused: None }] {
        for before in [None, Some(&before), Some(&after)] {
            let (applied, held_back) = as_far_as_possible(read(after.clone(), |_| true), before, limits);
            assert_eq!((applied, held_back), (after.clone(), Vec::new()));
        }
    }
}

#[test]
fn when_a_service_is_not_understood_or_refused_or_has_no_room_then_it_stays_and_its_backends_follow() {
    let (after, before) = changed();
    let fits = 2 * lines(65_537) + 3 * lines(131_071);
    let room =
        Room { lines: fits, services: 9, listeners: 99, returns: 99, backends: 16_384, flows: false, grows: false };
    let small = Room { lines: lines(65_537) + 3 * lines(131_071) - 1, ..room.clone() };
    let few = Room { backends: 7, ..room.clone() };
    let refused = Limits { room: Some(&room), refused: Some("the data path refused: no memory") };
    let limited = |room| Limits { room: Some(room), refused: None };
    for (limits, understood, why) in [
        (UNLIMITED, false, "because this balancer does not understand it: unknown word"),
        (refused, true, "because the data path refused: no memory"),
        (limited(&small), true, "because the lookup tables, with the free slots by which they are replaced, need"),
        (limited(&few), true, "because it has the backend id 7, and the data path has 7 rows"),
    ] {
        let understands = |service: &SavedService| understood || service.settings.name != "shop";
        let (applied, held_back) = as_far_as_possible(read(after.clone(), understands), Some(&before), limits);
        shop_stays(&applied, &after, &before);
        assert!(held_back[0].why.starts_with("service shop stays as it was, ") && held_back[0].why.contains(why));
        assert_eq!(held_back[0].strange, [after.services[1].backends[1].id]);
        // A member that did not have the service goes without it.
        let web_alone = before.clone().with_services(vec![before.services[0].clone()]).0;
        let (applied, held_back) = as_far_as_possible(read(after.clone(), understands), Some(&web_alone), limits);
        if why.contains("lookup tables") {
            continue;
        }
        assert_eq!(applied.services, after.services[..1]);
        assert!(held_back[0].why.starts_with("service shop is missing, because"), "{held_back:?}");
    }
    let (applied, held_back) = as_far_as_possible(read(after.clone(), |_| true), Some(&before), limited(&room));
    assert_eq!((applied, held_back), (after, Vec::new()));
}

#[test]
fn when_another_service_takes_the_address_of_a_service_that_stays_then_the_new_service_has_it() {
    let (mut bench, _) = Bench::new(vec![web(), shop()]);
    let before = state(&bench);
    let moved = ServiceConfig { listen: service("", "198.51.100.30:80", Forwarding::Nat, &[]).listen, ..shop() };
    let heir = service("heir", "198.51.100.20:80", Forwarding::Nat, &["heir1 10.2.0.1:8080"]);
    bench.reload(vec![web(), moved, heir]).unwrap();
    let understands = |service: &SavedService| service.settings.name != "shop";
    let (applied, held_back) = as_far_as_possible(read(state(&bench), understands), Some(&before), UNLIMITED);
    let names: Vec<&str> = applied.services.iter().map(|of| of.settings.name.as_str()).collect();
    assert_eq!(names, ["web", "heir"]);
    assert!(held_back[0].why.starts_with("service shop is missing"), "{held_back:?}");
    assert!(bench.controller.backend(&name("heir/heir1")).is_ok());
}

#[test]
fn when_a_service_that_stays_listens_within_the_ports_of_another_service_then_both_are_applied() {
    let (mut bench, _) = Bench::new(vec![web(), shop()]);
    let before = state(&bench);
    let larger = ServiceConfig { table_size: 131_071.into(), ..shop() };
    let all_ports = service("all", "198.51.100.30:80", Forwarding::Nat, &["all1 10.2.0.1:8080"]);
    bench.reload(vec![web(), larger, all_ports]).unwrap();
    let mut after = state(&bench);
    let mut everywhere = before.services[1].settings.listen.clone();
    (everywhere[0].ports.first, everywhere[0].ports.last) = (1, u16::MAX);
    after.services[2].settings.listen = everywhere;
    let understands = |service: &SavedService| service.settings.name != "shop";
    let (applied, held_back) = as_far_as_possible(read(after, understands), Some(&before), UNLIMITED);
    let names: Vec<&str> = applied.services.iter().map(|of| of.settings.name.as_str()).collect();
    assert_eq!(names, ["web", "shop", "all"]);
    assert!(held_back[0].why.starts_with("service shop stays as it was"), "{held_back:?}");
}
