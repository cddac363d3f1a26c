//! A loaded program in a separate network namespace, with services and backends. Tests run single frames through the
//! loaded program.
//!
//! The calling thread moves into a fresh namespace, which disappears when the thread ends.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use aya::{
    maps::{MapData, RingBuf},
    programs::ProgramInfo,
};
use aya_log::EbpfLogger;
use balancer_common::{
    client::HashKey,
    features::Features,
    handover,
    map_types::{Forwarding, LAST_BACKEND, ListenerStats, MOST_BACKEND_ROWS, ReplyStats, ShareStats, Sign},
    share::Share,
    verdict::{DropReason, MoveCause, Verdict},
};
use balancer_config::{
    config::{Failback, Protocol},
    listeners::{Family, Listener},
    snat::SnatConfig,
};
use balancer_control::io::{
    BackendId, BackendSpec, ListenerId, ListenerSpec, NextHop, Passive, RuleSpec, ServiceId, ServiceSpec,
};
use balancer_daemon::{neighbours::DefaultHopThread, supervisor::Supervisor};
use balancer_dataplane::{Budgets, Capacity, Dataplane as _, DefaultHops, FlowTable, KernelDataplane, Layers};
use ipnet::IpNet;
use log::Log;
use nix::sched::{CloneFlags, unshare};

use crate::{
    prog_run::{self, Ran},
    sweep::sweep,
};

/// The number of slots of every table: small, and a prime number as in real tables.
pub const TABLE_SIZE: usize = 251;
/// The balancer's MAC address on the ingress interface.
pub const IN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The balancer's MAC address on the second interface.
pub const OUT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The MTU of the ingress interface.
pub const IN_MTU: u32 = 1500;
/// The MTU of the second interface of the balancer.
pub const OUT_MTU: u32 = 1300;
/// The MAC address of the clients' router, on the ingress interface.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The source address of tunnels to IPv4 backends.
pub const TUNNEL_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The source address of tunnels to IPv6 backends.
pub const TUNNEL_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// The range of source ports for `snat` connections from [`TUNNEL_SOURCE_V4`] and [`TUNNEL_SOURCE_V6`].
pub const POOL_PORTS: (u16, u16) = (20_000, 20_049);

/// A service of the rig.
#[derive(Clone, Debug)]
pub struct Service {
    /// The VIP and port of the service.
    pub address: &'static str,
    pub protocol: Protocol,
    pub forwarding: Forwarding,
    /// The target in all slots of the service's table.
    pub target: Target,
}

/// The target in all slots of a service's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A backend with the given address, behind the ingress interface.
    SameInterface(&'static str),
    /// A backend with the given address, behind the second interface.
    OtherInterface(&'static str),
    /// A backend with an unknown next hop.
    Unreachable(&'static str),
    /// The service has no backend.
    NoBackend,
    /// Every backend of the service is down.
    AllDown,
}

/// The id of the backend of the service at `index`. The ID is one of the highest IDs, so that code with too narrow an
/// integer type fails.
#[must_use]
pub const fn backend_id(index: usize) -> BackendId {
    BackendId(LAST_BACKEND - index as u16)
}

/// The MAC address of the backend of the service at `index`.
#[must_use]
pub const fn backend_mac(index: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, index as u8]
}

/// The loaded program, and its counters.
pub struct Rig {
    dataplane: KernelDataplane,
    program: OwnedFd,
    services: Vec<Service>,
    specs: Vec<ServiceSpec>,
    /// The index of the ingress interface.
    pub in_ifindex: u32,
    /// The index of the second interface.
    pub out_ifindex: u32,
}

impl Rig {
    /// Moves the thread into a new namespace, loads the program and configures `services`, each with one backend.
    ///
    /// The balancer's machine has the addresses `10.0.0.1` and `fd00::1`. The clients' prefixes are `203.0.113.0/24`,
    /// `10.0.0.0/8` and `2001:db8:c::/48`, behind a router with the MAC address [`ROUTER_MAC`]. The neighbours
    /// `203.0.113.66` and `2001:db8:c::66` do not answer. `192.0.2.0/25` has no route, and `192.0.2.128/25` has an
    /// unreachable route. `203.0.114.0/24` and `2001:db8:d::/48` are behind the second interface.
    ///
    /// # Errors
    /// Fails if the process is not root, or if the kernel returns an error.
    pub fn new(services: &[Service]) -> anyhow::Result<Self> {
        Self::load(services, false, Budgets::here(), &small_pool(), 1 << 10)
    }

    /// Creates a rig as [`Self::new`] does, with a program that logs unexpected packets: see [`Self::log`].
    ///
    /// # Errors
    /// Fails in the same cases as [`Self::new`].
    pub fn telling(services: &[Service]) -> anyhow::Result<Self> {
        Self::load(services, true, Budgets::here(), &small_pool(), 1 << 10)
    }

    /// Creates a rig as [`Rig::new`] does, and gives each CPU the budgets `budgets`.
    ///
    /// # Errors
    /// Fails in the same cases as [`Rig::new`].
    pub fn limited(services: &[Service], budgets: Budgets) -> anyhow::Result<Self> {
        Self::load(services, false, budgets, &small_pool(), 1 << 10)
    }

    /// Creates a rig as [`Rig::new`] does, with a connection table for `flows` `snat` connections.
    ///
    /// # Errors
    /// Fails in the same cases as [`Rig::new`].
    pub fn with_flows(services: &[Service], flows: u32, snat: &SnatConfig) -> anyhow::Result<Self> {
        Self::load(services, false, Budgets::here(), snat, flows)
    }

    fn load(
        services: &[Service],
        tells: bool,
        budgets: Budgets,
        snat: &SnatConfig,
        flows: u32,
    ) -> anyhow::Result<Self> {
        let (in_ifindex, out_ifindex) = enter_namespace()?;
        let mut dataplane = KernelDataplane::load_limited(
            Capacity {
                slots: 1 << 16,
                services: 64,
                listeners: 64,
                ranges: 64,
                returns: 64,
                backends: MOST_BACKEND_ROWS,
                counted: MOST_BACKEND_ROWS,
                clients: 1 << 10,
                flows,
            },
            &[in_ifindex, out_ifindex],
            None,
            tells,
            &Supervisor::default(),
            (Features::ALL, budgets),
        )?;
        dataplane.set_layers(Layers::flat(&[(in_ifindex, IN_MAC), (out_ifindex, OUT_MAC)]));
        let mut specs = Vec::new();
        for (index, service) in services.iter().enumerate() {
            specs.push(configure(&mut dataplane, index, service, snat, (in_ifindex, out_ifindex))?);
        }
        dataplane.publish_services(&specs)?;
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self { dataplane, program, services: services.to_vec(), specs, in_ifindex, out_ifindex })
    }

    /// Sends the log of the program to `logger`. Only the first call of this function succeeds.
    ///
    /// # Errors
    /// Fails if an earlier call has taken the log.
    pub fn log<T: Log>(&mut self, logger: T) -> anyhow::Result<EbpfLogger<T>> {
        self.dataplane.take_log(logger)
    }

    /// Returns the kernel's information about the loaded program.
    ///
    /// # Errors
    /// Fails if the kernel returns no information.
    pub fn info(&mut self) -> anyhow::Result<ProgramInfo> {
        Ok(self.dataplane.program()?.info()?)
    }

    /// Returns the loaded kernel program.
    #[must_use]
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// The index of the service at `address`, from 0. The MAC address of the service's backend is the [`backend_mac`]
    /// of this index.
    #[must_use]
    pub fn service(&self, address: &str) -> Option<usize> {
        self.services.iter().position(|service| service.address == address)
    }

    /// Runs the program on a frame that arrives on the first interface.
    ///
    /// # Errors
    /// Fails if the kernel refuses to run the program.
    pub fn run(&self, frame: &[u8]) -> anyhow::Result<Ran> {
        Ok(prog_run::run(self.program.as_fd(), frame, self.in_ifindex, 1)?)
    }

    /// Runs the program on a frame that arrives on the interface with the index `ifindex`.
    ///
    /// # Errors
    /// Fails if the kernel refuses to run the program.
    pub fn run_by(&self, ifindex: u32, frame: &[u8]) -> anyhow::Result<Ran> {
        Ok(prog_run::run(self.program.as_fd(), frame, ifindex, 1)?)
    }

    /// Sets the known interfaces, and the devices on top of these interfaces.
    pub fn set_layers(&mut self, layers: Layers) {
        self.dataplane.set_layers(layers);
    }

    /// Sets the interface of the next hop of a service's backend, or removes the next hop.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn move_backend(&mut self, address: &str, at: &str, ifindex: Option<u32>) -> anyhow::Result<()> {
        let row = self.moved(address, at, ifindex, IN_MTU)?;
        self.dataplane.write_backend(&row)
    }

    /// Sets the MTU, in bytes, of the path to a service's backend. The backend must be behind the second interface.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn widen(&mut self, address: &str, at: &str, mtu: u32) -> anyhow::Result<()> {
        let row = self.moved(address, at, Some(self.out_ifindex), mtu)?;
        self.dataplane.write_backend(&row)
    }

    fn moved(&self, address: &str, at: &str, ifindex: Option<u32>, mtu: u32) -> anyhow::Result<BackendSpec> {
        let index = self.service(address).context("no such service")?;
        let next_hop = ifindex.map(|ifindex| NextHop {
            gateway: None,
            ifindex,
            source_mac: if ifindex == self.in_ifindex { IN_MAC } else { OUT_MAC },
            destination_mac: backend_mac(index),
            mtu,
            source: None,
            local: false,
        });
        Ok(backend(backend_id(index), index, self.services[index].forwarding, at.parse()?, next_hop))
    }

    /// Advances the time of the controller's data path.
    pub fn pass_time(&mut self, since_start: Duration) {
        sweep(&mut self.dataplane, since_start);
    }

    /// Takes the writer of the default next hops. Only the first call of this function, or of
    /// [`Self::follow_default_routes`], succeeds.
    ///
    /// # Errors
    /// Fails if the writer was taken before.
    pub fn default_hops(&mut self) -> anyhow::Result<DefaultHops> {
        self.dataplane.take_default_hops()
    }

    /// Starts the controller's thread that publishes the default next hops of the namespace.
    ///
    /// # Errors
    /// Fails if the writer of the default next hops was taken before, or if the thread cannot be started.
    pub fn follow_default_routes(&mut self) -> anyhow::Result<DefaultHopThread> {
        DefaultHopThread::spawn(self.default_hops()?, &Supervisor::default())
    }

    /// Sets the `DEVICE_*` constant of every known interface, by index.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn set_devices(&mut self, known: impl IntoIterator<Item = (u32, u32)>) -> anyhow::Result<()> {
        self.dataplane.set_devices(&known.into_iter().collect())
    }

    /// Returns the source MAC address that marks frames for the kernel's transmit path.
    #[must_use]
    pub const fn handover_source(&self) -> [u8; 6] {
        handover::source(self.dataplane.handover_key())
    }

    /// The number of packets that arrived on the first interface and got the given verdict.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn verdicts(&self, verdict: Verdict) -> anyhow::Result<u64> {
        Ok(self.dataplane.interface_stats(self.in_ifindex)?.verdicts[verdict.index()])
    }

    /// The number of packets that the program dropped for the given reason.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn drops(&self, reason: DropReason) -> anyhow::Result<u64> {
        Ok(self.dataplane.drop_stats()?.reasons[reason.index()])
    }

    /// The number of packets that the program itself answered.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn replies(&self) -> anyhow::Result<ReplyStats> {
        self.dataplane.reply_stats()
    }

    /// Adds a backend to the service at `address`. The backend gets the number `number` and the MAC address
    /// [`backend_mac`] of that number. If the backend takes clients, the service's table names the backend in every
    /// second slot.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn add_backend(&mut self, address: &str, number: usize, at: IpAddr, takes_pinned: bool) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        let forwarding = self.services[index].forwarding;
        let port = self.specs[index].listeners[0].listener.socket().port();
        let id = backend_id(number);
        let next_hop = NextHop {
            gateway: None,
            ifindex: self.in_ifindex,
            source_mac: IN_MAC,
            destination_mac: backend_mac(number),
            mtu: IN_MTU,
            source: None,
            local: false,
        };
        let added = backend(id, index, forwarding, SocketAddr::new(at, port), Some(next_hop));
        self.dataplane.write_backend(&BackendSpec { takes_pinned, ..added })?;
        if takes_pinned {
            let table: Vec<u16> =
                (0..TABLE_SIZE).map(|slot| if slot.is_multiple_of(2) { backend_id(index).0 } else { id.0 }).collect();
            self.dataplane.swap_table(ServiceId(index as u16), table.into(), None)?;
        }
        Ok(())
    }

    /// Sets the failure signals of a service's backend to which the program reacts, and makes the program watch the
    /// handshakes of all clients.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn suspect(&mut self, address: &str, at: &str, passive: Option<Passive>) -> anyhow::Result<()> {
        let row = self.moved(address, at, Some(self.in_ifindex), IN_MTU)?;
        self.dataplane.write_backend(&BackendSpec { passive, ..row })?;
        // The second call makes the data path compute the rate of packets, which is low.
        self.dataplane.watch_handshakes(Duration::ZERO);
        self.dataplane.watch_handshakes(Duration::from_secs(1));
        Ok(())
    }

    /// Sets whether a service's backend keeps known clients.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn keep_known(&mut self, address: &str, at: &str, keeps_known: bool) -> anyhow::Result<()> {
        let row = self.moved(address, at, Some(self.in_ifindex), IN_MTU)?;
        self.dataplane.write_backend(&BackendSpec { keeps_known, ..row })
    }

    /// Returns the connection table of `snat` services.
    #[must_use]
    pub fn flows(&self) -> Arc<FlowTable> {
        self.dataplane.flows()
    }

    /// Reports that the health checks of the backend of the service at `index` succeed.
    pub fn works(&self, index: usize) {
        self.dataplane.works(backend_id(index));
    }

    /// The number of resets that the program withheld from clients of the backend of the service at `index`.
    #[must_use]
    pub fn withheld(&self, index: usize) -> u64 {
        self.dataplane.withheld(backend_id(index))
    }

    /// Takes the ring buffer into which the program writes suspected backends. Only the first call of this function
    /// succeeds.
    ///
    /// # Errors
    /// Fails if an earlier call has taken the ring buffer.
    pub fn suspects(&mut self) -> anyhow::Result<Suspects> {
        Ok(Suspects(self.dataplane.take_suspects()?))
    }

    /// Sets the rules of the service at `address`. A rule that pins clients names the backend by its number.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn set_rules(&mut self, address: &str, rules: &[RuleSpec]) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        self.specs[index].rules = true;
        self.dataplane.publish_services(&self.specs)?;
        self.dataplane.set_rules(ServiceId(index as u16), rules)
    }

    /// Replaces the listeners of the service at `address`, and returns the id of the first listener; the others have the
    /// ids after it. Each listener is paired with the port of the service's `nat`
    /// backends; 0 stands for the backend's own port.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn listen(&mut self, address: &str, listeners: &[(Listener, u16)]) -> anyhow::Result<ListenerId> {
        let index = self.service(address).context("no such service")?;
        let used = self.specs.iter().flat_map(|spec| &spec.listeners).map(|listener| listener.id.0 + 1);
        let first = used.max().unwrap_or_default();
        let specs = listeners.iter().zip(first..).map(|(&(listener, backend_port), id)| ListenerSpec {
            id: ListenerId(id),
            listener,
            backend_port,
            counted: listeners.len() > 1,
        });
        self.specs[index].listeners = specs.collect();
        self.dataplane.publish_services(&self.specs)?;
        Ok(ListenerId(first))
    }

    /// The counters of a listener of a service with several listeners.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn listener_stats(&self, id: ListenerId) -> anyhow::Result<ListenerStats> {
        self.dataplane.listener_stats(id)
    }

    /// Moves all listeners on the address `from` to the address `to`.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    pub fn move_vip(&mut self, from: IpAddr, to: IpAddr) -> anyhow::Result<()> {
        for listener in self.specs.iter_mut().flat_map(|spec| &mut spec.listeners) {
            if listener.listener.address == from {
                listener.listener.address = to;
            }
        }
        self.dataplane.publish_services(&self.specs)
    }

    /// Sets the share of clients that the service at `address` steers.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn share(&mut self, address: &str, share: Share) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        self.specs[index].share = share;
        self.dataplane.publish_services(&self.specs)
    }

    /// Sets how long the service at `address` remembers clients.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn remember(&mut self, address: &str, remember: Duration) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        self.specs[index].remember = remember;
        self.dataplane.publish_services(&self.specs)
    }

    /// The counters of the packets of the service at `address` that the program passed to the host.
    ///
    /// # Errors
    /// Fails if the service does not exist.
    pub fn passed(&self, address: &str) -> anyhow::Result<ShareStats> {
        let index = self.service(address).context("no such service")?;
        Ok(self.dataplane.share_stats(ServiceId(index as u16)))
    }

    /// Sets whether services answer packets that no backend takes.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn reject(&mut self, reject: bool) -> anyhow::Result<()> {
        for spec in &mut self.specs {
            spec.reject = reject;
        }
        self.dataplane.publish_services(&self.specs)
    }

    /// The two packet counters of a rule of the service at `address`. The first counts packets whose fate the rule
    /// determined; the second counts packets that the program steered as if there were no rule.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the read.
    pub fn rule_stats(&self, address: &str, prefix: IpNet) -> anyhow::Result<(u64, u64)> {
        let index = self.service(address).context("no such service")?;
        let stats = self.dataplane.rule_stats(ServiceId(index as u16), prefix)?;
        Ok((stats.packets, stats.fallbacks))
    }

    /// Counters of the backend of the service at `index`.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn backend_stats(&self, index: usize) -> anyhow::Result<balancer_common::map_types::BackendStats> {
        self.dataplane.backend_stats(backend_id(index))
    }
}

const SETUP: &str = "
ip link set lo up
ip link add in0 address 02:00:00:00:00:01 type veth peer name in1 address 02:00:00:00:00:09
ip link add out0 address 02:00:00:00:00:02 type veth peer name out1
ip link set in0 up
ip link set in1 up
ip link set out0 mtu 1300
ip link set out0 up
ip link set out1 up
ip addr add 10.0.0.1/24 dev in0
ip addr add fd00::1/64 dev in0 nodad
ip addr add 203.0.113.1/24 dev in0
ip neigh add 10.0.0.254 lladdr 02:00:00:00:00:09 dev in0 nud permanent
ip neigh add fd00::fe lladdr 02:00:00:00:00:09 dev in0 nud permanent
ip neigh add 203.0.113.7 lladdr 02:00:00:00:00:09 dev in0 nud permanent
ip route add 10.0.0.0/8 via 10.0.0.254
ip route add unreachable 192.0.2.128/25
ip -6 route add 2001:db8:c::/48 via fd00::fe
ip -6 route add 2001:db8:c::66/128 dev in0
ip addr add 10.0.1.1/24 dev out0
ip addr add fd01::1/64 dev out0 nodad
ip neigh add 10.0.1.254 lladdr 02:00:00:00:00:08 dev out0 nud permanent
ip neigh add fd01::fe lladdr 02:00:00:00:00:08 dev out0 nud permanent
ip route add 203.0.114.0/24 via 10.0.1.254
ip -6 route add 2001:db8:d::/48 via fd01::fe
";

/// Moves the thread into a new namespace with the links, addresses and routes that [`Rig::new`] describes. Returns the
/// indexes of the two interfaces.
///
/// # Errors
/// Fails if the process is not root, or if the kernel returns an error.
pub fn enter_namespace() -> anyhow::Result<(u32, u32)> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this test needs root: it loads the program into the kernel");
    }
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    for line in SETUP.trim().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let status = Command::new(words[0]).args(&words[1..]).status().with_context(|| line.to_owned())?;
        anyhow::ensure!(status.success(), "{line}: {status}");
    }
    for family in ["ipv4", "ipv6"] {
        // At this path, a thread sees the settings of its own network namespace.
        let path = format!("/proc/sys/net/{family}/conf/all/forwarding");
        std::fs::write(&path, "1").with_context(|| path.clone())?;
    }
    await_carrier("in0")?;
    await_carrier("out0")?;
    Ok((nix::net::if_::if_nametoindex("in0")?, nix::net::if_::if_nametoindex("out0")?))
}

/// Waits until the kernel has noticed the carrier of an interface, because the kernel uses no routes over an interface
/// without a carrier.
fn await_carrier(interface: &str) -> anyhow::Result<()> {
    for _ in 0..500 {
        let shown = Command::new("ip").args(["-oneline", "link", "show", interface]).output()?;
        if String::from_utf8_lossy(&shown.stdout).contains("state UP") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("{interface} has no carrier after five seconds")
}

fn configure(
    dataplane: &mut KernelDataplane,
    index: usize,
    service: &Service,
    snat: &SnatConfig,
    (in_ifindex, out_ifindex): (u32, u32),
) -> anyhow::Result<ServiceSpec> {
    let vip: SocketAddr = service.address.parse()?;
    let id = backend_id(index);
    let hop = |ifindex, source_mac, mtu| NextHop {
        ifindex,
        source_mac,
        destination_mac: backend_mac(index),
        mtu,
        source: None,
        gateway: None,
        local: false,
    };
    let (address, next_hop) = match service.target {
        Target::SameInterface(address) => (Some(address), Some(hop(in_ifindex, IN_MAC, IN_MTU))),
        Target::OtherInterface(address) => (Some(address), Some(hop(out_ifindex, OUT_MAC, OUT_MTU))),
        Target::Unreachable(address) => (Some(address), None),
        Target::NoBackend | Target::AllDown => (None, None),
    };
    let mut backends = Vec::new();
    let entry = match (address, service.target) {
        (Some(address), _) => {
            let address: SocketAddr = address.parse()?;
            dataplane.write_backend(&backend(id, index, service.forwarding, address, next_hop))?;
            backends.push((id, address));
            id.0
        }
        (None, Target::AllDown) => balancer_common::map_types::ALL_DOWN,
        (None, _) => balancer_common::map_types::NO_BACKEND,
    };
    let id = ServiceId(index as u16);
    dataplane.swap_table(id, vec![entry; TABLE_SIZE].into(), None)?;
    Ok(ServiceSpec {
        tick_seconds: 0,
        id,
        hash_key: HashKey { k0: 1, k1: 2 },
        family: Family::of(vip.ip()),
        listeners: vec![ListenerSpec {
            id: ListenerId(index as u16),
            listener: Listener::at(vip, service.protocol),
            backend_port: 0,
            counted: false,
        }],
        client_prefix: if vip.is_ipv4() { 32 } else { 64 },
        forwarding: service.forwarding,
        remember: Duration::ZERO,
        failback: Failback::Stay,
        rules: false,
        reject: false,
        flows: snat.clone(),
        quic: None,
        share: Share::ALL,
        backends: backends.into(),
        local: Vec::new(),
    })
}

fn small_pool() -> SnatConfig {
    SnatConfig { ports: Some(POOL_PORTS), ..SnatConfig::default() }
}

fn backend(
    id: BackendId,
    service: usize,
    forwarding: Forwarding,
    address: SocketAddr,
    next_hop: Option<NextHop>,
) -> BackendSpec {
    BackendSpec {
        id,
        forwarding,
        address,
        next_hop,
        service: ServiceId(service as u16),
        keeps_known: true,
        cause: MoveCause::Down,
        takes_pinned: true,
        tunnel_source: Some(if address.is_ipv4() { TUNNEL_SOURCE_V4.into() } else { TUNNEL_SOURCE_V6.into() }),
        passive: None,
    }
}

/// The program's reports of backends that may have failed.
pub struct Suspects(RingBuf<MapData>);

impl Suspects {
    /// The ids of the backends that the program has reported since the last call, each with the program's reason.
    pub fn told(&mut self) -> Vec<(BackendId, u16)> {
        let mut told = Vec::new();
        while let Some(item) = self.0.next() {
            if let Ok(sign) = bytemuck::try_pod_read_unaligned::<Sign>(&item) {
                told.push((BackendId(sign.backend), sign.signal));
            }
        }
        told
    }
}

/// The loaded program that strips tunnel headers on a backend.
pub struct Decap {
    dataplane: balancer_dataplane::Decap,
    program: OwnedFd,
}

impl Decap {
    /// Loads the program for the local VIPs `vips`, and for tunnels from the prefixes `from` to the addresses `own`.
    ///
    /// # Errors
    /// Fails if the process is not root, or if the kernel returns an error.
    pub fn new(vips: &[IpAddr], own: &[IpAddr], from: &[IpNet]) -> anyhow::Result<Self> {
        let mut dataplane = balancer_dataplane::Decap::load(from)?;
        dataplane.set_addresses(&vips.iter().copied().collect(), &own.iter().copied().collect())?;
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self { dataplane, program })
    }

    /// Runs the program on one frame.
    ///
    /// # Errors
    /// Fails if the kernel refuses to run the program.
    pub fn run(&self, frame: &[u8]) -> anyhow::Result<Ran> {
        Ok(prog_run::run(self.program.as_fd(), frame, 1, 1)?)
    }

    /// The counters of stripped, refused, malformed and passed packets.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn counters(&self) -> anyhow::Result<[u64; 4]> {
        let stats = self.dataplane.stats()?;
        Ok([stats.stripped, stats.refused, stats.malformed, stats.passed])
    }
}
