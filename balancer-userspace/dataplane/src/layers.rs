//! How network devices are stacked: VLAN interfaces and macvlans (such as VRRP's virtual MACs) on their parents, and
//! bridges and bonds on their members. A frame that arrives by the lowest device may be for any device stacked on it.
//! This module does no I/O.

use std::collections::{BTreeMap, BTreeSet};

use balancer_common::map_types::Mac;

/// The devices of this network namespace, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers(BTreeMap<u32, Device>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Device {
    mac: Option<Mac>,
    /// The devices directly on top of this device.
    above: BTreeSet<u32>,
    /// Whether the kernel does not tell by which other devices this device's frames arrive.
    hides_lower: bool,
}

impl Layers {
    /// Devices that have no other devices on top.
    #[must_use]
    pub fn flat(devices: &[(u32, Mac)]) -> Self {
        Self(devices.iter().map(|&(ifindex, mac)| (ifindex, Device { mac: Some(mac), ..Device::default() })).collect())
    }

    /// Adds a device without other devices on top. `None`: the device has no MAC.
    pub fn add(&mut self, ifindex: u32, mac: Option<Mac>) {
        self.0.entry(ifindex).or_default().mac = mac;
    }

    /// Records that one device is stacked on another device.
    pub fn put_upon(&mut self, lower: u32, upper: u32) {
        self.0.entry(lower).or_default().above.insert(upper);
    }

    /// Records that the kernel does not tell by which other devices the frames of this device arrive.
    pub fn hide_lower(&mut self, ifindex: u32) {
        self.0.entry(ifindex).or_default().hides_lower = true;
    }

    /// The MACs that an interface accepts: its own MAC, followed by the MACs of the devices stacked on it. `None`: the
    /// interface has no MAC or is unknown.
    #[must_use]
    pub fn local_macs(&self, ifindex: u32) -> Option<(Mac, BTreeSet<Mac>)> {
        let own = self.0.get(&ifindex)?.mac?;
        let mut others: BTreeSet<Mac> =
            self.with_above(ifindex).iter().filter_map(|above| self.0.get(above)?.mac).collect();
        others.remove(&own);
        Some((own, others))
    }

    /// Whether replies to packets that leave by one device may arrive by the other device: one of the two is stacked on
    /// the other, or a third device is stacked on both.
    #[must_use]
    pub fn related(&self, one: u32, other: u32) -> bool {
        !self.with_above(one).is_disjoint(&self.with_above(other))
    }

    /// Whether replies to packets that leave by `egress` certainly arrive by none of the interfaces in `steered`. For
    /// an unknown device, and for a device whose lower devices are unknown, nothing is certain.
    #[must_use]
    pub fn misses(&self, egress: u32, mut steered: impl Iterator<Item = u32>) -> bool {
        let hides = |(&device, Device { hides_lower, .. }): (&u32, &Device)| {
            *hides_lower && self.with_above(device).contains(&egress)
        };
        self.0.contains_key(&egress)
            && !steered.any(|ifindex| self.related(ifindex, egress))
            && !self.0.iter().any(hides)
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
