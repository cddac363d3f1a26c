//! A network with clients behind two routers. The MTU between the routers is smaller than the MTU in the networks of
//! the clients and of the balancer:
//!
//! ```text
//! far ─1500─ outer ─1400─ inner ─1500─ switch ── balancer, web1, web2, …
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use balancer_common::map_types::Forwarding;

use crate::{
    namespace::{Namespace, join},
    topology::{Family, Topology},
};

/// The MTU between the routers.
pub const NARROW: u32 = 1400;

/// The host of the clients and the two routers; dropping the value removes all three.
#[derive(Debug)]
pub struct Far {
    host: Namespace,
    routers: [Namespace; 2],
}

impl Far {
    /// Connects the clients' host and the routers to the switch of a topology, and adds routes to that host on all
    /// machines.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn join(topology: &Topology, forwarding: Forwarding) -> Result<Self> {
        let [host, outer, inner] = [Namespace::new("far")?, Namespace::new("outer")?, Namespace::new("inner")?];
        join((&host, "eth0"), (&outer, "far"))?;
        join((&outer, "narrow"), (&inner, "narrow"))?;
        join((&inner, "eth0"), (topology.switch(), "inner"))?;
        topology.switch().ip("link set inner master br0")?;
        for router in [&outer, &inner] {
            router.sysctl("net/ipv4/conf/all/forwarding", "1")?;
            router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            router.ip(&format!("link set narrow mtu {NARROW}"))?;
        }
        for family in Family::BOTH {
            let (flag, nodad, short, long) = match family {
                Family::V4 => ("-4", "", 24, 16),
                Family::V6 => ("-6", "nodad", 64, 64),
            };
            let vips = format!("{}/{}", topology.vip(family), if family == Family::V4 { 32 } else { 128 });
            let far = Self::client(family);
            let (segment, balancer) = (Self::router(family), host_of(family, 0, 1));
            let give = |namespace: &Namespace, interface: &str, address: IpAddr, length: u8| {
                namespace.ip(&format!("addr add {address}/{length} dev {interface} {nodad}"))
            };
            give(&host, "eth0", far, short)?;
            give(&outer, "far", host_of(family, 8, 1), short)?;
            give(&outer, "narrow", host_of(family, 9, 1), short)?;
            give(&inner, "narrow", host_of(family, 9, 2), short)?;
            give(&inner, "eth0", segment, long)?;
            host.ip(&format!("{flag} route add default via {}", host_of(family, 8, 1)))?;
            outer.ip(&format!("{flag} route add default via {}", host_of(family, 9, 2)))?;
            inner.ip(&format!("{flag} route add {far} via {}", host_of(family, 9, 1)))?;
            inner.ip(&format!("{flag} route add {vips} via {balancer}"))?;
            topology.balancer().ip(&format!("{flag} route add {far} via {segment}"))?;
            let back = if forwarding == Forwarding::Nat { balancer } else { segment };
            for backend in topology.backends() {
                backend.ip(&format!("{flag} route add {far} via {back}"))?;
                // The inner router sends errors about packets to the clients' host from the router's own address, so
                // backends need a route to that address.
                backend.ip(&format!("{flag} route add {} via {segment}", host_of(family, 9, 2)))?;
            }
        }
        Ok(Self { host, routers: [outer, inner] })
    }

    #[must_use]
    pub const fn host(&self) -> &Namespace {
        &self.host
    }

    /// Returns the namespace of the router on the balancer's segment.
    #[must_use]
    pub const fn gateway(&self) -> &Namespace {
        &self.routers[1]
    }

    /// Adds clients to the host, and replaces the balancer's route to the host by a default route. Returns the addresses
    /// of the clients.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn add_clients(&self, topology: &Topology, forwarding: Forwarding, family: Family) -> Result<Vec<IpAddr>> {
        let (flag, nodad, length) = if family == Family::V4 { ("-4", "", 24) } else { ("-6", "nodad", 64) };
        let (all, segment) = (format!("{}/{length}", host_of(family, 8, 0)), Self::router(family));
        let clients: Vec<_> = (20..60).map(|number| host_of(family, 8, number)).collect();
        for client in &clients {
            self.host.ip(&format!("addr add {client}/{length} dev eth0 {nodad}"))?;
        }
        self.gateway().ip(&format!("{flag} route add {all} via {}", host_of(family, 9, 1)))?;
        let back = if forwarding == Forwarding::Nat { host_of(family, 0, 1) } else { segment };
        for backend in topology.backends() {
            backend.ip(&format!("{flag} route add {all} via {back}"))?;
        }
        topology.balancer().ip(&format!("{flag} route add default via {segment}"))?;
        topology.balancer().ip(&format!("{flag} route del {}", Self::client(family)))?;
        Ok(clients)
    }

    /// Returns the address from which the router sends errors to the balancer's segment.
    #[must_use]
    pub const fn router(family: Family) -> IpAddr {
        host_of(family, 0, 3)
    }

    /// Returns the address of the clients' host.
    #[must_use]
    pub const fn client(family: Family) -> IpAddr {
        host_of(family, 8, 6)
    }
}

/// Returns `10.N.0.H` or `fd00:N::H`.
const fn host_of(family: Family, net: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, net, 0, host)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, net as u16, 0, 0, 0, 0, 0, host as u16)),
    }
}
