//! A thousand services.

use std::net::{IpAddr, Ipv4Addr};

use balancer_common::{client::HashKey, map_types::Forwarding};

use crate::services::Service;

/// The number of services.
pub(crate) const SERVICES: u16 = 1000;
/// The VIP of the first service; the others follow.
pub(crate) const FIRST_VIP: u32 = u32::from_be_bytes([198, 18, 0, 1]);

/// Returns a service. Each service has its own key, because all have the same client, and equal hashes would find the
/// same entry.
pub(crate) fn service(index: u16) -> Service {
    let vip = IpAddr::V4(Ipv4Addr::from_bits(FIRST_VIP + u32::from(index)));
    let key = HashKey { k0: index.into(), k1: 12 };
    Service { key, slots: 4099, ..Service::tcp(vip, Forwarding::Dsr).remembering() }
}
