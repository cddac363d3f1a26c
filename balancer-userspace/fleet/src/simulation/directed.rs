//! Directed scenarios: failures that need several events at the same moment, which the tests cause on purpose.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use balancer_config::{
    config::{Failback, ServiceConfig},
    names::BackendName,
};
use balancer_control::{
    health::Verdict,
    io::{Change, ServiceId},
    service::Service,
};

use super::{
    setup::Setup,
    world::{World, service},
};
use crate::{keys, member::Mutation};

/// The address of a backend that the first service has from the start.
const STARTS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The address of the backend that users add.
const ADDED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const CLIENTS: u32 = 300;

fn add() -> Change {
    let name = BackendName { service: "web".to_owned(), backend: "b5".to_owned() };
    Change::Add {
        name,
        address: ADDED.into(),
        address6: None,
        port: Some(80),
        weight: None,
        backup: false,
        limits: Default::default(),
    }
}

/// Returns every member's lookup table for the first service.
fn tables(world: &World) -> Vec<Vec<u16>> {
    world.nodes.iter().flatten().filter_map(|node| Some(node.plane.table(ServiceId(0))?.to_vec())).collect()
}

fn web() -> ServiceConfig {
    service("web", "198.51.100.1:80", Failback::Stay)
}

/// Makes a user request the addition of a backend from the leader.
fn ask_for_one_more(world: &mut World) {
    let leader = world.leader();
    world.ask(leader, add());
}

/// Makes a fleet of three members that agree, with a service that uses slow start.
fn fleet(seed: u64, slow_start: Duration) -> World {
    let mut web = web();
    web.slow_start = slow_start;
    agreeing(seed, web, None)
}

fn agreeing(seed: u64, web: ServiceConfig, mutation: Option<Mutation>) -> World {
    let mut world = World::of_three(seed, web, mutation);
    world.settle();
    world
}

/// Returns the indices of the two members that are not the leader.
fn followers(world: &World) -> [usize; 2] {
    let leader = world.leader();
    [(leader + 1) % 3, (leader + 2) % 3]
}

/// Returns the backends of many clients, if the connections of all clients reach this member.
fn answers(world: &World, member: usize) -> Vec<Option<u16>> {
    (0..CLIENTS).map(|client| world.packet_at(member, client)).collect()
}

fn differences(some: &[Option<u16>], others: &[Option<u16>]) -> usize {
    some.iter().zip(others).filter(|(one, other)| one != other).count()
}

/// Makes a backend fail, return, and start slowly.
fn begin_slowly(world: &mut World) {
    let before = tables(world);
    world.dead.insert(STARTS);
    world.pass(3000);
    world.dead.clear();
    world.pass(2000);
    assert!(tables(world).iter().all(|table| *table != before[0]), "it begins slowly");
}

#[test]
fn when_a_leader_has_given_up_a_write_then_it_is_refused_if_it_comes_late() {
    for key in [keys::NEXT, keys::EPOCH] {
        let mut world = fleet(1, Duration::ZERO);
        let leader = world.leader();
        world.store.delays = Some((key, 1500));
        world.ask(leader, add());
        world.pass(10_000);
        assert_eq!((world.store.delays, world.store.late_made), (None, 0), "{key}");
        world.settle();
    }
}

#[test]
fn when_no_member_led_for_a_while_then_the_next_leader_writes_what_is_due() {
    let mut world = fleet(2, Duration::from_secs(10));
    let before = tables(&world);
    begin_slowly(&mut world);
    // The whole slow start passes while there is no leader.
    world.store.down = true;
    world.pass(15_000);
    world.settle();
    assert_eq!(tables(&world), before);
}

#[test]
fn when_a_member_was_alone_then_it_forgets_its_own_slow_starts() {
    // The slow start has ten steps, so no step falls into the test, and the leader writes nothing.
    let mut world = fleet(3, Duration::from_secs(600));
    let lonely = (world.leader() + 1) % 3;
    begin_slowly(&mut world);
    world.agree();
    let begun = tables(&world);
    world.lose_store(lonely);
    world.pass(8000);
    world.cut.insert((lonely, STARTS));
    world.pass(2000);
    assert_ne!(tables(&world)[lonely], begun[lonely], "it sees a backend down");
    world.cut.clear();
    world.store.lines[lonely].cut = false;
    world.pass(8000);
    world.agree();
    assert_eq!(tables(&world), begun);
}

/// Returns whether the fleet considers an added backend up although no member reaches it.
fn holds_up_what_nobody_reaches(mutation: Option<Mutation>) -> bool {
    let setup = Setup { members: 3, failback: false, two_services: false, spread: true };
    let mut world = World::new(4, &setup, mutation);
    world.settle();
    let leader = world.leader();
    world.dead.insert(ADDED.into());
    world.ask(leader, add());
    (0..400).any(|_| {
        world.pass(10);
        let services = world.nodes.iter().flatten().flat_map(|node| node.controller.services());
        let mut added = services.flat_map(Service::backends).filter(|backend| backend.address().ip() == ADDED);
        added.any(|backend| *backend.agreed().1 == Verdict::Up)
    })
}

#[test]
fn when_a_backend_is_new_then_it_is_not_up_before_a_member_has_seen_it_up() {
    assert!(!holds_up_what_nobody_reaches(None));
    assert!(holds_up_what_nobody_reaches(Some(Mutation::VotesForOtherEpochs)));
}

/// A user requests the addition of a backend while new clients reach a member that cannot report these clients at once.
/// These clients reach another member as soon as the backend is in the other member's lookup table. The function
/// returns the number of clients that moved.
fn moved_by_a_change(mutation: Option<Mutation>) -> usize {
    let mut world = agreeing(6, web(), mutation);
    let [one, other] = followers(&world);
    let table = &tables(&world)[other];
    ask_for_one_more(&mut world);
    let before = answers(&world, one);
    world.stop(one, 1500);
    for _ in 0..1000 {
        if tables(&world)[other] != *table {
            return differences(&before, &answers(&world, other));
        }
        world.pass(10);
    }
    panic!("the backend is in no table");
}

#[test]
fn when_a_member_has_newcomers_then_another_that_applies_a_change_knows_them() {
    assert_eq!(moved_by_a_change(None), 0);
    assert!(moved_by_a_change(Some(Mutation::CommitsWithoutWaiting)) > 20);
}

/// Returns whether the remaining members start to use a backend although one member has disappeared for good.
fn goes_on_without_one(mutation: Option<Mutation>) -> bool {
    let mut world = agreeing(7, web(), mutation);
    let [one, _] = followers(&world);
    world.kill(one, true);
    let before = tables(&world);
    world.pass(10_000);
    ask_for_one_more(&mut world);
    world.pass(20_000);
    before != tables(&world)
}

#[test]
fn when_a_member_is_gone_then_the_others_do_not_wait_for_it() {
    assert!(goes_on_without_one(None));
    assert!(!goes_on_without_one(Some(Mutation::StaysWithoutLease)));
}

/// Clients send packets through only one member, for longer than the service remembers a silent client; then the
/// machine of that member disappears. The function returns the number of clients that moved.
fn moved_after_a_long_time(mutation: Option<Mutation>) -> usize {
    let mut web = web();
    web.remember = Duration::from_secs(60);
    let mut world = agreeing(8, web, mutation);
    let [one, other] = followers(&world);
    let before = answers(&world, one);
    world.pass(3000);
    ask_for_one_more(&mut world);
    for _ in 0..50 {
        world.pass(2000);
        assert_eq!(answers(&world, one), before);
    }
    world.kill(one, true);
    differences(&before, &answers(&world, other))
}

#[test]
fn when_clients_keep_talking_to_one_member_then_the_others_know_them() {
    assert_eq!(moved_after_a_long_time(None), 0);
    assert!(moved_after_a_long_time(Some(Mutation::TellsOnce)) > 20);
}

/// All clients of a failed backend become known at other backends; when the failed backend is up again, they return to
/// it through one member. Then a user adds another backend, which gets the slots of some clients of the failed backend.
/// The function returns the number of clients that are not at the backend of their slot when they reach another member.
fn moved_home(mutation: Option<Mutation>) -> usize {
    let mut web = web();
    web.failback = Failback::Return;
    let mut world = agreeing(9, web, mutation);
    let [one, other] = followers(&world);
    let before = answers(&world, one);
    world.pass(3000);
    world.dead.insert(STARTS);
    world.pass(4000);
    assert!(differences(&before, &answers(&world, one)) > 50);
    world.pass(3000);
    world.dead.clear();
    world.pass(4000);
    assert_eq!(answers(&world, one), before);
    world.pass(3000);
    ask_for_one_more(&mut world);
    world.pass(10_000);
    differences(&before, &answers(&world, other))
}

#[test]
fn when_a_client_moves_home_then_the_others_know() {
    assert_eq!(moved_home(None), 0);
    assert!(moved_home(Some(Mutation::ForgetsMoves)) > 5);
}

/// A member receives nothing while a backend fails and returns; at the same time, new machines, which know no clients,
/// replace all other members. The function returns the number of clients that this member moves back to the backend at
/// which it knew them.
fn moved_by_one_who_was_away(mutation: Option<Mutation>) -> usize {
    let mut world = agreeing(12, web(), mutation);
    let ([one, away], leader) = (followers(&world), world.leader());
    let before = answers(&world, one);
    world.pass(3000);
    world.lose_store(away);
    world.pass(8000);
    world.dead.insert(STARTS);
    world.pass(4000);
    [one, leader].iter().for_each(|&index| world.kill(index, true));
    // The records that these members sent disappear with the leases.
    world.pass(8000);
    [one, leader].iter().for_each(|&index| world.start(index));
    world.pass(10_000);
    let after = answers(&world, one);
    assert!(differences(&before, &after) > 50);
    world.pass(3000);
    world.dead.clear();
    world.pass(4000);
    world.settle();
    differences(&after, &answers(&world, one))
}

#[test]
fn when_a_member_was_away_then_it_moves_no_client_back_to_a_backend_that_has_failed() {
    assert_eq!(moved_by_one_who_was_away(None), 0);
    assert!(moved_by_one_who_was_away(Some(Mutation::ForgetsWhoHadToLeave)) > 50);
}

/// All clients of a failed backend reach all three members before any of the members has reported a move. The function
/// returns the number of clients, and the number of moves that the members counted.
fn count_moves() -> (usize, u64) {
    let mut world = agreeing(10, web(), None);
    let [one, _] = followers(&world);
    let before = answers(&world, one);
    world.pass(3000);
    world.dead.insert(STARTS);
    let table = tables(&world);
    let mut made = 0;
    while tables(&world).iter().zip(&table).any(|(now, then)| now == then) {
        world.pass(10);
    }
    let after = answers(&world, one);
    for member in 0..3 {
        made += differences(&before, &after) as u64;
        assert_eq!(answers(&world, member), after);
    }
    world.pass(5000);
    let repeated: u64 = world.nodes.iter().flatten().map(|node| node.repeated).sum();
    (differences(&before, &after), made - repeated)
}

#[test]
fn when_several_members_make_a_move_then_it_is_counted_once() {
    let (clients, counted) = count_moves();
    assert!(clients > 50, "{clients}");
    assert_eq!(counted, clients as u64);
}

#[test]
fn when_records_come_while_no_epoch_can_be_applied_then_they_are_asked_for_again() {
    let mut world = agreeing(11, web(), None);
    let [one, other] = followers(&world);
    let before = answers(&world, one);
    world.pass(3000);
    let epoch = world.store.get(keys::EPOCH).expect("an epoch").to_vec();
    world.vandalize(keys::EPOCH.to_owned(), b"garbage".to_vec());
    for clients in 1..=9 {
        (clients * 1000..clients * 1000 + 60).for_each(|client| {
            let _ = world.packet_at(one, client);
        });
        world.pass(1500);
    }
    let is_in_step = |world: &World| world.nodes[other].as_ref().is_some_and(|node| node.member.is_in_step());
    assert!(!is_in_step(&world), "it keeps everything that it is told");
    world.vandalize(keys::EPOCH.to_owned(), epoch);
    world.settle();
    assert_eq!(answers(&world, other), before);
}
