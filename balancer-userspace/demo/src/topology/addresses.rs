//! The addresses of all hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::namespace::Namespace;

/// Host numbers on the backends' segment: the balancer is 1, the clients' host 2; more balancers follow from 3,
/// backends from 11.
pub(super) const SEGMENT: Net = Net(0);
/// The clients' addresses.
pub(super) const CLIENTS: Net = Net(1);
/// The service's address.
pub(super) const VIP: Net = Net(2);
/// Two-legged: the balancer is 1, the clients' host 2. Routed: the router is 1.
pub(super) const CLIENT_LEG: Net = Net(3);

pub(super) const BALANCER: u16 = 1;
/// The clients' host, or in the routed shape the router on the segment.
pub(super) const CLIENT: u16 = 2;
/// The second balancer's host number.
pub(super) const SECOND_BALANCER: u16 = 3;
pub(super) const FIRST_BACKEND: u16 = 11;
pub(super) const VIP_HOST: u16 = 10;
/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The other family.
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

/// `10.N.0.0` and `fd00:N::`.
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
