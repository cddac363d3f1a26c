//! Interfaces to which XDP cannot simply send frames. Pure.

use std::collections::HashMap;

use balancer_common::map_types::{DEVICE_CARRIES_TAGS, DEVICE_TAKES_NO_FRAMES};
use balancer_dataplane::Devices;
use netlink_packet_route::link::InfoKind;

use crate::interfaces::Link;

/// Kinds of interfaces known to accept frames that XDP sends from other interfaces. Hardware has no kind.
const TAKE_FRAMES: [InfoKind; 3] = [InfoKind::Veth, InfoKind::Bond, InfoKind::Tun];

/// Returns the known properties of `links`. `said`: whether drivers accept such frames, if the kernel tells.
pub(super) fn devices<'a>(links: impl Iterator<Item = &'a Link>, said: Option<&HashMap<u32, bool>>) -> Devices {
    let mut devices = Devices::new();
    for link in links.filter(|link| !link.loopback) {
        let known = |kind: &InfoKind| TAKE_FRAMES.contains(kind);
        let takes = said.and_then(|said| said.get(&link.ifindex).copied());
        if !takes.unwrap_or_else(|| link.kind.as_ref().is_none_or(known)) {
            *devices.entry(link.ifindex).or_default() |= DEVICE_TAKES_NO_FRAMES;
        }
        if link.kind == Some(InfoKind::Vlan)
            && let Some(parent) = link.lower
        {
            *devices.entry(parent).or_default() |= DEVICE_CARRIES_TAGS;
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
        let expected = Devices::from([(2, DEVICE_CARRIES_TAGS), (3, none), (4, none), (6, none)]);
        assert_eq!(devices(links().iter(), None), expected);
    }

    #[test]
    fn when_the_kernel_says_what_drivers_accept_then_that_decides() {
        let said = HashMap::from([(1, false), (2, false), (3, false), (4, false), (5, false), (6, true)]);
        let none = DEVICE_TAKES_NO_FRAMES;
        let expected = Devices::from([(2, none | DEVICE_CARRIES_TAGS), (3, none), (4, none), (5, none)]);
        assert_eq!(devices(links().iter(), Some(&said)), expected);
    }
}
