//! Tests of backends with high ids: packets, counters and known clients.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use balancer_common::{
    map_types::{Forwarding, LAST_BACKEND},
    verdict::{Decision, MoveCause},
};
use balancer_config::states::Admin;
use balancer_control::io::{BackendId, BackendSpec, CheckOutcome, NextHop, ServiceId};
use balancer_dataplane::{Dataplane as _, KernelDataplane};
use balancer_packet_model::world::{World, client, named};
use balancer_testkit::frame::{ACK, SYN};

use crate::scene::CAPACITY;

const CLIENTS: u32 = 400;
const REMEMBER: &str = "remember = \"60s\"\ndrain = { timeout = \"20s\" }";

fn id(world: &World, name: &str) -> u16 {
    world.controller().backend(&named(name)).unwrap().id().0
}

/// Sends one packet of each client, and returns the backend of each client.
fn visit(world: &mut World, flags: u8) -> Result<BTreeMap<u32, String>> {
    let mut homes = BTreeMap::new();
    for number in 0..CLIENTS {
        let home = world.send(client(number), flags)?.with_context(|| format!("nobody takes client {number}"))?;
        homes.insert(number, home);
    }
    Ok(homes)
}

fn of(homes: &BTreeMap<u32, String>, name: &str) -> impl Iterator<Item = u32> {
    homes.iter().filter(move |(_, home)| *home == name).map(|(&number, _)| number)
}

#[test]
fn when_backends_have_high_ids_then_they_behave_like_others() -> Result<()> {
    for first in [16_382, 32_766, LAST_BACKEND - 5] {
        let mut world = World::with_ids(first, REMEMBER, 4, 65_536)?;
        assert_eq!((id(&world, "web1"), id(&world, "web4")), (first, first + 3));
        let homes = visit(&mut world, SYN)?;
        assert_eq!(visit(&mut world, ACK)?, homes);
        for name in ["web1", "web2", "web3", "web4"] {
            let mine = of(&homes, name).count() as u64;
            let stats = world.dataplane().backend_stats(BackendId(id(&world, name)))?;
            assert_eq!((stats.packets, stats.connections), (2 * mine, mine), "{name} with ids from {first} on");
        }
        let counters = world.dataplane().backend_counters();
        let connections = (first..first + 4).map(|id| counters.read(BackendId(id)).connections);
        assert_eq!(connections.sum::<u64>(), u64::from(CLIENTS));
        world.pass(4)?;
        assert_eq!(world.shown("web4")?.1, of(&homes, "web4").count() as u64, "known clients that a sweep finds");

        // A known client stays during a drain, and moves after the controller has forgotten the client.
        world.admin("web4", Admin::Drain, Some(Duration::from_secs(3600)))?;
        assert_eq!(visit(&mut world, SYN)?, homes);
        let one = of(&homes, "web4").next().unwrap();
        assert_eq!(world.forget(client(one))?.clients, 1);
        assert_eq!(world.forget_all("web4")?, of(&homes, "web4").count() as u64 - 1);
        let moved = visit(&mut world, SYN)?;
        assert_eq!(of(&moved, "web4").count(), 0);
        let stay = homes.iter().filter(|(_, home)| *home != "web4");
        assert!(stay.clone().all(|(number, home)| moved[number] == *home) && stay.count() > 0);

        // A failure moves the clients of web3; the counters name web3, which the clients leave.
        world.checked("web3", &CheckOutcome::Hard("gone".to_owned()), 10)?;
        let after = visit(&mut world, SYN)?;
        assert_eq!(of(&after, "web3").count(), 0);
        let left = of(&moved, "web3").count() as u64;
        assert_eq!(world.counters()?.moved(MoveCause::Down), left);
        assert!(world.counters()?.decided(Decision::Moved) >= left);

        // The controller first assigns the last ids that were never in use, and then ids that backends have released.
        world.add("web5", 15)?;
        world.add("web6", 16)?;
        assert_eq!(id(&world, "web6"), first + 5);
    }
    Ok(())
}

#[test]
fn when_an_id_exceeds_the_rows_then_it_is_refused() -> Result<()> {
    let mut dataplane = KernelDataplane::load(CAPACITY, &[1])?;
    dataplane.write_backend(&backend(7))?;
    for id in [8, LAST_BACKEND] {
        let error = dataplane.write_backend(&backend(id)).unwrap_err().to_string();
        assert_eq!(error, format!("no room for backend id {id} in 8 rows; a restart makes room"));
        assert!(dataplane.retire_backend(BackendId(id)).is_err());
    }
    for id in [0, u16::MAX] {
        assert!(dataplane.write_backend(&backend(id)).is_err());
    }
    assert_eq!(dataplane.forget_all(BackendId(LAST_BACKEND), 0).0.clients, 0);
    assert!(dataplane.backend_stats(BackendId(9)).is_err());
    Ok(())
}

fn backend(id: u16) -> BackendSpec {
    BackendSpec {
        id: BackendId(id),
        forwarding: Forwarding::Dsr,
        address: ([10, 0, 0, 11], 0).into(),
        next_hop: Some(NextHop {
            ifindex: 1,
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            source: None,
            gateway: None,
            local: false,
        }),
        service: ServiceId(0),
        keeps_known: true,
        cause: MoveCause::Down,
        tunnel_source: None,
        takes_pinned: false,
        passive: None,
    }
}
