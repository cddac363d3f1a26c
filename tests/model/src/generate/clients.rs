//! Makes random client addresses from a small set, so that addresses repeat.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use super::once_in;

/// A client's address, chosen at random. Most addresses have a route and a neighbour. Some addresses have no route or
/// no neighbour, or cannot belong to a host.
pub(super) fn address(rng: &mut Rng, v4: bool) -> IpAddr {
    if v4 { self::v4(rng).into() } else { self::v6(rng).into() }
}

fn v4(rng: &mut Rng) -> Ipv4Addr {
    let host = rng.u8(1..12);
    if once_in(rng, 12) {
        return match rng.u32(..8) {
            0 => Ipv4Addr::new(203, 0, 113, 66),
            1 => Ipv4Addr::new(192, 0, 2, 9),
            2 => Ipv4Addr::new(192, 0, 2, 200),
            3 => Ipv4Addr::new(8, 8, 8, host),
            4 => Ipv4Addr::new(0, 0, 0, host),
            5 => Ipv4Addr::new(127, 0, 0, host),
            6 => Ipv4Addr::new(224, 0, 0, host),
            _ => Ipv4Addr::BROADCAST,
        };
    }
    match rng.u32(..4) {
        0 => Ipv4Addr::new(203, 0, 113, 7),
        1 => Ipv4Addr::new(10, 5, rng.u8(..3), host),
        2 => Ipv4Addr::new(10, 77, 0, host),
        _ => Ipv4Addr::new(203, 0, 114, host),
    }
}

fn v6(rng: &mut Rng) -> Ipv6Addr {
    let host = rng.u16(1..12);
    let of = |net: u16, subnet: u16, host: u16| Ipv6Addr::new(0x2001, 0xdb8, net, subnet, 0, 0, 0, host);
    if once_in(rng, 12) {
        return match rng.u32(..6) {
            0 => of(0xc, 0, 0x66),
            1 => of(0xe, 0, host),
            2 => Ipv6Addr::LOCALHOST,
            3 => Ipv6Addr::UNSPECIFIED,
            4 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, host),
            _ => of(0xc, 9, host),
        };
    }
    match rng.u32(..3) {
        0 => of(0xc, 0, host),
        1 => of(0xc, rng.u16(..6), host),
        _ => of(0xd, rng.u16(..3), host),
    }
}
