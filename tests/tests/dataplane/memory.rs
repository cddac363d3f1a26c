//! Tests of client memory: which clients stay, which clients move for which reason, and what the counters show. The
//! kernel program and the controller's core run in one process, with ten thousand clients.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use balancer_common::{
    client_table::{BUCKET_ENTRIES, Entry},
    verdict::{Decision, MoveCause},
};
use balancer_config::states::Admin;
use balancer_control::io::{Change, CheckOutcome, ServiceId};
use balancer_dataplane::{Dataplane as _, Forgotten};
use balancer_packet_model::world::{VIP, World, client, named};
use balancer_testkit::frame::{ACK, Frame, SYN};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

const CLIENTS: u32 = 10_000;
const REMEMBER: &str = "remember = \"60s\"\ndrain = { timeout = \"20s\" }";

fn refused() -> CheckOutcome {
    CheckOutcome::Hard("connect: refused".to_owned())
}

/// Connects every client once, and returns the clients' backends.
fn connect_all(world: &mut World) -> Result<HashMap<u32, String>> {
    (0..CLIENTS).map(|number| Ok((number, world.connect(client(number))?))).collect()
}

/// Checks that every client is still at the same backend.
#[track_caller]
fn assert_nobody_moved(before: &HashMap<u32, String>, after: &HashMap<u32, String>, when: &str) {
    let moved = moved(before, after);
    assert!(moved.is_empty(), "{} of {} clients moved {when}, one is {}", moved.len(), before.len(), moved[0]);
}

/// Returns the clients that have changed their backend.
fn moved(before: &HashMap<u32, String>, after: &HashMap<u32, String>) -> Vec<u32> {
    before.iter().filter(|(number, backend)| after.get(number) != Some(backend)).map(|(&number, _)| number).collect()
}

fn at(homes: &HashMap<u32, String>, backend: &str) -> usize {
    homes.values().filter(|name| *name == backend).count()
}

#[test]
fn when_backends_are_added_weighed_drained_and_return_then_known_clients_stay() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    let counters = world.counters()?;
    assert_eq!((counters.connections, counters.decided(Decision::New)), (u64::from(CLIENTS), u64::from(CLIENTS)));
    world.pass(2)?;

    world.add("web5", 5)?;
    for (weight, backend) in [(10, "web1"), (300, "web2"), (7, "web3"), (1, "web4"), (500, "web5")] {
        world.change(Change::SetWeight { name: named(backend), weight })?;
    }
    world.admin("web2", Admin::Drain, None)?;
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "while web2 drains");
    assert_eq!(world.shown("web2")?.0, "draining");
    assert!((0..2000).all(|number| world.connect(client(1_000_000 + number)).is_ok_and(|to| to != "web2")));
    world.pass(2)?;
    assert_eq!(world.shown("web2")?.1, at(&homes, "web2") as u64, "known clients of web2");
    world.admin("web2", Admin::Ready, None)?;
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "after web2 has returned");

    let counters = world.counters()?;
    assert_eq!(counters.decided(Decision::Kept), 2 * u64::from(CLIENTS));
    assert_eq!(counters.decided(Decision::New), u64::from(CLIENTS) + 2000);
    assert_eq!(counters.moves, [0; MoveCause::COUNT]);
    assert_eq!(counters.decisions.iter().sum::<u64>(), counters.connections);
    Ok(())
}

#[test]
fn when_a_share_of_the_clients_is_steered_then_the_others_are_known_before_they_come() -> Result<()> {
    const FEW: u32 = 2000;
    let mut world = World::new(&format!("{REMEMBER}\nsteer = 10"), 4, 262_144)?;
    let send_all = |world: &mut World| -> Result<usize> {
        (0..FEW).map(|number| Ok(usize::from(world.send(client(number), SYN)?.is_some()))).sum()
    };
    let steered = send_all(&mut world)?;
    assert!((100..300).contains(&steered), "{steered}");
    world.pass(2)?;
    // A backend is added, and the clients go on for longer than the memory lasts.
    world.add("web5", 5)?;
    for _ in 0..15 {
        world.pass(6)?;
        assert_eq!(send_all(&mut world)?, steered);
    }
    let counters = world.counters()?;
    assert_eq!(counters.connections, 16 * steered as u64, "what the host serves is not counted");
    assert_eq!(counters.decisions.iter().sum::<u64>(), counters.connections);
    world.change(Change::SetSteer { service: named("").service, steer: 100 })?;
    let new = (0..FEW).filter(|&number| world.connect(client(number)).is_ok_and(|to| to == "web5")).count();
    assert_eq!(new, 0, "the memory names the backends that the clients had when web5 was added");
    assert_eq!(world.counters()?.decided(Decision::New), steered as u64);
    Ok(())
}

#[test]
fn when_a_backend_fails_hard_then_exactly_its_clients_move_once_each() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.pass(1)?;
    world.checked("web3", &refused(), 3)?;
    assert_eq!(world.shown("web3")?.0, "down");
    let after = connect_all(&mut world)?;
    let gone = moved(&homes, &after);
    assert!(gone.iter().all(|number| homes[number] == "web3"));
    assert_eq!(gone.len(), at(&homes, "web3"));
    assert_eq!(world.counters()?.moved(MoveCause::Down), gone.len() as u64);
    for backend in ["web1", "web2", "web4"] {
        let more = at(&after, backend) - at(&homes, backend);
        assert!(more.abs_diff(gone.len() / 3) < gone.len() / 30, "{backend} took over {more} of {}", gone.len());
    }

    world.pass(1)?;
    world.checked("web3", &CheckOutcome::Passed, 2)?;
    assert_eq!(world.shown("web3")?.0, "up");
    assert_nobody_moved(&after, &connect_all(&mut world)?, "failback = \"stay\"");
    let counters = world.counters()?;
    assert_eq!(counters.moves.iter().sum::<u64>(), gone.len() as u64, "nobody was moved twice");
    assert_eq!(counters.decided(Decision::Moved), gone.len() as u64);
    Ok(())
}

#[test]
fn when_failback_is_return_then_exactly_the_moved_clients_go_home() -> Result<()> {
    let mut world = World::new(&format!("{REMEMBER}\nfailback = \"return\""), 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.checked("web3", &refused(), 3)?;
    let after = connect_all(&mut world)?;
    let away = moved(&homes, &after).len() as u64;
    world.checked("web3", &CheckOutcome::Passed, 2)?;
    for number in 0..CLIENTS {
        assert_eq!(world.send(client(number), ACK)?.as_ref(), after.get(&number), "in the middle of a connection");
    }
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "all at home");
    assert_eq!(world.counters()?.moved(MoveCause::Failback), away);

    world.add("web5", 5)?;
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "a new backend takes nobody who was not away");
    Ok(())
}

#[test]
fn when_a_drain_reaches_its_deadline_or_its_last_client_leaves_then_it_ends() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.admin("web1", Admin::Drain, Some(Duration::from_secs(5)))?;
    world.pass(4)?;
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "before the deadline");
    world.pass(1)?;
    assert_eq!(world.shown("web1")?.0, "drained");
    let after = connect_all(&mut world)?;
    assert_eq!(moved(&homes, &after).len(), at(&homes, "web1"));
    assert_eq!(world.counters()?.moved(MoveCause::Drain), at(&homes, "web1") as u64);

    // After a minute of silence, the balancer has forgotten all clients, so a drain need not wait for any client.
    world.pass(62)?;
    world.admin("web2", Admin::Drain, Some(Duration::from_secs(3600)))?;
    world.pass(3)?;
    assert_eq!(world.shown("web2")?, ("drained", 0));
    Ok(())
}

#[test]
fn when_a_backend_is_in_maintenance_or_removed_then_its_clients_move_at_once_with_that_reason() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.admin("web1", Admin::Maint, None)?;
    let after = connect_all(&mut world)?;
    assert!(moved(&homes, &after).iter().all(|number| homes[number] == "web1"));
    assert_eq!(world.counters()?.moved(MoveCause::Maint), at(&homes, "web1") as u64);

    world.change(Change::Remove { name: named("web2"), force: true })?;
    // The controller must not reuse a backend's id while entries of the client table name the id: clients known at web2
    // must not become clients of web9.
    world.add("web9", 9)?;
    let last = connect_all(&mut world)?;
    assert!(moved(&after, &last).iter().all(|number| after[number] == "web2"));
    assert_eq!(at(&last, "web2"), 0);
    assert_eq!(world.counters()?.moved(MoveCause::Removed), at(&after, "web2") as u64);
    assert_eq!(world.controller().gone().len(), 1);
    world.pass(3)?;
    assert_eq!(world.controller().gone().len(), 0, "nobody is known at web2 any more");
    assert_eq!(world.counters()?.moved(MoveCause::Removed), at(&after, "web2") as u64, "and it stays counted");
    Ok(())
}

#[test]
fn when_a_backend_is_removed_without_force_then_it_drains_first() -> Result<()> {
    let mut world = World::new(REMEMBER, 3, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.pass(1)?;
    let message = world.change(Change::Remove { name: named("web2"), force: false })?;
    assert!(message.contains("drains before it is removed"), "{message}");
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "");
    world.pass(20)?;
    assert!(world.shown("web2").is_err(), "removed at the deadline");
    let after = connect_all(&mut world)?;
    assert_eq!(moved(&homes, &after).len(), at(&homes, "web2"));
    assert_eq!(world.counters()?.moved(MoveCause::Drain), at(&homes, "web2") as u64);
    Ok(())
}

#[test]
fn when_the_memory_time_has_passed_then_clients_are_forgotten_and_not_before() -> Result<()> {
    let mut world = World::new("remember = \"10s\"", 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    // One client sends one packet per second, and a second client sends 50 packets per second; neither client sends
    // another SYN.
    for _ in 0..30 {
        world.pass(1)?;
        world.send(client(1), ACK)?;
        (0..50).try_for_each(|_| world.send(client(2), ACK).map(drop))?;
    }
    let known: u64 = ["web1", "web2", "web3", "web4"].iter().map(|name| world.shown(name).map_or(0, |s| s.1)).sum();
    assert_eq!(known, 2, "all others were silent for 30 s");
    world.add("web5", 5)?;
    world.add("web6", 6)?;
    for number in [1, 2] {
        assert_eq!(world.connect(client(number))?, homes[&number]);
    }
    assert_eq!(world.counters()?.decided(Decision::Kept), 2);
    assert!(!moved(&homes, &connect_all(&mut world)?).is_empty(), "the forgotten follow the new table");
    assert_eq!(world.counters()?.moves, [0; MoveCause::COUNT], "and are not moved clients, but new ones");
    Ok(())
}

/// Opens a connection for each client, and makes each client send a packet every `every` seconds for one and a half
/// times `remember`. New backends then take over slots. Returns the number of clients whose next packet reaches another
/// backend.
fn cut(remember: u64, every: u64, clients: u32) -> Result<usize> {
    let mut world = World::new(&format!("remember = \"{remember}s\""), 4, 65_536)?;
    let homes: HashMap<u32, String> =
        (0..clients).map(|number| Ok((number, world.connect(client(number))?))).collect::<Result<_>>()?;
    let packets = |world: &mut World| -> Result<usize> {
        let mut elsewhere = 0;
        for (&number, home) in &homes {
            elsewhere += usize::from(world.send(client(number), ACK)?.as_ref() != Some(home));
        }
        Ok(elsewhere)
    };
    for _ in 0..(remember + remember / 2) / every {
        world.skip(every)?;
        assert_eq!(packets(&mut world)?, 0);
    }
    for number in 5..=8 {
        world.add(&format!("web{number}"), number)?;
    }
    world.skip(every)?;
    packets(&mut world)
}

#[test]
fn when_connections_are_sparse_then_their_clients_stay_known_at_any_rhythm() -> Result<()> {
    let rhythms: [(u64, &[u64]); 6] = [
        (1, &[1]),
        (15, &[1]),
        (16, &[2]),
        (32, &[1, 4]),
        (60, &[2, 7]),
        // A memory of 3 hours, with common keep-alive intervals and with silences of up to an eighth of the 3 hours.
        (10_800, &[60, 675, 1350]),
    ];
    for (remember, rhythms) in rhythms {
        for &every in rhythms {
            assert_eq!(cut(remember, every, 400)?, 0, "connections cut: a packet every {every} s of {remember} s");
        }
    }
    Ok(())
}

/// Returns a world to which the test has added web5, the backend of each client, and the clients that the lookup table
/// would send to web5.
fn with_web5() -> Result<(World, HashMap<u32, String>, Vec<u32>)> {
    let mut world = World::new("remember = \"3h\"", 4, 65_536)?;
    let homes: HashMap<u32, String> =
        (0..400).map(|number| Ok((number, world.connect(client(number))?))).collect::<Result<_>>()?;
    world.pass(3)?;
    world.add("web5", 5)?;
    let elsewhere = (0..400).filter(|&number| world.home(client(number)).is_ok_and(|home| home == [1, 5])).collect();
    Ok((world, homes, elsewhere))
}

#[test]
fn when_an_entry_is_written_late_then_its_slot_is_flagged() -> Result<()> {
    let (mut world, homes, elsewhere) = with_web5()?;
    let number = elsewhere[0];
    let before = world.entries()?;
    assert_eq!(world.forget(client(number))?, Forgotten { clients: 1, moved: 1 });
    // During the pass, the sweep clears the slot's flag.
    world.pass(5)?;
    assert_eq!(world.send(client(number), ACK)?.as_deref(), Some("web5"));
    world.write_late(&before)?;
    world.pass(1)?;
    for flags in [SYN, ACK] {
        assert_eq!(world.send(client(number), flags)?.as_ref(), Some(&homes[&number]), "flags {flags:#x}");
    }
    Ok(())
}

#[test]
fn when_an_entry_of_a_forgotten_client_is_written_late_then_it_is_forgotten_again() -> Result<()> {
    let (mut world, homes, elsewhere) = with_web5()?;
    let number = elsewhere[0];
    let before = world.entries()?;
    assert_eq!(world.forget(client(number))?, Forgotten { clients: 1, moved: 1 });
    world.write_late(&before)?;
    world.pass(2)?;
    for flags in [ACK, SYN, ACK] {
        assert_eq!(world.send(client(number), flags)?.as_deref(), Some("web5"), "flags {flags:#x}");
    }

    let before = world.entries()?;
    assert_eq!(world.forget_all("web1")?, at(&homes, "web1") as u64 - u64::from(homes[&number] == "web1"));
    world.write_late(&before)?;
    world.pass(2)?;
    for (&number, home) in &homes {
        let [net, host] = world.home(client(number))?;
        let table = format!("web{}", if net == 1 { host } else { host - 10 });
        let to = if home == "web1" || number == elsewhere[0] { &table } else { home };
        assert_eq!(&world.connect(client(number))?, to, "client {number} of {home}");
    }
    Ok(())
}

#[test]
fn when_packets_are_on_their_way_then_passes_over_the_client_table_wait() -> Result<()> {
    let mut world = World::new("remember = \"3h\"", 1, 64)?;
    world.pass(1)?;
    assert!(world.passes(1000) < 500, "each is a pass, were it not for that");
    Ok(())
}

#[test]
fn when_no_client_is_away_from_its_slots_backend_then_exceptions_are_cleared() -> Result<()> {
    let mut world = World::new("remember = \"10s\"", 4, 262_144)?;
    connect_all(&mut world)?;
    assert_eq!(world.dataplane().memory()?.exceptions, 0, "the first table has none");
    world.add("web5", 5)?;
    let flagged = world.dataplane().memory()?.exceptions;
    assert!((12_000..15_000).contains(&flagged), "{flagged} slots changed");
    world.pass(4)?;
    let left = world.dataplane().memory()?.exceptions;
    assert!((1..=2200).contains(&left), "{left} slots with some of the 10,000 clients elsewhere");
    world.pass(12)?;
    assert_eq!(world.dataplane().memory()?.exceptions, 0, "everybody is forgotten");
    Ok(())
}

/// Creates a world with two services that records 4,096 new clients per second. Each of the two services has a share of
/// 1,024 new clients per second.
fn two_services() -> Result<World> {
    let settings = "remember = \"3h\"\n[[service.backend]]\nname = \"more\"\naddress = \"10.0.0.99\"\n[[service]]\n\
                    name = \"other\"\naddress = \"198.51.100.20:80\"\nforwarding = \"dsr\"\nremember = \"3h\"";
    World::new(settings, 2, 16_384)
}

fn flood(world: &mut World, to: &str, first: u32, count: u32) -> Result<()> {
    for number in first..first + count {
        let frame = Frame {
            source: SocketAddr::new(Ipv4Addr::from(0x2000_0000 + number).into(), 40_000),
            ..Frame::tcp("192.0.2.1:40000", to, SYN)
        };
        world.deliver(&frame)?;
    }
    Ok(())
}

fn inserted(world: &World) -> Result<u64> {
    Ok(world.dataplane().memory()?.stats.inserted)
}

#[test]
fn when_one_service_is_flooded_then_new_clients_of_another_keep_their_share() -> Result<()> {
    let mut world = two_services()?;
    world.hold_newcomers()?;
    flood(&mut world, VIP, 0, 6000)?;
    assert_eq!(inserted(&world)?, 3072, "its own share, and all that is beyond the services' shares");
    flood(&mut world, "198.51.100.20:80", 10_000, 1500)?;
    assert_eq!(inserted(&world)?, 4096, "the other's share");
    Ok(())
}

#[test]
fn when_all_cpus_record_new_clients_then_the_limit_per_second_holds() -> Result<()> {
    let mut world = two_services()?;
    world.hold_newcomers()?;
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    for cpu in (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).is_ok_and(|is| is)).take(4) {
        let mut one = CpuSet::new();
        one.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        flood(&mut world, VIP, 10_000 * cpu as u32, 3500)?;
    }
    sched_setaffinity(Pid::from_raw(0), &allowed)?;
    assert_eq!(inserted(&world)?, 3072);
    Ok(())
}

#[test]
fn when_no_controller_runs_then_new_clients_are_recorded() -> Result<()> {
    let mut world = two_services()?;
    // The pause is longer than a period of the clock in the kernel program. No controller runs in this test, so the
    // clocks of the services stand still.
    for round in 0..3 {
        flood(&mut world, VIP, 10_000 * round, 3500)?;
        std::thread::sleep(Duration::from_millis(1100));
    }
    assert!(inserted(&world)? >= 3 * 3072);
    Ok(())
}

#[test]
fn when_a_client_has_one_connection_then_it_is_established_after_seconds() -> Result<()> {
    let mut world = World::new("remember = \"3h\"", 4, 65_536)?;
    (0..400).try_for_each(|number| world.connect(client(number)).map(drop))?;
    for _ in 0..12 {
        world.pass(1)?;
        (0..400).try_for_each(|number| world.send(client(number), ACK).map(drop))?;
    }
    let entries = world.entries()?;
    let entries = entries.values().flatten().filter(|&&word| word != 0).map(|&word| Entry(word));
    let late = entries.filter(|entry| !entry.established()).count();
    // In the filter of seen clients, about one client in ten thousand shares its bit with another client of the same
    // period.
    assert!(late <= 1, "{late} of 400 are not established");
    Ok(())
}

#[test]
fn when_a_known_client_sends_datagrams_then_its_entry_is_read_once_in_a_period() -> Result<()> {
    let mut world = World::of(
        "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:53\"\nprotocol = \"udp\"\nforwarding = \"dsr\"\n\
         remember = \"3h\"\n[[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.11\"\n",
    )?;
    let frame = Frame::udp("172.16.0.9:40000", "198.51.100.10:53");
    // The first packet records the client, the second packet finds the client's entry, and the third packet finds an
    // established entry.
    for packets in 1..=3 {
        world.deliver(&frame)?;
        assert_eq!((inserted(&world)?, world.counters()?.connections), (1, 1), "after {packets}");
    }
    let entries = world.entries()?;
    assert_eq!(entries.len(), 1);
    let nobody = entries.keys().map(|&bucket| (bucket, [0; BUCKET_ENTRIES])).collect();
    world.write_late(&nobody)?;
    world.deliver(&frame)?;
    assert_eq!(inserted(&world)?, 1, "within the period the entry is not read");
    world.pass(9)?;
    world.deliver(&frame)?;
    assert_eq!((inserted(&world)?, world.counters()?.connections), (2, 2), "in the next one it is");
    Ok(())
}

#[test]
fn when_a_known_client_is_silent_for_half_a_minute_then_its_next_datagram_begins_a_connection() -> Result<()> {
    let mut world = World::of(
        "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:53\"\nprotocol = \"udp\"\nforwarding = \"dsr\"\n\
         remember = \"60s\"\n[[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.11\"\n\
         [[service.backend]]\nname = \"web2\"\naddress = \"10.0.0.12\"\n",
    )?;
    let frame = Frame::udp("172.16.0.9:40000", "198.51.100.10:53");
    let deliver = |world: &mut World| -> Result<(u64, u64)> {
        world.deliver(&frame)?;
        let counters = world.counters()?;
        Ok((counters.connections, counters.decided(Decision::Kept)))
    };
    assert_eq!(deliver(&mut world)?, (1, 0));
    world.pass(28)?;
    assert_eq!(deliver(&mut world)?, (1, 0), "the same connection goes on");
    world.pass(31)?;
    assert_eq!(deliver(&mut world)?, (2, 1), "it is known, and begins another");
    Ok(())
}

#[test]
fn when_clients_are_remembered_for_hours_then_an_established_ones_entry_is_read_once_in_minutes() -> Result<()> {
    let mut world = World::new("remember = \"3h\"", 4, 65_536)?;
    world.connect(client(1))?;
    // Until the client is established, every packet may establish it.
    world.send(client(1), ACK)?;
    world.pass(4)?;
    world.send(client(1), ACK)?;
    assert!(world.entries()?.values().flatten().any(|&word| Entry(word).established()));
    let entries = world.entries()?;
    let nobody = entries.keys().map(|&bucket| (bucket, [0; BUCKET_ENTRIES])).collect();
    for second in (0..150).step_by(5) {
        world.write_late(&nobody)?;
        world.send(client(1), ACK)?;
        assert_eq!(inserted(&world)?, 1, "after {second} s");
        world.pass(5)?;
    }
    world.pass(20)?;
    world.send(client(1), ACK)?;
    assert_eq!(inserted(&world)?, 2, "in the next period its entry is read");
    Ok(())
}

/// If other clients have already set both filter bits of a new client, the program does not look for the new client's
/// entry before the next period.
#[test]
fn when_many_udp_clients_come_at_once_then_all_are_known_within_seconds() -> Result<()> {
    const NEWCOMERS: u32 = 20_000;
    let mut world = World::of(
        "[client_table]\ncapacity = 65536\n[[service]]\nname = \"web\"\naddress = \"198.51.100.10:53\"\n\
         protocol = \"udp\"\nforwarding = \"dsr\"\nremember = \"3h\"\n[[service.backend]]\nname = \"web1\"\n\
         address = \"10.0.0.11\"\n",
    )?;
    let mut frame = Frame::udp("172.16.0.9:40000", "198.51.100.10:53");
    let mut unknown = 0;
    // The limit on new clients per second delays the last clients until the fourth second.
    for second in 1..=6 {
        world.hold_newcomers()?;
        for _ in 0..2 {
            for number in 0..NEWCOMERS {
                frame.source = SocketAddr::new(client(number).into(), 40_000);
                world.deliver(&frame)?;
            }
        }
        world.pass(1)?;
        unknown = (0..NEWCOMERS).filter(|&number| world.seen(client(number)).is_none()).count();
        println!("after {second} s {unknown} are not known");
    }
    assert!(unknown <= 5, "{unknown} of {NEWCOMERS} are not known");
    Ok(())
}

#[test]
fn when_many_new_clients_come_then_no_known_client_moves() -> Result<()> {
    let mut world = World::new("remember = \"3h\"", 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.pass(4)?;
    // The additions move half of the slots, so half of the clients are at backends that the lookup table does not name.
    world.add("web5", 5)?;
    world.add("web6", 6)?;
    world.add("web7", 7)?;
    world.add("web8", 8)?;
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "");
    for burst in 0..20 {
        world.hold_newcomers()?;
        for number in 0..50_000 {
            world.send(Ipv4Addr::from(0x2000_0000 + burst * 50_000 + number), SYN)?;
        }
        world.pass(1)?;
        let number = burst * 499;
        assert_eq!(world.connect(client(number))?, homes[&number]);
    }
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "");
    let memory = world.dataplane().memory()?;
    assert!(memory.stats.limited > 0, "the rate of newcomers is bounded: {memory:?}");
    assert_eq!(world.counters()?.moves, [0; MoveCause::COUNT]);
    Ok(())
}

/// Two packets from each forged source establish a client in the client table, and the flood has more sources than the
/// client table has entries.
#[test]
fn when_a_flood_has_established_itself_then_real_clients_are_remembered_an_eighth_of_the_time_later() -> Result<()> {
    const ROOM: u32 = 4096;
    const REAL: u32 = 3000;
    let mut world = World::new("remember = \"1h\"", 4, ROOM)?;
    for round in 0..8 {
        for part in [SYN, ACK] {
            for number in 0..ROOM {
                world.send(Ipv4Addr::from(0x2000_0000 + round * ROOM + number), part)?;
            }
            world.pass(3)?;
        }
        // The kernel's clock limits how many new clients the program records per second.
        std::thread::sleep(Duration::from_millis(1100));
    }
    let full = world.dataplane().memory()?.stats.full;
    assert!(full > 0, "the flood does not fill any bucket");
    world.pass(3600 / 8 + 3600 / 32 + 10)?;
    let known = |world: &World, number| world.dataplane().client(ServiceId(0), client(number).into()).is_some();
    // A moment later, the connections of known clients continue.
    for first in (0..REAL).step_by(300) {
        (first..first + 300).try_for_each(|number| world.connect(client(number)).map(drop))?;
        world.pass(2)?;
        (first..first + 300).try_for_each(|number| world.send(client(number), ACK).map(drop))?;
    }
    let remembered = (0..REAL).filter(|&number| known(&world, number)).count();
    assert!(remembered * 100 >= REAL as usize * 99, "{remembered} of {REAL} real clients are known");
    Ok(())
}

#[test]
fn when_all_backends_are_down_and_the_table_is_open_then_clients_stay() -> Result<()> {
    let mut world = World::new(REMEMBER, 3, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.change(Change::SetWeight { name: named("web3"), weight: 0 })?;
    for backend in ["web1", "web2", "web3"] {
        world.checked(backend, &refused(), 3)?;
    }
    assert_nobody_moved(&homes, &connect_all(&mut world)?, "");
    Ok(())
}

#[test]
fn when_the_table_changes_a_thousand_times_then_no_client_goes_where_no_table_pointed() -> Result<()> {
    let mut world = World::new("remember = \"0s\"", 4, 1)?;
    for round in 0..1000u32 {
        let backend = format!("web{}", round % 4 + 1);
        let admin = if round / 4 % 2 == 0 { Admin::Drain } else { Admin::Ready };
        world.admin(&backend, admin, None)?;
        let serving: Vec<_> = world.controller().services()[0]
            .backends()
            .iter()
            .filter(|backend| backend.takes_new_clients())
            .map(|backend| backend.name().to_owned())
            .collect();
        for number in 0..5 {
            let to = world.connect(client(round * 5 + number))?;
            assert!(serving.contains(&to), "{to} in round {round}, serving: {serving:?}");
        }
    }
    let counters = world.counters()?;
    assert_eq!((counters.connections, counters.decided(Decision::Stateless)), (5000, 5000));
    Ok(())
}

/// Tests changes of `remember` that keep, lengthen or shorten the ticks.
#[test]
fn when_the_memory_time_changes_then_no_client_is_forgotten_early() -> Result<()> {
    const MINUTE: u64 = 60;
    let mut world = World::new("remember = \"3h\"", 4, 262_144)?;
    let reload = |world: &mut World, remember: &str| world.reload(&format!("remember = \"{remember}\""), 4, 262_144);
    let homes = connect_all(&mut world)?;
    // After the addition of two backends, the lookup table alone would send many of the clients to other backends.
    world.add("web5", 5)?;
    world.add("web6", 6)?;
    let known =
        |world: &World| -> Result<u64> { (1..=6).map(|number| Ok(world.shown(&format!("web{number}"))?.1)).sum() };
    let half: Vec<u32> = (0..CLIENTS).step_by(2).collect();
    let seen = |world: &mut World, when: &str| -> Result<()> {
        for &number in &half {
            assert_eq!(world.connect(client(number))?, homes[&number], "client {number} {when}");
        }
        Ok(())
    };
    world.skip(50 * MINUTE)?;
    reload(&mut world, "1h")?;
    world.skip(5)?;
    assert_eq!(known(&world)?, u64::from(CLIENTS), "all were here 50 minutes ago");
    seen(&mut world, "after 3h → 1h")?;
    world.skip(50 * MINUTE)?;
    assert_eq!(known(&world)?, half.len() as u64, "the others were here 100 minutes ago");
    for (remember, minutes) in [("6h", 300), ("24h", 1400), ("30d", 40_000), ("1h", 50), ("24h", 1400)] {
        reload(&mut world, remember)?;
        world.skip(5)?;
        assert_eq!(known(&world)?, half.len() as u64, "right after the change to {remember}");
        world.skip(minutes * MINUTE)?;
        assert_eq!(known(&world)?, half.len() as u64, "{minutes} minutes later, with {remember}");
        seen(&mut world, &format!("with {remember}"))?;
    }
    assert_eq!(world.counters()?.moves, [0; MoveCause::COUNT]);
    // The balancer forgets clients that were silent for longer than the new value of `remember`. If the lookup table
    // sends a forgotten client to another backend, the balancer counts a move of the client.
    world.skip(70 * MINUTE)?;
    reload(&mut world, "1h")?;
    world.skip(5)?;
    assert_eq!(known(&world)?, 0);
    let mut elsewhere = 0;
    for &number in &half {
        let [net, host] = world.home(client(number))?;
        elsewhere += u64::from(homes[&number] != format!("web{}", if net == 1 { host } else { host - 10 }));
    }
    let moves = world.counters()?;
    assert_eq!((moves.moved(MoveCause::Forgotten), moves.moves.iter().sum::<u64>()), (elsewhere, elsewhere));
    Ok(())
}

#[test]
fn when_the_kernel_refuses_a_change_then_no_clock_changes() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 65_536)?;
    world.keep_maps();
    let homes: Vec<String> = (0..300).map(|number| world.connect(client(number))).collect::<Result<_>>()?;
    world.pass(5)?;
    let id = world.controller().service("web")?.id();
    let seen = |world: &World| (0..300).map(|number| world.dataplane().client(id, client(number).into())).collect();
    let before: Vec<_> = seen(&world);
    assert!(before.iter().all(Option::is_some));
    // The table of services has room for a little more than 256 services and VIPs. If the balancer applied the refused
    // configuration, ticks would be minutes long.
    let more = |service: u32| {
        let vip = Ipv4Addr::from(0xc612_0000 + service);
        format!("[[service]]\nname = \"s{service}\"\naddress = \"{vip}:80\"\nforwarding = \"dsr\"\ntable_size = 251\n")
    };
    let settings = "remember = \"5d\"\ndrain = { timeout = \"20s\" }";
    let error = world.reload_with(settings, 4, 65_536, &(0..1500).map(more).collect::<String>()).unwrap_err();
    assert!(format!("{error:#}").starts_with("no room for "), "{error:#}");
    assert_eq!(seen(&world) as Vec<_>, before, "when clients were last seen");
    for (number, home) in (0u32..).zip(&homes).take(100) {
        assert_eq!(&world.connect(client(number))?, home);
    }
    world.pass(58)?;
    let known = seen(&world);
    let known: (usize, usize) = (
        known[..100].iter().filter(|client| client.is_some()).count(),
        known[100..].iter().filter(|client| client.is_some()).count(),
    );
    assert_eq!(known, (100, 0), "remembered for a minute");
    Ok(())
}
