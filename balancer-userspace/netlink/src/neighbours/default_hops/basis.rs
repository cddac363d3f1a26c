//! The facts on which a decision about a default next hop rests, and which notifications touch it. All functions are
//! pure.

use std::{collections::HashMap, net::IpAddr};

use balancer_common::map_types::Mac;
use balancer_config::listeners::Family;
use balancer_control::default_hop::Exclusions;

use crate::{
    interfaces::Link,
    neighbours::{resolve::NeighbourKey, tracker::Update},
};

/// The facts on which the last decision about a family's default next hop rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    family: Family,
    /// The gateway of the default route, and its MAC address if the kernel knows it.
    gateway: Option<(NeighbourKey, Option<Mac>)>,
    /// The prefixes that do not take the default route; `None` if nothing is published.
    excluded: Option<Exclusions>,
}

impl Basis {
    /// The basis before the first reading: every change matters.
    pub(super) const fn nothing(family: Family) -> Self {
        Self { family, gateway: None, excluded: None }
    }

    /// The basis of a decision about the default route through `gateway`.
    pub(super) const fn new(
        family: Family,
        gateway: (NeighbourKey, Option<Mac>),
        excluded: Option<Exclusions>,
    ) -> Self {
        Self { family, gateway: Some(gateway), excluded }
    }

    pub(super) const fn family(&self) -> Family {
        self.family
    }

    /// Whether the decision may be wrong after a change; `links` are the links at the decision.
    pub(super) fn is_touched(&self, update: &Update, links: &HashMap<u32, Link>) -> bool {
        let mac_is_other =
            |key: &NeighbourKey, mac| self.gateway.is_some_and(|(gateway, known)| gateway == *key && known != mac);
        match update {
            Update::Link(link) => links.get(&link.ifindex) != Some(link),
            Update::LinkGone(ifindex) => links.contains_key(ifindex),
            Update::Neighbour(key, neighbour) => mac_is_other(key, neighbour.usable_mac()),
            Update::NeighbourGone(key) => mac_is_other(key, None),
            Update::Routes(None) => true,
            // A further or a former route to an excluded prefix leaves the rest as it is.
            Update::Routes(Some(prefix)) => {
                Family::of(prefix.network()) == self.family
                    && (prefix.prefix_len() == 0 || !self.excluded.as_ref().is_some_and(|known| known.cover(*prefix)))
            }
            Update::PathError(IpAddr::V4(_) | IpAddr::V6(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use balancer_control::default_hop::{Gateway, Route, Rule, TABLE_LOCAL, TABLE_MAIN, default_route};
    use netlink_packet_route::neighbour::NeighbourState;

    use super::*;
    use crate::neighbours::{resolve::Neighbour, test_link};

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    fn key(address: &str) -> NeighbourKey {
        NeighbourKey { ifindex: 2, address: address.parse().unwrap() }
    }

    fn published() -> Basis {
        let rules = [(0, TABLE_LOCAL), (1, TABLE_MAIN)].map(|(priority, table)| Rule { priority, table: Some(table) });
        let gateway = Gateway { ifindex: 2, address: [10, 0, 0, 1].into(), lifetime: None };
        let routes = [("0.0.0.0/0", Some(gateway)), ("10.0.0.0/24", None)].map(|(destination, gateway)| Route {
            table: TABLE_MAIN,
            destination: destination.parse().unwrap(),
            gateway,
        });
        let route = default_route(&rules, &routes).unwrap();
        Basis::new(Family::V4, (key("10.0.0.1"), Some(MAC)), Some(route.excluded))
    }

    #[test]
    fn when_the_gateway_changes_then_the_basis_is_touched() {
        let touched = |key, state, mac| {
            published().is_touched(&Update::Neighbour(key, Neighbour { state, mac }), &HashMap::new())
        };
        let gateway = key("10.0.0.1");
        for state in [NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe, NeighbourState::Reachable] {
            assert!(!touched(gateway, state, Some(MAC)), "{state:?}");
        }
        assert!(touched(gateway, NeighbourState::Reachable, Some([2, 0, 0, 0, 0, 8])));
        assert!(touched(gateway, NeighbourState::Failed, Some(MAC)));
        assert!(touched(gateway, NeighbourState::Incomplete, None));
        assert!(!touched(key("10.0.0.2"), NeighbourState::Failed, None));
        assert!(published().is_touched(&Update::NeighbourGone(gateway), &HashMap::new()));
        assert!(!published().is_touched(&Update::NeighbourGone(key("10.0.0.2")), &HashMap::new()));
    }

    #[test]
    fn when_a_route_changes_then_only_new_prefixes_touch_the_basis() {
        let touched =
            |prefix: &str| published().is_touched(&Update::Routes(Some(prefix.parse().unwrap())), &HashMap::new());
        for (prefix, is_touched) in [
            ("0.0.0.0/0", true),
            ("10.0.0.0/25", false),
            ("10.0.0.0/24", false),
            ("10.0.0.0/23", true),
            ("203.0.113.0/24", true),
            ("::/0", false),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(touched(prefix), is_touched, "{prefix}");
        }
        assert!(published().is_touched(&Update::Routes(None), &HashMap::new()));
        let unpublished = Basis { excluded: None, ..published() };
        assert!(unpublished.is_touched(&Update::Routes(Some("10.0.0.0/25".parse().unwrap())), &HashMap::new()));
    }

    #[test]
    fn when_a_link_changes_then_the_basis_is_touched() {
        let known = test_link(2, "eth0");
        let links = HashMap::from([(2, known.clone())]);
        let touched = |update| published().is_touched(&update, &links);
        assert!(!touched(Update::Link(known.clone())));
        assert!(touched(Update::Link(Link { mac: Some(MAC), ..known.clone() })));
        assert!(touched(Update::Link(Link { up: false, ..known.clone() })));
        assert!(touched(Update::Link(Link { ifindex: 3, ..known })));
        assert!(touched(Update::LinkGone(2)));
        assert!(!touched(Update::LinkGone(3)));
    }
}
