//! Tests of changes that the data path cannot hold.

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::{BackendConfig, ServiceConfig},
    fixture::{backend, name, service, web},
};

use crate::{
    controller_test::Bench,
    io::{Change, Refused},
    room::{Room, Rooms, lines},
};

/// Room for this number of tables of the usual size.
fn tables(number: u32) -> Room {
    let lines = number * lines(65_537);
    Room { lines, services: 100, listeners: 1000, returns: 1000, backends: 16_384, flows: false, grows: false }
}

fn bench(room: Room) -> Bench {
    let mut bench = Bench::web();
    bench.controller.set_rooms(Rooms::own(room));
    bench
}

fn shop(number: u32) -> ServiceConfig {
    let address = format!("198.51.100.{}:80", 20 + number);
    service(&format!("shop{number}"), &address, Forwarding::Nat, &[&format!("shop{number} 10.1.0.{number}:8080")])
}

fn drop_in(number: u32, services: Vec<ServiceConfig>) -> Change {
    Change::SetDropIn { name: format!("shop{number}"), text: String::new(), services }
}

fn conflict(refused: Refused) -> String {
    let Refused::Conflict(why) = refused else { panic!("{refused:?}") };
    why
}

#[test]
fn when_drop_ins_fill_the_map_of_slots_then_the_last_one_leaves_room_for_swaps() {
    let mut bench = bench(tables(4));
    for number in 1..=2 {
        bench.change(drop_in(number, vec![shop(number)])).unwrap();
    }
    let before = bench.controller.generation();
    let planned = bench.controller.plan(drop_in(3, vec![shop(3)]), bench.now);
    let whole = vec![web(), shop(3)];
    for refused in
        [bench.change(drop_in(3, vec![shop(3)])).unwrap_err(), planned.unwrap_err(), bench.reload(whole).unwrap_err()]
    {
        let expected = "the lookup tables, with the free slots by which they are replaced, need 327,740 slots, and the data \
                        path has 262,192 slots; a restart makes room";
        assert_eq!(conflict(refused), expected);
    }
    assert_eq!((bench.controller.generation(), bench.controller.services().len()), (before, 3));
    bench.change(drop_in(1, Vec::new())).unwrap();
    bench.change(drop_in(3, vec![shop(3)])).unwrap();
}

#[test]
fn when_services_are_exchanged_then_the_old_and_the_new_tables_need_room_together() {
    let mut bench = bench(tables(3));
    bench.reload(vec![web(), shop(1)]).unwrap();
    // The new service gets its table before the old service loses its table.
    assert!(conflict(bench.reload(vec![web(), shop(2)]).unwrap_err()).contains("need 262,192 slots"));
    bench.reload(vec![web()]).unwrap();
    bench.reload(vec![web(), shop(2)]).unwrap();
}

#[test]
fn when_a_table_grows_then_it_needs_room_beside_the_old_table() {
    let sized = |size: u32| ServiceConfig { table_size: size.into(), ..web() };
    let room = |lines| Room { lines, ..tables(0) };
    // The larger table in place of the old one, beside the old one, and as many free lines.
    let least = 3 * lines(131_071);
    let refused = bench(room(least - 1)).reload(vec![sized(131_071)]).unwrap_err();
    assert!(conflict(refused).starts_with("the lookup tables"));
    bench(room(least)).reload(vec![sized(131_071)]).unwrap();
    bench(room(2 * lines(65_537))).reload(vec![sized(4099)]).unwrap();
}

#[test]
fn when_rows_do_not_suffice_then_the_refusal_says_which_and_smaller_needs_are_accepted() {
    let more = |name: &str| {
        let mut service = web();
        service.backends.push(BackendConfig { ..backend(name, "10.0.0.99:8080") });
        service
    };
    for (room, expected) in [
        (Room { services: 1, ..tables(9) }, "the services need room for 2 services, and the data path has 1"),
        (Room { listeners: 3, ..tables(9) }, "the services need room for 4 listener rows, and the data path has 3"),
        (Room { returns: 9, ..tables(9) }, "the services need room for 10 return rows, and the data path has 9"),
    ] {
        let refused = conflict(bench(room.clone()).reload(vec![web(), shop(1)]).unwrap_err());
        assert_eq!(refused, format!("{expected}; a restart makes room"));
    }
    let mut full = bench(Room { returns: 3, ..tables(9) });
    assert!(conflict(full.reload(vec![more("web9")]).unwrap_err()).contains("10 return rows"));
    full.remove("web/web1");
    assert!(full.controller.backend(&name("web/web2")).is_ok());
    let snat = service("proxy", "198.51.100.30:80", Forwarding::Snat, &["p1 10.1.0.1:8080"]);
    let refused = conflict(bench(tables(9)).change(drop_in(1, vec![snat])).unwrap_err());
    assert!(refused.contains("needs a table of connections"), "{refused}");
}

#[test]
fn when_one_of_several_members_has_no_room_then_the_refusal_names_it() {
    let mut bench = Bench::web();
    let rooms = [("lb1", tables(9)), ("lb2", tables(2)), ("lb3", tables(9))];
    bench.controller.set_rooms(Rooms::of_members(rooms.map(|(name, room)| (name.to_owned(), room)).into_iter()));
    let refused = conflict(bench.reload(vec![web(), shop(1)]).unwrap_err());
    assert!(refused.contains("and the data path of lb2 has 131,096 slots"), "{refused}");
}

#[test]
fn when_a_member_says_an_impossible_number_of_rows_then_the_nearest_possible_number_counts() {
    for (backends, rows) in [(0, 2), (1, 2), (16_384, 16_384), (16_385, 16_384), (u32::MAX, 65_536)] {
        let rooms = Rooms::own(Room { backends, ..tables(9) });
        assert_eq!(rooms.backend_rows(), Some(rows), "{backends}");
    }
}
