//! How network devices lie upon each other: VLAN sub-interfaces and macvlans (VRRP's virtual MACs among them) upon what they
//! are made from, bridges and bonds upon their parts. A frame that comes in by the lowest may be for any of them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use balancer_common::map_types::Mac;

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

    /// Adds a device. `None`: it has no MAC.
    pub fn add(&mut self, ifindex: u32, mac: Option<Mac>) {
        self.0.entry(ifindex).or_default().mac = mac;
    }

    /// Puts one device upon another.
    pub fn put_upon(&mut self, lower: u32, upper: u32) {
        self.0.entry(lower).or_default().above.insert(upper);
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
