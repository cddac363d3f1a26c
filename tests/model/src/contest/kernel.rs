//! The loaded kernel program, which the data path of the controller configures.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use aya::maps::PerCpuValues;
use balancer_common::{
    client_table::BUCKET_ENTRIES,
    features::Features,
    handover,
    map_types::{BUDGETS, BackendStats, Budget, LiveTable, MemoryStats, RuleStats, TableSlot},
    quic::QuicStats,
    service_table::PublishedView,
    verdict::{DROP_COUNTERS, DropReason, Verdict},
};
use balancer_control::io::{BackendId, ListenerId, RuleSpec, ServiceId};
use balancer_dataplane::{Capacity, Dataplane as _, KernelDataplane, Layers, Rescanned};
use ipnet::IpNet;
use nix::sched::{CpuSet, sched_setaffinity};

use super::{
    maps::{self, Maps},
    play::Player,
};
use crate::{
    generate::{BACKEND_ROWS, Interfaces, Scene, Step},
    model::{BUCKETS, Counters, Fate, Hop, Route, Routes, SEEN_WORDS, Seen},
};
use balancer_testkit::{
    prog_run,
    rig::{self, IN_MAC, OUT_MAC, OUT_MTU, ROUTER_MAC},
};

/// The MAC address of the router behind the second interface.
const OTHER_ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

pub struct Kernel {
    dataplane: KernelDataplane,
    program: OwnedFd,
    maps: Maps,
    /// The interfaces on which packets arrive.
    pub interfaces: Interfaces,
    scene: Vec<Placed>,
    /// The counters at the beginning of the scene.
    before: Counters,
    /// The ids of the backends.
    backends: Vec<BackendId>,
    /// The ids of the listeners whose packets the program counts.
    listeners: Vec<ListenerId>,
    /// The number of drops by reason, as read after the last packet.
    drops: [u64; DROP_COUNTERS],
}

/// A service, with the positions of the service's row and live table in their maps.
struct Placed {
    id: ServiceId,
    row: u32,
    table: LiveTable,
    slots: u32,
    rules: Vec<IpNet>,
}

impl Kernel {
    /// Moves the thread into a new namespace and onto the first CPU, and loads the program with these features.
    ///
    /// # Errors
    /// Fails if the process is not root, or if the kernel returns an error.
    pub fn new(features: Features) -> anyhow::Result<Self> {
        let (usual, other) = rig::enter_namespace()?;
        let mut first = CpuSet::new();
        first.set(0)?;
        sched_setaffinity(nix::unistd::Pid::from_raw(0), &first).context("staying on the first CPU")?;
        let clients = BUCKETS as u32 * BUCKET_ENTRIES as u32 / 4;
        let capacity = Capacity {
            slots: 1 << 16,
            services: 64,
            listeners: 128,
            ranges: 128,
            returns: 512,
            backends: BACKEND_ROWS,
            // All CPUs share the counters for the upper half of the rows.
            counted: BACKEND_ROWS / 2,
            clients,
            flows: 0,
        };
        let mut dataplane = KernelDataplane::load_with_features(capacity, &[usual, other], features)?;
        dataplane.set_layers(Layers::flat(&[(usual, IN_MAC), (other, OUT_MAC)]));
        let maps = Maps::of(dataplane.program()?)?;
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self {
            dataplane,
            program,
            maps,
            interfaces: Interfaces { usual, other },
            scene: Vec::new(),
            before: Counters::default(),
            backends: Vec::new(),
            listeners: Vec::new(),
            drops: [0; DROP_COUNTERS],
        })
    }

    /// Finds the row of each service of `scene` in the active half of the service table.
    fn place(&self, scene: &Scene) -> anyhow::Result<Vec<Placed>> {
        let view = PublishedView(self.maps.control.get(&0, 0)?.listeners);
        let first = if view.base() == 0 { 0 } else { self.maps.services.len() / 2 };
        let mut placed = BTreeMap::new();
        for row in first..first + scene.services.len() as u32 {
            let service = self.maps.services.get(&row, 0)?;
            let (id, table) = (ServiceId(service.id), LiveTable::from_word(service.table));
            placed.insert(service.id, Placed { id, row, table, slots: 0, rules: Vec::new() });
        }
        let mut of = |id: u16| placed.remove(&id).with_context(|| format!("service {id} has no row"));
        scene.services.iter().map(|service| of(service.spec.id.0)).collect()
    }

    fn write_slots(&mut self, service: usize, slots: &[TableSlot]) -> anyhow::Result<()> {
        let table = self.scene[service].table;
        for (slot, &value) in (0..).zip(slots) {
            let place = table.place(slot);
            let mut line = self.maps.slots.get(&place.line, 0)?;
            if line.slot(place.index) != value {
                line.set(place.index, value);
                self.maps.slots.set(place.line, line, 0)?;
            }
        }
        Ok(())
    }

    fn read_slots(&self, service: usize) -> anyhow::Result<Vec<TableSlot>> {
        let Placed { table, slots, .. } = &self.scene[service];
        let slot = |number| {
            let place = table.place(number);
            Ok(self.maps.slots.get(&place.line, 0)?.slot(place.index))
        };
        (0..*slots).map(slot).collect()
    }

    fn set_rules(&mut self, service: usize, rules: &[RuleSpec]) -> anyhow::Result<()> {
        // The data path flags slots itself, but in a contest, only the scene and the packets may determine which slots
        // are flagged.
        let slots = self.read_slots(service)?;
        let placed = &mut self.scene[service];
        placed.rules = rules.iter().map(|rule| rule.prefix).collect();
        self.dataplane.set_rules(placed.id, rules)?;
        self.write_slots(service, &slots)
    }

    fn write_tick(&mut self, service: usize, tick: u16) -> anyhow::Result<()> {
        let row = self.scene[service].row;
        let mut service = self.maps.services.get(&row, 0)?;
        service.tick = u32::from(tick);
        Ok(self.maps.services.set(row, service, 0)?)
    }

    fn set_seen(&mut self, seen: &Seen) -> anyhow::Result<()> {
        let mut control = self.maps.control.get(&0, 0)?;
        control.seen_salt = seen.salt;
        self.maps.control.set(0, control, 0)?;
        self.maps.seen.store(&seen.words);
        Ok(())
    }

    /// Renews all budgets, because the model does not know rate limits.
    fn grant_budgets(&mut self) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        for kind in 0..BUDGETS {
            self.maps.budgets.set(kind, PerCpuValues::try_from(vec![Budget::default(); cpus])?, 0)?;
        }
        Ok(())
    }

    /// Reads all counters with the functions of the data path.
    fn read(&self) -> anyhow::Result<Counters> {
        let mut counters = Counters::default();
        for ifindex in [self.interfaces.usual, self.interfaces.other] {
            counters.verdicts.insert(ifindex, self.dataplane.interface_stats(ifindex)?.verdicts);
        }
        counters.drops = self.dataplane.drop_stats()?.reasons;
        for &id in &self.backends {
            counters.backends.insert(id.0, self.dataplane.backend_stats(id)?);
        }
        for &id in &self.listeners {
            let stats = self.dataplane.listener_stats(id)?;
            counters.listeners.insert(id.0, (stats.packets, stats.connections));
        }
        for Placed { id, .. } in &self.scene {
            let passed = self.dataplane.share_stats(*id);
            anyhow::ensure!(passed.host_connections == 0, "the host has connections");
            counters.unsteered.insert(id.0, passed.unsteered);
        }
        for Placed { id, .. } in &self.scene {
            counters.quic.insert(id.0, self.dataplane.quic_stats(*id)?);
        }
        for &id in &self.backends {
            counters.migrated.insert(id.0, self.dataplane.migrated(id));
        }
        let memory = self.dataplane.memory()?.stats;
        counters.memory.inserted = memory.inserted;
        counters.memory.evicted = memory.evicted;
        counters.memory.full = memory.full;
        counters.memory.limited = memory.limited;
        let replies = self.dataplane.reply_stats()?;
        (counters.echo, counters.too_big, counters.rejected) = (replies.echo, replies.too_big, replies.rejected);
        anyhow::ensure!(replies.fragments_not_remembered == 0, "budgets are spent");
        for Placed { id, rules, .. } in &self.scene {
            for &prefix in rules {
                counters.rules.insert((id.0, prefix), self.dataplane.rule_stats(*id, prefix)?);
            }
            counters.fallbacks.insert(id.0, self.dataplane.rule_fallbacks(*id)?);
        }
        Ok(counters)
    }
}

impl Player for Kernel {
    fn begin(&mut self, scene: &Scene) -> anyhow::Result<()> {
        for id in std::mem::take(&mut self.backends) {
            self.dataplane.retire_backend(id)?;
        }
        for Placed { id, .. } in std::mem::take(&mut self.scene) {
            // Removing the rules of a service resets the rules' counters, so that the service's next rules start at
            // zero.
            self.dataplane.set_rules(id, &[])?;
        }
        for backend in &scene.backends {
            self.dataplane.write_backend(backend)?;
            self.backends.push(backend.id);
        }
        for service in &scene.services {
            let table: Vec<u16> = service.slots.iter().map(|slot| slot.backend).collect();
            self.dataplane.swap_table(service.spec.id, table.into(), None)?;
        }
        let specs: Vec<_> = scene.services.iter().map(|service| service.spec.clone()).collect();
        let features = self.dataplane.features();
        self.dataplane.publish_services(&specs)?;
        anyhow::ensure!(self.dataplane.features() == features, "the scene needs features that the program lacks");
        self.dataplane.complete();
        while !matches!(self.dataplane.rescan(), Rescanned::Ends(_)) {
            thread::sleep(Duration::from_micros(50));
        }
        let counted = specs.iter().flat_map(|spec| &spec.listeners).filter(|of| of.counted);
        self.listeners = counted.map(|of| of.id).collect();
        self.scene = self.place(scene)?;
        for (index, service) in scene.services.iter().enumerate() {
            self.scene[index].slots = service.slots.len() as u32;
            self.write_slots(index, &service.slots)?;
            self.set_rules(index, &service.rules)?;
            self.write_tick(index, service.tick)?;
        }
        let mut control = self.maps.control.get(&0, 0)?;
        control.newcomers_own = scene.newcomers.own;
        control.newcomers_common = scene.newcomers.common;
        self.maps.control.set(0, control, 0)?;
        maps::hold_newcomers(&mut self.maps.newcomers)?;
        self.maps.clients.store(&scene.clients);
        self.set_seen(&scene.seen)?;
        let datagrams: Vec<_> = self.maps.fragments.keys().collect::<Result<_, _>>()?;
        for datagram in datagrams {
            self.maps.fragments.remove(&datagram)?;
        }
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        self.maps.memory_stats.set(0, PerCpuValues::try_from(vec![MemoryStats::default(); cpus])?, 0)?;
        self.grant_budgets()?;
        self.maps.outer_ids.set(0, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        self.maps.forget_asked()?;
        self.before = self.read()?;
        self.drops = self.before.drops;
        Ok(())
    }

    fn change(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Packet { .. } => Ok(()),
            Step::Table { service, slots } => self.write_slots(*service, slots),
            Step::Backend(backend) => self.dataplane.write_backend(backend),
            Step::Tick { service, tick } => self.write_tick(*service, *tick),
            Step::Rules { service, rules } => self.set_rules(*service, rules),
            Step::Epoch => maps::hold_newcomers(&mut self.maps.newcomers),
            Step::Clients(clients) => {
                self.maps.clients.store(clients);
                Ok(())
            }
            Step::Seen(seen) => self.set_seen(seen),
        }
    }

    fn packet(&mut self, frame: &[u8], ingress: u32) -> anyhow::Result<Fate> {
        let ran = prog_run::run(self.program.as_fd(), frame, ingress, 1)?;
        match ran.action {
            XDP_PASS if ran.frame == frame => Ok(Fate::Pass),
            XDP_PASS if ran.frame[6..12] == handover::source(self.dataplane.handover_key()) => {
                let mut frame = ran.frame;
                frame[6..12].fill(0);
                Ok(Fate::Handed(frame))
            }
            XDP_PASS => bail!("passed with other bytes"),
            XDP_TX => Ok(Fate::Tx(ran.frame)),
            XDP_REDIRECT => Ok(Fate::Redirect(ran.frame)),
            XDP_DROP => {
                let drops = self.dataplane.drop_stats()?.reasons;
                let counted = |reason: &&DropReason| drops[reason.index()] == self.drops[reason.index()] + 1;
                let reason = DropReason::ALL.iter().find(counted).context("a drop that is not counted")?;
                self.drops = drops;
                Ok(Fate::Drop(*reason))
            }
            action => bail!("action {action}"),
        }
    }

    fn clients(&self) -> Vec<[u64; BUCKET_ENTRIES]> {
        self.maps.clients.load().to_vec()
    }

    fn seen(&self) -> [u64; SEEN_WORDS] {
        self.maps.seen.load()
    }

    fn counters(&mut self) -> anyhow::Result<Counters> {
        // The program remembers for a limited time that it has asked the kernel for a neighbour, but tests do not use
        // the clock.
        self.grant_budgets()?;
        self.maps.forget_asked()?;
        let mut counters = self.read()?;
        counters.verdicts.retain(|ifindex, verdicts| {
            subtract(verdicts, self.before.verdicts.get(ifindex).unwrap_or(&[0; Verdict::COUNT]));
            verdicts.iter().any(|&count| count > 0)
        });
        subtract(&mut counters.drops, &self.before.drops);
        counters.listeners.retain(|id, (packets, connections)| {
            let before = self.before.listeners.get(id).copied().unwrap_or_default();
            (*packets, *connections) = (*packets - before.0, *connections - before.1);
            *packets > 0
        });
        counters.unsteered.retain(|id, packets| {
            *packets -= self.before.unsteered.get(id).copied().unwrap_or_default();
            *packets > 0
        });
        counters.quic.retain(|id, stats| {
            let before = self.before.quic.get(id).copied().unwrap_or_default();
            stats.steered -= before.steered;
            stats.unknown -= before.unknown;
            stats.migrated -= before.migrated;
            *stats != QuicStats::default()
        });
        counters.migrated.retain(|_, clients| *clients > 0);
        counters.echo -= self.before.echo;
        counters.too_big -= self.before.too_big;
        counters.rejected -= self.before.rejected;
        counters.backends.retain(|_, stats| *stats != BackendStats::default());
        counters.rules.retain(|_, stats| *stats != RuleStats::default());
        counters.fallbacks.retain(|id, count| {
            *count -= self.before.fallbacks.get(id).copied().unwrap_or_default();
            *count > 0
        });
        Ok(counters)
    }

    /// The routes that [`rig::enter_namespace`] sets up.
    fn routes(&self) -> Routes {
        let usual = Hop { ifindex: self.interfaces.usual, source_mac: IN_MAC, destination_mac: ROUTER_MAC, mtu: 1500 };
        let other = Hop {
            ifindex: self.interfaces.other,
            source_mac: OUT_MAC,
            destination_mac: OTHER_ROUTER_MAC,
            mtu: OUT_MTU as usize,
        };
        let known = |prefix, hop| (prefix, Route::Hop(hop));
        let nets = [
            known("10.0.0.0/8", usual),
            ("10.0.0.0/24", Route::NoNeighbour),
            known("10.0.0.254/32", usual),
            ("10.0.1.0/24", Route::NoNeighbour),
            known("10.0.1.254/32", other),
            ("203.0.113.0/24", Route::NoNeighbour),
            known("203.0.113.7/32", usual),
            known("203.0.114.0/24", other),
            ("192.0.2.128/25", Route::Forbidden),
            known("2001:db8:c::/48", usual),
            ("2001:db8:c::66/128", Route::NoNeighbour),
            known("2001:db8:d::/48", other),
            ("fd00::/64", Route::NoNeighbour),
            known("fd00::fe/128", usual),
            ("fd01::/64", Route::NoNeighbour),
            known("fd01::fe/128", other),
        ];
        // The addresses of the balancer's machine, and broadcast addresses.
        let own = ["10.0.0.1", "10.0.0.255", "10.0.1.1", "10.0.1.255", "203.0.113.1", "203.0.113.255"];
        let own6 = ["fd00::1", "fd00::", "fd01::1", "fd01::"];
        let own = own.into_iter().chain(own6).filter_map(|address| address.parse::<IpAddr>().ok());
        let nets = nets.into_iter().filter_map(|(net, route)| Some((net.parse::<IpNet>().ok()?, route)));
        Routes(nets.chain(own.map(|address| (IpNet::from(address), Route::Kernel))).collect())
    }
}

fn subtract(from: &mut [u64], what: &[u64]) {
    for (from, what) in from.iter_mut().zip(what) {
        *from -= what;
    }
}
