//! Clients, a balancer and backends, each in a namespace of its own.
//!
//! One-legged, all on one segment:
//!
//! ```text
//! client ──┐
//!          switch ── web1, web2, …
//! balancer ┘
//! ```
//!
//! Two-legged, the balancer between the clients and the backends (with `dsr` the client host is on the backends'
//! segment as well, and answers come back there):
//!
//! ```text
//! client ── balancer ── switch ── web1, web2, …
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use balancer_common::map_types::Forwarding;

use crate::{
    namespace::{Namespace, join},
    offload::Offload,
    xdp::{Hook, Passer},
};

/// Hosts on the backends' segment: the balancer is 1, the clients' host 2, backends count from 11.
const SEGMENT: Net = Net(0);
/// The clients' addresses.
const CLIENTS: Net = Net(1);
/// The service's address.
const VIP: Net = Net(2);
/// Two-legged: the balancer is 1, the clients' host 2.
const CLIENT_LEG: Net = Net(3);

const BALANCER: u16 = 1;
const CLIENT: u16 = 2;
const FIRST_BACKEND: u16 = 11;
const VIP_HOST: u16 = 10;
/// Of the balancer's interface on the segment.
const BALANCER_MAC: &str = "02:00:5e:10:00:01";

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    const fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// Where the balancer's interfaces are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One interface, on the segment that clients and backends share.
    OneLegged,
    /// `eth0` towards the clients, `eth1` towards the backends.
    TwoLegged,
}

/// The hosts. Dropping it removes them.
#[derive(Debug)]
pub struct Topology {
    shape: Shape,
    forwarding: Forwarding,
    client: Namespace,
    balancer: Namespace,
    switch: Namespace,
    backends: Vec<Namespace>,
    /// What native `XDP_TX` wakes: the driver asks for a program at the other end, polling alone does not do.
    receivers: Vec<Passer>,
}

impl Topology {
    /// Makes the hosts and their routes, for backends that are reached by `forwarding`. A service's address belongs to
    /// the balancer, and with `dsr` to the backends as well.
    ///
    /// # Errors
    /// Without root, without `ip`, or when the kernel refuses.
    pub fn new(shape: Shape, forwarding: Forwarding, backends: usize) -> Result<Self> {
        let mut topology = Self {
            shape,
            forwarding,
            client: Namespace::new("client")?,
            balancer: Namespace::new("balancer")?,
            switch: Namespace::new("switch")?,
            backends: Vec::new(),
            receivers: Vec::new(),
        };
        topology.switch.ip("link add br0 type bridge mcast_snooping 0")?;
        topology.switch.ip("link set br0 up")?;
        topology.make_balancer()?;
        topology.receivers.push(Passer::attach(&topology.switch, "balancer", Hook::Native)?);
        if shape == Shape::TwoLegged {
            topology.receivers.push(Passer::attach(&topology.client, "eth0", Hook::Native)?);
        }
        topology.make_client()?;
        for _ in 0..backends {
            topology.add_backend()?;
        }
        Ok(topology)
    }

    /// The clients' host.
    #[must_use]
    pub const fn client(&self) -> &Namespace {
        &self.client
    }

    /// The balancer's host.
    #[must_use]
    pub const fn balancer(&self) -> &Namespace {
        &self.balancer
    }

    /// The bridge that joins the backends' segment.
    #[must_use]
    pub const fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// The backends' hosts.
    #[must_use]
    pub fn backends(&self) -> &[Namespace] {
        &self.backends
    }

    /// The interfaces that the balancer is to attach to.
    #[must_use]
    pub const fn interfaces(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::OneLegged => &["eth0"],
            Shape::TwoLegged => &["eth0", "eth1"],
        }
    }

    /// A service's address.
    #[must_use]
    pub const fn vip(&self, family: Family) -> IpAddr {
        VIP.host(family, VIP_HOST)
    }

    /// The source address of client `index`: any number from 1 to 65,534 is one.
    #[must_use]
    pub const fn client_address(&self, family: Family, index: u16) -> IpAddr {
        CLIENTS.host(family, index)
    }

    /// The own address of backend `index`, counted from 0 as in [`Self::backends`].
    #[must_use]
    pub const fn backend_address(&self, family: Family, index: u16) -> IpAddr {
        SEGMENT.host(family, FIRST_BACKEND + index)
    }

    /// The balancer's own address on the backends' segment, and the length of its prefix.
    #[must_use]
    pub const fn balancer_address(family: Family) -> (IpAddr, u8) {
        (SEGMENT.host(family, BALANCER), Net::length(family))
    }

    /// Makes the balancer's host a plain router, or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forward(&self, forward: bool) -> Result<()> {
        let value = if forward { "1" } else { "0" };
        self.balancer.sysctl("net/ipv4/conf/all/forwarding", value)?;
        self.balancer.sysctl("net/ipv6/conf/all/forwarding", value)
    }

    /// One more backend's host, `web` and its number counted from 1.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_backend(&mut self) -> Result<()> {
        let number = self.backends.len() + 1;
        let host = FIRST_BACKEND + u16::try_from(self.backends.len()).context("too many backends")?;
        let backend = Namespace::new(&format!("web{number}"))?;
        join((&backend, "eth0"), (&self.switch, &format!("web{number}")))?;
        self.switch.ip(&format!("link set web{number} master br0"))?;
        if self.forwarding != Forwarding::Nat {
            // The address is the balancer's to answer for.
            backend.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
            backend.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
        }
        for family in Family::BOTH {
            address(&backend, "eth0", SEGMENT, family, host)?;
            let gateway = match self.forwarding {
                Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => CLIENT,
                Forwarding::Nat => BALANCER,
            };
            route(&backend, CLIENTS, SEGMENT, family, gateway)?;
            if self.forwarding != Forwarding::Nat {
                own_vip(&backend, family)?;
            }
        }
        self.backends.push(backend);
        Ok(())
    }

    /// Takes the balancer's only interface away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unplug_balancer(&mut self) -> Result<()> {
        self.receivers.remove(0);
        self.balancer.ip("link del eth0").map(drop)
    }

    /// Makes it anew, under another index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug_balancer(&mut self) -> Result<()> {
        self.make_balancers_interfaces()?;
        self.receivers.insert(0, Passer::attach(&self.switch, "balancer", Hook::Native)?);
        Ok(())
    }

    fn make_balancer(&self) -> Result<()> {
        self.make_balancers_interfaces()?;
        Family::BOTH.into_iter().try_for_each(|family| own_vip(&self.balancer, family))
    }

    fn make_balancers_interfaces(&self) -> Result<()> {
        let segment_interface = match self.shape {
            Shape::OneLegged => "eth0",
            Shape::TwoLegged => {
                join((&self.balancer, "eth0"), (&self.client, "eth0"))?;
                "eth1"
            }
        };
        join((&self.balancer, segment_interface), (&self.switch, "balancer"))?;
        // As an interface whose driver is loaded anew: neighbours need not learn another.
        self.balancer.ip(&format!("link set {segment_interface} address {BALANCER_MAC}"))?;
        self.switch.ip("link set balancer master br0")?;
        // The controller's to switch on.
        self.forward(false)?;
        for interface in self.interfaces() {
            self.balancer.offload(interface, &[(Offload::Merging, false)])?;
        }
        for family in Family::BOTH {
            address(&self.balancer, segment_interface, SEGMENT, family, BALANCER)?;
            match self.shape {
                Shape::OneLegged => route(&self.balancer, CLIENTS, SEGMENT, family, CLIENT)?,
                Shape::TwoLegged => {
                    address(&self.balancer, "eth0", CLIENT_LEG, family, BALANCER)?;
                    route(&self.balancer, CLIENTS, CLIENT_LEG, family, CLIENT)?;
                }
            }
        }
        Ok(())
    }

    fn make_client(&self) -> Result<()> {
        // Thousands of addresses at the cost of one route.
        self.client.ip(&format!("route add local {} dev lo", CLIENTS.prefix(Family::V4)))?;
        self.client.ip(&format!("-6 route add local {} dev lo", CLIENTS.prefix(Family::V6)))?;
        self.client.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;

        let segment_interface = match (self.shape, self.forwarding) {
            (Shape::OneLegged, _) => Some("eth0"),
            (Shape::TwoLegged, Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue) => Some("eth1"),
            (Shape::TwoLegged, Forwarding::Nat) => None,
        };
        if let Some(interface) = segment_interface {
            join((&self.client, interface), (&self.switch, "client"))?;
            self.switch.ip("link set client master br0")?;
        }
        for family in Family::BOTH {
            if let Some(interface) = segment_interface {
                address(&self.client, interface, SEGMENT, family, CLIENT)?;
            }
            let leg = match self.shape {
                Shape::OneLegged => SEGMENT,
                Shape::TwoLegged => {
                    address(&self.client, "eth0", CLIENT_LEG, family, CLIENT)?;
                    CLIENT_LEG
                }
            };
            route(&self.client, VIP, leg, family, BALANCER)?;
            if segment_interface.is_none() {
                route(&self.client, SEGMENT, leg, family, BALANCER)?;
            }
        }
        Ok(())
    }
}

/// `10.N.0.0` and `fd00:N::`.
#[derive(Clone, Copy, Debug)]
struct Net(u8);

impl Net {
    const fn host(self, family: Family, host: u16) -> IpAddr {
        match family {
            Family::V4 => {
                let [high, low] = host.to_be_bytes();
                IpAddr::V4(Ipv4Addr::new(10, self.0, high, low))
            }
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, self.0 as u16, 0, 0, 0, 0, 0, host)),
        }
    }

    fn prefix(self, family: Family) -> String {
        format!("{}/{}", self.host(family, 0), Self::length(family))
    }

    const fn length(family: Family) -> u8 {
        match family {
            Family::V4 => 16,
            Family::V6 => 64,
        }
    }
}

fn address(namespace: &Namespace, interface: &str, net: Net, family: Family, host: u16) -> Result<()> {
    let nodad = if family == Family::V6 { "nodad" } else { "" };
    let length = Net::length(family);
    namespace.ip(&format!("addr add {}/{length} dev {interface} {nodad}", net.host(family, host)))?;
    Ok(())
}

fn route(namespace: &Namespace, to: Net, through: Net, family: Family, gateway: u16) -> Result<()> {
    let (prefix, gateway) = (to.prefix(family), through.host(family, gateway));
    namespace.ip(&format!("{} route add {prefix} via {gateway}", family.flag()))?;
    Ok(())
}

fn own_vip(namespace: &Namespace, family: Family) -> Result<()> {
    let (vip, length) = match family {
        Family::V4 => (VIP.host(family, VIP_HOST), 32),
        Family::V6 => (VIP.host(family, VIP_HOST), 128),
    };
    let nodad = if family == Family::V6 { "nodad" } else { "" };
    namespace.ip(&format!("addr add {vip}/{length} dev lo {nodad}"))?;
    Ok(())
}
