//! Tests of the work in the client table that remains after a change of `remember`. The data path rescans the client
//! table in eight parts; between two parts, known clients must keep their backends and their ages.

use std::{collections::HashMap, thread, time::Duration};

use anyhow::{Result, ensure};
use balancer_common::verdict::MoveCause;
use balancer_control::io::CheckOutcome;
use balancer_dataplane::Dataplane as _;
use balancer_fleet::{emptied::Emptied, member::Told};
use balancer_packet_model::world::{World, client};

const CLIENTS: u32 = 2_000;
/// The capacity of the client table; the data path rescans a table of this size in eight parts.
const ROOM: u32 = 50_000;
const PARTS: usize = 8;
/// A setting with ticks of two seconds.
const TWO_HOURS: &str = "remember = \"2h\"";
/// A setting with ticks of 22 seconds.
const DAY: &str = "remember = \"24h\"";
/// A setting with ticks of one second.
const MINUTE: &str = "remember = \"1m\"";
/// The largest error of an age in seconds: one tick with `DAY` and one tick with `TWO_HOURS`.
const MOST_SECONDS: u64 = 22 + 2;

/// Clients with even numbers have just sent a packet; clients with odd numbers sent their last packet half an hour ago.
/// The lookup table would send half of all clients to a backend other than their known backend.
fn world() -> Result<(World, HashMap<u32, String>)> {
    let mut world = World::new(TWO_HOURS, 4, ROOM)?;
    let homes: HashMap<u32, String> =
        (0..CLIENTS).map(|number| Ok((number, world.connect(client(number))?))).collect::<Result<_>>()?;
    for (backend, weight) in [("web1", 1), ("web2", 1)] {
        world.change_weight(backend, weight)?;
    }
    world.skip(1800)?;
    for number in (0..CLIENTS).step_by(2) {
        ensure!(world.connect(client(number))? == homes[&number], "{number} moved");
    }
    world.leave_rereading();
    Ok((world, homes))
}

fn age(number: u32) -> u64 {
    if number.is_multiple_of(2) { 0 } else { 1800 }
}

/// Checks that all clients are known and that their ages have grown by `more` seconds. An age may be wrong by one tick
/// of the old length and one tick of the new length.
#[track_caller]
fn assert_ages(world: &World, numbers: impl IntoIterator<Item = u32>, more: u64, when: &str) {
    for number in numbers {
        let seen = world.seen(client(number)).map(|seen| seen.as_secs());
        assert!(
            seen.is_some_and(|seen| seen.abs_diff(age(number) + more) <= MOST_SECONDS),
            "{when}: {number} was seen {seen:?} s ago instead of {}",
            age(number) + more
        );
    }
}

fn nobody_moves(world: &mut World, homes: &HashMap<u32, String>, numbers: impl Iterator<Item = u32>) -> Result<()> {
    for number in numbers {
        let to = world.connect(client(number))?;
        ensure!(to == homes[&number], "client {number} has moved from {} to {to}", homes[&number]);
    }
    Ok(())
}

#[test]
fn when_half_of_the_parts_are_done_then_all_clients_are_known_with_their_ages() -> Result<()> {
    let (mut world, homes) = world()?;
    world.reload(DAY, 4, ROOM)?;
    for part in 0..PARTS {
        let when = format!("after {part} parts");
        assert_ages(&world, 0..CLIENTS, 0, &when);
        // In this loop, packets find the entries of their clients, and refresh some entries.
        let some = (0..CLIENTS).skip(part).step_by(2 * PARTS).filter(|number| number % 2 == 0);
        nobody_moves(&mut world, &homes, some)?;
        // Half a minute passes without a sweep, and the ages stay the same.
        assert!(!world.wait(30), "{when}: a sweep has ended");
        assert_eq!(world.rescan(), part + 1 == PARTS, "{when}");
    }
    assert_ages(&world, 0..CLIENTS, 0, "after all parts");
    assert_eq!(world.forgotten(), 0);
    // From this point, the ages grow with the time.
    world.skip(50)?;
    assert_ages(&world, 0..CLIENTS, 50, "50 s later");
    nobody_moves(&mut world, &homes, 0..CLIENTS)?;
    assert_eq!(world.counters()?.moves, [0; MoveCause::COUNT]);
    Ok(())
}

#[test]
fn when_clients_are_too_old_then_they_are_forgotten_in_parts_and_new_ones_are_not() -> Result<()> {
    let (mut world, homes) = world()?;
    world.reload(MINUTE, 4, ROOM)?;
    let old: Vec<u32> = (0..CLIENTS).filter(|number| number % 2 == 1).collect();
    let shown: Vec<u32> = old.iter().copied().filter(|&number| world.seen(client(number)).is_some()).collect();
    assert!(shown.is_empty(), "too old for a minute, and shown as known: {shown:?}");
    // A sweep must not compare ages in the wrong unit, so no sweep may end.
    for _ in 0..2 * PARTS {
        assert!(!world.wait(0), "a sweep has ended");
        thread::sleep(Duration::from_millis(1));
    }
    let (back, gone) = old.split_at(100);
    nobody_moves(&mut world, &homes, back.iter().copied())?;
    while !world.rescan() {}
    assert_eq!(world.forgotten(), gone.len() as u64);
    let moved = world.counters()?.moved(MoveCause::Forgotten);
    let mut elsewhere = 0;
    for &number in gone {
        elsewhere += u64::from(world.connect(client(number))? != homes[&number]);
    }
    assert_eq!(moved, elsewhere);
    nobody_moves(&mut world, &homes, (0..CLIENTS).step_by(2).chain(back.iter().copied()))?;

    // From this point, packets also use ages in the new unit. The sweep handles one of the eight parts of the client
    // table.
    world.wait(90);
    let mut elsewhere = 0;
    for number in (0..CLIENTS).step_by(2) {
        elsewhere += u32::from(world.connect(client(number))? != homes[&number]);
    }
    assert!(elsewhere > CLIENTS / 10, "only {elsewhere} clients that were not seen for 90 s went by the table");
    Ok(())
}

#[test]
fn when_a_request_needs_ages_then_it_does_not_wait() -> Result<()> {
    type Asks = fn(&mut World) -> Result<()>;
    let asks: [(&str, Asks); 7] = [
        ("known clients", |world| {
            let mut ages = HashMap::<u64, u32>::new();
            let clients = world.dataplane_mut().known_clients();
            clients
                .into_iter()
                .for_each(|clients| clients.for_each(|_, seen| *ages.entry(seen.as_secs()).or_default() += 1));
            ensure!(ages.len() == 2 && ages.values().all(|&count| count == CLIENTS / 2), "{ages:?}");
            Ok(())
        }),
        ("a plan", |world| {
            let text = "[client_table]\ncapacity = 50000\n[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\n\
                        forwarding = \"dsr\"\nremember = \"10m\"\n[[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.11\"\n";
            let planned = world.plan(text)?;
            let forgotten: u64 = planned.services.iter().map(|of| of.known_clients_forgotten).sum();
            ensure!(forgotten == u64::from(CLIENTS / 2), "{forgotten} would be forgotten");
            Ok(())
        }),
        ("forgetting one", |world| {
            ensure!(world.forget(client(0))?.clients == 1);
            world.connect(client(0)).map(drop)
        }),
        ("another change", |world| world.reload("remember = \"3h\"", 4, ROOM).map(drop)),
        ("going back", |world| world.reload(TWO_HOURS, 4, ROOM).map(drop)),
        ("telling others", |world| {
            world.dataplane_mut().share_clients();
            let told = world.dataplane_mut().tell_clients(1, &HashMap::new(), usize::MAX).len();
            ensure!(told == CLIENTS as usize, "{told} told");
            ensure!(world.dataplane_mut().dump_clients(1).len() == told);
            Ok(())
        }),
        ("hearing from others", |world| {
            world.dataplane_mut().share_clients();
            world.dataplane_mut().import_clients(
                &Told { records: Vec::new(), precedes: false },
                1,
                &Emptied::default(),
            );
            Ok(())
        }),
    ];
    for (what, ask) in asks {
        let (mut world, homes) = world()?;
        world.reload(DAY, 4, ROOM)?;
        for _ in 0..PARTS / 2 {
            ensure!(!world.rescan());
        }
        ask(&mut world)?;
        while !world.rescan() {}
        assert_ages(&world, 0..CLIENTS, 0, what);
        nobody_moves(&mut world, &homes, 1..CLIENTS)?;
    }
    Ok(())
}

#[test]
fn when_a_backend_fails_between_two_parts_then_only_its_clients_move() -> Result<()> {
    let (mut world, homes) = world()?;
    world.reload(DAY, 4, ROOM)?;
    assert!(!world.rescan());
    world.checked("web3", &CheckOutcome::Hard("connect: refused".to_owned()), 3)?;
    while !world.rescan() {}
    for number in 0..CLIENTS {
        let to = world.connect(client(number))?;
        assert_eq!(to == homes[&number], homes[&number] != "web3", "client {number} of {} at {to}", homes[&number]);
    }
    Ok(())
}
