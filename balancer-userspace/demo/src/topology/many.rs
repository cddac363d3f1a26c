//! Topologies with several balancers, a router in front of them, and other hosts on the segment.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::{
    Topology,
    addresses::{
        BALANCER, CLIENT, CLIENT_LEG, CLIENTS, FIRST_BACKEND, Family, SECOND_BALANCER, SEGMENT, VIP, address, route,
    },
};
use crate::{
    namespace::{Namespace, join},
    offload::Offload,
    xdp::{Hook, Passer},
};

/// The host number of the router on the clients' segment.
const ROUTER: u16 = 1;

/// The maximum number of balancers, for which there are addresses.
pub(crate) const MAX_BALANCERS: u16 = FIRST_BACKEND - SECOND_BALANCER + 1;

impl Topology {
    /// Adds the host of a balancer, with the name `lb`, a number counted from 1, and the interface `eth0`.
    ///
    /// # Errors
    /// Fails if there are already nine balancers, or if the host cannot be created.
    pub fn add_balancer(&mut self) -> Result<()> {
        let index = u16::try_from(1 + self.more_balancers.len()).context("too many balancers")?;
        anyhow::ensure!(index < MAX_BALANCERS, "there are addresses for {MAX_BALANCERS} balancers");
        let name = format!("lb{}", index + 1);
        let balancer = self.add_host(&name, balancer_host(index))?;
        balancer.sysctl("net/ipv4/conf/all/forwarding", "0")?;
        balancer.sysctl("net/ipv6/conf/all/forwarding", "0")?;
        balancer.offload("eth0", &[(Offload::Merging, false)])?;
        self.receivers.push(Passer::attach(&self.switch, &name, Hook::Native)?);
        for family in Family::BOTH {
            route(&balancer, CLIENTS, SEGMENT, family, CLIENT)?;
        }
        self.more_balancers.push(balancer);
        Ok(())
    }

    /// The hosts of the balancers, in the order of their numbers.
    pub fn balancers(&self) -> impl Iterator<Item = &Namespace> {
        std::iter::once(&self.balancer).chain(&self.more_balancers)
    }

    /// The address of the balancer `index`, counted from 0, on the backends' segment.
    #[must_use]
    pub const fn balancers_address(family: Family, index: u16) -> IpAddr {
        SEGMENT.host(family, balancer_host(index))
    }

    /// Adds another host to the backends' segment, with the same host number in both address families.
    ///
    /// # Errors
    /// Fails if the host cannot be created.
    pub fn add_host(&self, name: &str, host: u16) -> Result<Namespace> {
        let namespace = Namespace::new(name)?;
        join((&namespace, "eth0"), (&self.switch, name))?;
        self.switch.ip(&format!("link set {name} master br0"))?;
        for family in Family::BOTH {
            address(&namespace, "eth0", SEGMENT, family, host)?;
        }
        Ok(namespace)
    }

    /// The address on the backends' segment of the host with this number.
    #[must_use]
    pub const fn host_address(family: Family, host: u16) -> IpAddr {
        SEGMENT.host(family, host)
    }

    /// Returns the host that routes for the clients: the router, or the clients' host if there is no router.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        self.router.as_ref().unwrap_or(&self.client)
    }

    /// The router's address on the backends' segment.
    #[must_use]
    pub const fn router_address(family: Family) -> IpAddr {
        SEGMENT.host(family, CLIENT)
    }

    /// Creates the router, with `eth0` on the backends' segment and `eth1` on the clients' segment.
    pub(super) fn make_router(&mut self) -> Result<()> {
        let router = self.add_host("router", CLIENT)?;
        join((&self.client, "eth0"), (&router, "eth1"))?;
        router.sysctl("net/ipv4/conf/all/forwarding", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for family in Family::BOTH {
            address(&router, "eth1", CLIENT_LEG, family, ROUTER)?;
            address(&self.client, "eth0", CLIENT_LEG, family, CLIENT)?;
            route(&router, CLIENTS, CLIENT_LEG, family, CLIENT)?;
            route(&self.client, VIP, CLIENT_LEG, family, ROUTER)?;
        }
        self.router = Some(router);
        Ok(())
    }
}

/// The host number of the balancer `index` on the backends' segment.
const fn balancer_host(index: u16) -> u16 {
    if index == 0 { BALANCER } else { SECOND_BALANCER + index - 1 }
}
