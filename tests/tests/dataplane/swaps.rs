//! Tests hundreds of changes of the lookup table while other threads send packets of known clients. The program must
//! send every packet to the known backend of the packet's client. If the known backend keeps no clients, the packet
//! must go to a backend that a lookup table named while the program used the table.

mod release;

use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use balancer_config::states::Admin;
use balancer_control::io::Change;
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{World, client, named};
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    prog_run,
    stop::StopOnDrop,
};

/// The number of changes; the module `release` makes more.
const SWAPS: usize = 250;
const CLIENTS: u32 = 2000;
const THREADS: u32 = 2;
const XDP_TX: u32 = 3;

type Mac = [u8; 2];

/// A lookup table, and the period in which the program may have used the table.
struct Reign {
    begun: Instant,
    gone: Option<Instant>,
    homes: Vec<Mac>,
    /// Whether `web4` is in maintenance, so that it keeps no clients.
    maint: bool,
}

struct Packet {
    client: u32,
    start: Instant,
    end: Instant,
    to: Option<Mac>,
}

fn load(program: &OwnedFd, clients: Vec<u32>, stop: &AtomicBool) -> Result<Vec<Packet>> {
    let frames: Vec<[Vec<u8>; 2]> = clients
        .iter()
        .map(|&number| {
            [SYN, ACK].map(|flags| {
                let mut frame = Frame::tcp("192.0.2.1:40000", "198.51.100.10:80", flags);
                frame.source = SocketAddr::new(client(number).into(), 40_000);
                frame.bytes()
            })
        })
        .collect();
    let mut packets = Vec::new();
    for round in 0.. {
        for (&client, frames) in clients.iter().zip(&frames) {
            if stop.load(Ordering::Relaxed) {
                return Ok(packets);
            }
            let start = Instant::now();
            let ran = prog_run::run(program.as_fd(), &frames[round % 2], 0, 1)?;
            let to = (ran.action == XDP_TX).then(|| [ran.frame[4], ran.frame[5]]);
            packets.push(Packet { client, start, end: Instant::now(), to });
        }
    }
    Ok(packets)
}

fn homes(world: &World) -> Result<Vec<Mac>> {
    (0..CLIENTS).map(|number| world.home(client(number))).collect()
}

fn each_goes_where_a_table_says(swaps: usize) -> Result<()> {
    let admin = |backend, admin| Change::SetAdmin { name: named(backend), admin, timeout: None };
    let weight = |backend, weight| Change::SetWeight { name: named(backend), weight };
    let changes = [
        weight("web3", 200),
        admin("web1", Admin::Drain),
        admin("web4", Admin::Maint),
        admin("web1", Admin::Ready),
        weight("web3", 100),
        admin("web4", Admin::Ready),
        admin("web2", Admin::Drain),
        admin("web2", Admin::Ready),
    ];
    let mut world = World::new("remember = \"1h\"\ntable_size = 4099", 4, 65_536)?;
    let mut last = Vec::new();
    for number in 0..CLIENTS {
        world.connect(client(number))?;
        last.push(world.home(client(number))?);
    }
    let web4 = [0, 14];
    let mut reigns = vec![Reign { begun: Instant::now(), gone: None, homes: homes(&world)?, maint: false }];

    let stop = AtomicBool::new(false);
    let packets = thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        let mut threads = Vec::new();
        for part in 0..THREADS {
            let program = world.program()?;
            let clients = (0..CLIENTS).filter(|number| number % THREADS == part).collect();
            threads.push(scope.spawn(move || load(&program, clients, stop)));
        }
        for (number, change) in changes.iter().cycle().take(swaps).enumerate() {
            let begun = Instant::now();
            world.change(change.clone())?;
            reigns.last_mut().context("the first table")?.gone = Some(Instant::now());
            reigns.push(Reign { begun, gone: None, homes: homes(&world)?, maint: matches!(number % 8, 2..5) });
        }
        stop.store(true, Ordering::Relaxed);
        let mut packets = Vec::new();
        for thread in threads {
            packets.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok::<_, anyhow::Error>(packets)
    })?;

    let (mut moved, mut dropped, mut tables) = (0, 0, HashSet::new());
    for packet in &packets {
        let from = reigns.partition_point(|reign| reign.gone.is_some_and(|gone| gone < packet.start));
        let live = || reigns.iter().skip(from).take_while(|reign| reign.begun <= packet.end);
        let number = packet.client as usize;
        let stays = last[number] != web4 || live().any(|reign| !reign.maint);
        let goes = last[number] == web4 && live().any(|reign| reign.maint);
        let Some(to) = packet.to else {
            dropped += 1;
            continue;
        };
        let kept = stays && to == last[number];
        let named = goes && live().any(|reign| reign.homes[number] == to);
        ensure!(kept || named, "client {number} was at {:?} and went to {to:?}", last[number]);
        moved += usize::from(to != last[number]);
        last[number] = to;
        tables.insert(from);
    }
    let seen: u64 = world.dataplane().interface_stats(1)?.verdicts.iter().sum();
    println!("{} packets under {} of {swaps} tables, {moved} moved, {dropped} dropped", packets.len(), tables.len());
    ensure!(seen == packets.len() as u64 + u64::from(CLIENTS), "{seen} verdicts");
    // Each change writes only one 64-bit word of a backend's row, so the program may not drop any packet.
    ensure!(dropped == 0, "{dropped} packets dropped");
    ensure!(tables.len() > swaps / 2 && moved > 0, "no load");
    let generation = world.controller().services()[0].table_generation();
    ensure!(generation == 1 + swaps as u64, "{generation} tables");
    Ok(())
}

#[test]
fn when_the_table_changes_under_packets_then_each_goes_where_a_table_says() -> Result<()> {
    each_goes_where_a_table_says(SWAPS)
}
