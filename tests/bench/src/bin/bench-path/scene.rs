//! Loaded programs with services, backends and known clients.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::asm::ProgramArray;
use balancer_common::{
    map_types::{DEVICE_CARRIES_TAGS, DEVICE_TAKES_NO_FRAMES},
    share::Share,
    verdict::MoveCause,
};
use balancer_config::{
    config::Failback,
    fixture,
    listeners::{Family, Listener},
    snat::IdleTimes,
};
use balancer_control::{
    io::{BackendSpec, FlowSpec, ListenerId, ListenerSpec, NextHop, QuicSpec, ServiceId, ServiceSpec},
    maglev::{self, Member},
};
use balancer_dataplane::{Capacity, Dataplane as _, DefaultHops, Devices, KernelDataplane, Layers};
use balancer_testkit::{prog_run, sweep::sweep};
use serde_json::json;

use crate::{
    feeder::feeder,
    ground::{INTERFACE, OTHER_INTERFACE, TAGGED_INTERFACE, default_hop},
    many,
    paths::{self, End, Path},
    services::{self, BACKENDS, DATAGRAMS, FLOWING, SERVICES, Service, backends, pool, tunnel_source},
};

/// The destination MAC address of every packet in the benchmark.
pub(crate) const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// How many new clients one service may record per second: an eighth of the size of most client tables.
const NEWCOMERS: u32 = 125_000;
/// The number of sweeps that clear all flags: the sweep in which the lookup table changed, and two equal sweeps.
const SETTLING_SWEEPS: u32 = 4;
/// The size of the connection table. Each connection of the paths must have a row: the answer to a segment without one
/// would replace the frame of all later packets.
const FLOWS: u32 = 1_600_000;
/// How often the benchmark tries to open all connections.
const OPENINGS: usize = 8;
/// Timeouts that never end a connection of a silent backend.
const IDLE: IdleTimes = {
    let day = Duration::from_secs(24 * 3600);
    IdleTimes { tcp: day, udp: day, udp_once: day, half_open: day, closing: day }
};
/// The simulated time at which the program knows all clients.
const AFTER_CLIENTS: Duration = Duration::from_secs(60);

/// The state in which the benchmark measures a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A million clients are known at the backends that the lookup table names.
    Settled,
    /// A million clients are known, and every slot of the lookup table has changed afterwards.
    Exceptions,
    /// A scene like `Settled`, with clients that send datagrams.
    Datagrams,
    /// A scene like `Settled`, with clients that use IPv6.
    OverV6,
    /// The scene has a thousand services with one known client each.
    ManyServices,
    /// The interface accepts no redirected frames, and a VLAN interface on top of that interface tags frames. In this
    /// scene, the program knows no clients.
    Devices,
    /// A scene like `Settled`, for a service with a rule for other clients.
    Ruled,
    /// The program knows a million connections.
    Flows,
}

/// The number of values of [`Place`].
pub(crate) const SCENES: usize = 8;

/// A loaded program with its services.
pub(crate) struct Scene {
    dataplane: KernelDataplane,
    /// The published next hops of replies, which are valid as long as this value exists.
    _default_hops: DefaultHops,
    program: OwnedFd,
    /// The index of the ingress interface.
    ifindex: u32,
    /// How many new clients one service may record per second: an eighth of the size of the client table.
    newcomers: u32,
    /// The simulated time of the client memory since the start.
    elapsed: Duration,
}

impl Scene {
    /// Returns a scene without clients for every [`Place`], in the order of the variants.
    pub(crate) fn load_all() -> Result<[Self; SCENES]> {
        let one = || Self::new(&SERVICES, INTERFACE, 8 * NEWCOMERS);
        let many: Vec<_> = (0..many::SERVICES).map(many::service).collect();
        let few = |services| Self::new(services, INTERFACE, NEWCOMERS);
        let flowing = Self::with_flows(&FLOWING, INTERFACE, NEWCOMERS, FLOWS)?;
        Ok([one()?, one()?, one()?, one()?, few(&many)?, few(&SERVICES)?, one()?, flowing])
    }

    /// Brings each scene of [`load_all`](Self::load_all) into the state that its [`Place`] describes.
    pub(crate) fn set_up(scenes: &mut [Self; SCENES]) -> Result<()> {
        let known = [
            vec![paths::known()],
            vec![paths::known()],
            vec![paths::known_by_datagrams()],
            vec![paths::known_over_v6()],
            vec![paths::to_each_service()],
            Vec::new(),
            vec![paths::known_beside_a_rule()],
            Vec::new(),
        ];
        make_known(scenes, &known)?;
        scenes[Place::Exceptions as usize].move_everybody()?;
        scenes[Place::Devices as usize].meet_devices()?;
        scenes[Place::Ruled as usize].settle();
        scenes[Place::Flows as usize].open_flows()
    }

    /// Returns a scene in which a million TCP clients and a million datagram clients are known at the backends that the
    /// lookup table names.
    pub(crate) fn settled(ifindex: u32) -> Result<Self> {
        let mut scenes = [Self::new(&SERVICES, ifindex, 16 * NEWCOMERS)?];
        make_known(&mut scenes, &[vec![paths::known(), paths::known_by_datagrams()]])?;
        let [scene] = scenes;
        Ok(scene)
    }

    /// Returns a scene with a million known clients. Every connection of the clients begins with a packet that opens
    /// the connection.
    pub(crate) fn paced() -> Result<Self> {
        let mut scenes = [Self::new(&SERVICES[..DATAGRAMS], INTERFACE, 8 * NEWCOMERS)?];
        make_known(&mut scenes, &[vec![paths::known()]])?;
        let [scene] = scenes;
        Ok(scene)
    }

    /// Returns a scene in which all clients of the path are known, and whose client table has room for only a few more
    /// clients.
    pub(crate) fn small(known: Path) -> Result<Self> {
        let mut scenes = [Self::new(&SERVICES[..DATAGRAMS], INTERFACE, NEWCOMERS)?];
        make_known(&mut scenes, &[vec![known]])?;
        let [scene] = scenes;
        Ok(scene)
    }

    /// Opens a connection for each of a million clients. The connections of the paths with one client come first, so that
    /// the rows at which lookups begin are free for them.
    fn open_flows(&self) -> Result<()> {
        let paths = [paths::flow(), paths::crossing(), paths::replied_to(), paths::flows()];
        // The client of the first path is one of the million.
        let opened: u64 = paths.iter().skip(1).map(|path| u64::from(path.clients())).sum();
        let mut there = 0;
        // A connection that has not begun to carry data gives way to another if a few places are taken by chance.
        for _ in 0..OPENINGS {
            for path in &paths {
                Opener::new(self, path)?.open(path.clients())?;
            }
            there = self.dataplane.flows().sweep().entries;
            if there == opened {
                break;
            }
        }
        ensure!(there == opened, "{there} of {opened} connections have a row");
        Ok(())
    }

    fn new(services: &[Service], ifindex: u32, clients: u32) -> Result<Self> {
        Self::with_flows(services, ifindex, clients, 0)
    }

    fn with_flows(services: &[Service], ifindex: u32, clients: u32, flows: u32) -> Result<Self> {
        let rows = (services.len() as u32).next_power_of_two().max(64);
        let capacity = Capacity {
            slots: 1 << 23,
            services: rows,
            listeners: 2 * rows,
            ranges: 64,
            returns: 256,
            backends: 1 << 14,
            clients,
            flows,
            // Older kernel programs do not have the remaining fields.
            ..Capacity::for_config(&fixture::config(Vec::new()))
        };
        let mut dataplane = KernelDataplane::load(capacity, &[ifindex])?;
        dataplane.set_layers(Layers::flat(&[(ifindex, OWN_MAC)]));
        let mut specs = Vec::new();
        for (index, service) in services.iter().enumerate() {
            specs.push(configure(&mut dataplane, index, service, ifindex)?);
        }
        dataplane.publish_services(&specs)?;
        for (index, service) in services.iter().enumerate() {
            dataplane.set_rules(ServiceId(index as u16), &service.rules(index)?)?;
        }
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        let mut default_hops = dataplane.take_default_hops()?;
        for family in [Family::V4, Family::V6] {
            default_hops.publish(family, &default_hop(family)?, Duration::from_nanos(u64::MAX));
        }
        let (newcomers, elapsed) = (clients / 8, AFTER_CLIENTS);
        Ok(Self { dataplane, _default_hops: default_hops, program, ifindex, newcomers, elapsed })
    }

    /// Assigns every slot to a backend other than the slot's previous backend.
    fn move_everybody(&mut self) -> Result<()> {
        let mut remembering = 0;
        for (index, service) in SERVICES.iter().enumerate() {
            self.dataplane.swap_table(ServiceId(index as u16), table(index, service, 1)?, None)?;
            remembering += if service.remembers { u64::from(service.slots) } else { 0 };
        }
        let flagged = self.dataplane.memory()?.exceptions;
        ensure!(flagged == remembering, "{flagged} slots are flagged, not {remembering}");
        Ok(())
    }

    /// Tells the program that the interface accepts no redirected frames, and that another interface carries VLAN tags.
    fn meet_devices(&mut self) -> Result<()> {
        let known = [(INTERFACE, DEVICE_TAKES_NO_FRAMES), (TAGGED_INTERFACE, DEVICE_CARRIES_TAGS)];
        self.dataplane.set_devices(&Devices::from(known))
    }

    /// Sweeps the client table often enough to clear all flags that can be cleared.
    fn settle(&mut self) {
        for _ in 0..SETTLING_SWEEPS {
            while sweep(&mut self.dataplane, AFTER_CLIENTS).is_none() {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Advances the simulated time of the client memory.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.elapsed += time;
        sweep(&mut self.dataplane, self.elapsed);
    }

    /// Returns the loaded kernel program.
    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// The number of packets that have taken the path.
    pub(crate) fn counted(&self, path: &Path) -> Result<u64> {
        let ended = self.dataplane.interface_stats(self.ifindex)?.verdicts[path.end.verdict().index()];
        let End::AtBackend(service) = path.end else { return Ok(ended) };
        let mut sum = 0;
        for backend in backends(service) {
            let stats = self.dataplane.backend_stats(backend)?;
            ensure!(stats.moves.iter().sum::<u64>() == 0, "{}: clients were moved", path.name);
            sum += stats.packets;
        }
        ensure!(ended >= sum, "{}: {sum} packets to backends, {ended} sent", path.name);
        Ok(sum)
    }
}

/// A program that opens connections, for one client after another.
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

/// Opens a connection for every client of the paths in each scene. In each second, the function opens half as many
/// connections as the limit allows, so that one service can certainly record the clients. The simulated seconds are the
/// same for all scenes.
fn make_known(scenes: &mut [Scene], known: &[Vec<Path>]) -> Result<()> {
    let of = |(scene, known): (&Scene, &Vec<Path>)| {
        known.iter().map(|known| Opener::new(scene, known)).collect::<Result<Vec<_>>>()
    };
    let mut openers = scenes.iter().zip(known).map(of).collect::<Result<Vec<_>>>()?;
    let seconds = |(scene, known): (&Scene, &Vec<Path>)| {
        known.iter().map(|known| known.clients().div_ceil(scene.newcomers / 2)).max().unwrap_or_default()
    };
    let seconds = scenes.iter().zip(known).map(seconds).max().unwrap_or_default();
    for second in 1..=u64::from(seconds) {
        for (scene, openers) in scenes.iter_mut().zip(&mut openers) {
            openers.iter_mut().try_for_each(|opener| opener.open(scene.newcomers / 2))?;
            while sweep(&mut scene.dataplane, Duration::from_secs(second)).is_none() {}
        }
        // A second in the kernel program's clock lasts 2^30 ns.
        thread::sleep(Duration::from_millis(1100));
    }
    let clients = known.iter().flatten().map(Path::clients).max().unwrap_or_default();
    // A second packet in a later tick marks the clients' entries as established.
    for (scene, openers) in scenes.iter_mut().zip(&mut openers) {
        while sweep(&mut scene.dataplane, AFTER_CLIENTS / 2).is_none() {}
        openers.iter_mut().try_for_each(|opener| opener.open(clients))?;
    }
    for (scene, known) in scenes.iter().zip(known) {
        let memory = scene.dataplane.memory()?;
        let clients: u64 = known.iter().map(|path| u64::from(path.clients())).sum();
        // Two clients may have the same hash, and buckets of the client table may be full.
        let least = clients - clients / 1000;
        ensure!(memory.entries >= least, "only {} of {clients} clients are known: {:?}", memory.entries, memory.stats);
    }
    Ok(())
}

/// Returns the service's lookup table. With `shift`, each backend gets the slots of the backend whose position is lower
/// by `shift`.
fn table(index: usize, service: &Service, shift: u16) -> Result<Arc<[u16]>> {
    let names: Vec<String> = (0..BACKENDS).map(|number| format!("backend {number}")).collect();
    let members: Vec<_> = names
        .iter()
        .zip(0..)
        .map(|(name, number)| Member { id: index as u16 * BACKENDS + (number + shift) % BACKENDS + 1, name, weight: 1 })
        .collect();
    Ok(maglev::table(&members, service.slots, service.key).context("no table")?.slots.into())
}

fn configure(dataplane: &mut KernelDataplane, index: usize, service: &Service, ifindex: u32) -> Result<ServiceSpec> {
    let id = ServiceId(index as u16);
    let v6 = service.is_v6();
    let backends_v6 = v6 != service.crossed;
    let mut addresses = Vec::new();
    for backend in backends(index) {
        let address = services::backend(backend, backends_v6);
        let next_hop = NextHop {
            ifindex: if service.elsewhere { OTHER_INTERFACE } else { ifindex },
            source_mac: OWN_MAC,
            // The kernel feeds the forwarded packet back to the program, so the packet must be for the balancer's
            // machine.
            destination_mac: OWN_MAC,
            mtu: 1500,
            source: None,
            gateway: None,
            local: false,
        };
        // The code names the fields, so that the benchmark can also measure older programs, which lack some fields.
        let spec: BackendSpec = serde_json::from_value(json!({
            "id": backend,
            "forwarding": service.forwarding,
            "address": address,
            "next_hop": next_hop,
            "service": id,
            "keeps_known": true,
            "cause": MoveCause::Down,
            "takes_pinned": true,
            "tunnel_source": tunnel_source(backends_v6),
            "passive": { "withhold": { "secs": 1, "nanos": 0 } },
        }))?;
        dataplane.write_backend(&spec)?;
        addresses.push((backend, address));
    }
    dataplane.swap_table(id, table(index, service, 0)?, None)?;
    let (addresses_of_flows, ports) = pool(service);
    Ok(ServiceSpec {
        local: Vec::new(),
        tick_seconds: 0,
        id,
        hash_key: service.key,
        family: Family::of(service.address.ip()),
        listeners: vec![ListenerSpec {
            id: ListenerId(index as u16),
            listener: Listener::at(service.address, service.protocol),
            backend_port: 0,
            counted: false,
        }],
        client_prefix: if v6 { 64 } else { 32 },
        forwarding: service.forwarding,
        remember: if service.remembers { Duration::from_secs(3 * 3600) } else { Duration::ZERO },
        failback: Failback::Stay,
        rules: service.rule.is_some(),
        reject: false,
        flows: FlowSpec { addresses: addresses_of_flows, ports, idle: IDLE },
        quic: service.quic_config().map(|config| {
            let servers = backends(index).map(|id| (id, config.derived_id(&id.0.to_string()))).collect();
            QuicSpec { config, servers }
        }),
        share: Share::ALL,
        backends: addresses.into(),
    })
}
