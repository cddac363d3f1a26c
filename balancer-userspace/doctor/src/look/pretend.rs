//! Chooses the address of a client: of one that was seen, or of none that exists.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;

use super::netlink::Netlink;
use crate::facts::{Facts, Way};

/// Addresses for measurements between networks, which no client has (RFC 2544 and RFC 5180).
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1));
/// The number of addresses of a prefix that are examined.
const TRIES: u32 = 16;

/// A client, and the prefix of the route to the client; `None` for a default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pretended {
    pub(super) address: IpAddr,
    pub(super) network: Option<IpNet>,
}

/// Returns the client with this address. If the kernel does not answer, the prefix is absent.
pub(super) async fn named(address: IpAddr) -> Pretended {
    let network = match Netlink::connect() {
        Ok(netlink) => netlink.prefix(address).await.ok().flatten(),
        Err(_) => None,
    };
    Pretended { address, network }
}

/// Returns a recently seen client.
pub(super) fn seen(facts: &Facts, v4: bool) -> Option<Pretended> {
    let controller = facts.controller.as_ref()?;
    let address = controller.client.filter(|client| client.is_ipv4() == v4)?;
    Some(Pretended { address, network: controller.clients })
}

/// Returns a recently seen client, or else an address behind the default route, behind another gateway, or on an attached
/// interface without backends. `None` if there is no such route, or if the kernel does not answer.
pub(super) async fn client(facts: &Facts, v4: bool) -> Option<Pretended> {
    if let Some(seen) = seen(facts, v4) {
        return Some(seen);
    }
    let netlink = Netlink::connect().ok()?;
    let nobody = if v4 { NOBODY } else { NOBODY_V6 };
    if let Way::Known { next_hop, .. } = netlink.way(nobody).await.ok()?.way
        && next_hop != nobody
    {
        return Some(Pretended { address: nobody, network: None });
    }
    let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mut prefixes = netlink.behind_gateways(family).await.ok()?;
    prefixes.extend(attached(facts).filter(|prefix| prefix.addr().is_ipv4() == v4));
    prefixes.into_iter().find_map(|prefix| of_prefix(prefix, facts))
}

/// The prefixes of the attached interfaces' addresses.
fn attached(facts: &Facts) -> impl Iterator<Item = IpNet> {
    let attached = facts.controller.iter().flat_map(|of| &of.after.interfaces);
    let own = attached.flat_map(|view| facts.addresses.iter().filter(move |own| own.ifindex == view.ifindex));
    own.filter_map(|own| IpNet::new(own.address, own.length).ok()).map(|prefix| prefix.trunc())
}

/// An address of a prefix that contains no backend; one of the last, because machines have the first.
fn of_prefix(prefix: IpNet, facts: &Facts) -> Option<Pretended> {
    let is_scoped = matches!(prefix.addr(), IpAddr::V6(address) if address.is_unicast_link_local());
    if is_scoped || facts.backends.iter().any(|of| prefix.contains(&of.address.ip())) {
        return None;
    }
    let is_taken = |address: &IpAddr| {
        let is_next_hop = |way: &Way| matches!(way, Way::Known { next_hop, .. } if next_hop == address);
        facts.is_own(*address)
            || facts.vips.iter().any(|vip| vip.address == *address)
            || facts.backends.iter().any(|of| is_next_hop(&of.way))
    };
    let last = prefix.broadcast();
    let mut last = (1..=TRIES).filter_map(|back| before(last, back)).filter(|one| prefix.contains(one));
    let address = last.find(|one| !is_taken(one))?;
    Some(Pretended { address, network: Some(prefix) })
}

fn before(address: IpAddr, back: u32) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(Ipv4Addr::from(u32::from(address).checked_sub(back)?).into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from(u128::from(address).checked_sub(back.into())?).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Address, Duplicates};

    fn own(address: &str, length: u8) -> Address {
        Address { ifindex: 1, address: address.parse().unwrap(), length, duplicates: Duplicates::None }
    }

    fn chosen(prefix: &str, own: Vec<Address>) -> Option<String> {
        let facts = Facts { addresses: own, ..Facts::default() };
        of_prefix(prefix.parse().unwrap(), &facts).map(|of| of.address.to_string())
    }

    #[test]
    fn when_a_prefix_has_free_addresses_then_one_of_its_last_is_the_clients() {
        assert_eq!(chosen("10.1.0.0/24", vec![own("10.1.0.1", 24)]).as_deref(), Some("10.1.0.254"));
        assert_eq!(chosen("10.1.0.0/24", vec![own("10.1.0.254", 24)]).as_deref(), Some("10.1.0.253"));
        assert_eq!(chosen("10.1.0.8/32", vec![]), None);
        assert_eq!(chosen("10.1.0.0/30", vec![own("10.1.0.2", 30)]).as_deref(), Some("10.1.0.1"));
        assert_eq!(chosen("2001:db8::/64", vec![]).as_deref(), Some("2001:db8::ffff:ffff:ffff:fffe"));
        assert_eq!(chosen("fe80::/64", vec![]), None);
    }
}
