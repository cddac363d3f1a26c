//! Tests of balancers that share their known clients. Both balancers handle real packets and have client tables in the
//! kernel.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use balancer_common::{
    client_table::BUCKET_ENTRIES,
    verdict::{Decision, MoveCause},
};
use balancer_config::states::Admin;
use balancer_control::{
    io::{Change, ServiceId},
    service::Backend,
};
use balancer_dataplane::{Forgotten, ImportedClients, Learning, Learnt, Seen, Served};
use balancer_fleet::{emptied::Emptied, member::Told, records::Record};
use balancer_packet_model::world::{client, named};
use balancer_testkit::frame::{ACK, SYN};

use super::known_clients::{CLIENTS, Scene};

/// The last bytes of web2's address.
const WEB2: [u8; 2] = [0, 12];
const WEB2_V6: [u8; 2] = [0, 0x12];

/// Creates a balancer that shares its clients, and has sent records about all clients that it knows.
fn member(v6: bool) -> Result<Scene> {
    let mut scene = Scene::new(v6)?;
    scene.world.dataplane_mut().share_clients();
    assert_eq!(tell(&mut scene, 1), []);
    Ok(scene)
}

/// Creates a balancer that keeps web2's known clients, but whose lookup table does not contain web2. No slot of the
/// lookup table is still flagged because of another client.
fn member_without_web2(v6: bool) -> Result<Scene> {
    let mut scene = member(v6)?;
    scene.world.change_weight("web2", 0)?;
    scene.world.pass(4)?;
    Ok(scene)
}

fn tell(scene: &mut Scene, epoch: u32) -> Vec<Record> {
    scene.world.dataplane_mut().tell_clients(epoch, &HashMap::new(), usize::MAX)
}

fn import(scene: &mut Scene, records: &[Record]) -> ImportedClients {
    let told = Told { records: records.to_vec(), precedes: false };
    scene.world.dataplane_mut().import_clients(&told, 2, &Emptied::default())
}

/// Returns the backend of every client, and the records about the clients.
fn known(scene: &mut Scene) -> Result<(Vec<String>, Vec<Record>)> {
    let homes = (0..CLIENTS).map(|number| scene.connect_one(number)).collect::<Result<_>>()?;
    let records = tell(scene, 2);
    assert_eq!(records.len(), CLIENTS as usize);
    Ok((homes, records))
}

/// Returns a client at web2, and the record about that client.
fn one_at_web2(scene: &mut Scene) -> Result<(u32, Record)> {
    let number = (0..CLIENTS).find(|&number| scene.world.home(scene.client(number)).ok() == Some(WEB2));
    let number = number.context("nobody is at web2")?;
    assert_eq!(scene.connect_one(number)?, "web2");
    let [record] = tell(scene, 2)[..] else { bail!("one client, one record") };
    Ok((number, record))
}

fn kept_where_they_were(v6: bool) -> Result<()> {
    let (mut first, mut second) = (member(v6)?, member_without_web2(v6)?);
    let (homes, records) = known(&mut first)?;
    let all = u64::from(CLIENTS);
    assert_eq!(import(&mut second, &records), ImportedClients { new: all, ..ImportedClients::default() });
    assert_eq!(import(&mut second, &records), ImportedClients { known: all, ..ImportedClients::default() });
    assert_eq!(tell(&mut second, 3), [], "what was heard is not told again");
    let before = second.world.counters()?;
    for (number, home) in (0..).zip(&homes) {
        assert_eq!(&second.deliver(&second.segment(number, ACK))?, home, "client {number}");
        assert_eq!(&second.connect_one(number)?, home, "client {number}");
        assert_ne!(second.world.home(second.client(number))?, if v6 { WEB2_V6 } else { WEB2 }, "the table's");
    }
    let after = second.world.counters()?;
    assert_eq!(after.decided(Decision::Kept), before.decided(Decision::Kept) + all);
    assert_eq!(after.decided(Decision::New), before.decided(Decision::New));
    assert_eq!(after.moves, [0; MoveCause::COUNT]);
    Ok(())
}

#[test]
fn when_another_balancer_receives_clients_then_it_keeps_them_against_its_table() -> Result<()> {
    kept_where_they_were(false)?;
    kept_where_they_were(true)
}

#[test]
fn when_all_clients_are_dumped_then_the_dump_has_what_was_sent() -> Result<()> {
    let mut first = member(false)?;
    let (_, mut told) = known(&mut first)?;
    let mut dumped = first.world.dataplane_mut().dump_clients(9);
    told.sort_by_key(|record| (record.bucket, record.tag));
    dumped.sort_by_key(|record| (record.bucket, record.tag));
    assert_eq!(dumped, told);
    Ok(())
}

#[test]
fn when_a_received_client_has_an_unknown_backend_then_it_is_not_recorded() -> Result<()> {
    let (mut first, mut second) = (member(false)?, member(false)?);
    first.world.add("web5", 5)?;
    let (homes, records) = known(&mut first)?;
    let strangers = homes.iter().filter(|home| *home == "web5").count() as u64;
    assert!(strangers > 10, "{strangers} of {CLIENTS} at web5");
    let imported = import(&mut second, &records);
    let new = u64::from(CLIENTS) - strangers;
    assert_eq!(imported, ImportedClients { new, strangers, ..ImportedClients::default() });
    for number in 0..CLIENTS {
        assert_ne!(second.connect_one(number)?, "web5");
    }
    let counters = second.world.counters()?;
    assert_eq!((counters.decided(Decision::Kept), counters.decided(Decision::New)), (new, strangers));
    Ok(())
}

#[test]
fn when_a_received_client_has_a_full_bucket_then_the_table_decides() -> Result<()> {
    let (mut first, mut second) = (member(false)?, member_without_web2(false)?);
    let (number, record) = one_at_web2(&mut first)?;
    let others: Vec<Record> =
        (1..=BUCKET_ENTRIES as u32).map(|other| Record { tag: record.tag ^ other << 24, ..record }).collect();
    let imported = import(&mut second, &others);
    assert_eq!(imported, ImportedClients { new: BUCKET_ENTRIES as u64, ..ImportedClients::default() });
    assert_eq!(import(&mut second, &[record]), ImportedClients { full: 1, ..ImportedClients::default() });
    assert_ne!(second.connect_one(number)?, "web2");
    let there = second.world.dataplane_mut().dump_clients(3);
    assert!(others.iter().all(|other| there.contains(other)), "nobody was pushed out");
    let outside = Record { bucket: second.world.buckets()?, ..record };
    assert_eq!(import(&mut second, &[outside]), ImportedClients { outside: 1, ..ImportedClients::default() });
    Ok(())
}

#[test]
fn when_a_received_client_is_forgotten_then_the_table_decides() -> Result<()> {
    let (mut first, mut second) = (member(false)?, member_without_web2(false)?);
    let (number, record) = one_at_web2(&mut first)?;
    assert_eq!(import(&mut second, &[record]).new, 1);
    assert_eq!(second.connect_one(number)?, "web2");
    assert_eq!(second.world.forget(client(number))?, Forgotten { clients: 1, moved: 1 });
    assert_ne!(second.connect_one(number)?, "web2");
    second.world.pass(3)?;
    assert_eq!(second.world.shown("web2")?.1, 0);
    Ok(())
}

#[test]
fn when_records_have_ages_then_sweeps_use_them() -> Result<()> {
    // Both balancers remember clients for a minute.
    let (mut first, mut second) = (member(false)?, member_without_web2(false)?);
    let (homes, _) = known(&mut first)?;
    let at_web2 = homes.iter().filter(|home| *home == "web2").count() as u64;
    first.world.pass(40)?;
    let records = first.world.dataplane_mut().dump_clients(2);
    assert!(records.iter().all(|record| (39..=41).contains(&record.age)), "{:?}", records.first());
    assert_eq!(import(&mut second, &records).new, u64::from(CLIENTS));
    second.world.pass(15)?;
    assert_eq!(second.world.shown("web2")?.1, at_web2);
    let (number, _) = (0..).zip(&homes).find(|(_, home)| *home == "web2").context("nobody is at web2")?;
    assert_eq!(second.connect_one(number)?, "web2");
    second.world.pass(8)?;
    assert_eq!(second.world.shown("web2")?.1, 1, "who was seen here");
    // A record of another balancer must not increase the age of the client's entry.
    assert_eq!(
        import(&mut second, &records),
        ImportedClients { known: 1, new: u64::from(CLIENTS) - 1, ..ImportedClients::default() }
    );
    second.world.pass(22)?;
    assert_eq!(second.world.shown("web2")?.1, 1);
    let expired: Vec<Record> = records.iter().map(|record| Record { age: 61, ..*record }).collect();
    assert_eq!(import(&mut second, &expired).expired, u64::from(CLIENTS));
    Ok(())
}

#[test]
fn when_a_client_moves_then_the_move_is_sent_once_and_wins_against_older_records() -> Result<()> {
    let (mut first, mut second) = (member(false)?, member(false)?);
    let (number, record) = one_at_web2(&mut first)?;
    assert_eq!(import(&mut second, &[record]).new, 1);
    second.world.admin("web2", Admin::Maint, None)?;
    let moved_to = second.connect_one(number)?;
    assert_ne!(moved_to, "web2");
    assert_eq!(import(&mut second, &[record]), ImportedClients { stale: 1, ..ImportedClients::default() });
    assert_eq!(second.connect_one(number)?, moved_to);

    let told = tell(&mut second, 3);
    let wanted = Record {
        backend: second.world.controller().backend(&named(&moved_to))?.id().0,
        moved: true,
        epoch: 3,
        ..record
    };
    assert_eq!(told, [Record { away: told[0].away, ..wanted }]);
    assert_eq!(tell(&mut second, 3), []);
    // At the first balancer, web2 still serves clients.
    assert_eq!(import(&mut first, &told), ImportedClients { moved: 1, ..ImportedClients::default() });
    assert_eq!(first.connect_one(number)?, moved_to);
    assert_eq!(tell(&mut first, 3), []);
    assert_eq!(first.world.counters()?.moves, [0; MoveCause::COUNT], "it was counted where it happened");
    assert_eq!(second.world.counters()?.moved(MoveCause::Maint), 1);
    Ok(())
}

#[test]
fn when_others_may_have_forgotten_a_client_then_it_is_sent_again_unless_they_send_it() -> Result<()> {
    let (mut first, mut second) = (member(false)?, member(false)?);
    let (_, records) = known(&mut first)?;
    import(&mut second, &records);
    second.world.dataplane_mut().doubt_clients();
    assert_eq!(tell(&mut second, 3), [], "not before it is known what others know");
    let (half, rest) = records.split_at(records.len() / 2);
    import(&mut second, half);
    second.world.dataplane_mut().confirm_clients();
    let mut told = tell(&mut second, 3);
    let mut rest = rest.to_vec();
    told.sort_by_key(|record| (record.bucket, record.tag));
    rest.sort_by_key(|record| (record.bucket, record.tag));
    assert_eq!(told, rest);
    assert_eq!(tell(&mut second, 3), []);
    Ok(())
}

#[test]
fn when_there_is_room_or_slots_change_then_new_clients_are_sent() -> Result<()> {
    let mut first = member(false)?;
    (0..CLIENTS).try_for_each(|number| first.deliver(&first.segment(number, SYN)).map(drop))?;
    let none = HashMap::new();
    assert_eq!(first.world.dataplane_mut().tell_clients(2, &none, 7).len(), 7);
    assert_eq!(first.world.dataplane_mut().tell_clients(2, &none, 0), []);
    let service = first.world.controller().services()[0].id();
    let all = HashMap::from([(service, vec![true; 1])]);
    assert_eq!(first.world.dataplane_mut().tell_clients(2, &all, 0).len(), CLIENTS as usize - 7);
    Ok(())
}

/// Returns clients to import, spread over all backends regardless of the lookup table.
fn learnt(scene: &Scene, seen: Seen) -> Result<(ServiceId, Vec<Learnt>)> {
    let [service] = scene.world.controller().services().iter().collect::<Vec<_>>()[..] else { bail!("one service") };
    let ids: Vec<_> = service.backends().iter().map(Backend::id).collect();
    let client =
        |number: u32| Learnt { address: scene.client(number), backend: ids[number as usize % ids.len()], seen };
    Ok((service.id(), (0..CLIENTS).map(client).collect()))
}

fn stay_where_they_are_brought(v6: bool) -> Result<()> {
    let mut scene = Scene::new(v6)?;
    scene.world.pass(4)?;
    let (service, clients) = learnt(&scene, Seen::Ago(Duration::from_secs(5)))?;
    let all = u64::from(CLIENTS);
    let done = scene.world.dataplane_mut().learn_clients(service, &clients, Served::Stay);
    assert_eq!(done, Learning { new: all, ..Learning::default() });
    // Even after many sweeps, clients at backends other than the lookup table's choice stay known at these backends.
    scene.world.pass(40)?;
    let ids = |scene: &Scene| -> Vec<String> {
        let services = scene.world.controller().services();
        services.iter().flat_map(|service| service.backends()).map(|backend| backend.name().to_owned()).collect()
    };
    let names = ids(&scene);
    for number in 0..CLIENTS {
        let home = &names[number as usize % names.len()];
        assert_eq!(&scene.deliver(&scene.segment(number, ACK))?, home, "client {number}");
        assert_eq!(&scene.connect_one(number)?, home, "client {number}");
    }
    let counters = scene.world.counters()?;
    assert_eq!((counters.decided(Decision::Kept), counters.moves), (all, [0; MoveCause::COUNT]));
    // Importing the same clients a second time changes nothing. A later import that names other backends leaves clients
    // alone that the balancer has served meanwhile, unless it is to overwrite them.
    let done = scene.world.dataplane_mut().learn_clients(service, &clients, Served::Stay);
    assert_eq!(done, Learning { known: all, ..Learning::default() });
    let elsewhere: Vec<Learnt> = clients
        .iter()
        .zip(clients.iter().skip(1))
        .map(|(one, other)| Learnt { backend: other.backend, ..*one })
        .collect();
    let done = scene.world.dataplane_mut().learn_clients(service, &elsewhere, Served::Stay);
    assert_eq!(done, Learning { served: all - 1, ..Learning::default() });
    assert_eq!(scene.connect_one(0)?, names[0]);
    let done = scene.world.dataplane_mut().learn_clients(service, &elsewhere, Served::Overwrite);
    assert_eq!(done, Learning { moved: all - 1, ..Learning::default() });
    assert_eq!(scene.connect_one(0)?, names[1]);
    // The data path does not record clients that were silent for too long, and clients of the other family.
    let (_, old) = learnt(&scene, Seen::Ago(Duration::from_secs(1 << 30)))?;
    let done = scene.world.dataplane_mut().learn_clients(service, &old, Served::Stay);
    assert_eq!(done, Learning { expired: all, ..Learning::default() });
    let other = if v6 { "203.0.113.7" } else { "2001:db8::7" };
    let stranger = Learnt { address: other.parse()?, ..clients[0] };
    let done = scene.world.dataplane_mut().learn_clients(service, &[stranger], Served::Stay);
    assert_eq!(done, Learning { strangers: 1, ..Learning::default() });
    Ok(())
}

#[test]
fn when_clients_are_brought_again_before_they_come_then_the_last_report_counts() -> Result<()> {
    let mut scene = Scene::new(false)?;
    scene.world.pass(4)?;
    let (service, clients) = learnt(&scene, Seen::Ago(Duration::from_secs(5)))?;
    scene.world.dataplane_mut().learn_clients(service, &clients, Served::Stay);
    let elsewhere: Vec<Learnt> =
        clients.iter().zip(&clients[1..]).map(|(one, other)| Learnt { backend: other.backend, ..*one }).collect();
    let all = elsewhere.len() as u64;
    let done = scene.world.dataplane_mut().learn_clients(service, &elsewhere, Served::Stay);
    assert_eq!(done, Learning { moved: all, ..Learning::default() });
    // The host serves three quarters of the clients, so its reports about them count, although packets of these clients
    // have been seen here. The balancer has served the others.
    scene.world.change(Change::SetSteer { service: named("").service, steer: 25 })?;
    scene.world.pass(4)?;
    for number in 0..CLIENTS {
        scene.world.deliver(&scene.segment(number, SYN))?;
    }
    let done = scene.world.dataplane_mut().learn_clients(service, &clients[..elsewhere.len()], Served::Stay);
    assert_eq!(done.moved + done.served, all, "{done:?}");
    assert!(done.served > all / 5 && done.served < all * 3 / 10, "{done:?}");
    Ok(())
}

#[test]
fn when_clients_are_brought_from_elsewhere_then_they_stay_where_they_are_brought() -> Result<()> {
    stay_where_they_are_brought(false)?;
    stay_where_they_are_brought(true)
}
