//! The facts from which the doctor derives findings. Facts that the doctor could not find out are absent, and
//! [`Facts::unseen`] says why.

use std::net::{IpAddr, SocketAddr};

use balancer_api::model::{HealthView, RuleView, StatusView};
use balancer_config::listeners::Listener;

use crate::finding::Unseen;

/// A hardware address.
pub type Mac = [u8; 6];

/// All facts.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The kernel's release, such as `6.12.1`.
    pub kernel: String,
    /// The controller; `None` if none is reachable.
    pub controller: Option<Controller>,
    /// The network interfaces of the controller's network namespace.
    pub links: Vec<Link>,
    /// The addresses of these interfaces.
    pub addresses: Vec<Address>,
    /// The backends of the requested services, once for each address.
    pub backends: Vec<Backend>,
    /// The virtual addresses of the requested services.
    pub vips: Vec<Vip>,
    /// The chains of this machine's firewall that packets pass.
    pub firewall: Vec<Chain>,
    /// The things that could not be examined, with the reasons.
    pub unseen: Vec<Unseen>,
}

/// A running controller.
#[derive(Clone, Debug)]
pub struct Controller {
    /// The controller's state when the examination began.
    pub before: StatusView,
    /// The controller's state when the examination ended.
    pub after: StatusView,
    /// The health checks of the controller's backends.
    pub health: Vec<HealthView>,
    /// The rules for client prefixes.
    pub rules: Vec<RuleView>,
    /// Whether the configuration asks for generic mode; `None` if it could not be read.
    pub asks_generic: Option<bool>,
    /// The prefix of the route to a recently seen client.
    pub clients: Option<ipnet::IpNet>,
    /// How often the controller's control group ran out of memory, by the kernel's count.
    pub oom_kills: Option<u64>,
}

/// A chain of a firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain's family, table and name, as in `nft`.
    pub place: String,
    /// The chain's hook: `input`, `output` and so on.
    pub hook: String,
}

/// The XDP features that a driver supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Whether the driver runs programs itself (native mode).
    pub runs_programs: bool,
    /// Whether the driver accepts redirected frames.
    pub takes_frames: bool,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The interface's index.
    pub ifindex: u32,
    /// The interface's name.
    pub name: String,
    /// Whether the interface is administratively up.
    pub up: bool,
    /// Whether the interface has a carrier, such as a plugged cable.
    pub carrier: bool,
    /// The MTU, in bytes.
    pub mtu: u32,
    /// The kind of a virtual interface, such as `veth`.
    pub kind: Option<String>,
    /// The hardware address.
    pub mac: Option<Mac>,
    /// The number of receive queues.
    pub rx_queues: u32,
    /// The XDP programs on the interface.
    pub programs: Vec<Program>,
    /// The XDP features of the driver; `None` if the kernel does not report them.
    pub xdp: Option<XdpFeatures>,
    /// Whether the interface has VLAN interfaces.
    pub carries_vlans: bool,
    /// The offloads; `None` if they are unknown.
    pub offloads: Option<Offloads>,
    /// Whether the kernel forwards packets from this interface; `None` if that is unknown or the family is off.
    pub forwards: Forwards,
}

/// Forwarding of an interface by address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwards {
    /// Whether the kernel forwards IPv4.
    pub v4: Option<bool>,
    /// Whether the kernel forwards IPv6.
    pub v6: Option<bool>,
}

/// The offloads that change frames before a program sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Large receive offload.
    pub lro: bool,
    /// Generic receive offload.
    pub gro: bool,
    /// Whether the interface removes VLAN tags.
    pub strips_tags: bool,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program's id in the kernel.
    pub id: u32,
    /// The program's name, which may be empty; `None` if it could not be read.
    pub name: Option<String>,
    /// Whether the program runs in the driver.
    pub native: bool,
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The index of the interface that has the address.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// The prefix length.
    pub length: u8,
}

/// One address of a backend.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub name: String,
    /// The forwarding mode: `dsr`, `nat`, `ipip` or `gue`.
    pub forwarding: String,
    /// The backend's own address, with the port of its health check.
    pub address: SocketAddr,
    /// The listener that the probe was for.
    pub vip: Option<SocketAddr>,
    /// The route of packets to the backend.
    pub way: Way,
    /// This machine's source address for packets to the backend.
    pub source: Option<IpAddr>,
    /// The MTU of the route to the backend; `None`: the interface's MTU applies.
    pub route_mtu: Option<u32>,
    /// The answer of the neighbour on the way to the backend; `None` if the doctor did not ask it.
    pub neighbour: Option<Neighbour>,
    /// The result of a TCP connection to the backend's own address; `None` if not tried.
    pub direct: Option<Direct>,
    /// The result of a probe to the VIP, sent like clients' packets; `None` if not tried.
    pub service_probe: Option<ServiceProbe>,
    /// Whether packets of full size reach the backend; `None` if not tried, or if the backend does not answer pings.
    pub path: Option<Path>,
}

/// The route of packets to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The packets go to a neighbour.
    Known {
        /// The interface's index.
        ifindex: u32,
        /// The neighbour: a gateway or the host itself.
        next_hop: IpAddr,
    },
    /// The address belongs to this machine.
    Local,
    /// The kernel has no route.
    None(String),
}

/// The kernel's entry for a neighbour, and the neighbour's own answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// The hardware address in the kernel's table.
    pub known: Option<Mac>,
    /// Whether the entry is permanent, set by an operator.
    pub permanent: bool,
    /// The hardware addresses that answered ARP.
    pub answered: Vec<Mac>,
}

/// A TCP connection from this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// The outcome that the kernel reported.
    pub outcome: Outcome,
    /// Whether the doctor saw the request leave.
    pub left: bool,
    /// Whether the doctor saw an answer arrive.
    pub came: bool,
    /// Whether the checksum of this answer was wrong.
    pub checksum_wrong: bool,
}

/// The result of an attempt to connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The server accepted the connection.
    Connected,
    /// The server sent a reset.
    Refused,
    /// No answer came.
    #[default]
    Silent,
    /// The kernel did not send the request.
    NotSent(String),
}

/// A probe along the path of clients' packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceProbe {
    /// Whether the VIP on the backend answered a ping.
    pub echo: bool,
    /// Whether the VIP answered a ping without an outer header; `None` if not tried, because the backend is behind a
    /// gateway.
    pub bare_echo: Option<bool>,
    /// The answer to a SYN; `None` if not tried, because the service does not use TCP.
    pub tcp: Option<Outcome>,
    /// Whether the backend or a router reported that the outer header is not understood.
    pub refused_outer: bool,
}

/// The largest packet on the way to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The largest size that was tried.
    pub wanted: u32,
    /// The largest size that was answered.
    pub passed: u32,
}

/// A virtual address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The service's name.
    pub service: String,
    /// The address.
    pub address: IpAddr,
    /// Hosts that answer ARP for the address: the interface's index and the hardware address.
    pub answered: Vec<(u32, Mac)>,
    /// Whether the doctor sent ARP requests.
    pub asked: bool,
    /// The listeners of the service at this address.
    pub listeners: Vec<Listener>,
    /// SYNs from clients that the program did not see or passed to the kernel.
    pub unsteered: Vec<Unsteered>,
}

/// Packets for a VIP that the program did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsteered {
    /// The index of the interface.
    pub ifindex: u32,
    /// Whether the frames were for another hardware address.
    pub for_another: bool,
    /// The number of packets.
    pub packets: u32,
}

impl Backend {
    /// Whether backends have the VIP themselves in this forwarding mode.
    #[must_use]
    pub fn has_the_vip(&self) -> bool {
        matches!(self.forwarding.as_str(), "dsr" | "ipip" | "gue")
    }

    /// Whether the backend's replies pass through the balancer.
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
