//! The next hops of backends' addresses. Backends that share an address share one watch.

use std::{net::IpAddr, sync::Arc};

use balancer_common::map_types::Forwarding;
use balancer_config::listeners::Family;
use foldhash::HashMap;
use serde::{Deserialize, Serialize};

use crate::io::NextHop;

/// The state of the path to an address, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// The path to the address is unknown so far. The controller may steer new clients to the backend, but the backend
    /// has no row by which the program forwards packets.
    #[default]
    Pending,
    /// The next hop of the address is known.
    Resolved(NextHop),
    /// The address has no next hop, for this reason.
    Failed(String),
}

/// Returns why a forwarding mode cannot use this path to a backend at `address` for clients of `family`; `None` if the
/// mode can use the path.
pub(crate) fn obstacle(forwarding: Forwarding, family: Family, address: IpAddr, next_hop: &NextHop) -> Option<String> {
    if next_hop.local {
        // Connections to this machine itself have no flow, so the program cannot translate between families.
        let crosses = forwarding == Forwarding::Snat && Family::of(address) != family;
        return crosses
            .then(|| format!("{address} is an address of this machine; give the backend an {family} address as well"));
    }
    match forwarding {
        Forwarding::Nat => None,
        // The gateway would receive the frame and forward the packet to the packet's destination, the VIP.
        Forwarding::Dsr => next_hop.gateway.map(|gateway| {
            format!("dsr needs a backend on the same link; {address} is reached through gateway {gateway}")
        }),
        Forwarding::Snat | Forwarding::Ipip | Forwarding::Gue => {
            let (family, usable) = match (address, next_hop.source) {
                (IpAddr::V4(_), source) => ("IPv4", matches!(source, Some(IpAddr::V4(_)))),
                // A gateway does not forward packets whose source address has link scope.
                (IpAddr::V6(_), Some(IpAddr::V6(source))) => {
                    ("IPv6", next_hop.gateway.is_none() || !source.is_unicast_link_local())
                }
                (IpAddr::V6(_), _) => ("IPv6", false),
            };
            let what = if forwarding == Forwarding::Snat { "snat" } else { "a tunnel" };
            let why = || format!("{what} needs an {family} address of this machine on the route to {address}");
            (!usable).then(why)
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Watch {
    hop: Hop,
    users: usize,
}

/// All addresses whose next hops are watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct NextHops {
    /// The watches, which copies of this value share until one of the copies changes the watches.
    watches: Arc<HashMap<IpAddr, Watch>>,
    /// The states of addresses before a restart or a removal; they are kept until the addresses are watched again.
    before: HashMap<IpAddr, Hop>,
}

impl NextHops {
    /// Makes a value without watches; a new watch begins with the state that its address has in `before`.
    pub(crate) fn restored(before: impl IntoIterator<Item = (IpAddr, Hop)>) -> Self {
        Self { before: before.into_iter().collect(), ..Self::default() }
    }

    /// Returns the known states, by address in ascending order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (IpAddr, &Hop)> {
        let mut all: Vec<_> = self.watches.iter().map(|(&address, watch)| (address, &watch.hop)).collect();
        all.sort_unstable_by_key(|&(address, _)| address);
        all.into_iter()
    }

    /// The addresses that belong to this machine.
    pub(crate) fn local(&self) -> impl Iterator<Item = IpAddr> {
        let watched = self.watches.iter().map(|(&address, watch)| (address, &watch.hop));
        let all = watched.chain(self.before.iter().map(|(&address, hop)| (address, hop)));
        all.filter(|(_, hop)| matches!(hop, Hop::Resolved(hop) if hop.local)).map(|(address, _)| address)
    }

    /// Lets the next watch of `address` begin with `hop`, the recent next hop of this address.
    pub(crate) fn expect(&mut self, address: IpAddr, hop: NextHop) {
        if !self.watches.contains_key(&address) {
            self.before.insert(address, Hop::Resolved(hop));
        }
    }

    /// Adds a user of the next hop of `address`. Returns true if no other user needs the next hop.
    pub(crate) fn watch(&mut self, address: IpAddr) -> bool {
        let before = &mut self.before;
        let watch = Arc::make_mut(&mut self.watches)
            .entry(address)
            .or_insert_with(|| Watch { hop: before.remove(&address).unwrap_or_default(), users: 0 });
        watch.users += 1;
        watch.users == 1
    }

    /// Removes a user of the next hop of `address`. Returns true if no user needs the next hop any more.
    pub(crate) fn release(&mut self, address: IpAddr) -> bool {
        let watches = Arc::make_mut(&mut self.watches);
        let Some(watch) = watches.get_mut(&address) else { return false };
        watch.users -= 1;
        if watch.users > 0 {
            return false;
        }
        watches.remove(&address);
        true
    }

    /// Records the result of a watch. Returns false if the result is already known, or if the address is not watched.
    pub(crate) fn set(&mut self, address: IpAddr, next_hop: Result<NextHop, String>) -> bool {
        let hop = next_hop.map_or_else(Hop::Failed, Hop::Resolved);
        if self.watches.get(&address).is_none_or(|watch| watch.hop == hop) {
            return false;
        }
        if let Some(watch) = Arc::make_mut(&mut self.watches).get_mut(&address) {
            watch.hop = hop;
        }
        true
    }

    /// Returns the states that differ from the states in `before`, in no particular order; `None`: the address is no
    /// longer watched.
    pub(crate) fn changed_since(&self, before: &Self) -> Vec<(IpAddr, Option<Hop>)> {
        if Arc::ptr_eq(&self.watches, &before.watches) {
            return Vec::new();
        }
        let known = |(address, Watch { hop, .. }): (&IpAddr, &Watch)| {
            let news = before.watches.get(address).is_none_or(|before| before.hop != *hop);
            news.then(|| (*address, Some(hop.clone())))
        };
        let gone = before.watches.keys().filter(|address| !self.watches.contains_key(address));
        self.watches.iter().filter_map(known).chain(gone.map(|&address| (address, None))).collect()
    }

    pub(crate) fn get(&self, address: IpAddr) -> &Hop {
        let known = self.watches.get(&address).map(|watch| &watch.hop);
        known.or_else(|| self.before.get(&address)).unwrap_or(&Hop::Pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::next_hop;

    fn hop(source: Option<&str>, gateway: Option<&str>) -> NextHop {
        let address = |text: &str| text.parse().unwrap();
        NextHop { source: source.map(address), gateway: gateway.map(address), ..next_hop(1) }
    }

    #[test]
    fn when_forwarding_is_dsr_then_the_backend_must_be_on_the_same_link() {
        let address = "10.0.9.1".parse().unwrap();
        assert_eq!(obstacle(Forwarding::Dsr, Family::V4, address, &hop(None, None)), None);
        let routed = hop(Some("10.0.0.2"), Some("10.0.0.1"));
        assert_eq!(
            obstacle(Forwarding::Dsr, Family::V4, address, &routed).unwrap(),
            "dsr needs a backend on the same link; 10.0.9.1 is reached through gateway 10.0.0.1"
        );
        for forwarding in [Forwarding::Nat, Forwarding::Ipip, Forwarding::Gue] {
            assert_eq!(obstacle(forwarding, Family::V4, address, &routed), None);
        }
    }

    #[test]
    fn when_a_backend_needs_a_tunnel_then_a_source_of_its_family_is_required() {
        let near = |source| hop(source, None);
        let far = |source| hop(source, Some("fe80::1"));
        for (address, way, works) in [
            ("10.0.0.9", near(Some("10.0.0.1")), true),
            ("10.0.0.9", near(Some("fd00::1")), false),
            ("10.0.0.9", near(None), false),
            ("fd00::9", near(Some("fd00::1")), true),
            ("fd00::9", near(Some("fe80::2")), true),
            ("fd00::9", near(Some("10.0.0.1")), false),
            ("fd00::9", far(Some("fd00::1")), true),
            ("fd00::9", far(Some("fe80::2")), false),
            ("fd00::9", far(None), false),
        ] {
            let address = address.parse().unwrap();
            for (forwarding, family) in [Forwarding::Snat, Forwarding::Ipip, Forwarding::Gue]
                .into_iter()
                .flat_map(|forwarding| [Family::V4, Family::V6].map(|family| (forwarding, family)))
            {
                assert_eq!(obstacle(forwarding, family, address, &way).is_none(), works, "{address} {way:?}");
            }
            assert_eq!(obstacle(Forwarding::Nat, Family::of(address), address, &way), None);
        }
        let why = obstacle(Forwarding::Gue, Family::V6, "fd00::9".parse().unwrap(), &near(None)).unwrap();
        assert_eq!(why, "a tunnel needs an IPv6 address of this machine on the route to fd00::9");
    }

    #[test]
    fn when_this_machine_is_a_snat_backend_then_its_address_must_be_of_the_clients_family() {
        let local = NextHop { local: true, ..next_hop(1) };
        let address = "10.0.0.9".parse().unwrap();
        assert_eq!(obstacle(Forwarding::Snat, Family::V4, address, &local), None);
        assert_eq!(obstacle(Forwarding::Ipip, Family::V6, address, &local), None);
        assert_eq!(
            obstacle(Forwarding::Snat, Family::V6, address, &local).unwrap(),
            "10.0.0.9 is an address of this machine; give the backend an IPv6 address as well"
        );
    }
}
