//! A loaded program in a separate network namespace, with services and backends. Tests run single frames through the
//! loaded program.
//!
//! The calling thread moves into a fresh namespace, which disappears when the thread ends.

mod decap;
mod left;
mod namespace;
mod plan;
mod setup;
mod suspects;

use std::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use aya::programs::ProgramInfo;
use aya_log::EbpfLogger;
use balancer_common::{
    features::Features,
    handover,
    map_types::{Forwarding, LAST_BACKEND, ListenerStats, MOST_BACKEND_ROWS, ReplyStats, ShareStats},
    share::Share,
    verdict::{DropReason, Verdict},
};
use balancer_config::{config::Protocol, listeners::Listener};
use balancer_control::{
    io::{
        BackendId, BackendSpec, ListenerId, ListenerSpec, NextHop, Passive, QuicSpec, RuleSpec, ServiceId, ServiceSpec,
    },
    served::HandshakeCounts,
};
use balancer_dataplane::{Capacity, Dataplane as _, DefaultHops, FlowTable, KernelDataplane, Layers, Rescanned};
use balancer_netlink::neighbours::DefaultHopThread;
use balancer_runtime::supervisor::Supervisor;
use ipnet::IpNet;
use log::Log;

pub use self::{decap::Decap, namespace::enter_namespace, setup::Setup};
use self::{
    plan::{Plan, backend},
    suspects::Suspects,
};
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

/// A time after which the data path has forgotten every change.
const AWHILE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug)]
pub struct Service {
    /// The VIP and port of the service.
    pub address: &'static str,
    pub protocol: Protocol,
    pub forwarding: Forwarding,
    /// The target in all slots of the service's table.
    pub target: Target,
}

impl Service {
    /// The features that the program needs for the service.
    ///
    /// # Errors
    /// Fails if an address of the service is none.
    pub fn features(&self) -> anyhow::Result<Features> {
        Ok(Plan::new(0, self, &Setup::default().snat, (1, 2))?.features())
    }
}

/// The target in all slots of a service's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A backend with the given address, behind the ingress interface.
    SameInterface(&'static str),
    /// A backend with the given address, behind the second interface.
    OtherInterface(&'static str),
    /// The machine of the rig itself, at the given address.
    ThisMachine(&'static str),
    /// A backend with an unknown next hop.
    Unreachable(&'static str),
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
    /// The features of `program`.
    features: Features,
    services: Vec<Service>,
    /// The services as they were at the start.
    plans: Vec<Plan>,
    specs: Vec<ServiceSpec>,
    added: Vec<BackendId>,
    /// The ring buffer of suspected backends, once a test has asked for them.
    suspects: Option<Suspects>,
    /// The time of the data path at the start, or after the last reset.
    begun: Duration,
    /// The index of the ingress interface.
    pub in_ifindex: u32,
    /// The index of the second interface.
    pub out_ifindex: u32,
}

impl Rig {
    /// Moves the thread into a new namespace, loads the program and configures `services`, each with one backend. As in
    /// the controller, the program has only the code of features that the services need; if a later change needs
    /// more, the rig loads a richer program.
    ///
    /// The balancer's machine has the addresses `10.0.0.1` and `fd00::1`. The clients' prefixes are `203.0.113.0/24`,
    /// `10.0.0.0/8` and `2001:db8:c::/48`, behind a router with the MAC address [`ROUTER_MAC`]. The neighbours
    /// `203.0.113.66` and `2001:db8:c::66` do not answer. `192.0.2.0/25` has no route, and `192.0.2.128/25` has an
    /// unreachable route. `203.0.114.0/24` and `2001:db8:d::/48` are behind the second interface.
    ///
    /// # Errors
    /// Fails if the process is not root, or if the kernel returns an error.
    pub fn new(services: &[Service]) -> anyhow::Result<Self> {
        Self::with(services, &Setup::default())
    }

    /// Creates a rig as [`Self::new`] does, with these settings.
    ///
    /// # Errors
    /// Fails in the same cases as [`Self::new`].
    pub fn with(services: &[Service], setup: &Setup) -> anyhow::Result<Self> {
        let (in_ifindex, out_ifindex) = enter_namespace()?;
        let plan = |(index, service)| Plan::new(index, service, &setup.snat, (in_ifindex, out_ifindex));
        let plans = services.iter().enumerate().map(plan).collect::<anyhow::Result<Vec<_>>>()?;
        let features = plans.iter().map(Plan::features).fold(setup.features, |all, one| all | one);
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
                flows: setup.flows,
            },
            &[in_ifindex, out_ifindex],
            None,
            setup.tells,
            &Supervisor::default(),
            (features, setup.budgets),
        )?;
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        let mut rig = Self {
            dataplane,
            program,
            features,
            services: services.to_vec(),
            plans,
            specs: Vec::new(),
            added: Vec::new(),
            suspects: None,
            begun: Duration::ZERO,
            in_ifindex,
            out_ifindex,
        };
        rig.publish_plans()?;
        Ok(rig)
    }

    /// Brings the rig back to the state after its start: the rig publishes the first services, and forgets everything
    /// that packets have left: counters, known clients, fragments, connections, cached next hops and spent budgets. The
    /// namespace and the features of the program stay as they are.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        left::forget(&self.info()?)?;
        for spec in self.specs.iter().filter(|spec| spec.rules) {
            self.dataplane.set_rules(spec.id, &[])?;
        }
        for id in mem::take(&mut self.added) {
            self.dataplane.retire_backend(id)?;
        }
        self.dataplane.set_devices(&[].into())?;
        self.publish_plans()?;
        // What remains of the rules is that some slots have a flag.
        self.dataplane.complete();
        while !matches!(self.dataplane.rescan(), Rescanned::Ends(_)) {
            thread::sleep(Duration::from_micros(50));
        }
        // What remains of moved backends is that their replies may arrive on either interface for a while.
        self.begun += AWHILE;
        sweep(&mut self.dataplane, self.begun);
        if self.suspects.is_some() {
            self.suspects()?;
        }
        Ok(())
    }

    /// Writes the first rows and tables, and publishes the first services.
    fn publish_plans(&mut self) -> anyhow::Result<()> {
        self.dataplane.set_layers(Layers::flat(&[(self.in_ifindex, IN_MAC), (self.out_ifindex, OUT_MAC)]));
        for Plan { spec, backend, slot } in &self.plans {
            if let Some(row) = backend {
                self.dataplane.write_backend(row)?;
            }
            self.dataplane.swap_table(spec.id, vec![*slot; TABLE_SIZE].into(), None)?;
        }
        self.specs = self.plans.iter().map(|plan| plan.spec.clone()).collect();
        self.publish()
    }

    /// Publishes the services, and follows the data path to a richer program.
    fn publish(&mut self) -> anyhow::Result<()> {
        self.dataplane.publish_services(&self.specs)?;
        if self.features != self.dataplane.features() {
            self.program = self.dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
            self.features = self.dataplane.features();
        }
        Ok(())
    }

    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
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

    /// Runs the classifier for replies of servers on this machine on a frame that the machine sends. Returns the frame
    /// after the run; `None`: the classifier drops the frame.
    ///
    /// # Errors
    /// Fails if the kernel refuses to run the classifier.
    pub fn sends(&mut self, frame: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        /// The kernel's `TC_ACT_UNSPEC`.
        const CONTINUES: i32 = -1;
        let program = self.dataplane.local_replies()?.fd()?;
        let (verdict, frame) = prog_run::run_classifier(program.as_fd(), frame)?;
        Ok((verdict == CONTINUES).then_some(frame))
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

    /// Advances the time of the controller's data path, given the time since the start or the last reset.
    pub fn pass_time(&mut self, since_start: Duration) {
        sweep(&mut self.dataplane, self.begun + since_start);
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
        self.added.push(id);
        if takes_pinned {
            let table: Vec<u16> =
                (0..TABLE_SIZE).map(|slot| if slot.is_multiple_of(2) { backend_id(index).0 } else { id.0 }).collect();
            self.dataplane.swap_table(ServiceId(index as u16), table.into(), None)?;
        }
        Ok(())
    }

    /// Adds a backend as [`Self::add_backend`] does, and publishes it as a backend of its service. The backend takes no
    /// clients.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn add_peer(&mut self, address: &str, number: usize, at: IpAddr) -> anyhow::Result<()> {
        self.add_backend(address, number, at, false)?;
        let index = self.service(address).context("no such service")?;
        let spec = &mut self.specs[index];
        let port = spec.listeners[0].listener.socket().port();
        let added = (backend_id(number), SocketAddr::new(at, port));
        spec.backends = spec.backends.iter().copied().chain([added]).collect();
        self.publish()
    }

    /// Sets the failure signals of a service's backend to which the program reacts, and makes the program watch the
    /// handshakes of all clients.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn suspect(&mut self, address: &str, at: &str, passive: Option<Passive>) -> anyhow::Result<()> {
        let row = self.moved(address, at, Some(self.in_ifindex), IN_MTU)?;
        self.dataplane.write_backend(&BackendSpec { passive, ..row })?;
        self.watch_handshakes();
        Ok(())
    }

    /// Makes the program watch the handshakes of all clients.
    pub fn watch_handshakes(&mut self) {
        // The second call makes the data path compute the rate of packets, which is low.
        self.dataplane.watch_handshakes(Duration::ZERO);
        self.dataplane.watch_handshakes(Duration::from_secs(1));
    }

    /// The watched handshakes with the backend of the service at `index` whose outcome has become known since the last
    /// call.
    pub fn handshakes(&mut self, index: usize) -> HandshakeCounts {
        let id = backend_id(index);
        self.dataplane.handshakes(&[id]).remove(&id).unwrap_or_default()
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

    /// The ids of the backends that the program has reported as suspected since the last call, each with the program's
    /// reason.
    ///
    /// # Errors
    /// Fails if the ring buffer of the reports cannot be read.
    pub fn suspects(&mut self) -> anyhow::Result<Vec<(BackendId, u16)>> {
        let suspects = match &mut self.suspects {
            Some(suspects) => suspects,
            none => none.insert(Suspects(self.dataplane.take_suspects()?)),
        };
        Ok(suspects.told())
    }

    /// Sets the rules of the service at `address`. A rule that pins clients names the backend by its number.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn set_rules(&mut self, address: &str, rules: &[RuleSpec]) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        self.specs[index].rules = true;
        self.publish()?;
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
        self.publish()?;
        Ok(ListenerId(first))
    }

    /// The counters of a listener of a service with several listeners.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn listener_stats(&self, id: ListenerId) -> anyhow::Result<ListenerStats> {
        self.dataplane.listener_stats(id)
    }

    /// Sets the QUIC connection IDs that name backends of the service at `address`.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn quic(&mut self, address: &str, quic: QuicSpec) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        self.specs[index].quic = Some(quic);
        self.publish()
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
        self.publish()
    }

    /// Sets the share of clients that the service at `address` steers.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn share(&mut self, address: &str, share: Share) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        self.specs[index].share = share;
        self.publish()
    }

    /// Sets how long the service at `address` remembers clients.
    ///
    /// # Errors
    /// Fails if the service does not exist, or the kernel refuses the change.
    pub fn remember(&mut self, address: &str, remember: Duration) -> anyhow::Result<()> {
        let index = self.service(address).context("no such service")?;
        self.specs[index].remember = remember;
        self.publish()
    }

    /// Sets the ports of the pool of every service.
    ///
    /// # Errors
    /// Fails if the kernel refuses the change.
    pub fn set_pool_ports(&mut self, ports: (u16, u16)) -> anyhow::Result<()> {
        self.specs.iter_mut().for_each(|spec| spec.flows.ports = Some(ports));
        self.publish()
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
        self.publish()
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
