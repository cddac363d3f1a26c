//! How network devices lie upon each other: VLAN sub-interfaces and macvlans (VRRP's virtual MACs among them) upon what they
//! are made from, bridges and bonds upon their parts. A frame that comes in by the lowest may be for any of them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use balancer_common::map_types::Mac;
use netlink_packet_route::link::InfoKind;

use super::interfaces::Link;

/// The devices of this namespace by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers(BTreeMap<u32, Device>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Device {
    mac: Option<Mac>,
    /// Directly upon it.
    above: BTreeSet<u32>,
}

impl Layers {
    /// Devices with nothing upon them.
    #[must_use]
    pub fn flat(devices: &[(u32, Mac)]) -> Self {
        Self(
            devices
                .iter()
                .map(|&(ifindex, mac)| (ifindex, Device { mac: Some(mac), above: BTreeSet::new() }))
                .collect(),
        )
    }

    /// Puts one device upon another.
    pub fn put_upon(&mut self, lower: u32, upper: u32, mac: Mac) {
        self.0.entry(upper).or_default().mac = Some(mac);
        self.0.entry(lower).or_default().above.insert(upper);
    }

    pub(super) fn of<'a>(links: impl Iterator<Item = &'a Link> + Clone) -> Self {
        let mut devices: BTreeMap<u32, Device> = BTreeMap::new();
        let vrfs: BTreeSet<u32> =
            links.clone().filter(|link| link.kind == Some(InfoKind::Vrf)).map(|link| link.ifindex).collect();
        for link in links {
            devices.entry(link.ifindex).or_default().mac = link.mac;
            if let Some(lower) = link.lower.filter(|_| link.kind.as_ref().is_some_and(takes_frames_of_lower)) {
                devices.entry(lower).or_default().above.insert(link.ifindex);
            }
            // A VRF is a table of routes, which several interfaces may have.
            if let Some(master) = link.master.filter(|master| !vrfs.contains(master)) {
                devices.entry(link.ifindex).or_default().above.insert(master);
            }
        }
        Self(devices)
    }

    /// The destinations of frames that an interface takes: its own MAC first. `None`: it has none, or is not known.
    #[must_use]
    pub fn stations(&self, ifindex: u32) -> Option<(Mac, BTreeSet<Mac>)> {
        let own = self.0.get(&ifindex)?.mac?;
        let mut others: BTreeSet<Mac> =
            self.with_above(ifindex).iter().filter_map(|above| self.0.get(above)?.mac).collect();
        others.remove(&own);
        Some((own, others))
    }

    /// Whether what leaves by one device may be answered by the other: one lies upon the other, or a third upon both.
    #[must_use]
    pub fn related(&self, one: u32, other: u32) -> bool {
        !self.with_above(one).is_disjoint(&self.with_above(other))
    }

    fn with_above(&self, ifindex: u32) -> BTreeSet<u32> {
        let mut found = BTreeSet::from([ifindex]);
        let mut new = vec![ifindex];
        while let Some(device) = new.pop().and_then(|ifindex| self.0.get(&ifindex)) {
            new.extend(device.above.iter().copied().filter(|&above| found.insert(above)));
        }
        found
    }
}

/// Whether devices of this kind are given frames that their lower device receives. A `veth` names its peer as that, a
/// tunnel the device that its outer packets leave by.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::neighbours::test_link as link;

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
        Layers::of(links.iter())
    }

    fn stations(links: &[Link], ifindex: u32) -> Vec<Mac> {
        let (own, others) = layers(links).stations(ifindex).unwrap();
        std::iter::once(own).chain(others).collect()
    }

    #[test]
    fn an_interface_takes_the_frames_of_what_lies_upon_it() {
        let links = [
            device(2),
            // VRRP's virtual MAC, and a VLAN of the bond that the interface is a part of.
            upon(3, InfoKind::MacVlan, 2),
            Link { master: Some(5), ..device(4) },
            Link { kind: Some(InfoKind::Bond), ..device(5) },
            upon(6, InfoKind::Vlan, 5),
            device(7),
        ];
        assert_eq!(stations(&links, 2), [mac(2), mac(3)]);
        assert_eq!(stations(&links, 4), [mac(4), mac(5), mac(6)]);
        assert_eq!(stations(&links, 3), [mac(3)], "not those of what lies below");
        assert_eq!(layers(&links).stations(77), None);
    }

    #[test]
    fn a_vlan_has_the_mac_of_its_parent() {
        let links = [device(2), Link { mac: Some(mac(2)), ..upon(3, InfoKind::Vlan, 2) }];
        assert_eq!(stations(&links, 2), [mac(2)]);
    }

    #[test]
    fn the_peer_of_a_veth_is_another_station() {
        let links = [upon(2, InfoKind::Veth, 3), upon(3, InfoKind::Veth, 2)];
        assert_eq!(stations(&links, 2), [mac(2)]);
        assert!(!layers(&links).related(2, 3));
    }

    #[test]
    fn replies_come_by_what_a_device_is_made_of() {
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
}
