//! Derives a next hop, or the reason why there is no next hop, from a route, links and neighbour entries. All functions
//! of this module are pure.

use std::{collections::HashMap, fmt, net::IpAddr};

use balancer_common::map_types::Mac;
use balancer_control::io::NextHop;
use netlink_packet_route::{neighbour::NeighbourState, route::RouteType};

use crate::interfaces::Link;

/// The route that the kernel would use for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) kind: RouteType,
    pub(super) ifindex: u32,
    /// The gateway of the route. The gateway's address family may differ from that of the destination, as for IPv4 via
    /// an IPv6 gateway.
    pub(super) gateway: Option<IpAddr>,
    /// The source address that this machine uses on the route.
    pub(super) source: Option<IpAddr>,
    /// The path MTU, if the kernel reports an MTU for the route.
    pub(super) mtu: Option<u32>,
}

/// The reason why the kernel has no route for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoRoute {
    Missing,
    Unreachable,
    Prohibited,
    Blackhole,
    Other(String),
}

impl fmt::Display for NoRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => Ok(()),
            Self::Unreachable => f.write_str(" (unreachable route)"),
            Self::Prohibited => f.write_str(" (prohibit route)"),
            Self::Blackhole => f.write_str(" (blackhole route)"),
            Self::Other(error) => write!(f, " ({error})"),
        }
    }
}

/// An address on an interface's link, which is the key of the kernel's neighbour tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NeighbourKey {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
}

/// An entry of the kernel's neighbour tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) state: NeighbourState,
    pub(super) mac: Option<Mac>,
}

impl Neighbour {
    /// The neighbour's MAC address, if frames can currently use it.
    pub(super) fn usable_mac(&self) -> Option<Mac> {
        let usable = matches!(
            self.state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
        self.mac.filter(|_| usable)
    }
}

/// The known links and neighbours.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) links: HashMap<u32, Link>,
    pub(super) neighbours: HashMap<NeighbourKey, Neighbour>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// The next hop is known, so packets can be sent to the address.
    Known { next_hop: NextHop, neighbour: NeighbourKey },
    /// The address belongs to this machine.
    Local(NextHop),
    /// The MAC address of the neighbour is not known yet.
    Unanswered {
        neighbour: NeighbourKey,
        /// Whether the kernel has queried the neighbour and received no answer.
        failed: bool,
        /// The reason to report if the neighbour's MAC address stays unknown.
        reason: String,
    },
    /// The kernel cannot send packets to the address, and queries to neighbours would not change this.
    Impossible(String),
}

/// Resolves the next hop of `address` from its `route`. `last_egress` is the interface of the last route to the
/// address. If the route and this interface have both disappeared, the reason names the interface.
pub(super) fn resolve(
    address: IpAddr,
    route: &Result<Route, NoRoute>,
    last_egress: Option<u32>,
    tables: &Tables,
) -> Resolution {
    let impossible = Resolution::Impossible;
    let route = match route {
        Ok(route) => route,
        Err(error) => {
            let down = last_egress.and_then(|ifindex| tables.links.get(&ifindex)).and_then(not_up);
            return impossible(down.unwrap_or_else(|| format!("no route to {address}{error}")));
        }
    };
    if route.kind == RouteType::Local {
        return Resolution::Local(local_hop(route.ifindex, tables));
    }
    if route.kind == RouteType::Broadcast {
        return impossible(format!("{address} is a broadcast address"));
    }
    if route.kind == RouteType::Multicast {
        return impossible(format!("{address} is a multicast address"));
    }
    let Some(link) = tables.links.get(&route.ifindex) else {
        return impossible(format!("no route to {address} (interface {} is gone)", route.ifindex));
    };
    let name = &link.name;
    let Some(source_mac) = link.mac else {
        return impossible(format!("{address} is reached through {name}, which carries no Ethernet frames"));
    };
    if let Some(reason) = not_up(link) {
        return impossible(reason);
    }
    let neighbour = NeighbourKey { ifindex: link.ifindex, address: route.gateway.unwrap_or(address) };
    let entry = tables.neighbours.get(&neighbour);
    match entry.and_then(Neighbour::usable_mac) {
        Some(destination_mac) => Resolution::Known {
            next_hop: NextHop {
                ifindex: link.ifindex,
                source_mac,
                destination_mac,
                mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
                source: route.source,
                gateway: route.gateway,
                local: false,
            },
            neighbour,
        },
        None => {
            let role = if route.gateway.is_some() { "gateway " } else { "" };
            Resolution::Unanswered {
                neighbour,
                failed: entry.is_some_and(|entry| entry.state == NeighbourState::Failed),
                reason: format!("no neighbour: {role}{} does not answer on {name}", neighbour.address),
            }
        }
    }
}

fn local_hop(ifindex: u32, tables: &Tables) -> NextHop {
    NextHop {
        ifindex,
        source_mac: Mac::default(),
        destination_mac: Mac::default(),
        mtu: tables.links.get(&ifindex).map_or(u32::from(u16::MAX), |link| link.mtu),
        source: None,
        gateway: None,
        local: true,
    }
}

fn not_up(link: &Link) -> Option<String> {
    match (link.up, link.running) {
        (true, true) => None,
        (true, false) => Some(format!("interface {} has no carrier", link.name)),
        (false, _) => Some(format!("interface {} is down", link.name)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(in crate::neighbours) const OWN_MAC: Mac = [2, 0, 0, 0, 0, 1];
    pub(in crate::neighbours) const PEER_MAC: Mac = [2, 0, 0, 0, 0, 9];

    pub(crate) fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            mac: Some(OWN_MAC),
            mtu: 1500,
            loopback: false,
            up: true,
            running: true,
            kind: None,
            lower: None,
            master: None,
            carrier_ups: 0,
        }
    }

    pub(in crate::neighbours) fn on_link(ifindex: u32) -> Result<Route, NoRoute> {
        Ok(Route { kind: RouteType::Unicast, ifindex, gateway: None, source: None, mtu: None })
    }

    pub(in crate::neighbours) fn key(ifindex: u32, address: &str) -> NeighbourKey {
        NeighbourKey { ifindex, address: address.parse().unwrap() }
    }

    pub(in crate::neighbours) fn entry(state: NeighbourState) -> Neighbour {
        Neighbour { state, mac: Some(PEER_MAC) }
    }

    fn tables(neighbours: &[(NeighbourKey, Neighbour)]) -> Tables {
        let lo = Link { loopback: true, mac: None, ..link(1, "lo") };
        let down = Link { up: false, running: false, ..link(3, "eth1") };
        let unplugged = Link { running: false, ..link(4, "eth2") };
        Tables {
            links: [lo, link(2, "eth0"), down, unplugged].into_iter().map(|link| (link.ifindex, link)).collect(),
            neighbours: neighbours.iter().copied().collect(),
        }
    }

    fn reason(route: Result<Route, NoRoute>) -> String {
        match resolve("10.0.0.9".parse().unwrap(), &route, None, &tables(&[])) {
            Resolution::Impossible(reason) => reason,
            other @ (Resolution::Known { .. } | Resolution::Local(_) | Resolution::Unanswered { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn when_a_neighbour_is_usable_then_there_is_a_next_hop() {
        let address = "10.0.0.9".parse().unwrap();
        let neighbour = key(2, "10.0.0.9");
        let next_hop = NextHop {
            ifindex: 2,
            source_mac: OWN_MAC,
            destination_mac: PEER_MAC,
            mtu: 1500,
            source: None,
            gateway: None,
            local: false,
        };
        for state in ["reachable", "stale", "delay", "probe", "permanent", "noarp"] {
            let tables = tables(&[(neighbour, entry(state.parse().unwrap()))]);
            let resolution = resolve(address, &on_link(2), None, &tables);
            assert_eq!(resolution, Resolution::Known { next_hop, neighbour }, "{state}");
        }
        for state in ["incomplete", "failed", "none"] {
            let tables = tables(&[(neighbour, entry(state.parse().unwrap()))]);
            let reason = "no neighbour: 10.0.0.9 does not answer on eth0".to_owned();
            let unanswered = Resolution::Unanswered { neighbour, failed: state == "failed", reason };
            assert_eq!(resolve(address, &on_link(2), None, &tables), unanswered, "{state}");
        }
    }

    #[test]
    fn when_an_ipv4_route_has_an_ipv6_gateway_then_it_is_used() {
        let gateway = key(2, "fe80::1");
        let route =
            Ok(Route { kind: RouteType::Unicast, ifindex: 2, gateway: Some(gateway.address), source: None, mtu: None });
        let address = "10.0.0.9".parse().unwrap();
        let known = tables(&[(gateway, entry(NeighbourState::Reachable))]);
        let resolution = resolve(address, &route, None, &known);
        assert!(
            matches!(resolution, Resolution::Known { neighbour, next_hop }
            if neighbour == gateway && next_hop.gateway == Some(gateway.address)),
            "{resolution:?}"
        );

        let Resolution::Unanswered { reason, .. } = resolve(address, &route, None, &tables(&[])) else {
            panic!("the gateway is not in the table");
        };
        assert_eq!(reason, "no neighbour: gateway fe80::1 does not answer on eth0");
    }

    #[test]
    fn when_there_is_no_next_hop_then_the_reason_names_the_cause() {
        let kind = |kind| Ok(Route { kind, ifindex: 2, gateway: None, source: None, mtu: None });
        assert_eq!(reason(Err(NoRoute::Missing)), "no route to 10.0.0.9");
        assert_eq!(reason(Err(NoRoute::Blackhole)), "no route to 10.0.0.9 (blackhole route)");
        assert_eq!(reason(kind(RouteType::Broadcast)), "10.0.0.9 is a broadcast address");
        assert_eq!(reason(on_link(1)), "10.0.0.9 is reached through lo, which carries no Ethernet frames");
        assert_eq!(reason(on_link(3)), "interface eth1 is down");
        assert_eq!(reason(on_link(4)), "interface eth2 has no carrier");
        assert_eq!(reason(on_link(77)), "no route to 10.0.0.9 (interface 77 is gone)");
    }

    #[test]
    fn when_an_address_is_this_machines_then_packets_pass_to_it() {
        let route = Ok(Route { kind: RouteType::Local, ifindex: 1, gateway: None, source: None, mtu: None });
        let Resolution::Local(hop) = resolve("10.0.0.9".parse().unwrap(), &route, None, &tables(&[])) else {
            panic!("it is not local");
        };
        assert!(hop.local && hop.mtu == 1500 && hop.ifindex == 1);
    }

    #[test]
    fn when_a_route_is_lost_with_its_interface_then_the_interface_is_blamed() {
        let address = "10.0.0.9".parse().unwrap();
        let lost = |egress| resolve(address, &Err(NoRoute::Missing), Some(egress), &tables(&[]));
        assert_eq!(lost(3), Resolution::Impossible("interface eth1 is down".to_owned()));
        assert_eq!(lost(2), Resolution::Impossible("no route to 10.0.0.9".to_owned()));
        assert_eq!(lost(77), Resolution::Impossible("no route to 10.0.0.9".to_owned()));
    }
}
