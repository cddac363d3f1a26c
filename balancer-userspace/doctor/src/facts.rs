//! The facts from which the doctor derives findings. If the doctor could not determine a fact, the fact is absent, and
//! [`Facts::unseen`] contains the reason.

use std::net::{IpAddr, SocketAddr};

use balancer_api::model::{HealthView, RuleView, StatusView};
use balancer_config::listeners::Listener;

use crate::finding::Unseen;

/// A hardware address.
pub type Mac = [u8; 6];

/// All facts about the machine and its controller.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The kernel's release, such as `6.12.1`.
    pub kernel: String,
    /// The build of the kernel, as `uname -v` prints it.
    pub kernel_build: String,
    /// The facts about the controller; `None` if no controller is reachable.
    pub controller: Option<Controller>,
    /// The network interfaces of the controller's network namespace.
    pub links: Vec<Link>,
    /// The addresses of the network interfaces.
    pub addresses: Vec<Address>,
    /// The backends of the requested services, with one entry for each address.
    pub backends: Vec<Backend>,
    /// The virtual addresses of the requested services.
    pub vips: Vec<Vip>,
    /// The ways of replies to clients; empty as long as clients complete their connections.
    pub ways_back: Vec<WayBack>,
    /// The filters of this machine that may drop packets.
    pub filters: Filters,
    /// The addresses under which `snat` backends see clients, as the configuration names them.
    pub pools: Vec<Pool>,
    /// A process that serves the control socket and does not answer.
    pub hanging: Option<Hanging>,
    /// The subjects that the doctor could not examine, with the reasons.
    pub unseen: Vec<Unseen>,
}

/// A running controller and the facts that it reports.
#[derive(Clone, Debug)]
pub struct Controller {
    /// The controller's state when the examination began.
    pub before: StatusView,
    /// The controller's state when the examination ended.
    pub after: StatusView,
    /// The health checks of the controller's backends.
    pub health: Vec<HealthView>,
    pub rules: Vec<RuleView>,
    /// Whether the configuration requests generic mode; `None` if the doctor could not read the configuration.
    pub asks_generic: Option<bool>,
    /// The destination prefix of the route to a recently seen client.
    pub clients: Option<ipnet::IpNet>,
    /// A recently seen client.
    pub client: Option<IpAddr>,
    /// The kernel's count of times that the controller's control group ran out of memory.
    pub oom_kills: Option<u64>,
}

/// A process that serves the control socket and does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hanging {
    /// The id of the process; `None` if it is unknown.
    pub pid: Option<i32>,
    /// Whether a signal has stopped the process.
    pub stopped: bool,
    /// The time in seconds for which the doctor waited.
    pub waited_seconds: u64,
}

/// The parts of this machine that may drop packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// The chains of nftables that may drop packets; `None` if the doctor could not list them.
    pub chains: Option<Vec<Chain>>,
    /// Whether tables of `iptables-legacy` exist, which `nft` does not list.
    pub legacy: bool,
    /// The filters of `tc` on interfaces towards backends whose packets do not pass.
    pub tc: Vec<TcFilter>,
}

/// A chain of the machine's firewall that is attached to a hook of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The family, table and name of the chain, as in `nft`.
    pub place: String,
    /// The hook of the chain: `input`, `output`, or another hook of the kernel.
    pub hook: String,
}

/// A filter of `tc` on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcFilter {
    /// The index of the interface.
    pub ifindex: u32,
    pub direction: Direction,
    /// The kind of the filter, such as `bpf`, and the name of its program.
    pub name: String,
}

/// The direction of packets on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// An address of the pool of a `snat` service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The name of the service.
    pub service: String,
    pub address: IpAddr,
    /// The first and the last port of the pool, if the configuration names them.
    pub ports: Option<(u16, u16)>,
}

/// The XDP features that a driver supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Whether the driver itself runs XDP programs (native mode).
    pub runs_programs: bool,
    /// Whether the driver accepts redirected frames from XDP.
    pub takes_frames: bool,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The interface's index.
    pub ifindex: u32,
    pub name: String,
    /// Whether the interface is administratively up.
    pub up: bool,
    /// Whether the interface has a carrier, such as a plugged cable.
    pub carrier: bool,
    /// The interface's MTU, in bytes.
    pub mtu: u32,
    /// The kind of a virtual interface, such as `veth`.
    pub kind: Option<String>,
    /// The hardware address.
    pub mac: Option<Mac>,
    /// The number of receive queues.
    pub rx_queues: u32,
    /// The XDP programs on the interface.
    pub programs: Vec<Program>,
    /// The XDP features of the driver; `None` if the kernel does not report XDP features.
    pub xdp: Option<XdpFeatures>,
    /// Whether VLAN interfaces exist above the interface.
    pub carries_vlans: bool,
    /// The offloads of the interface; `None` if the offloads are unknown.
    pub offloads: Option<Offloads>,
    /// Whether the kernel forwards packets from this interface; `None` if this is unknown, or if the address family is
    /// off.
    pub forwards: Forwards,
    /// Whether the kernel answers ARP requests on this interface for the addresses of all interfaces (`arp_ignore`);
    /// `None` if this is unknown.
    pub answers_for_all: Option<bool>,
}

/// Forwarding of an interface by address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwards {
    /// Whether the kernel forwards IPv4 packets.
    pub v4: Option<bool>,
    /// Whether the kernel forwards IPv6 packets.
    pub v6: Option<bool>,
}

/// The offloads that change frames before an XDP program sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Whether large receive offload is on.
    pub lro: bool,
    /// Whether generic receive offload is on.
    pub gro: bool,
    /// Whether the interface removes VLAN tags from frames.
    pub strips_tags: bool,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program's id in the kernel.
    pub id: u32,
    /// The name of the program, which may be empty; `None` if the doctor could not read the name.
    pub name: Option<String>,
    /// Whether the program runs in the driver (native mode).
    pub native: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The index of the interface that has the address.
    pub ifindex: u32,
    pub address: IpAddr,
    /// The prefix length of the address.
    pub length: u8,
    /// How far the kernel has come with the search for another machine that has this IPv6 address.
    pub duplicates: Duplicates,
}

/// The state of the search for another machine that has an IPv6 address. The kernel uses the address only afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// The search has ended without a result, or there was no search.
    #[default]
    None,
    /// The search has not ended (`tentative`).
    Searching,
    /// Another machine has the address (`dadfailed`).
    Found,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub service: String,
    pub name: String,
    /// The forwarding mode: `dsr`, `nat`, `snat`, `ipip` or `gue`.
    pub forwarding: String,
    /// The backend's own address, with the port of its health check.
    pub address: SocketAddr,
    /// The address and port of the listener that the doctor probed.
    pub vip: Option<SocketAddr>,
    /// The route that packets to the backend take.
    pub way: Way,
    /// This machine's source address for packets to the backend.
    pub source: Option<IpAddr>,
    /// The MTU of the route to the backend; `None`: the interface's MTU applies.
    pub route_mtu: Option<u32>,
    /// The answer of the neighbour on the way to the backend; `None` if the doctor did not ask it.
    pub neighbour: Option<Neighbour>,
    /// The result of a TCP connection attempt to the backend's own address; `None` if the doctor did not try to
    /// connect.
    pub direct: Option<Direct>,
    /// The result of a probe to the VIP, which the doctor sends like clients' packets; `None` if the doctor did not
    /// send the probe.
    pub service_probe: Option<ServiceProbe>,
    /// The ICMP error that answered a datagram to a UDP port of the service; `None` if none came, or if the service has
    /// no such port.
    pub datagram: Option<Refusal>,
    /// The largest packet size that reaches the backend; `None` if the doctor did not try, or if the backend does not
    /// answer pings.
    pub path: Option<Path>,
    /// `snat`: whether a connection that began among the unfinished ones has carried a reply to its client.
    pub replied: bool,
    /// The backend's replies to clients that the program has not translated.
    pub untranslated: Vec<Untranslated>,
    /// The result of a request to connect like those that the program sends for clients; `None` if the doctor did not
    /// send one.
    pub attempt: Option<Attempt>,
}

/// A request to connect like those that the program sends to a backend for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The source address of the request. With `nat`, it belongs to another network, as the address of a client does.
    pub source: IpAddr,
    /// The prefix of this machine's route to the source, if it is another network; `None` for a default route.
    pub network: Option<ipnet::IpNet>,
    pub to: SocketAddr,
    /// The backend's answer; `None` if none arrived at this machine.
    pub answer: Option<Arrival>,
}

/// The arrival of an answer at this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The index of the interface by which the answer arrived.
    pub ifindex: u32,
    /// Whether the answer is a reset.
    pub refused: bool,
    /// The reason why the program dropped the answer, as in `balancer_drops_total`.
    pub dropped: Option<String>,
}

/// A backend's reply to a client that the kernel of this machine has received as the backend sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untranslated {
    /// The index of the interface by which the reply arrived.
    pub ifindex: u32,
    /// The address of the client.
    pub client: IpAddr,
}

/// The way of replies from this machine to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayBack {
    /// The name of the client's service.
    pub service: String,
    /// The address of the client, or the first address of its prefix.
    pub client: IpAddr,
    /// The route that replies take.
    pub way: Way,
    /// The command that shows this route.
    pub lookup: String,
    /// The answer of the neighbour on the way to the client; `None` if the doctor did not ask it.
    pub neighbour: Option<Neighbour>,
}

/// The route that packets to an address take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel sends packets to the address through a neighbour.
    Known {
        /// The index of the interface towards the neighbour.
        ifindex: u32,
        /// The address of the neighbour, which is a gateway or the destination.
        next_hop: IpAddr,
    },
    /// The address belongs to this machine.
    Local,
    /// The kernel has no route.
    None(String),
}

/// The kernel's entry for a neighbour, and the hardware addresses with which the neighbour answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// The hardware address in the kernel's neighbour table.
    pub known: Option<Mac>,
    /// Whether the entry in the neighbour table is permanent, because an operator has set it.
    pub permanent: bool,
    /// The hardware addresses from which ARP answers came.
    pub answered: Vec<Mac>,
}

/// The result of a TCP connection attempt from this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// The outcome that the kernel reported.
    pub outcome: Outcome,
    /// Whether the doctor saw the connection request leave the machine.
    pub left: bool,
    /// Whether the doctor saw an answer to the request arrive.
    pub came: bool,
    pub checksum_wrong: bool,
    /// The ICMP error that answered the request.
    pub rejected: Option<Rejection>,
}

/// An ICMP error, by which a host reports that a probe did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The address of the host that sent the error.
    pub from: IpAddr,
    pub said: Said,
}

/// An ICMP error that answered a datagram to a UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The address and port to which the doctor sent the datagram.
    pub to: SocketAddr,
    pub rejection: Rejection,
}

/// The reason for which a host rejected a packet, from its ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    ProtocolUnreachable,
    PortUnreachable,
    HostUnreachable,
    Prohibited,
    HopLimitExceeded,
}

impl Said {
    /// The name that `ping` and `tcpdump` give the reason.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::ProtocolUnreachable => "protocol unreachable",
            Self::PortUnreachable => "port unreachable",
            Self::HostUnreachable => "host unreachable",
            Self::Prohibited => "administratively prohibited",
            Self::HopLimitExceeded => "time to live exceeded",
        }
    }
}

/// The outcome of an attempt to connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The server accepted the connection.
    Connected,
    /// The server sent a reset.
    Refused,
    /// The server sent no answer.
    #[default]
    Silent,
    /// The kernel did not send the request.
    NotSent(String),
}

/// The result of a probe on the path of clients' packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceProbe {
    /// Whether the backend answered a ping to the VIP.
    pub echo: bool,
    /// Whether the backend answered a ping to the VIP without an outer header; `None` if the doctor did not try,
    /// because the backend is behind a gateway.
    pub bare_echo: Option<bool>,
    /// The answer to a SYN to the VIP; `None` if the doctor did not try, because the service does not use TCP.
    pub tcp: Option<Outcome>,
    /// The index of the interface by which the answer to the SYN came.
    pub by: Option<u32>,
    /// Whether the backend or a router reported that it does not understand the outer header.
    pub refused_outer: bool,
    /// Another ICMP error that answered a probe.
    pub rejected: Option<Rejection>,
}

/// The result of a search for the largest packet that fits the path to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The largest packet size that the doctor tried.
    pub wanted: u32,
    /// The largest packet size that the backend answered.
    pub passed: u32,
    /// Whether the backend answered a request to connect that had the largest size; `None` if the doctor did not try,
    /// or if the backend does not answer such requests of any size.
    pub segment: Option<bool>,
}

/// A virtual address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    pub service: String,
    pub address: IpAddr,
    /// The hosts that answer ARP for the address, each as the interface's index and the hardware address.
    pub answered: Vec<(u32, Mac)>,
    /// Whether the doctor sent ARP requests for the address.
    pub asked: bool,
    /// The listeners of the service at this address.
    pub listeners: Vec<Listener>,
    /// SYN packets of clients that the program did not see, or that it passed to the kernel.
    pub unsteered: Vec<Unsteered>,
}

/// Packets for a VIP that the program did not steer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsteered {
    /// The index of the interface.
    pub ifindex: u32,
    /// Whether the frames were sent to another hardware address.
    pub for_another: bool,
    pub packets: u32,
}

impl Backend {
    /// Whether backends of this forwarding mode have the VIP themselves.
    #[must_use]
    pub fn has_the_vip(&self) -> bool {
        matches!(self.forwarding.as_str(), "dsr" | "ipip" | "gue")
    }

    /// Whether the backend sends its replies through the balancer.
    #[must_use]
    pub fn answers_the_balancer(&self) -> bool {
        matches!(self.forwarding.as_str(), "nat" | "snat")
    }
}

impl Facts {
    /// Returns the interface with this index.
    #[must_use]
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.ifindex == ifindex)
    }

    /// Whether the address belongs to this machine.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address == address)
    }

    /// Returns the index of the interface whose prefix contains the address.
    #[must_use]
    pub fn on_link(&self, address: IpAddr) -> Option<u32> {
        let covers = |own: &&Address| {
            own.address != address
                && ipnet::IpNet::new(own.address, own.length).is_ok_and(|prefix| prefix.contains(&address))
        };
        self.addresses.iter().find(covers).map(|own| own.ifindex)
    }
}
