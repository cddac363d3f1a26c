//! Fuzzes the kernel's netlink messages about links, neighbours, routes and drivers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use balancer_daemon::untrusted;

/// Parses `bytes` as two netlink datagrams. The first byte is the length of the first datagram, in units of four bytes.
pub fn netlink(bytes: &[u8]) {
    let Some((&length, rest)) = bytes.split_first() else { return };
    let (changes, features) = rest.split_at(rest.len().min(usize::from(length) * 4));
    let addresses: [IpAddr; 2] =
        [Ipv4Addr::new(10, 0, 0, 9).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into()];
    let (_, told) = untrusted::netlink(changes, features, &addresses);
    assert!(told <= addresses.len(), "{told} next hops of {}", addresses.len());
}
