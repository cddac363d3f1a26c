//! Runs the controller's core and the loaded kernel program in one process. The test controls changes, failures,
//! packets and time. The test reports next hops and check results to the core. Packets do not leave the kernel's test
//! run (`BPF_PROG_TEST_RUN`).

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use aya::maps::{Array, Map, MapData, RingBuf};
use balancer_common::{
    client::HashKey,
    client_table::BUCKET_ENTRIES,
    map_types::{LAST_BACKEND, MOST_BACKEND_ROWS},
    verdict::{CauseIndex, Decision, MoveCause},
};
use balancer_config::{config::Config, file, names::BackendName, states::Admin, validate::Valid};
use balancer_control::{
    applied::Applied,
    controller::Controller,
    io::{BackendId, Change, CheckOutcome, Command, Event, NextHop},
    plan::Planned,
    state::{Clocks, SavedState},
};
use balancer_dataplane::{Capacity, Dataplane as _, Forgotten, KernelDataplane, Rescanned};

use crate::contest::{hold_newcomers, map_of};
use balancer_testkit::{
    frame::{Frame, SYN, Transport},
    prog_run,
    sweep::sweep,
};

const XDP_TX: u32 = 3;

/// The hash key from which the controller derives the services' keys.
pub const KEY: HashKey = HashKey { k0: 11, k1: 12 };
/// The VIP of a world's service over IPv4.
pub const VIP: &str = "198.51.100.10:80";
/// The VIP of a world's service over IPv6.
pub const VIP_V6: &str = "[2001:db8::10]:80";

/// A controller core and a data path, with their simulated time.
pub struct World {
    controller: Controller,
    dataplane: KernelDataplane,
    program: OwnedFd,
    start: Instant,
    elapsed: Duration,
    /// The backends' names, by the last two bytes of the MAC address of the next hop.
    backends: HashMap<[u8; 2], String>,
    /// The sum of the counters of removed backends.
    departed: Counters,
    /// The ids of removed backends. The program still counts packets that were in progress when the controller removed
    /// a backend.
    retired: Vec<BackendId>,
    applied: Applied,
    /// The number of known clients that the data path has forgotten because of changes.
    forgotten: u64,
    leaves_rescan: bool,
    keeps_maps: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// New connections, by decision.
    pub decisions: [u64; Decision::COUNT],
    /// Moved clients, by cause.
    pub moves: [u64; MoveCause::COUNT],
    pub connections: u64,
}

impl Counters {
    /// Returns the number of new connections with the given decision.
    #[must_use]
    pub fn decided(&self, decision: Decision) -> u64 {
        self.decisions[decision.index()]
    }

    /// Returns the number of clients moved for the given reason.
    #[must_use]
    pub fn moved(&self, cause: MoveCause) -> u64 {
        self.moves[cause.index()]
    }
}

impl World {
    /// Creates a world with one service `web`, whose `[[service]]` contains the lines `settings`, and with room for
    /// `clients` known clients. The backends `web1` to `webN` are at `10.0.0.11:80` and following addresses.
    ///
    /// # Errors
    /// Fails if the process is not root, if the configuration is invalid, or if the kernel returns an error.
    pub fn new(settings: &str, backends: u8, clients: u32) -> anyhow::Result<Self> {
        Self::at(VIP, "10.0.0.", settings, backends, clients)
    }

    /// Creates a world as [`World::new`] does, but over IPv6: the VIP is [`VIP_V6`], and backends are at `fd00::11` and
    /// following addresses.
    ///
    /// # Errors
    /// Fails in the same cases as [`World::new`].
    pub fn v6(settings: &str, backends: u8, clients: u32) -> anyhow::Result<Self> {
        Self::at(VIP_V6, "fd00::", settings, backends, clients)
    }

    /// Creates a world as [`World::new`] does, with backend ids from `first` on, as if there were many other backends.
    ///
    /// # Errors
    /// Fails in the same cases as [`World::new`].
    pub fn with_ids(first: u16, settings: &str, backends: u8, clients: u32) -> anyhow::Result<Self> {
        let config = configuration(VIP, "10.0.0.", settings, backends, clients)?;
        let clocks = Clocks { now: Instant::now(), wall: SystemTime::now() };
        let nothing = Controller::new(Config { services: Valid::default(), ..config.clone() }, KEY).export(clocks);
        let state = SavedState { free_ids: vec![(first, LAST_BACKEND)], ..nothing };
        let controller = Controller::restore(config.clone(), KEY, state, clocks).map_err(anyhow::Error::msg)?;
        Self::with(controller, Capacity { backends: MOST_BACKEND_ROWS, ..Capacity::for_config(&config) })
    }

    fn at(vip: &str, net: &str, settings: &str, backends: u8, clients: u32) -> anyhow::Result<Self> {
        Self::of(&text(vip, net, settings, backends, clients))
    }

    /// Creates a world with the configuration file `text`. [`World::connect`] and similar functions send packets to the
    /// first service of the file.
    ///
    /// # Errors
    /// Fails in the same cases as [`World::new`].
    pub fn of(text: &str) -> anyhow::Result<Self> {
        let config = parse(text)?;
        let capacity = Capacity::for_config(&config);
        Self::with(Controller::new(config, KEY), capacity)
    }

    fn with(controller: Controller, capacity: Capacity) -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("this test needs root: it loads the program into the kernel");
        }
        // The packets of test runs arrive on the loopback interface, which has the index 1.
        let mut dataplane = KernelDataplane::load(capacity, &[1])?;
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        let start = Instant::now();
        let mut world = Self {
            controller,
            dataplane,
            program,
            start,
            elapsed: Duration::ZERO,
            backends: HashMap::new(),
            departed: Counters::default(),
            retired: Vec::new(),
            applied: Applied::default(),
            forgotten: 0,
            leaves_rescan: false,
            keeps_maps: false,
        };
        let commands = world.controller.start(start);
        world.execute(commands)?;
        Ok(world)
    }

    fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    fn execute(&mut self, commands: Vec<Command>) -> anyhow::Result<()> {
        let (mut watched, mut published) = (Vec::new(), false);
        for command in commands {
            self.carry_out(&command)?;
            self.applied.note(&command);
            published |= matches!(command, Command::PublishServices(_));
            if let Command::WatchNextHop(address) = command {
                watched.push(address);
            }
        }
        if published {
            self.dataplane.complete();
            while !self.leaves_rescan && !self.rescan() {}
        }
        // The world carries out all commands of the core first, and then reports the results to the core.
        watched.into_iter().try_for_each(|address| self.resolve(address))
    }

    fn carry_out(&mut self, command: &Command) -> anyhow::Result<()> {
        match command {
            Command::WriteBackend(backend) => {
                if let Some(place) = self.retired.iter().position(|&id| id == backend.id) {
                    self.retired.swap_remove(place);
                    self.departed.add(&self.dataplane.backend_stats(backend.id)?);
                }
                self.dataplane.write_backend(backend)?;
            }
            Command::RetireBackend(id) => {
                self.dataplane.retire_backend(*id)?;
                self.retired.push(*id);
            }
            Command::SwapTable { service, table, home } => {
                self.dataplane.swap_table(*service, Arc::clone(table), home.clone())?;
            }
            Command::PublishServices(services) => self.dataplane.publish_services(services)?,
            Command::SetRules { service, rules } => self.dataplane.set_rules(*service, rules)?,
            Command::WatchNextHop(_)
            | Command::UnwatchNextHop(_)
            | Command::StartChecks(_)
            | Command::StopChecks(_)
            | Command::Report(_) => {}
        }
        Ok(())
    }

    fn resolve(&mut self, address: IpAddr) -> anyhow::Result<()> {
        let [high, low] = last(address);
        let next_hop = NextHop {
            ifindex: 1,
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, high, low],
            mtu: 1500,
            source: Some(if address.is_ipv4() {
                [10, 0, 0, 254].into()
            } else {
                [0xfd00, 0, 0, 0, 0, 0, 0, 254].into()
            }),
            gateway: None,
            local: false,
        };
        let commands = self.controller.handle(Event::NextHop { address, next_hop: Ok(next_hop) }, self.now());
        self.execute(commands)
    }

    fn name_backends(&mut self) {
        for backend in self.controller.services().iter().flat_map(|service| service.backends()) {
            self.backends.insert(last(backend.address().ip()), backend.name().to_owned());
        }
    }

    /// Makes a change, and undoes the change if the kernel refuses it.
    ///
    /// # Errors
    /// Fails if the core or the kernel refuses the change.
    pub fn change(&mut self, change: Change) -> anyhow::Result<String> {
        let before = self.controller.clone();
        let (message, commands) = self.controller.change(change, self.now())?;
        if let Err(error) = self.make_room().and_then(|()| self.execute(commands)) {
            self.controller = before;
            self.dataplane.abandon();
            let commands = self.controller.resync(&self.applied);
            self.execute(commands).context("undoing a change")?;
            return Err(error);
        }
        Ok(message)
    }

    /// Makes the world refuse changes for which the kernel's maps have no room.
    pub fn keep_maps(&mut self) {
        self.keeps_maps = true;
    }

    /// Makes room for the services in the kernel's maps.
    fn make_room(&mut self) -> anyhow::Result<()> {
        if self.keeps_maps {
            return Ok(());
        }
        self.dataplane.make_room(&self.controller.need())?;
        self.program = self.dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(())
    }

    /// Sets a backend's weight.
    ///
    /// # Errors
    /// Fails if the core or the kernel refuses the change.
    pub fn change_weight(&mut self, name: &str, weight: u16) -> anyhow::Result<String> {
        self.change(Change::SetWeight { name: named(name), weight })
    }

    /// Returns the ring of sampled packets. Only the first call of this function succeeds.
    ///
    /// # Errors
    /// Fails if an earlier call has returned the ring.
    pub fn take_samples(&mut self) -> anyhow::Result<RingBuf<MapData>> {
        self.dataplane.take_samples()
    }

    /// Makes the program sample one forwarded packet in `interval`, on average.
    pub fn sample_every(&self, interval: u32) {
        self.dataplane.sample_every(interval);
    }

    /// Adds a backend with the name `name` at `10.0.1.HOST`.
    ///
    /// # Errors
    /// Fails if the core or the kernel refuses the change.
    pub fn add(&mut self, name: &str, host: u8) -> anyhow::Result<String> {
        let address = Ipv4Addr::new(10, 0, 1, host).into();
        self.change(Change::Add {
            name: named(name),
            address,
            address6: None,
            port: None,
            weight: None,
            backup: false,
            limits: Default::default(),
        })
    }

    /// Sets a backend's administrative state.
    ///
    /// # Errors
    /// Fails if the core or the kernel refuses the change.
    pub fn admin(&mut self, name: &str, admin: Admin, timeout: Option<Duration>) -> anyhow::Result<String> {
        self.change(Change::SetAdmin { name: named(name), admin, timeout })
    }

    /// Reports `times` equal results of health checks to the core.
    ///
    /// # Errors
    /// Fails if the backend is unknown.
    pub fn checked(&mut self, name: &str, outcome: &CheckOutcome, times: u32) -> anyhow::Result<()> {
        let backend = self.controller.backend(&named(name))?;
        let (backend, check) = (backend.id(), backend.check_number().unwrap_or_default());
        for _ in 0..times {
            let event = Event::Checked {
                backend,
                check,
                outcome: outcome.clone(),
                took: Duration::from_millis(1),
                asked: false,
            };
            let commands = self.controller.handle(event, self.now());
            self.execute(commands)?;
        }
        Ok(())
    }

    /// Reloads the configuration that [`World::new`] would use with the same arguments.
    ///
    /// # Errors
    /// Fails if the configuration is invalid, or if the core or the kernel refuses the configuration.
    pub fn reload(&mut self, settings: &str, backends: u8, clients: u32) -> anyhow::Result<String> {
        self.change(Change::Reload(Box::new(configuration(VIP, "10.0.0.", settings, backends, clients)?)))
    }

    /// Reloads the configuration as [`World::reload`] does, with the additional services in `more`.
    ///
    /// # Errors
    /// Fails in the same cases as [`World::reload`].
    pub fn reload_with(&mut self, settings: &str, backends: u8, clients: u32, more: &str) -> anyhow::Result<String> {
        self.apply(&(text(VIP, "10.0.0.", settings, backends, clients) + more))
    }

    /// Applies a configuration file.
    ///
    /// # Errors
    /// Fails in the same cases as [`World::reload`].
    pub fn apply(&mut self, text: &str) -> anyhow::Result<String> {
        let message = self.change(Change::Reload(Box::new(parse(text)?)))?;
        self.name_backends();
        Ok(message)
    }

    /// Returns the plan for a configuration file, including the number of known clients that the file affects.
    ///
    /// # Errors
    /// Fails in the same cases as [`World::reload`].
    pub fn plan(&mut self, text: &str) -> anyhow::Result<Planned> {
        let plan = self.controller.plan(Change::Reload(Box::new(parse(text)?)), self.now())?;
        let clients = self.dataplane.known_clients();
        Ok(plan.counted(|count| clients.into_iter().for_each(|clients| clients.for_each_with_origin(&mut *count))))
    }

    /// Calls the sweep `looks` times without advancing the time. Returns the number of completed passes over the client
    /// table.
    pub fn passes(&mut self, looks: u32) -> u32 {
        (0..looks).map(|_| u32::from(sweep(&mut self.dataplane, self.elapsed).is_some())).sum()
    }

    /// Makes the balancer forget one client.
    ///
    /// # Errors
    /// Fails if the service does not exist; a world always has the service.
    pub fn forget(&mut self, client: Ipv4Addr) -> anyhow::Result<Forgotten> {
        let service = self.controller.services().first().context("a world has a service")?.id();
        Ok(self.dataplane.forget(service, client.into()))
    }

    /// Makes the balancer forget all clients of a backend.
    ///
    /// # Errors
    /// Fails if the backend does not exist.
    pub fn forget_all(&mut self, name: &str) -> anyhow::Result<u64> {
        let backend = self.controller.backend(&named(name))?.id();
        let (mut sum, mut from) = (0, Some(0));
        while let Some(part) = from {
            let (forgotten, following) = self.dataplane.forget_all(backend, part);
            sum += forgotten.clients;
            from = following;
        }
        Ok(sum)
    }

    /// Lets the kernel program record new clients again, as at the beginning of a second; this second lasts until the
    /// next call.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn hold_newcomers(&mut self) -> anyhow::Result<()> {
        hold_newcomers(&mut Map::Array(map_of(self.dataplane.program()?, "NEWCOMERS")?).try_into()?)
    }

    /// The nonempty buckets of the client table, by index.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn entries(&mut self) -> anyhow::Result<BTreeMap<u32, [u64; BUCKET_ENTRIES]>> {
        let table = self.client_table()?;
        let filled = (0..table.len()).map(|index| Ok((index, table.get(&index, 0)?)));
        filled.filter(|read| !matches!(read, Ok((_, bucket)) if *bucket == [0; BUCKET_ENTRIES])).collect()
    }

    /// Writes old entries into the client table again, as a packet does that was delayed for long.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn write_late(&mut self, entries: &BTreeMap<u32, [u64; BUCKET_ENTRIES]>) -> anyhow::Result<()> {
        let mut table = self.client_table()?;
        Ok(entries.iter().try_for_each(|(&index, bucket)| table.set(index, bucket, 0))?)
    }

    /// The number of buckets in the client table, a power of two.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn buckets(&mut self) -> anyhow::Result<u32> {
        Ok(self.client_table()?.len())
    }

    fn client_table(&mut self) -> anyhow::Result<Array<MapData, [u64; BUCKET_ENTRIES]>> {
        Ok(Map::Array(map_of(self.dataplane.program()?, "KNOWN_CLIENTS")?).try_into()?)
    }

    /// Advances the time by `seconds` in one step, and then completes a sweep of the client table.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn skip(&mut self, seconds: u64) -> anyhow::Result<()> {
        self.elapsed += Duration::from_secs(seconds.saturating_sub(1));
        self.pass(1)
    }

    /// Advances the time by `seconds`, one second at a time. In each second, the function ends the drains that are due
    /// and completes a sweep of the client table.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn pass(&mut self, seconds: u64) -> anyhow::Result<()> {
        for _ in 0..seconds {
            self.elapsed += Duration::from_secs(1);
            if self.controller.next_deadline().is_some_and(|deadline| deadline <= self.now()) {
                let commands = self.controller.handle(Event::Tick, self.now());
                self.execute(commands)?;
            }
            let known = loop {
                if let Some(known) = sweep(&mut self.dataplane, self.elapsed) {
                    break known;
                }
                // Between two passes, the sweep waits until the program has finished all packets in progress.
                std::thread::sleep(Duration::from_micros(50));
            };
            let commands = self.controller.handle(Event::Swept { known }, self.now());
            self.execute(commands)?;
        }
        Ok(())
    }

    /// Sends one TCP segment of `client`. Returns the name of the receiving backend, or `None` if the program dropped
    /// the segment.
    ///
    /// # Errors
    /// Fails if the kernel refuses to run the program, or if the frame's MAC address is unknown.
    pub fn send(&mut self, client: Ipv4Addr, flags: u8) -> anyhow::Result<Option<String>> {
        self.send_transport(client, Transport::Tcp(flags))
    }

    /// The loaded program, for sending packets from other threads.
    ///
    /// # Errors
    /// Fails if the process has too many open file descriptors.
    pub fn program(&self) -> std::io::Result<OwnedFd> {
        self.program.try_clone()
    }

    /// Returns the live table's backend for a client, as the last bytes of the backend's MAC address, which equal the
    /// last bytes of its IP address.
    ///
    /// # Errors
    /// Fails if no backend takes the client.
    pub fn home(&self, client: impl Into<IpAddr>) -> anyhow::Result<[u8; 2]> {
        let located = self.controller.locate(client.into(), Some("web"))?;
        let name = located.first().and_then(|client| client.backend.as_deref()).context("nobody takes it")?;
        Ok(last(self.controller.backend(&named(name))?.address().ip()))
    }

    /// Opens a connection and returns its backend.
    ///
    /// # Errors
    /// Fails if [`World::send`] fails, or no backend takes the client.
    pub fn connect(&mut self, client: Ipv4Addr) -> anyhow::Result<String> {
        self.send(client, SYN)?.with_context(|| format!("nobody takes {client}"))
    }

    fn send_transport(&mut self, client: Ipv4Addr, transport: Transport) -> anyhow::Result<Option<String>> {
        let mut frame = Frame::new("192.0.2.1:40000", VIP, transport);
        frame.source = SocketAddr::new(client.into(), 40_000);
        frame.payload.clear();
        self.deliver(&frame)
    }

    /// Sends any frame, and returns the name of the receiving backend, or `None` if the program dropped the frame.
    ///
    /// # Errors
    /// Fails in the same cases as [`World::send`].
    pub fn deliver(&mut self, frame: &Frame) -> anyhow::Result<Option<String>> {
        let ran = prog_run::run(self.program.as_fd(), &frame.bytes(), 0, 1)?;
        if ran.action != XDP_TX {
            return Ok(None);
        }
        let mac = [ran.frame[4], ran.frame[5]];
        if !self.backends.contains_key(&mac) {
            self.name_backends();
        }
        self.backends.get(&mac).cloned().map(Some).with_context(|| format!("sent to {:02x?}", &ran.frame[..6]))
    }

    /// The service's counters, including the counters of removed backends.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn counters(&self) -> anyhow::Result<Counters> {
        let mut sum = self.departed;
        for id in self.counting() {
            sum.add(&self.dataplane.backend_stats(id)?);
        }
        Ok(sum)
    }

    /// The number of new connections for each backend that has an id, and for all removed backends together.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn connections_by_backend(&self) -> anyhow::Result<Vec<(Option<BackendId>, u64)>> {
        let departed = std::iter::once(Ok((None, self.departed.connections)));
        let counting = self.counting().map(|id| Ok((Some(id), self.dataplane.backend_stats(id)?.connections)));
        departed.chain(counting).collect()
    }

    fn counting(&self) -> impl Iterator<Item = BackendId> {
        let present = self.controller.services().iter().flat_map(|service| service.backends()).map(|b| b.id());
        present.chain(self.controller.gone().iter().map(|gone| gone.row.id)).chain(self.retired.iter().copied())
    }

    /// After this call, changes leave the update of the client table to [`World::rescan`].
    pub const fn leave_rereading(&mut self) {
        self.leaves_rescan = true;
    }

    /// Continues the update of the client table that the last change has left to this function. Returns whether the
    /// update is complete.
    pub fn rescan(&mut self) -> bool {
        let forgotten = loop {
            match self.dataplane.rescan() {
                Rescanned::Waits => std::thread::sleep(Duration::from_micros(50)),
                Rescanned::GoesOn => return false,
                Rescanned::Ends(forgotten) => break forgotten,
            }
        };
        for (_, forgotten) in forgotten {
            self.departed.moves[MoveCause::Forgotten.index()] += forgotten.moved;
            self.forgotten += forgotten.clients;
        }
        true
    }

    /// Returns how long ago a client was seen, or `None` for an unknown client.
    #[must_use]
    pub fn seen(&self, client: impl Into<IpAddr>) -> Option<Duration> {
        let service = self.controller.services().first()?.id();
        Some(self.dataplane.client(service, client.into())?.last_seen)
    }

    /// Advances the simulated time by `seconds`. Returns whether a sweep of the client table ended during this time.
    pub fn wait(&mut self, seconds: u64) -> bool {
        self.elapsed += Duration::from_secs(seconds);
        sweep(&mut self.dataplane, self.elapsed).is_some()
    }

    /// The number of known clients that the data path forgot because of changes.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Returns the state of a backend as the status shows it, and the number of known clients of the backend.
    ///
    /// # Errors
    /// Fails if the backend does not exist.
    pub fn shown(&self, name: &str) -> anyhow::Result<(&'static str, u64)> {
        let backend = self.controller.backend(&named(name))?;
        Ok((backend.state().word(), backend.known_clients()))
    }

    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    #[must_use]
    pub fn dataplane(&self) -> &KernelDataplane {
        &self.dataplane
    }

    /// Returns the mutable data path, for writing clients that other members of a fleet know.
    pub fn dataplane_mut(&mut self) -> &mut KernelDataplane {
        &mut self.dataplane
    }
}

impl Counters {
    fn add(&mut self, stats: &balancer_common::map_types::BackendStats) {
        self.connections += stats.connections;
        for (sum, value) in self.decisions.iter_mut().zip(stats.decisions) {
            *sum += value;
        }
        for &cause in MoveCause::ALL {
            self.moves[cause.index()] += stats.moves[CauseIndex::from(cause).counter()];
        }
    }
}

fn configuration(vip: &str, net: &str, settings: &str, backends: u8, clients: u32) -> anyhow::Result<Config> {
    parse(&text(vip, net, settings, backends, clients))
}

fn parse(text: &str) -> anyhow::Result<Config> {
    let (mut config, _) = file::parse(Path::new("world.toml"), text.as_bytes())?;
    // A configuration must name an interface, but a world does not use the interface.
    config.interfaces = vec!["in0".to_owned()];
    Ok(config)
}

fn text(vip: &str, net: &str, settings: &str, backends: u8, clients: u32) -> String {
    let mut text = format!(
        "[client_table]\ncapacity = {clients}\n[[service]]\nname = \"web\"\naddress = \"{vip}\"\n\
         forwarding = \"dsr\"\n{settings}\n"
    );
    for number in 1..=backends {
        text += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{net}{}\"\n", 10 + number);
    }
    text
}

/// Returns the name of a backend of the service `web`.
#[must_use]
pub fn named(backend: &str) -> BackendName {
    BackendName { service: "web".to_owned(), backend: backend.to_owned() }
}

/// Returns the last bytes of a backend's address, which equal the last bytes of its MAC address.
#[must_use]
pub fn last(address: IpAddr) -> [u8; 2] {
    match address {
        IpAddr::V4(address) => [address.octets()[2], address.octets()[3]],
        IpAddr::V6(address) => [address.octets()[14], address.octets()[15]],
    }
}

/// Returns the client with the given number, counted from `172.16.0.0`.
#[must_use]
pub fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0000 + number)
}
