//! Clients, a balancer and backends, each in its own namespace.
//!
//! One-legged, all on one segment:
//!
//!
//! ```text
//! client ──┐
//!          switch ── web1, web2, …
//! balancer ┘
//! ```
//!
//! Two-legged, the balancer between the clients and the backends (with `dsr`, the client host is also on the backends'
//! segment and receives the answers there):
//!
//!
//! ```text
//! client ── balancer ── switch ── web1, web2, …
//! ```
//!
//! Routed, for several balancers:
//!
//!
//! ```text
//! client ── router ── switch ── lb1, lb2, …, web1, web2, …
//! ```

mod addresses;
mod many;

use std::{net::IpAddr, thread};

use anyhow::{Context as _, Result, anyhow};
use balancer_common::map_types::Forwarding;

pub use self::addresses::Family;
use self::addresses::{
    BALANCER, CLIENT, CLIENT_LEG, CLIENTS, FIRST_BACKEND, Net, SEGMENT, VIP, VIP_HOST, address, own_vip, route,
};
use crate::{
    namespace::{Namespace, join},
    offload::Offload,
    xdp::{Hook, Passer},
};

/// The MAC address of the balancer's interface on the segment.
const BALANCER_MAC: &str = "02:00:5e:10:00:01";

/// The positions of the balancer's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One interface, on the segment shared by clients and backends.
    OneLegged,
    /// `eth0` towards the clients and `eth1` towards the backends.
    TwoLegged,
    /// Like one-legged, but the clients' host is behind a router. The router has no route to the service's address yet,
    /// and no balancer has that address.
    Routed,
}

/// The hosts. Dropping the value removes them.
#[derive(Debug)]
pub struct Topology {
    shape: Shape,
    forwarding: Forwarding,
    client: Namespace,
    router: Option<Namespace>,
    balancer: Namespace,
    more_balancers: Vec<Namespace>,
    switch: Namespace,
    backends: Vec<Namespace>,
    /// The XDP programs on the receivers. Native `XDP_TX` needs a program at the other end; polling alone is not
    /// enough.
    receivers: Vec<Passer>,
}

impl Topology {
    /// Creates the hosts and their routes, for backends with this forwarding mode. A service's address belongs to the
    /// balancer, and with `dsr` also to the backends.
    ///
    /// # Errors
    /// If the process is not root, if `ip` is missing, or if the kernel refuses.
    pub fn new(shape: Shape, forwarding: Forwarding, backends: usize) -> Result<Self> {
        let mut topology = Self {
            shape,
            forwarding,
            client: Namespace::new("client")?,
            router: None,
            balancer: Namespace::new(if shape == Shape::Routed { "lb1" } else { "balancer" })?,
            more_balancers: Vec::new(),
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
        topology.make_clients_addresses()?;
        if shape == Shape::Routed {
            topology.make_router()?
        } else {
            topology.make_client()?
        }
        topology.backends = topology.make_backends(backends)?;
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

    /// The interfaces for the balancer's programs.
    #[must_use]
    pub const fn interfaces(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::OneLegged | Shape::Routed => &["eth0"],
            Shape::TwoLegged => &["eth0", "eth1"],
        }
    }

    /// A service's address.
    #[must_use]
    pub const fn vip(&self, family: Family) -> IpAddr {
        VIP.host(family, VIP_HOST)
    }

    /// The prefix of the services' addresses.
    #[must_use]
    pub fn vips(family: Family) -> String {
        VIP.prefix(family)
    }

    /// The source address of client `index`, from 1 to 65,534.
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

    /// Switches the balancer host's forwarding on or off.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn forward(&self, forward: bool) -> Result<()> {
        let value = if forward { "1" } else { "0" };
        self.balancer.sysctl("net/ipv4/conf/all/forwarding", value)?;
        self.balancer.sysctl("net/ipv6/conf/all/forwarding", value)
    }

    /// Adds a backend's host, named `web` with its number counted from 1.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_backend(&mut self) -> Result<()> {
        let backend = self.make_backend(self.backends.len())?;
        self.backends.push(backend);
        Ok(())
    }

    /// Creates the hosts in parallel, because each waits for about ten commands.
    fn make_backends(&self, backends: usize) -> Result<Vec<Namespace>> {
        thread::scope(|scope| {
            let made: Vec<_> = (0..backends).map(|index| scope.spawn(move || self.make_backend(index))).collect();
            made.into_iter()
                .map(|made| made.join().map_err(|_| anyhow!("a backend's host could not be made"))?)
                .collect()
        })
    }

    fn make_backend(&self, index: usize) -> Result<Namespace> {
        let number = index + 1;
        let host = FIRST_BACKEND + u16::try_from(index).context("too many backends")?;
        let backend = Namespace::new(&format!("web{number}"))?;
        join((&backend, "eth0"), (&self.switch, &format!("web{number}")))?;
        self.switch.ip(&format!("link set web{number} master br0"))?;
        let translated = matches!(self.forwarding, Forwarding::Nat | Forwarding::Snat);
        if !translated {
            // Only the balancer answers ARP for the address.
            backend.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
            backend.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
        }
        for family in Family::BOTH {
            address(&backend, "eth0", SEGMENT, family, host)?;
            let gateway = match self.forwarding {
                Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => Some(CLIENT),
                Forwarding::Nat => Some(BALANCER),
                // The backend needs no route to its clients.
                Forwarding::Snat => None,
            };
            if let Some(gateway) = gateway {
                route(&backend, CLIENTS, SEGMENT, family, gateway)?;
            }
            if !translated {
                own_vip(&backend, family)?;
            }
        }
        Ok(backend)
    }

    /// Removes the balancer's only interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn unplug_balancer(&mut self) -> Result<()> {
        self.receivers.remove(0);
        self.balancer.ip("link del eth0").map(drop)
    }

    /// Creates the interface again, with another index.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn plug_balancer(&mut self) -> Result<()> {
        self.make_balancers_interfaces()?;
        self.receivers.insert(0, Passer::attach(&self.switch, "balancer", Hook::Native)?);
        Ok(())
    }

    fn make_balancer(&self) -> Result<()> {
        self.make_balancers_interfaces()?;
        if self.shape == Shape::Routed {
            return Ok(());
        }
        Family::BOTH.into_iter().try_for_each(|family| own_vip(&self.balancer, family))
    }

    fn make_balancers_interfaces(&self) -> Result<()> {
        let segment_interface = match self.shape {
            Shape::OneLegged | Shape::Routed => "eth0",
            Shape::TwoLegged => {
                join((&self.balancer, "eth0"), (&self.client, "eth0"))?;
                "eth1"
            }
        };
        join((&self.balancer, segment_interface), (&self.switch, "balancer"))?;
        // Like after a reload of the driver, the hardware address stays the same.
        self.balancer.ip(&format!("link set {segment_interface} address {BALANCER_MAC}"))?;
        self.switch.ip("link set balancer master br0")?;
        // The controller switches it on.
        self.forward(false)?;
        for interface in self.interfaces() {
            self.balancer.offload(interface, &[(Offload::Merging, false)])?;
        }
        for family in Family::BOTH {
            address(&self.balancer, segment_interface, SEGMENT, family, BALANCER)?;
            match self.shape {
                Shape::OneLegged | Shape::Routed => route(&self.balancer, CLIENTS, SEGMENT, family, CLIENT)?,
                Shape::TwoLegged => {
                    address(&self.balancer, "eth0", CLIENT_LEG, family, BALANCER)?;
                    route(&self.balancer, CLIENTS, CLIENT_LEG, family, CLIENT)?;
                }
            }
        }
        Ok(())
    }

    fn make_clients_addresses(&self) -> Result<()> {
        // One route gives the host thousands of addresses.
        self.client.ip(&format!("route add local {} dev lo", CLIENTS.prefix(Family::V4)))?;
        self.client.ip(&format!("-6 route add local {} dev lo", CLIENTS.prefix(Family::V6)))?;
        self.client.sysctl("net/ipv6/ip_nonlocal_bind", "1")
    }

    fn make_client(&self) -> Result<()> {
        let segment_interface = match (self.shape, self.forwarding) {
            (Shape::OneLegged | Shape::Routed, _) => Some("eth0"),
            (Shape::TwoLegged, Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue) => Some("eth1"),
            (Shape::TwoLegged, Forwarding::Nat | Forwarding::Snat) => None,
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
                Shape::OneLegged | Shape::Routed => SEGMENT,
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
