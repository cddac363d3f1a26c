//! Tests of CPUs that come online after the balancer's start, for which the maps have no rows.

use std::fs;

use anyhow::{Context as _, Result};
use balancer_common::verdict::{Decision, MoveCause};
use balancer_config::states::Admin;
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{World, client, named};
use balancer_testkit::frame::{ACK, SYN};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    unistd::Pid,
};

const ONLINE: &str = "/sys/devices/system/cpu/online";
const CLIENTS: u32 = 400;

/// Makes the calling thread see only CPU 0 as online.
fn hide_other_cpus() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), "0\n")?;
    mount(Some(file.path()), ONLINE, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("mounting over {ONLINE}"))?;
    Ok(())
}

#[test]
fn when_a_cpu_comes_online_after_the_start_then_what_it_forwards_is_counted() -> Result<()> {
    let there = sched_getaffinity(Pid::from_raw(0))?;
    let Some(last) = (1..CpuSet::count()).rfind(|&cpu| there.is_set(cpu).unwrap_or(false)) else {
        println!("there is one CPU alone");
        return Ok(());
    };
    hide_other_cpus()?;
    // On a late CPU, ids from 1 on use the few spare rows of the counter map, and ids from 100 on are beyond the end of
    // the map.
    for first in [1, 100] {
        let mut world = World::with_ids(first, "remember = \"60s\"", 2, 1024)?;
        let ids = ["web1", "web2"].map(|name| world.controller().backend(&named(name)).unwrap().id());
        for cpu in [0, last] {
            let mut one = CpuSet::new();
            one.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &one)?;
            for flags in [SYN, ACK] {
                for number in 0..CLIENTS {
                    world.send(client(number), flags)?.context("nobody takes the client")?;
                }
            }
            let runs = if cpu == 0 { 1 } else { 2 };
            let counters = world.counters()?;
            assert_eq!(counters.connections, u64::from(runs * CLIENTS), "on CPU {cpu}, ids from {first} on");
            assert_eq!(counters.decided(Decision::New), u64::from(CLIENTS));
            let packets = ids.map(|id| world.dataplane().backend_stats(id).unwrap().packets);
            assert_eq!(
                packets.iter().sum::<u64>(),
                u64::from(2 * runs * CLIENTS),
                "packets on CPU {cpu}, ids from {first} on"
            );
        }
        // The program also counts moves in rows that CPUs share.
        world.admin("web1", Admin::Maint, None)?;
        for number in 0..CLIENTS {
            world.send(client(number), SYN)?;
        }
        let counters = world.counters()?;
        let moved = counters.moved(MoveCause::Maint);
        assert!(moved > 0 && counters.decided(Decision::Moved) == moved, "{moved} moves");
        sched_setaffinity(Pid::from_raw(0), &there)?;
    }
    Ok(())
}
