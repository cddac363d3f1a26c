//! Finds the interfaces of this machine that a configuration should name: those by which clients' packets and replies
//! of backends probably arrive.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use balancer_config::config::Config;
use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use crate::{
    interfaces::Link,
    neighbours::egresses,
    reply_interfaces::{MOST, replying},
};

/// Addresses of the internet, to which the default routes lead.
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// An address of this machine with its subnet, and the interface that has the address.
type Own = (String, IpNet);

/// Returns the interfaces for the services of a configuration on this machine, the clients' side first.
///
/// # Errors
/// Fails if the kernel does not answer.
pub async fn sides(config: &Config) -> anyhow::Result<Vec<String>> {
    let vips: BTreeSet<IpAddr> =
        config.services.iter().flat_map(|service| service.listen.iter().map(|listener| listener.address)).collect();
    let backends: BTreeSet<IpAddr> = replying(config).into_iter().map(|(address, _)| address).take(MOST).collect();
    let (links, egresses) = egresses(backends.iter().copied().chain(FAR).collect()).await?;
    Ok(among(&links, &egresses, &own()?, (&vips, &backends)))
}

fn own() -> anyhow::Result<Vec<Own>> {
    let all = getifaddrs()?
        .filter_map(|of| Some((of.interface_name, IpNet::with_netmask(ip(of.address?)?, ip(of.netmask?)?).ok()?)));
    Ok(all.collect())
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (None, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        (None, None) => None,
    }
}

fn among(
    links: &[Link],
    egresses: &HashMap<IpAddr, u32>,
    own: &[Own],
    (vips, backends): (&BTreeSet<IpAddr>, &BTreeSet<IpAddr>),
) -> Vec<String> {
    let usable = |name: &str| links.iter().any(|link| link.name == name && link.mac.is_some());
    let to = |address: &IpAddr| {
        let link = links.iter().find(|link| Some(&link.ifindex) == egresses.get(address))?;
        usable(&link.name).then(|| link.name.clone())
    };
    // Clients arrive where the VIP is, or where its subnet is, otherwise where the default route leads.
    let has_vips = |of: &&Own| vips.iter().any(|vip| of.1.contains(vip)) && usable(&of.0);
    let mut found: Vec<String> = own.iter().filter(has_vips).map(|(name, _)| name.clone()).collect();
    if found.is_empty() {
        found.extend(FAR.iter().filter(|far| vips.iter().any(|vip| vip.is_ipv4() == far.is_ipv4())).filter_map(to));
    }
    found.extend(backends.iter().filter_map(to));
    let mut seen = BTreeSet::new();
    found.retain(|name| seen.insert(name.clone()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::test_link;

    #[test]
    fn when_a_machine_has_two_sides_then_both_are_named_and_the_loopback_interface_is_not() {
        let link = |ifindex, name| Link { mac: Some([2, 0, 0, 0, 0, ifindex as u8]), ..test_link(ifindex, name) };
        let lo = Link { mac: None, ..test_link(1, "lo") };
        let links = [lo, link(2, "eth0"), link(3, "eth1")];
        let far = |ifindex| (FAR[0], ifindex);
        let backend: IpAddr = "10.0.0.11".parse().unwrap();
        let egresses = HashMap::from([far(2), (backend, 3)]);
        let own: Vec<Own> = [("lo", "198.51.100.10/32"), ("eth1", "10.0.0.1/24"), ("eth0", "192.0.2.9/24")]
            .map(|(name, net)| (name.to_owned(), net.parse().unwrap()))
            .to_vec();
        let found = |vip: &str, backends: &[IpAddr]| {
            let vips = BTreeSet::from([vip.parse().unwrap()]);
            among(&links, &egresses, &own, (&vips, &backends.iter().copied().collect()))
        };
        assert_eq!(found("192.0.2.10", &[backend]), ["eth0", "eth1"]);
        assert_eq!(found("10.0.0.10", &[backend]), ["eth1"], "one arm");
        assert_eq!(
            found("198.51.100.10", &[backend]),
            ["eth0", "eth1"],
            "the VIP is on lo, clients come by the default"
        );
        assert_eq!(found("198.51.100.10", &[]), ["eth0"], "without replies");
        assert_eq!(found("2001:db8::10", &[]), [""; 0], "no route");
    }
}
