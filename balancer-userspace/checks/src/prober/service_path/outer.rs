//! The outer headers of `ipip` and `gue`, in the format in which the data path writes them.

use std::net::IpAddr;

use balancer_common::map_types::{Forwarding, GUE_PORT};

const V4: usize = 20;
const V6: usize = 40;
const UDP: usize = 8;
const TTL: u8 = 64;
const PROTOCOL_IPV4: u8 = 4;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_IPV6: u8 = 41;
const DONT_FRAGMENT: u16 = 0x4000;

/// The number of bytes that the outer headers add in front of a packet, for a backend of this address family.
pub(super) const fn overhead(forwarding: Forwarding, backend_v4: bool) -> usize {
    let ip = if backend_v4 { V4 } else { V6 };
    match forwarding {
        Forwarding::Dsr | Forwarding::Nat | Forwarding::Snat => 0,
        Forwarding::Ipip => ip,
        Forwarding::Gue => ip + UDP,
    }
}

/// Encapsulates `packet` in outer headers from `source` to `backend`.
pub(super) fn wrap(forwarding: Forwarding, source: IpAddr, backend: IpAddr, port: u16, packet: &[u8]) -> Vec<u8> {
    let inner_v4 = packet.first().is_none_or(|byte| byte >> 4 == 4);
    let mut payload: Vec<u8> = Vec::new();
    let protocol = match forwarding {
        Forwarding::Dsr | Forwarding::Nat | Forwarding::Snat => return packet.to_vec(),
        Forwarding::Ipip if inner_v4 => PROTOCOL_IPV4,
        Forwarding::Ipip => PROTOCOL_IPV6,
        Forwarding::Gue => {
            let length = (UDP + packet.len()) as u16;
            // The outer UDP header has no checksum, because the inner packet has its own checksum.
            payload.extend([port, GUE_PORT, length, 0].map(u16::to_be_bytes).as_flattened());
            PROTOCOL_UDP
        }
    };
    payload.extend(packet);
    let mut outer = match (source, backend) {
        (IpAddr::V4(source), IpAddr::V4(backend)) => {
            let mut header: Vec<u8> = vec![0x45, 0];
            let words = [(V4 + payload.len()) as u16, 0, DONT_FRAGMENT];
            header.extend(words.map(u16::to_be_bytes).as_flattened());
            header.extend([TTL, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(backend.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
        (source, backend) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let mut header: Vec<u8> = vec![0x60, 0];
            header.extend([port, payload.len() as u16].map(u16::to_be_bytes).as_flattened());
            header.extend([protocol, TTL]);
            header.extend(octets(source));
            header.extend(octets(backend));
            header
        }
    };
    outer.extend(payload);
    outer
}

/// The Internet checksum (RFC 1071) of a header.
fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER_V4: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 2, 0, 10];
    const INNER_V6: [u8; 4] = [0x60, 0, 0, 0];

    #[test]
    fn when_a_packet_is_sent_by_ipip_then_its_outer_header_is_right() {
        let (source, backend) = ("10.0.0.1".parse().unwrap(), "10.0.0.11".parse().unwrap());
        let outer = wrap(Forwarding::Ipip, source, backend, 40_000, &INNER_V4);
        assert_eq!(outer.len(), INNER_V4.len() + overhead(Forwarding::Ipip, true));
        assert_eq!(outer[..10], [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 4]);
        assert_eq!(outer[12..20], [10, 0, 0, 1, 10, 0, 0, 11]);
        assert_eq!(checksum(&outer[..20]), 0);
        assert_eq!(outer[20..], INNER_V4);
        assert_eq!(wrap(Forwarding::Ipip, source, backend, 40_000, &INNER_V6)[9], 41);
    }

    #[test]
    fn when_a_packet_is_sent_by_gue_then_it_is_in_udp() {
        let (source, backend) = ("fd00::1".parse().unwrap(), "fd00::11".parse().unwrap());
        let outer = wrap(Forwarding::Gue, source, backend, 40_000, &INNER_V4);
        assert_eq!(outer.len(), INNER_V4.len() + overhead(Forwarding::Gue, false));
        assert_eq!(outer[..8], [0x60, 0, 0x9c, 0x40, 0, 28, 17, 64]);
        assert_eq!(outer[40..48], [0x9c, 0x40, 0x17, 0xc0, 0, 28, 0, 0]);
        assert_eq!(wrap(Forwarding::Dsr, source, backend, 40_000, &INNER_V4), INNER_V4);
    }
}
