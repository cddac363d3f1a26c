//! Tests of the default next hop against a simple model of the kernel's look-up.

use std::net::IpAddr;

use balancer_common::map_types::{EXCLUDED, ExcludedPrefix, address_key};
use balancer_config::listeners::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use crate::default_hop::{
    DefaultHop, DefaultRoute, Egress, Gateway, Obstacle, Route, Rule, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN,
    default_route,
};

const ORDINARY: [Rule; 3] = [
    Rule { priority: 0, table: Some(TABLE_LOCAL) },
    Rule { priority: 32_766, table: Some(TABLE_MAIN) },
    Rule { priority: 32_767, table: Some(TABLE_DEFAULT) },
];

fn gateway(family: Family, number: u8) -> Gateway {
    let address = match family {
        Family::V4 => IpAddr::from([10, 0, 0, number]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)]),
    };
    Gateway { ifindex: number.into(), address, lifetime: None }
}

fn route(table: u32, destination: &str, number: u8) -> Route {
    let destination: IpNet = destination.parse().unwrap();
    Route { table, destination, gateway: Some(gateway(Family::of(destination.addr()), number)) }
}

/// The key of an address that the kernel program compares with prefixes.
fn key(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => address_key(&[u32::from_ne_bytes(address.octets()), 0, 0, 0]),
        IpAddr::V6(address) => address_key(&bytemuck::cast(address.octets())),
    }
}

fn published(route: &DefaultRoute) -> Vec<ExcludedPrefix> {
    let egress = Egress { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
    DefaultHop::new(route, egress, [2, 0, 0, 0, 0, 9], !0).excluded
}

fn is_excluded(route: &DefaultRoute, address: IpAddr) -> bool {
    published(route).iter().any(|prefix| prefix.contains(key(address)))
}

/// The route that the kernel chooses: of the first table with a matching route, the longest prefix.
fn chosen(routes: &[Route], address: IpAddr) -> Option<Route> {
    [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT].into_iter().find_map(|table| {
        let matching = routes.iter().filter(|route| route.table == table && route.destination.contains(&address));
        matching.max_by_key(|route| route.destination.prefix_len()).copied()
    })
}

#[test]
fn when_routes_are_ordinary_then_all_but_the_other_prefixes_take_the_default_route() {
    let routes = [
        route(TABLE_MAIN, "0.0.0.0/0", 1),
        route(TABLE_MAIN, "10.0.0.0/24", 2),
        route(TABLE_LOCAL, "10.0.0.7/32", 3),
        route(TABLE_LOCAL, "203.0.113.5/32", 3),
    ];
    let found = default_route(&ORDINARY, &routes).unwrap();
    assert_eq!(found.gateway, gateway(Family::V4, 1));
    for (address, excluded) in
        [("10.0.0.99", true), ("10.0.1.1", false), ("203.0.113.5", true), ("203.0.113.4", false), ("8.8.8.8", false)]
    {
        assert_eq!(is_excluded(&found, address.parse().unwrap()), excluded, "{address}");
    }
    assert!(found.excluded.cover("10.0.0.128/25".parse().unwrap()));
    assert!(!found.excluded.cover("10.0.0.0/23".parse().unwrap()));
}

#[test]
fn when_a_table_is_not_ordinary_then_the_obstacle_is_named() {
    let default = route(TABLE_MAIN, "0.0.0.0/0", 1);
    let obstacle = |rules: &[Rule], routes: &[Route]| default_route(rules, routes).unwrap_err();
    let odd = |priority, table| [&ORDINARY[..], &[Rule { priority, table }]].concat();
    for rules in [odd(100, None), odd(100, Some(7)), odd(40_000, Some(7)), ORDINARY[..1].to_vec(), Vec::new()] {
        assert_eq!(obstacle(&rules, &[default]), Obstacle::Rules, "{rules:?}");
    }
    assert_eq!(obstacle(&ORDINARY, &[route(TABLE_MAIN, "10.0.0.0/8", 1)]), Obstacle::NoDefaultRoute);
    assert_eq!(obstacle(&ORDINARY, &[route(TABLE_DEFAULT, "0.0.0.0/0", 1)]), Obstacle::NoDefaultRoute);
    let second = route(TABLE_MAIN, "0.0.0.0/0", 2);
    assert_eq!(obstacle(&ORDINARY, &[default, second]), Obstacle::SeveralDefaultRoutes);
    assert_eq!(obstacle(&ORDINARY, &[default, Route { table: TABLE_LOCAL, ..second }]), Obstacle::SeveralDefaultRoutes);
    assert_eq!(obstacle(&ORDINARY, &[Route { gateway: None, ..default }]), Obstacle::UnusualDefaultRoute);
    assert_eq!(obstacle(&ORDINARY, &[Route { table: TABLE_LOCAL, ..default }]), Obstacle::UnusualDefaultRoute);
    let lifetime = Some(std::time::Duration::from_secs(5));
    let expiring = Gateway { lifetime, ..gateway(Family::V4, 1) };
    assert_eq!(obstacle(&ORDINARY, &[Route { gateway: Some(expiring), ..default }]), Obstacle::Expiring);
    let halves = ["0.0.0.0/1", "128.0.0.0/1"].map(|half| route(TABLE_MAIN, half, 2));
    assert!(is_excluded(&default_route(&ORDINARY, &[&[default][..], &halves].concat()).unwrap(), [8; 4].into()));
}

#[test]
fn when_routes_are_many_then_near_prefixes_are_joined() {
    let vips = (0..200).map(|vip| route(TABLE_LOCAL, &format!("203.0.113.{vip}/32"), 3));
    let routes: Vec<_> = vips.chain([route(TABLE_MAIN, "0.0.0.0/0", 1), route(TABLE_MAIN, "10.0.0.0/24", 2)]).collect();
    let found = default_route(&ORDINARY, &routes).unwrap();
    for (address, excluded) in [("203.0.113.77", true), ("203.0.112.1", false), ("10.0.0.1", true), ("10.0.1.1", false)]
    {
        assert_eq!(is_excluded(&found, address.parse().unwrap()), excluded, "{address}");
    }
}

/// A prefix that shares its first bits with many others, so that prefixes contain each other and addresses.
fn destination(family: Family) -> impl Strategy<Value = IpNet> {
    let start = prop_oneof![
        Just(0x0a00_0000_0000_0000u64),
        Just(0xc0a8_0000_0000_0000),
        Just(0x2001_0db8_0000_0000),
        any::<u64>()
    ];
    let most = if family == Family::V4 { 32 } else { 128 };
    (start, any::<u64>(), 0u32..64, 1u8..=most).prop_map(move |(start, noise, shift, length)| {
        let bits = start ^ (noise >> shift);
        match family {
            Family::V4 => Ipv4Net::new(((bits >> 32) as u32).into(), length).unwrap().into(),
            Family::V6 => Ipv6Net::new((u128::from(bits) << 64 | u128::from(noise)).into(), length).unwrap().into(),
        }
    })
}

fn routes(family: Family) -> impl Strategy<Value = Vec<Route>> {
    let table = prop_oneof![Just(TABLE_LOCAL), Just(TABLE_MAIN), Just(TABLE_DEFAULT)];
    let other =
        (table, destination(family), 2u8..9, any::<bool>()).prop_map(move |(table, destination, number, plain)| {
            Route { table, destination, gateway: plain.then(|| gateway(family, number)) }
        });
    proptest::collection::vec(other, 0..40)
}

fn agrees(family: Family, mut routes: Vec<Route>, addresses: &[IpNet]) -> Result<(), TestCaseError> {
    let default = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
    routes.push(route(TABLE_MAIN, default, 1));
    let Ok(found) = default_route(&ORDINARY, &routes) else { return Ok(()) };
    let inside = routes.iter().flat_map(|route| [route.destination.network(), route.destination.broadcast()]);
    for address in addresses.iter().map(IpNet::addr).chain(inside) {
        let chosen = chosen(&routes, address).unwrap();
        if !is_excluded(&found, address) {
            prop_assert_eq!(chosen.gateway, Some(found.gateway), "{}", address);
        }
        for route in routes.iter().filter(|route| route.table != TABLE_DEFAULT && route.destination.prefix_len() > 0) {
            prop_assert!(found.excluded.cover(route.destination), "{}", route.destination);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn when_routes_are_random_then_no_published_next_hop_differs_from_the_kernels_v4(
        routes in routes(Family::V4),
        addresses in proptest::collection::vec(destination(Family::V4), 20),
    ) {
        agrees(Family::V4, routes, &addresses)?;
    }

    #[test]
    fn when_routes_are_random_then_no_published_next_hop_differs_from_the_kernels_v6(
        routes in routes(Family::V6),
        addresses in proptest::collection::vec(destination(Family::V6), 20),
    ) {
        agrees(Family::V6, routes, &addresses)?;
    }

    /// With few routes, no prefix is joined with another, so only addresses with other routes are excluded.
    #[test]
    fn when_routes_are_few_then_every_other_address_takes_the_default_route(
        mut routes in routes(Family::V4),
        addresses in proptest::collection::vec(destination(Family::V4), 20),
    ) {
        routes.truncate(EXCLUDED);
        routes.push(route(TABLE_MAIN, "0.0.0.0/0", 1));
        let found = default_route(&ORDINARY, &routes).unwrap();
        prop_assert!(published(&found).len() <= EXCLUDED);
        for address in addresses.iter().map(IpNet::addr) {
            let has_other = chosen(&routes, address).unwrap().destination.prefix_len() > 0;
            prop_assert_eq!(is_excluded(&found, address), has_other, "{}", address);
        }
    }
}
