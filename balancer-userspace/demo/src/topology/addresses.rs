//! The addresses of the hosts in all topologies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::namespace::Namespace;

/// The backends' segment: the balancer has host number 1, and the clients' host has 2; further balancers start at 3,
/// and backends at 11.
pub(super) const SEGMENT: Net = Net(0);
/// The network of the clients' source addresses.
pub(super) const CLIENTS: Net = Net(1);
pub(super) const VIP: Net = Net(2);
/// The segment between the clients and the balancer or router. In the two-legged shape, the balancer is host 1, and the
/// clients' host is host 2. In the routed shape, the router is host 1.
pub(super) const CLIENT_LEG: Net = Net(3);

pub(super) const BALANCER: u16 = 1;
/// The number on the backends' segment of the clients' host, or, in the routed shape, of the router.
pub(super) const CLIENT: u16 = 2;
/// The host number of the second balancer.
pub(super) const SECOND_BALANCER: u16 = 3;
pub(super) const FIRST_BACKEND: u16 = 11;
pub(super) const VIP_HOST: u16 = 10;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The address family IPv4.
    V4,
    /// The address family IPv6.
    V6,
}

impl Family {
    /// The two address families, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns IPv6 for IPv4, and IPv4 for IPv6.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    pub(crate) const fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// The networks `10.N.0.0` and `fd00:N::`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Net(u8);

impl Net {
    pub(super) const fn host(self, family: Family, host: u16) -> IpAddr {
        match family {
            Family::V4 => {
                let [high, low] = host.to_be_bytes();
                IpAddr::V4(Ipv4Addr::new(10, self.0, high, low))
            }
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, self.0 as u16, 0, 0, 0, 0, 0, host)),
        }
    }

    pub(super) fn prefix(self, family: Family) -> String {
        format!("{}/{}", self.host(family, 0), Self::length(family))
    }

    pub(super) const fn length(family: Family) -> u8 {
        match family {
            Family::V4 => 16,
            Family::V6 => 64,
        }
    }
}

pub(super) fn address(namespace: &Namespace, interface: &str, net: Net, family: Family, host: u16) -> Result<()> {
    let nodad = if family == Family::V6 { "nodad" } else { "" };
    let length = Net::length(family);
    namespace.ip(&format!("addr add {}/{length} dev {interface} {nodad}", net.host(family, host)))?;
    Ok(())
}

pub(super) fn route(namespace: &Namespace, to: Net, through: Net, family: Family, gateway: u16) -> Result<()> {
    let (prefix, gateway) = (to.prefix(family), through.host(family, gateway));
    namespace.ip(&format!("{} route add {prefix} via {gateway}", family.flag()))?;
    Ok(())
}

pub(super) fn own_vip(namespace: &Namespace, family: Family) -> Result<()> {
    let (vip, length) = match family {
        Family::V4 => (VIP.host(family, VIP_HOST), 32),
        Family::V6 => (VIP.host(family, VIP_HOST), 128),
    };
    let nodad = if family == Family::V6 { "nodad" } else { "" };
    namespace.ip(&format!("addr add {vip}/{length} dev lo {nodad}"))?;
    Ok(())
}
