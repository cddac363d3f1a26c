//! Source addresses that no client can have.

use balancer_common::{
    map_types::{Control, FAMILY_V4, ServiceKey},
    service_table::vip_bit,
};

use crate::{control, parse::Ip, rules, service};

/// Whether the source of `ip` is loopback, multicast, unspecified, broadcast or equal to the destination. Each test
/// takes only one or two comparisons, because the program tests every packet for a service.
#[inline(always)]
pub(crate) fn is_source(ip: &Ip<'_>) -> bool {
    is_nobodys(&ip.source, ip.family) || is_same(&ip.source, &ip.destination, ip.family)
}

#[inline(always)]
const fn is_nobodys(source: &[u32; 4], family: u8) -> bool {
    if family == FAMILY_V4 {
        let a = source[0];
        let [first, ..] = a.to_ne_bytes();
        // The first byte suffices to decide for most addresses.
        if first != 127 && first.wrapping_sub(1) < 223 {
            return false;
        }
        // In wrapping arithmetic, 0.0.0.0 directly follows 255.255.255.255.
        first == 127 || first & 0xf0 == 224 || a.wrapping_add(1) <= 1
    } else {
        const GROUP: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0, 0]);
        let [first, second] = rules::words(source);
        first & GROUP == GROUP || first == 0 && second & u64::from_be(!1) == 0
    }
}

#[inline(always)]
const fn is_same(one: &[u32; 4], other: &[u32; 4], family: u8) -> bool {
    if family == FAMILY_V4 {
        one[0] == other[0]
    } else {
        let ([a, b], [c, d]) = (rules::words(one), rules::words(other));
        (a ^ c) | (b ^ d) == 0
    }
}

/// Whether the source of `ip` is the VIP of any service. The program makes this check for packets that open a
/// connection or may open one. For most addresses, one 64-bit word shows that the address is no VIP.
#[inline(always)]
pub(crate) fn is_vip(control: &'static Control, ip: &Ip<'_>) -> bool {
    // SAFETY: a Rust reference is always valid for reads; the controller replaces the word with one store.
    if unsafe { (&raw const control.vips).read_volatile() } & vip_bit(&ip.source) == 0 {
        return false;
    }
    let [a, b, c, d] = ip.source;
    let (low, high) = (a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32);
    balancer_source_is_vip(low, high, u64::from(ip.family)) != 0
}

/// This is a global function, so the verifier checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_source_is_vip(low: u64, high: u64, family: u64) -> u64 {
    let Some(control) = control::words() else { return 0 };
    let address = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    let key = ServiceKey { address, port: 0, protocol: 0, family: family as u8 };
    u64::from(service::is_vip(control::listeners(control), &key))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use balancer_common::map_types::FAMILY_V6;

    use super::*;

    fn words(address: &str) -> ([u32; 4], u8) {
        match address.parse().unwrap() {
            IpAddr::V4(v4) => ([u32::from_ne_bytes(v4.octets()), 0, 0, 0], FAMILY_V4),
            IpAddr::V6(v6) => (bytemuck::cast(v6.octets()), FAMILY_V6),
        }
    }

    #[test]
    fn when_no_client_can_have_an_address_then_it_is_a_martian() {
        for (address, expected) in [
            ("0.0.0.0", true),
            ("0.0.0.1", false),
            ("10.0.0.1", false),
            ("126.255.255.255", false),
            ("127.0.0.1", true),
            ("127.255.0.9", true),
            ("128.0.0.1", false),
            ("223.255.255.255", false),
            ("224.0.0.1", true),
            ("239.1.2.3", true),
            ("240.0.0.1", false),
            ("255.255.255.254", false),
            ("255.255.255.255", true),
            ("::", true),
            ("::1", true),
            ("::2", false),
            ("::1:0:1", false),
            ("1::1", false),
            ("2001:db8::1", false),
            ("fe80::1", false),
            ("ff02::1", true),
        ] {
            let (source, family) = words(address);
            assert_eq!(is_nobodys(&source, family), expected, "{address}");
        }
    }
}
