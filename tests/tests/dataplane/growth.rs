//! Tests of maps that grow while the program runs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::loaded_maps;
use balancer_common::{
    client::HashKey,
    map_types::{Forwarding, ShareStats},
    share::Share,
    verdict::{Decision, MoveCause},
};
use balancer_config::states::Admin;
use balancer_control::{
    features,
    io::{BackendId, BackendSpec, CheckOutcome, ListenerId, NextHop, ServiceId, ServiceSpec},
    room::Need,
};
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{World, client};
use balancer_testkit::{
    frame::{ACK, SYN},
    site::PATIENCE,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::scene::{Scene, XDP_PASS, XDP_TX, apart, backend, service};

/// Room for many times as many rows as the maps of a scene have.
const NEED: Need = Need { lines: 20_000, services: 2000, listeners: 10_000, ranges: 200, returns: 10_000 };

/// The VIP of the service number `number`.
fn vip(number: u16) -> String {
    format!("198.18.{}.{}:80", number >> 8, number & 255)
}

/// The services with these numbers; the host serves nearly all clients of the service 0.
fn services(numbers: impl Iterator<Item = u16>) -> Vec<ServiceSpec> {
    let numbered = |number: u16| {
        let mut spec = service(Forwarding::Nat);
        spec.id = ServiceId(number);
        spec.hash_key = HashKey { k0: number.into(), k1: 2 };
        spec.listeners[0].id = ListenerId(number);
        spec.listeners[0].listener.address = vip(number).parse::<std::net::SocketAddr>().unwrap().ip();
        spec.backends = [(BackendId(1), ([10, 1, (number >> 8) as u8, number as u8], 80).into())].into();
        if number == 0 {
            spec.share = Share { now: 1, least: 1, most: 1 };
        }
        spec
    };
    numbers.map(numbered).collect()
}

/// The backend 1 or 2; the last byte of its MAC address is its id.
fn numbered(id: u16) -> BackendSpec {
    let spec = backend(&service(Forwarding::Nat));
    let next_hop = spec.next_hop.map(|hop| NextHop { destination_mac: [2, 0, 0, 0, 1, id as u8], ..hop });
    BackendSpec { id: BackendId(id), address: ([10, 0, 0, 20 + id as u8], 80).into(), next_hop, ..spec }
}

impl Scene {
    fn started() -> Result<Self> {
        let all = services(0..2);
        let mut scene = Self::start(features::of_published(&all[0]) | features::of_published(&all[1]))?;
        [1, 2].map(numbered).iter().try_for_each(|backend| scene.dataplane.write_backend(backend))?;
        scene.list(0..2)?;
        Ok(scene)
    }

    /// Makes these services the directory. The clients of a service go to the backend 1.
    fn list(&mut self, numbers: impl Iterator<Item = u16>) -> Result<()> {
        let all = services(numbers);
        for spec in &all {
            self.dataplane.swap_table(spec.id, vec![1; 251].into(), None)?;
        }
        self.dataplane.publish_services(&all)
    }

    /// Asserts that the attached program steers the clients of these services, and of no other, to the backend.
    #[track_caller]
    fn assert_steers(&self, listed: impl Iterator<Item = u16>, backend: u8) {
        let listed: HashSet<u16> = listed.collect();
        for number in (1..20).chain([400, 1999]) {
            let ran = self.run(&vip(number), number as u8);
            let (action, to) = if listed.contains(&number) { (XDP_TX, backend) } else { (XDP_PASS, ran.frame[5]) };
            assert_eq!((ran.action, ran.frame[5]), (action, to), "service {number}");
        }
        assert_eq!(self.run(&vip(0), 1).action, XDP_PASS);
    }

    fn unsteered(&self) -> u64 {
        let ShareStats { unsteered, .. } = self.dataplane.share_stats(ServiceId(0));
        unsteered
    }
}

/// The ids of the maps that the attached program uses.
fn maps(scene: &Scene) -> HashSet<u32> {
    scene.program().map_ids().unwrap().unwrap_or_default().into_iter().collect()
}

/// The name of one of these maps that the kernel still has, apart from the constants of a program.
fn rows_of(ids: &HashSet<u32>) -> Option<String> {
    let mut there = loaded_maps().filter_map(Result::ok).filter(|map| ids.contains(&map.id()));
    there.find_map(|map| map.name_as_str().filter(|name| !name.starts_with(".rodata")).map(str::to_owned))
}

#[test]
fn when_the_maps_grow_then_packets_find_the_same_data_whichever_program_processes_them() {
    apart(|| {
        let mut scene = Scene::started()?;
        let before = maps(&scene);
        let growth = scene.dataplane.growth(&NEED).context("the maps have room")?;
        let larger = scene.attacher.load_larger(growth)?;
        scene.assert_steers(0..2, 1);
        assert_eq!(scene.unsteered(), 1);

        // The present program sees changes that are made while there are two maps, and so does the next one.
        scene.dataplane.begin_growth(larger)?;
        scene.list(0..5)?;
        scene.assert_steers(0..5, 1);
        scene.dataplane.swap_table(ServiceId(2), vec![2; 251].into(), None)?;
        assert_eq!(scene.run(&vip(2), 2).frame[5], 2);
        scene.attacher.use_larger(&mut scene.attached)?;
        assert_eq!(scene.run(&vip(2), 2).frame[5], 2);
        scene.dataplane.swap_table(ServiceId(2), vec![1; 251].into(), None)?;
        scene.assert_steers(0..5, 1);
        scene.list(0..4)?;
        scene.assert_steers(0..4, 1);
        scene.dataplane.end_growth(true);
        scene.assert_steers(0..4, 1);

        assert_eq!(scene.dataplane.growth(&NEED), None);
        let gone = &before - &maps(&scene);
        assert!(gone.len() > 5, "{before:?}, {gone:?}");
        let begun = Instant::now();
        while let Some(map) = rows_of(&gone) {
            assert!(begun.elapsed() < PATIENCE, "the smaller map {map} still needs memory");
            thread::yield_now();
        }
        assert_eq!(scene.unsteered(), 5, "the counts of all programs");
        for listed in [2000, 1500, 3, 2000] {
            scene.list(0..listed)?;
            scene.assert_steers(0..listed, 1);
        }
        scene.dataplane.swap_table(ServiceId(1999), vec![2; 65_537].into(), None)?;
        assert_eq!(scene.run(&vip(1999), 2).frame[5], 2);
        Ok(())
    });
}

#[test]
fn when_the_kernel_refuses_larger_maps_then_the_present_ones_go_on_and_a_later_attempt_succeeds() {
    apart(|| {
        let mut scene = Scene::started()?;
        let before = scene.program().id();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 10, hard)?;
        let growth = scene.dataplane.growth(&NEED).context("the maps have room")?;
        let refused = scene.attacher.load_larger(growth.clone());
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        let refused = format!("{:#}", refused.unwrap_err());
        assert!(refused.starts_with("making room in the kernel's maps: "), "{refused}");
        let refused = scene.dataplane.make_room(&NEED).unwrap_err().to_string();
        assert!(refused.starts_with("the lookup tables, with the free slots"), "{refused}");

        // The program with larger maps is given up after both maps were written.
        let larger = scene.attacher.load_larger(growth.clone())?;
        scene.dataplane.begin_growth(larger)?;
        scene.list(0..4)?;
        scene.dataplane.end_growth(false);
        scene.list(0..6)?;
        scene.assert_steers(0..6, 1);
        assert_eq!(scene.program().id(), before);
        assert!(scene.list(0..2000).is_err());
        scene.dataplane.abandon();
        scene.list(0..6)?;

        let larger = scene.attacher.load_larger(growth)?;
        scene.dataplane.begin_growth(larger)?;
        scene.attacher.use_larger(&mut scene.attached)?;
        scene.dataplane.end_growth(true);
        scene.list(0..2000)?;
        scene.assert_steers(0..2000, 1);
        Ok(())
    });
}

const CLIENTS: u32 = 500;

/// Sends one packet of each client, and returns the backend of each client.
fn visit(world: &mut World, flags: u8) -> Result<BTreeMap<u32, String>> {
    let mut homes = BTreeMap::new();
    for number in 0..CLIENTS {
        let home = world.send(client(number), flags)?;
        homes.insert(number, home.with_context(|| format!("no backend takes client {number}"))?);
    }
    Ok(homes)
}

#[test]
fn when_the_maps_grow_then_known_clients_stay_and_counters_go_on() -> Result<()> {
    const SETTINGS: &str = "remember = \"60s\"\ndrain = { timeout = \"1h\" }";
    let mut world = World::new(SETTINGS, 4, 65_536)?;
    let homes = visit(&mut world, SYN)?;
    world.pass(2)?;
    // The table sends these clients elsewhere, and only the client table keeps them.
    world.admin("web4", Admin::Drain, Some(Duration::from_secs(3600)))?;
    let at = |homes: &BTreeMap<u32, String>, name: &str| homes.values().filter(|home| *home == name).count() as u64;

    let (mut more, mut grown) = (String::new(), 0);
    for service in 0..300 {
        let size = [251, 65_537, 11][service % 3];
        writeln!(
            more,
            "[[service]]\nname = \"s{service}\"\naddress = \"198.18.{}.{}:80\"",
            service >> 8,
            service & 255
        )?;
        writeln!(more, "forwarding = \"dsr\"\ntable_size = {size}\nremember = \"0s\"")?;
        if service % 60 == 59 {
            let before = world.dataplane().map_bytes();
            world.reload_with(SETTINGS, 4, 65_536, &more)?;
            grown += u32::from(world.dataplane().map_bytes() > before);
            assert_eq!(visit(&mut world, SYN)?, homes, "with {service} services");
            world.pass(1)?;
        }
    }
    assert!(grown >= 3, "the maps have grown {grown} times");
    assert_eq!(visit(&mut world, ACK)?, homes);
    let counters = world.counters()?;
    assert_eq!((counters.connections, counters.decided(Decision::Moved)), (6 * u64::from(CLIENTS), 0));

    world.checked("web3", &CheckOutcome::Hard("gone".to_owned()), 10)?;
    let after = visit(&mut world, SYN)?;
    assert!(after.iter().all(|(number, home)| if homes[number] == "web3" {
        home != "web3"
    } else {
        *home == homes[number]
    }));
    assert_eq!(world.counters()?.moved(MoveCause::Down), at(&homes, "web3"));
    Ok(())
}
