//! Clients, a balancer and backends, each in a namespace of its own.
//!
//! One-legged, where all hosts are on one segment:
//!
//! ```text
//! client ──┐
//!          switch ── web1, web2, …
//! balancer ┘
//! ```
//!
//! Two-legged, where the balancer is between the clients and the backends. With `dsr`, the clients' host is also on the
//! backends' segment and receives the answers there:
//!
//! ```text
//! client ── balancer ── switch ── web1, web2, …
//! ```
//!
//! Routed, where a router is in front of several balancers:
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

/// The arrangement of the hosts and of the balancer's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The balancer has one interface, on the segment of clients and backends.
    OneLegged,
    /// The balancer has the interface `eth0` towards the clients and `eth1` towards the backends.
    TwoLegged,
    /// The balancers have one interface each, and a router separates the clients' host from the segment. The router has
    /// no route to the service's address yet, and no balancer has that address.
    Routed,
}

/// The hosts of a topology. Dropping the value removes the hosts.
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
    /// The XDP programs on the interfaces that receive frames from the balancer. Native `XDP_TX` needs a program at the
    /// peer of the interface; polling at the peer is not enough.
    receivers: Vec<Passer>,
}

impl Topology {
    /// Creates the hosts and their routes, for backends that use this forwarding mode. The VIP belongs to the balancer,
    /// and with `dsr` also to the backends.
    ///
    /// # Errors
    /// Fails if the process is not root, if `ip` is missing, or if a system call fails.
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

    /// The host that all clients share.
    #[must_use]
    pub const fn client(&self) -> &Namespace {
        &self.client
    }

    #[must_use]
    pub const fn balancer(&self) -> &Namespace {
        &self.balancer
    }

    /// The bridge of the backends' segment.
    #[must_use]
    pub const fn switch(&self) -> &Namespace {
        &self.switch
    }

    #[must_use]
    pub fn backends(&self) -> &[Namespace] {
        &self.backends
    }

    /// The interfaces to which the balancer attaches its program.
    #[must_use]
    pub const fn interfaces(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::OneLegged | Shape::Routed => &["eth0"],
            Shape::TwoLegged => &["eth0", "eth1"],
        }
    }

    #[must_use]
    pub const fn vip(&self, family: Family) -> IpAddr {
        VIP.host(family, VIP_HOST)
    }

    /// The prefix that contains the VIPs.
    #[must_use]
    pub fn vips(family: Family) -> String {
        VIP.prefix(family)
    }

    /// The source address of the client `index`, from 1 to 65,534.
    #[must_use]
    pub const fn client_address(&self, family: Family, index: u16) -> IpAddr {
        CLIENTS.host(family, index)
    }

    /// The own address of the backend `index`, counted from 0 as in [`Self::backends`].
    #[must_use]
    pub const fn backend_address(&self, family: Family, index: u16) -> IpAddr {
        SEGMENT.host(family, FIRST_BACKEND + index)
    }

    /// The balancer's own address on the backends' segment, with the prefix length.
    #[must_use]
    pub const fn balancer_address(family: Family) -> (IpAddr, u8) {
        (SEGMENT.host(family, BALANCER), Net::length(family))
    }

    /// Switches forwarding of the balancer's host on or off.
    ///
    /// # Errors
    /// Fails if the switch cannot be written.
    pub fn forward(&self, forward: bool) -> Result<()> {
        let value = if forward { "1" } else { "0" };
        self.balancer.sysctl("net/ipv4/conf/all/forwarding", value)?;
        self.balancer.sysctl("net/ipv6/conf/all/forwarding", value)
    }

    /// Adds the host of a backend, with the name `web` and a number counted from 1.
    ///
    /// # Errors
    /// Fails if the host cannot be created.
    pub fn add_backend(&mut self) -> Result<()> {
        let backend = self.make_backend(self.backends.len())?;
        self.backends.push(backend);
        Ok(())
    }

    /// Creates the hosts in parallel, because creating each host takes about ten commands.
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
            // Backends also have the VIP, but only the balancer may answer ARP for it.
            backend.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
            backend.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
        }
        for family in Family::BOTH {
            address(&backend, "eth0", SEGMENT, family, host)?;
            let gateway = match self.forwarding {
                Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => Some(CLIENT),
                Forwarding::Nat => Some(BALANCER),
                // With `snat`, backends need no route to clients.
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

    /// Removes the only interface of the balancer.
    ///
    /// # Errors
    /// Fails if the interface cannot be removed.
    pub fn unplug_balancer(&mut self) -> Result<()> {
        self.receivers.remove(0);
        self.balancer.ip("link del eth0").map(drop)
    }

    /// Creates the balancer's interface again, which gets another index.
    ///
    /// # Errors
    /// Fails if the interface cannot be created.
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
        // The hardware address stays the same, as after a reload of the driver.
        self.balancer.ip(&format!("link set {segment_interface} address {BALANCER_MAC}"))?;
        self.switch.ip("link set balancer master br0")?;
        // Forwarding is off at first, because the controller switches it on.
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
        // A single route gives the host thousands of addresses.
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
