//! The keys of a service, which the balancer derives from the fleet's key and the service's name.
//!
//! Each key is two 64-bit halves, `SipHash-2-4(fleet key, purpose ‖ 0 ‖ half ‖ service name)` with `half` 0 and 1. The
//! purpose contains no zero byte, so different purposes and names give different inputs. Two services have different
//! keys, and knowing the backends of one service's clients reveals nothing about the clients of another service.
//! Balancers with the same fleet key derive the same keys.

use std::hash::Hasher as _;

use balancer_common::client::HashKey;
use siphasher::sip::SipHasher24;

/// The key of the hash with which the kernel program maps a service's client addresses to slots.
#[must_use]
pub fn client_key(fleet: HashKey, service: &str) -> HashKey {
    derive(fleet, "client", service)
}

/// The key of the service's lookup table, which determines the permutation of each backend.
#[must_use]
pub fn table_key(fleet: HashKey, service: &str) -> HashKey {
    derive(fleet, "table", service)
}

/// A number that identifies a key without revealing it.
#[must_use]
pub fn fingerprint(fleet: HashKey) -> u64 {
    derive(fleet, "fingerprint", "").k0
}

fn derive(fleet: HashKey, purpose: &str, service: &str) -> HashKey {
    let half = |half: u8| {
        let mut hasher = SipHasher24::new_with_keys(fleet.k0, fleet.k1);
        hasher.write(purpose.as_bytes());
        hasher.write(&[0, half]);
        hasher.write(service.as_bytes());
        hasher.finish()
    };
    HashKey { k0: half(0), k1: half(1) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const FLEET: HashKey = HashKey::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f]);

    #[test]
    fn when_fleet_purpose_half_or_service_differ_then_keys_differ() {
        let other = HashKey { k0: FLEET.k0 ^ 1, ..FLEET };
        let mut halves = HashSet::new();
        for fleet in [FLEET, other] {
            for service in ["web", "api", ""] {
                for key in [client_key(fleet, service), table_key(fleet, service)] {
                    halves.extend([key.k0, key.k1]);
                }
            }
        }
        assert_eq!(halves.len(), 2 * 3 * 2 * 2);
    }

    #[test]
    fn when_the_derivation_changes_then_this_test_notices() {
        // With any other value, an upgraded balancer would steer clients differently from the rest of its fleet.
        assert_eq!(client_key(FLEET, "web"), HashKey { k0: 0x36c5_dd49_4620_dc5e, k1: 0xfccd_0b1e_bd66_f3d2 },);
    }
}
