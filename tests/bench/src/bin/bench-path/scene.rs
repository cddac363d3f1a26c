//! Loaded programs with services, backends and known clients.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::asm::ProgramArray;
use balancer_common::{
    client::HashKey,
    verdict::{MoveCause, Verdict},
};
use balancer_core::{
    io::{BackendSpec, ListenerId, ListenerSpec, NextHop, RuleAction, RuleSpec, ServiceId, ServiceSpec},
    maglev::{self, Member},
};
use balancer_dataplane::{Capacity, Dataplane as _, KernelDataplane, Layers};
use balancer_model::{
    config::Failback,
    listeners::{Family, Listener},
};
use balancer_testkit::prog_run;

use crate::{
    feeder::feeder,
    ground::INTERFACE,
    paths::{self, BACKENDS, Path, RULED, SERVICES, Service, backends},
};

/// The destination of every packet.
pub(crate) const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TABLE_SIZE: u32 = 65_537;
const KEY: HashKey = HashKey { k0: 11, k1: 12 };
/// Clients that may be recorded in a second: an eighth of what the table is made for.
const NEWCOMERS: u32 = 125_000;

/// In which state a path is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A million clients are known where the table sends them.
    Settled,
    /// A million clients are known, and every slot of the table has changed since.
    Exceptions,
}

/// A loaded program.
pub(crate) struct Scene {
    dataplane: KernelDataplane,
    program: OwnedFd,
    /// The interface that packets come in by, and go out by.
    ifindex: u32,
}

impl Scene {
    /// One for every [`Place`], in its order.
    pub(crate) fn all() -> Result<[Self; 2]> {
        let mut scenes = [Self::new(INTERFACE, 8 * NEWCOMERS)?, Self::new(INTERFACE, 8 * NEWCOMERS)?];
        make_known(&mut scenes, &[paths::known()])?;
        let [settled, mut exceptions] = scenes;
        for index in 0..SERVICES.len() {
            exceptions.dataplane.swap_table(ServiceId(index as u16), table(index, 1)?, None)?;
        }
        let flagged = exceptions.dataplane.memory()?.exceptions;
        let remembering = SERVICES.iter().filter(|service| service.remembers).count() as u64;
        ensure!(flagged == u64::from(TABLE_SIZE) * remembering, "{flagged} slots are flagged");
        Ok([settled, exceptions])
    }

    /// One in which a million clients of segments and a million of datagrams are known where the table sends them.
    pub(crate) fn settled(ifindex: u32) -> Result<Self> {
        let mut scenes = [Self::new(ifindex, 16 * NEWCOMERS)?];
        make_known(&mut scenes, &[paths::known(), paths::known_by_datagrams()])?;
        let [scene] = scenes;
        Ok(scene)
    }

    fn new(ifindex: u32, clients: u32) -> Result<Self> {
        let capacity = Capacity {
            slots: 1 << 21,
            services: 64,
            listeners: 64,
            ranges: 64,
            returns: 256,
            backends: 1 << 14,
            clients,
        };
        let mut dataplane = KernelDataplane::load(capacity, &[ifindex])?;
        dataplane.set_layers(Layers::flat(&[(ifindex, OWN_MAC)]));
        let mut specs = Vec::new();
        for (index, service) in SERVICES.iter().enumerate() {
            specs.push(configure(&mut dataplane, index, service, ifindex)?);
        }
        dataplane.publish_services(&specs)?;
        let rule = RuleSpec { prefix: "192.0.2.0/24".parse()?, action: RuleAction::Deny };
        dataplane.set_rules(ServiceId(RULED as u16), &[rule])?;
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self { dataplane, program, ifindex })
    }

    /// The program.
    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// How many packets took this path so far.
    pub(crate) fn counted(&self, path: &Path) -> Result<u64> {
        let verdicts = self.dataplane.interface_stats(self.ifindex)?.verdicts;
        let Some(service) = path.service else { return Ok(verdicts[Verdict::Pass.index()]) };
        let mut sum = 0;
        for backend in backends(service) {
            let stats = self.dataplane.backend_stats(backend)?;
            ensure!(stats.moves.iter().sum::<u64>() == 0, "{}: clients were moved", path.name);
            sum += stats.packets;
        }
        // Every packet leaves by the interface it came in by.
        let sent = verdicts[Verdict::Tx.index()];
        if path.replies {
            return Ok(sent);
        }
        ensure!(sent >= sum, "{}: {sum} packets to backends, {sent} sent", path.name);
        Ok(sum)
    }
}

/// A program that opens connections of one client after the other.
struct Opener {
    program: OwnedFd,
    frame: Vec<u8>,
    ifindex: u32,
    _next: ProgramArray,
}

impl Opener {
    fn new(scene: &Scene, known: &Path) -> Result<Self> {
        let (frame, feed) = known.opening();
        let next = ProgramArray::new(scene.program())?;
        let program = feeder(&frame, &feed, 0, &next).load_frags().context("the feeder of known clients")?;
        Ok(Self { program, frame, ifindex: scene.ifindex, _next: next })
    }

    fn open(&mut self, count: u32) -> Result<()> {
        self.frame = prog_run::run(self.program.as_fd(), &self.frame, self.ifindex, count)?.frame;
        Ok(())
    }
}

/// Opens a connection of every client of each of these services, in each second as many as one service is sure to have
/// recorded: half. All scenes wait for the same seconds.
fn make_known(scenes: &mut [Scene], known: &[Path]) -> Result<()> {
    let of = |scene: &Scene| known.iter().map(|known| Opener::new(scene, known)).collect::<Result<Vec<_>>>();
    let mut openers = scenes.iter().map(of).collect::<Result<Vec<_>>>()?;
    let at_once = NEWCOMERS / 2;
    let clients = known.iter().map(Path::clients).max().unwrap_or_default();
    for second in 1..=u64::from(clients.div_ceil(at_once)) {
        for (scene, openers) in scenes.iter_mut().zip(&mut openers) {
            openers.iter_mut().try_for_each(|opener| opener.open(at_once))?;
            while scene.dataplane.sweep(Duration::from_secs(second)).is_none() {}
        }
        // By the kernel's clock: 2^30 ns.
        thread::sleep(Duration::from_millis(1100));
    }
    for scene in scenes {
        let memory = scene.dataplane.memory()?;
        // A hash may name two clients, and a bucket may be full.
        let least = 999_000 * known.len() as u64;
        ensure!(memory.entries >= least, "only {} clients are known: {:?}", memory.entries, memory.stats);
    }
    Ok(())
}

/// The service's table; each backend has the slots that `shift` backends before it would have otherwise.
fn table(service: usize, shift: u16) -> Result<Arc<[u16]>> {
    let names: Vec<String> = (0..BACKENDS).map(|number| format!("backend {number}")).collect();
    let members: Vec<_> = names
        .iter()
        .zip(0..)
        .map(|(name, number)| Member {
            id: service as u16 * BACKENDS + (number + shift) % BACKENDS + 1,
            name,
            weight: 1,
        })
        .collect();
    Ok(maglev::table(&members, TABLE_SIZE, KEY).context("no table")?.slots.into())
}

fn configure(dataplane: &mut KernelDataplane, index: usize, service: &Service, ifindex: u32) -> Result<ServiceSpec> {
    let vip: SocketAddr = service.address.parse()?;
    let id = ServiceId(index as u16);
    let mut addresses = Vec::new();
    for backend in backends(index) {
        let address = paths::backend(backend);
        let next_hop = NextHop {
            ifindex,
            source_mac: OWN_MAC,
            // What the program has forwarded is its next packet, and must be for it.
            destination_mac: OWN_MAC,
            mtu: 1500,
            source: None,
            gateway: None,
        };
        dataplane.write_backend(&BackendSpec {
            id: backend,
            forwarding: service.forwarding,
            address,
            next_hop: Some(next_hop),
            service: id,
            keeps_known: true,
            cause: MoveCause::Down,
            takes_pinned: true,
            tunnel_source: Some("10.0.0.254".parse()?),
        })?;
        addresses.push((backend, address));
    }
    dataplane.swap_table(id, table(index, 0)?, None)?;
    Ok(ServiceSpec {
        tick_seconds: 0,
        id,
        hash_key: KEY,
        family: Family::of(vip.ip()),
        listeners: vec![ListenerSpec {
            id: ListenerId(index as u16),
            listener: Listener::at(vip, service.protocol),
            backend_port: 0,
            counted: false,
        }],
        client_prefix: if vip.is_ipv4() { 32 } else { 64 },
        forwarding: service.forwarding,
        remember: if service.remembers { Duration::from_secs(3600) } else { Duration::ZERO },
        failback: Failback::Stay,
        rules: index == RULED,
        reject: false,
        backends: addresses,
    })
}
