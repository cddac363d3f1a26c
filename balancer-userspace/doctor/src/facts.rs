//! The facts that findings are made of. What could not be looked at is absent, and says so in [`Facts::unseen`].

use std::net::{IpAddr, SocketAddr};

use balancer_api::model::{HealthView, RuleView, StatusView};
use balancer_model::listeners::Listener;

use crate::finding::Unseen;

/// A hardware address.
pub type Mac = [u8; 6];

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The kernel's release, such as `6.12.1`.
    pub kernel: String,
    /// The controller; `None`: none is reachable.
    pub controller: Option<Controller>,
    /// The network interfaces of the controller's network namespace.
    pub links: Vec<Link>,
    /// The addresses of those interfaces.
    pub addresses: Vec<Address>,
    /// The backends of the services that were asked for, once for each address.
    pub backends: Vec<Backend>,
    /// The virtual addresses of those services.
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
    /// The health checks of its backends.
    pub health: Vec<HealthView>,
    /// The rules for client prefixes.
    pub rules: Vec<RuleView>,
    /// Whether the configuration asks for generic mode; `None`: the configuration could not be read.
    pub asks_generic: Option<bool>,
    /// The prefix of the route to a client that was seen of late.
    pub clients: Option<ipnet::IpNet>,
    /// How often its control group ran out of memory, by the kernel's count.
    pub oom_kills: Option<u64>,
}

/// A chain of a firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain as `nft` names it: family, table and name.
    pub place: String,
    /// The point at which packets pass it: `input`, `output` and so on.
    pub hook: String,
}

/// The XDP features that a driver supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// It runs programs itself (native mode).
    pub runs_programs: bool,
    /// It takes frames that are redirected to it.
    pub takes_frames: bool,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The interface's index.
    pub ifindex: u32,
    /// The interface's name.
    pub name: String,
    /// Whether the operator has switched it on.
    pub up: bool,
    /// Whether frames can pass, such as with a cable in its socket.
    pub carrier: bool,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// The kind of a virtual interface, such as `veth`.
    pub kind: Option<String>,
    /// The hardware address.
    pub mac: Option<Mac>,
    /// Receive queues.
    pub rx_queues: u32,
    /// XDP programs that are attached to it.
    pub programs: Vec<Program>,
    /// The XDP features that its driver supports; `None`: the kernel does not say.
    pub xdp: Option<XdpFeatures>,
    /// Whether VLAN interfaces lie upon it.
    pub carries_vlans: bool,
    /// Offloads; `None`: they could not be asked for.
    pub offloads: Option<Offloads>,
    /// Whether the kernel forwards packets that come in by it; `None`: not known, or the family is switched off.
    pub forwards: Forwards,
}

/// Forwarding of an interface by address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwards {
    /// IPv4's.
    pub v4: Option<bool>,
    /// IPv6's.
    pub v6: Option<bool>,
}

/// The changes that an interface makes to frames before a program sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Large receive offload.
    pub lro: bool,
    /// Generic receive offload.
    pub gro: bool,
    /// Taking VLAN tags off.
    pub strips_tags: bool,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The kernel's number for it.
    pub id: u32,
    /// The program's name, which may be empty; `None`: it could not be read.
    pub name: Option<String>,
    /// Whether it runs in the driver.
    pub native: bool,
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The index of the interface that has it.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub length: u8,
}

/// One address of a backend.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub name: String,
    /// How packets reach it: `dsr`, `nat`, `ipip` or `gue`.
    pub forwarding: String,
    /// The backend's own address, with the port that is checked.
    pub address: SocketAddr,
    /// The listener that the probe went to.
    pub vip: Option<SocketAddr>,
    /// The way of packets to it.
    pub way: Way,
    /// This machine's address for packets to it.
    pub source: Option<IpAddr>,
    /// The answer of the neighbour that packets are handed to; `None`: it was not asked.
    pub neighbour: Option<Neighbour>,
    /// A TCP connection from this machine to its own address; `None`: not tried.
    pub direct: Option<Direct>,
    /// A probe to the VIP, sent as the data path sends clients' packets; `None`: not tried.
    pub service_probe: Option<ServiceProbe>,
    /// Whether whole packets reach it; `None`: not tried, or it answers no ping.
    pub path: Option<Path>,
}

/// Where packets for an address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By an interface to a neighbour.
    Known {
        /// The interface's index.
        ifindex: u32,
        /// The neighbour: a gateway or the host itself.
        next_hop: IpAddr,
    },
    /// It is an address of this machine.
    Local,
    /// The kernel knows no way.
    None(String),
}

/// The kernel's entry of a neighbour, and its own answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// The hardware address in the kernel's table.
    pub known: Option<Mac>,
    /// Whether that entry was written by hand.
    pub permanent: bool,
    /// Those that answered for the address.
    pub answered: Vec<Mac>,
}

/// A TCP connection from this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// The outcome that the kernel reported.
    pub outcome: Outcome,
    /// Whether the request was seen on its way out.
    pub left: bool,
    /// Whether an answer was seen on its way in.
    pub came: bool,
    /// Whether that answer's checksum was wrong.
    pub checksum_wrong: bool,
}

/// How an attempt to connect ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It was accepted.
    Connected,
    /// A reset came back.
    Refused,
    /// Nothing came back.
    #[default]
    Silent,
    /// The kernel did not send it.
    NotSent(String),
}

/// A probe along the path of clients' packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceProbe {
    /// Whether the VIP on the backend answered a ping.
    pub echo: bool,
    /// Whether it answered a ping without an outer header; `None`: not tried, because the backend is behind a gateway.
    pub bare_echo: Option<bool>,
    /// The answer to a request to connect; `None`: not tried, because the service is not TCP's.
    pub tcp: Option<Outcome>,
    /// The backend or a router has said that nothing takes the outer header.
    pub refused_outer: bool,
}

/// The size of packets on the way to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The largest that was tried.
    pub wanted: u32,
    /// The largest that was answered.
    pub passed: u32,
}

/// A virtual address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The service's name.
    pub service: String,
    /// The address.
    pub address: IpAddr,
    /// Hosts that answer ARP for it: the interface's index and the hardware address.
    pub answered: Vec<(u32, Mac)>,
    /// Whether somebody was asked.
    pub asked: bool,
    /// The listeners of the service at this address.
    pub listeners: Vec<Listener>,
    /// Connections that clients tried to open, and that the program did not see or left to the kernel.
    pub unsteered: Vec<Unsteered>,
}

/// Packets for a VIP that were seen behind the place where the program would have taken them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsteered {
    /// The index of the interface.
    pub ifindex: u32,
    /// Whether their frames were for another hardware address.
    pub for_another: bool,
    /// How many.
    pub packets: u32,
}

impl Backend {
    /// Whether the backend itself has the VIP in its forwarding mode.
    #[must_use]
    pub fn has_the_vip(&self) -> bool {
        matches!(self.forwarding.as_str(), "dsr" | "ipip" | "gue")
    }

    /// Whether its replies pass the balancer.
    #[must_use]
    pub fn answers_the_balancer(&self) -> bool {
        matches!(self.forwarding.as_str(), "nat" | "snat")
    }
}

impl Facts {
    /// The interface of this index.
    #[must_use]
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.ifindex == ifindex)
    }

    /// Whether this machine has an address.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address == address)
    }

    /// The interface whose prefix an address lies in, by index.
    #[must_use]
    pub fn on_link(&self, address: IpAddr) -> Option<u32> {
        let covers = |own: &&Address| {
            own.address != address
                && ipnet::IpNet::new(own.address, own.length).is_ok_and(|prefix| prefix.contains(&address))
        };
        self.addresses.iter().find(covers).map(|own| own.ifindex)
    }
}
