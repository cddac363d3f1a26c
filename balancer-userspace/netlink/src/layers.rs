//! Derives how the links in this network namespace are stacked. All functions of this module are pure.

use std::collections::BTreeSet;

use balancer_dataplane::Layers;
use netlink_packet_route::link::InfoKind;

use super::interfaces::Link;

pub(crate) fn of<'a>(links: impl Iterator<Item = &'a Link> + Clone) -> Layers {
    let mut layers = Layers::default();
    let vrfs: BTreeSet<u32> =
        links.clone().filter(|link| link.kind == Some(InfoKind::Vrf)).map(|link| link.ifindex).collect();
    for link in links {
        layers.add(link.ifindex, link.mac);
        if link.kind.as_ref().is_some_and(hides_lower) {
            layers.hide_lower(link.ifindex);
        }
        if let Some(lower) = link.lower.filter(|_| link.kind.as_ref().is_some_and(takes_frames_of_lower)) {
            layers.put_upon(lower, link.ifindex);
        }
        // A VRF is a routing table that several interfaces may share, and not a device above these interfaces.
        if let Some(master) = link.master.filter(|master| !vrfs.contains(master)) {
            layers.put_upon(link.ifindex, master);
        }
    }
    layers
}

/// Whether a device of this kind gets the frames that its lower device receives. A `veth` reports its peer as the lower
/// device, and a tunnel reports the device that sends its outer packets, so neither device gets frames from the
/// reported device.
fn takes_frames_of_lower(kind: &InfoKind) -> bool {
    matches!(
        kind,
        InfoKind::Vlan
            | InfoKind::MacVlan
            | InfoKind::MacVtap
            | InfoKind::IpVlan
            | InfoKind::IpVtap
            | InfoKind::MacSec
            | InfoKind::Dsa
    )
}

/// Whether rules in user space decide by which devices the frames of a device of this kind arrive, as for an internal
/// port of Open vSwitch.
fn hides_lower(kind: &InfoKind) -> bool {
    matches!(kind, InfoKind::Other(name) if name == "openvswitch")
}

#[cfg(test)]
mod tests {
    use balancer_common::map_types::Mac;

    use super::*;
    use crate::neighbours::test_link as link;

    const fn mac(last: u8) -> Mac {
        [2, 0, 0, 0, 0, last]
    }

    fn upon(ifindex: u32, kind: InfoKind, lower: u32) -> Link {
        Link { kind: Some(kind), lower: Some(lower), ..device(ifindex) }
    }

    fn device(ifindex: u32) -> Link {
        Link { mac: Some(mac(ifindex as u8)), ..link(ifindex, "any") }
    }

    fn layers(links: &[Link]) -> Layers {
        of(links.iter())
    }

    fn local_macs(links: &[Link], ifindex: u32) -> Vec<Mac> {
        let (own, others) = layers(links).local_macs(ifindex).unwrap();
        std::iter::once(own).chain(others).collect()
    }

    #[test]
    fn when_devices_are_stacked_then_an_interface_accepts_their_frames() {
        let links = [
            device(2),
            // Interface 2 has a device with VRRP's virtual MAC address; interface 4 is a member of a bond that has a
            // VLAN.
            upon(3, InfoKind::MacVlan, 2),
            Link { master: Some(5), ..device(4) },
            Link { kind: Some(InfoKind::Bond), ..device(5) },
            upon(6, InfoKind::Vlan, 5),
            device(7),
        ];
        assert_eq!(local_macs(&links, 2), [mac(2), mac(3)]);
        assert_eq!(local_macs(&links, 4), [mac(4), mac(5), mac(6)]);
        assert_eq!(local_macs(&links, 3), [mac(3)], "not those of what lies below");
        assert_eq!(layers(&links).local_macs(77), None);
    }

    #[test]
    fn when_a_vlan_has_the_mac_of_its_parent_then_there_is_one_local_mac() {
        let links = [device(2), Link { mac: Some(mac(2)), ..upon(3, InfoKind::Vlan, 2) }];
        assert_eq!(local_macs(&links, 2), [mac(2)]);
    }

    #[test]
    fn when_devices_are_veth_peers_then_each_has_its_own_local_mac() {
        let links = [upon(2, InfoKind::Veth, 3), upon(3, InfoKind::Veth, 2)];
        assert_eq!(local_macs(&links, 2), [mac(2)]);
        assert!(!layers(&links).related(2, 3));
    }

    #[test]
    fn when_a_device_has_members_then_replies_may_come_by_them() {
        let links = [
            Link { master: Some(9), ..device(2) },
            Link { master: Some(9), ..device(3) },
            Link { kind: Some(InfoKind::Bridge), ..device(9) },
            upon(10, InfoKind::Vlan, 9),
            device(4),
            upon(11, InfoKind::Vlan, 4),
            Link { master: Some(12), ..device(5) },
            Link { master: Some(12), ..device(6) },
            Link { kind: Some(InfoKind::Vrf), ..device(12) },
        ];
        let layers = layers(&links);
        assert!(layers.related(2, 2) && layers.related(77, 77));
        assert!(layers.related(9, 2) && layers.related(3, 2), "ports of one bridge");
        assert!(layers.related(10, 3) && layers.related(4, 11));
        assert!(!layers.related(2, 4) && !layers.related(11, 2));
        assert!(!layers.related(5, 6), "a table of routes joins nothing");
    }

    #[test]
    fn when_replies_arrive_by_no_steered_interface_then_that_is_certain_only_of_known_devices() {
        let switch = || InfoKind::Other("openvswitch".to_owned());
        let links = [
            // Interfaces 2 and 3 are members of a bond with a VLAN; interface 4 is a member of a bridge.
            Link { master: Some(9), ..device(2) },
            Link { master: Some(9), ..device(3) },
            Link { kind: Some(InfoKind::Bond), ..device(9) },
            upon(10, InfoKind::Vlan, 9),
            Link { master: Some(11), ..device(4) },
            Link { kind: Some(InfoKind::Bridge), ..device(11) },
            // Interface 5 is a port of a switch with the internal port 12, which has a VLAN.
            Link { master: Some(13), ..device(5) },
            Link { kind: Some(switch()), ..device(12) },
            Link { kind: Some(switch()), ..device(13) },
            upon(14, InfoKind::Vlan, 12),
            device(6),
            upon(7, InfoKind::Veth, 6),
        ];
        let layers = layers(&links);
        let misses = |egress: u32, steered: &[u32]| layers.misses(egress, steered.iter().copied());
        for (egress, steered) in [(6, &[2, 3, 4, 9][..]), (10, &[4, 6]), (11, &[2, 5]), (7, &[6]), (4, &[])] {
            assert!(misses(egress, steered), "{egress} {steered:?}");
        }
        for (egress, steered) in [(6, &[6, 2][..]), (10, &[9]), (10, &[2, 3]), (9, &[3]), (11, &[4]), (4, &[11])] {
            assert!(!misses(egress, steered), "{egress} {steered:?}");
        }
        assert!(!misses(77, &[2]) && !misses(12, &[5]) && !misses(14, &[5]), "it is not known how these are joined");
    }
}
