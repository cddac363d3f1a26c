//! Interfaces to which XDP can send no frames, or only some frames. All functions of this module are pure.

use std::collections::HashMap;

use balancer_common::map_types::{ANY_DEVICE, DEVICE_CARRIES_TAGS, DEVICE_TAKES_NO_FRAMES, DEVICE_TAKES_NO_PARTS};
use balancer_dataplane::Devices;
use netlink_packet_route::link::InfoKind;

use crate::{
    interfaces::Link,
    xdp_features::{TAKES_FRAMES, TAKES_PARTS},
};

/// The kinds of virtual interfaces that accept frames which XDP sends from other interfaces. A hardware interface has
/// no kind.
const TAKE_FRAMES: [InfoKind; 3] = [InfoKind::Veth, InfoKind::Bond, InfoKind::Tun];

/// Returns the properties of `links` that matter for sending with XDP. `said` contains the XDP features of drivers, if
/// the kernel reports them. Kernels before Linux 6.3 report none, and cannot redirect frames that consist of several
/// buffers.
pub(super) fn devices<'a>(links: impl Iterator<Item = &'a Link>, said: Option<&HashMap<u32, u64>>) -> Devices {
    let mut devices = Devices::new();
    if said.is_none() {
        devices.insert(ANY_DEVICE, DEVICE_TAKES_NO_PARTS);
    }
    for link in links.filter(|link| !link.loopback) {
        let mut add = |ifindex, flag| *devices.entry(ifindex).or_default() |= flag;
        match said.and_then(|said| said.get(&link.ifindex)) {
            Some(bits) if bits & TAKES_FRAMES == 0 => add(link.ifindex, DEVICE_TAKES_NO_FRAMES),
            Some(bits) if bits & TAKES_PARTS == 0 => add(link.ifindex, DEVICE_TAKES_NO_PARTS),
            None if link.kind.as_ref().is_some_and(|kind| !TAKE_FRAMES.contains(kind)) => {
                add(link.ifindex, DEVICE_TAKES_NO_FRAMES);
            }
            Some(_) | None => {}
        }
        if link.kind == Some(InfoKind::Vlan)
            && let Some(parent) = link.lower
        {
            add(parent, DEVICE_CARRIES_TAGS);
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::{super::resolve::tests::link, *};

    fn of_kind(ifindex: u32, kind: InfoKind) -> Link {
        Link { kind: Some(kind), ..link(ifindex, "other") }
    }

    fn links() -> [Link; 6] {
        let lo = Link { loopback: true, ..link(1, "lo") };
        let vlan = Link { lower: Some(2), ..of_kind(3, InfoKind::Vlan) };
        let others = [of_kind(4, InfoKind::Bridge), of_kind(5, InfoKind::Veth), of_kind(6, InfoKind::Wireguard)];
        let [bridge, veth, wireguard] = others;
        [lo, link(2, "eth0"), vlan, bridge, veth, wireguard]
    }

    #[test]
    fn when_the_kernel_says_nothing_then_kinds_of_interfaces_decide() {
        let none = DEVICE_TAKES_NO_FRAMES;
        let expected = Devices::from([
            (ANY_DEVICE, DEVICE_TAKES_NO_PARTS),
            (2, DEVICE_CARRIES_TAGS),
            (3, none),
            (4, none),
            (6, none),
        ]);
        assert_eq!(devices(links().iter(), None), expected);
    }

    #[test]
    fn when_the_kernel_says_what_drivers_accept_then_that_decides() {
        let said = |accepts| {
            let mut said = HashMap::from([1, 2, 3, 4, 5].map(|ifindex| (ifindex, accepts)));
            said.insert(6, TAKES_FRAMES | TAKES_PARTS);
            devices(links().iter(), Some(&said))
        };
        for (accepts, flag) in [(TAKES_PARTS, DEVICE_TAKES_NO_FRAMES), (TAKES_FRAMES, DEVICE_TAKES_NO_PARTS)] {
            assert_eq!(
                said(accepts),
                Devices::from([(2, flag | DEVICE_CARRIES_TAGS), (3, flag), (4, flag), (5, flag)])
            );
        }
        assert_eq!(said(TAKES_FRAMES | TAKES_PARTS), Devices::from([(2, DEVICE_CARRIES_TAGS)]));
    }
}
