//! The scene with a thousand services.

use std::net::{IpAddr, Ipv4Addr};

use balancer_common::{client::HashKey, map_types::Forwarding};

use crate::services::Service;

/// The number of services in this scene.
pub(crate) const SERVICES: u16 = 1000;
/// The VIP of the first service. The VIPs of all other services are the addresses after this VIP.
pub(crate) const FIRST_VIP: u32 = u32::from_be_bytes([198, 18, 0, 1]);

/// Returns the service with the given index. Each service has a different hash key, because all services have the same
/// client. With equal keys, the client's entries in all services would be the same.
pub(crate) fn service(index: u16) -> Service {
    let vip = IpAddr::V4(Ipv4Addr::from_bits(FIRST_VIP + u32::from(index)));
    let key = HashKey { k0: index.into(), k1: 12 };
    Service { key, slots: 4099, ..Service::tcp(vip, Forwarding::Dsr).remembering() }
}
