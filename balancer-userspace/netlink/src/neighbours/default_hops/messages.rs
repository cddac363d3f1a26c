//! The meaning of the kernel's rules and routes for a default next hop. All functions are pure.

use std::{net::IpAddr, time::Duration};

use balancer_control::default_hop::{Gateway, Route, Rule};
use netlink_packet_route::{
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use crate::neighbours::netlink;

/// The unit of times in routes: a hundredth of a second.
const TICK: Duration = Duration::from_millis(10);
/// The value that means "none" in a rule's attributes.
const NONE: u32 = u32::MAX;

/// A rule. A rule that says anything else than "look up this table for every packet" has no table.
pub(super) fn rule(message: &RuleMessage) -> Rule {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut priority = 0;
    let is_for_all = header.dst_len == 0
        && header.src_len == 0
        && header.tos == 0
        && header.action == RuleAction::ToTable
        && RuleFlags::Permanent.contains(header.flags);
    let mut selects = !is_for_all;
    for attribute in &message.attributes {
        if let RuleAttribute::Table(number) = attribute {
            table = *number;
        } else if let RuleAttribute::Priority(number) = attribute {
            priority = *number;
        } else {
            let says_nothing = matches!(
                attribute,
                RuleAttribute::Protocol(_)
                    | RuleAttribute::SuppressPrefixLen(NONE)
                    | RuleAttribute::SuppressIfGroup(NONE)
            );
            selects |= !says_nothing;
        }
    }
    Rule { priority, table: (!selects).then_some(table) }
}

/// A route; `None` if packets never use the route.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let table = message
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None });
    Some(Route {
        table: table.unwrap_or_else(|| message.header.table.into()),
        destination: netlink::prefix(message)?,
        gateway: gateway(message),
    })
}

/// The gateway of a route that forwards every packet to its destination through this gateway, and says nothing else.
fn gateway(message: &RouteMessage) -> Option<Gateway> {
    let header = &message.header;
    let harmless = RouteFlags::Onlink
        | RouteFlags::Offload
        | RouteFlags::Trap
        | RouteFlags::RtOffload
        | RouteFlags::RtTrap
        | RouteFlags::OffloadFailed;
    let is_plain = header.kind == RouteType::Unicast
        && header.source_prefix_length == 0
        && header.tos == 0
        && harmless.contains(header.flags);
    let mut lifetime = None;
    for attribute in &message.attributes {
        #[expect(clippy::wildcard_enum_match_arm, reason = "an unknown attribute may change where the route leads")]
        let says_nothing = match attribute {
            RouteAttribute::Table(_)
            | RouteAttribute::Destination(_)
            | RouteAttribute::Oif(_)
            | RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Priority(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::Preference(_) => true,
            RouteAttribute::CacheInfo(info) => {
                lifetime = remaining(info.expires);
                info.error == 0
            }
            // The other metrics are about connections of this machine itself.
            RouteAttribute::Metrics(metrics) => !metrics
                .iter()
                .any(|metric| matches!(metric, RouteMetric::Mtu(_) | RouteMetric::Lock(_) | RouteMetric::Other(_))),
            _ => false,
        };
        if !says_nothing {
            return None;
        }
    }
    let (ifindex, address): (u32, IpAddr) = netlink::gateway(&message.attributes)?;
    is_plain.then_some(Gateway { ifindex, address, lifetime })
}

/// The time after which a route expires; 0 ticks: never, and negative numbers: the route has expired.
fn remaining(ticks: u32) -> Option<Duration> {
    let ticks = ticks as i32;
    (ticks != 0).then(|| TICK * ticks.max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteCacheInfo, RouteNextHop},
    };

    use super::*;

    fn ordinary(priority: u32, table: u32) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Table(table),
            RuleAttribute::SuppressPrefixLen(NONE),
            RuleAttribute::Priority(priority),
        ];
        message
    }

    #[test]
    fn when_a_rule_selects_packets_then_it_has_no_table() {
        assert_eq!(rule(&ordinary(32_766, 254)), Rule { priority: 32_766, table: Some(254) });
        let with = |attribute| {
            let mut message = ordinary(100, 7);
            message.attributes.push(attribute);
            rule(&message)
        };
        for attribute in [
            RuleAttribute::FwMark(1),
            RuleAttribute::Iifname("eth0".to_owned()),
            RuleAttribute::Source([10, 0, 0, 1].into()),
            RuleAttribute::L3MDev(true),
            RuleAttribute::SuppressPrefixLen(0),
            RuleAttribute::Goto(5),
        ] {
            assert_eq!(with(attribute.clone()), Rule { priority: 100, table: None }, "{attribute:?}");
        }
        let mut inverted = ordinary(100, 7);
        inverted.header.flags = RuleFlags::Invert;
        let mut from = ordinary(100, 7);
        from.header.src_len = 32;
        let mut with_tos = ordinary(100, 7);
        with_tos.header.tos = 4;
        let mut blackhole = ordinary(100, 7);
        blackhole.header.action = RuleAction::Blackhole;
        for message in [inverted, from, with_tos, blackhole] {
            assert_eq!(rule(&message).table, None, "{message:?}");
        }
    }

    fn default() -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = 254;
        message.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into())), RouteAttribute::Oif(2)];
        message
    }

    fn expiring(ticks: i32) -> RouteAttribute {
        let mut bytes = [0; 32];
        bytes[8..12].copy_from_slice(&ticks.to_ne_bytes());
        RouteAttribute::CacheInfo(RouteCacheInfo::parse(&bytes).unwrap())
    }

    #[test]
    fn when_a_route_says_more_than_its_gateway_then_it_has_none() {
        let plain = Gateway { ifindex: 2, address: [10, 0, 0, 1].into(), lifetime: None };
        let of = |attribute: Option<RouteAttribute>| {
            let mut message = default();
            message.attributes.extend(attribute);
            route(&message).unwrap().gateway
        };
        assert_eq!(of(None), Some(plain));
        assert_eq!(of(Some(RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(64)]))), Some(plain));
        assert_eq!(of(Some(expiring(0))), Some(plain));
        assert_eq!(of(Some(expiring(500))), Some(Gateway { lifetime: Some(Duration::from_secs(5)), ..plain }));
        assert_eq!(of(Some(expiring(-5))), Some(Gateway { lifetime: Some(Duration::ZERO), ..plain }));
        for attribute in [
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
            RouteAttribute::MultiPath(vec![RouteNextHop::default()]),
            RouteAttribute::NhId(7),
            RouteAttribute::Mark(1),
        ] {
            assert_eq!(of(Some(attribute.clone())), None, "{attribute:?}");
        }
        let changed = |change: fn(&mut RouteMessage)| {
            let mut message = default();
            change(&mut message);
            route(&message).and_then(|route| route.gateway)
        };
        let changes: [fn(&mut RouteMessage); 7] = [
            |message| message.header.kind = RouteType::BlackHole,
            |message| message.header.tos = 4,
            |message| message.header.source_prefix_length = 64,
            |message| message.header.flags = RouteFlags::Linkdown,
            |message| message.header.flags = RouteFlags::Dead,
            |message| message.attributes.truncate(1),
            |message| drop(message.attributes.remove(0)),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert_eq!(changed(change), None, "change {number}");
        }
    }

    #[test]
    fn when_a_table_has_a_large_number_then_the_attribute_counts() {
        let mut message = default();
        message.header.table = 252;
        message.attributes.push(RouteAttribute::Table(1000));
        assert_eq!(route(&message).unwrap().table, 1000);
        message.header.flags = RouteFlags::Cloned;
        assert_eq!(route(&message), None);
    }
}
