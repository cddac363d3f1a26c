//! The default next hop: the one next hop by which the kernel forwards all packets except those to some excluded
//! prefixes. The functions of this module find it in the kernel's rules and routes, or say what in these tables the form
//! "one next hop, and exclusions" cannot express.
//!
//! A wrong exclusion only costs a look-up, so exclusions are generous: the prefix of every route except the default
//! route is excluded, whatever the route says, and prefixes are merged into longer ranges if there are too many.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use balancer_common::map_types::{EXCLUDED, ExcludedPrefix, Mac};
use ipnet::IpNet;

/// The kernel's table of this machine's own, broadcast and multicast addresses.
pub const TABLE_LOCAL: u32 = 255;
/// The kernel's table of ordinary routes.
pub const TABLE_MAIN: u32 = 254;
/// The kernel's last table, which has no routes unless an administrator adds them.
pub const TABLE_DEFAULT: u32 = 253;

/// The shortest remaining lifetime of a default route that is published. The tables are read again more often.
pub const LEAST_LIFETIME: Duration = Duration::from_secs(30);

/// A rule that selects a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub priority: u32,
    /// The table that every packet is looked up in; `None` if the rule says anything else.
    pub table: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub table: u32,
    pub destination: IpNet,
    /// The single gateway of the route; `None` if the route says anything else.
    pub gateway: Option<Gateway>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub ifindex: u32,
    pub address: IpAddr,
    /// The time after which the route disappears; `None`: the route stays.
    pub lifetime: Option<Duration>,
}

/// The default route, and the prefixes that have other routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    pub gateway: Gateway,
    pub excluded: Exclusions,
}

/// The interface by which packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    pub mac: Mac,
    /// The MTU of the family's packets, in bytes.
    pub mtu: u32,
}

/// A next hop in the form in which the controller publishes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultHop {
    pub ifindex: u32,
    pub source_mac: Mac,
    pub destination_mac: Mac,
    pub mtu: u16,
    /// At most [`EXCLUDED`] prefixes.
    pub excluded: Vec<ExcludedPrefix>,
    /// The bits of the interfaces whose packets the kernel forwards.
    pub ingresses: u64,
}

impl DefaultHop {
    /// The next hop of a default route whose gateway has the MAC address `gateway`.
    #[must_use]
    pub fn new(route: &DefaultRoute, egress: Egress, gateway: Mac, ingresses: u64) -> Self {
        Self {
            ifindex: route.gateway.ifindex,
            source_mac: egress.mac,
            destination_mac: gateway,
            mtu: u16::try_from(egress.mtu).unwrap_or(u16::MAX),
            excluded: route.excluded.prefixes(),
            ingresses,
        }
    }
}

/// The reason why the kernel must be asked for each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The rules differ from those of a machine without policy routing.
    Rules,
    NoDefaultRoute,
    SeveralDefaultRoutes,
    /// The default route has no gateway, several next hops, an MTU, an encapsulation, or anything else of its own.
    UnusualDefaultRoute,
    /// The default route is about to expire.
    Expiring,
    /// Too many routes to read.
    TooManyRoutes,
    /// The egress interface is down or carries no Ethernet frames.
    Interface,
    /// The kernel does not know the MAC address of the gateway.
    Neighbour,
    /// The kernel forwards no packets of this family.
    Forwarding,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rules => "there are policy rules",
            Self::NoDefaultRoute => "there is no default route",
            Self::SeveralDefaultRoutes => "there are several default routes",
            Self::UnusualDefaultRoute => "the default route is not a plain route through one gateway",
            Self::Expiring => "the default route is about to expire",
            Self::TooManyRoutes => "there are too many routes",
            Self::Interface => "the interface of the default route is not usable",
            Self::Neighbour => "the gateway does not answer",
            Self::Forwarding => "forwarding is off",
        })
    }
}

/// Finds the default route and the exclusions in the rules and routes of one address family.
///
/// # Errors
/// Returns what these tables contain that a default next hop cannot express.
pub fn default_route(rules: &[Rule], routes: &[Route]) -> Result<DefaultRoute, Obstacle> {
    if !are_ordinary(rules) {
        return Err(Obstacle::Rules);
    }
    // No packet reaches the last table, because the default route in the main table serves every packet before.
    let looked_up = || routes.iter().filter(|route| matches!(route.table, TABLE_LOCAL | TABLE_MAIN));
    let mut defaults = looked_up().filter(|route| route.destination.prefix_len() == 0);
    let default = defaults.next().ok_or(Obstacle::NoDefaultRoute)?;
    if defaults.next().is_some() {
        return Err(Obstacle::SeveralDefaultRoutes);
    }
    let gateway = default.gateway.filter(|_| default.table == TABLE_MAIN).ok_or(Obstacle::UnusualDefaultRoute)?;
    if gateway.lifetime.is_some_and(|lifetime| lifetime < LEAST_LIFETIME) {
        return Err(Obstacle::Expiring);
    }
    let others = looked_up().map(|route| route.destination).filter(|destination| destination.prefix_len() > 0);
    Ok(DefaultRoute { gateway, excluded: Exclusions::new(others) })
}

/// Whether the rules are those that the kernel makes by itself.
fn are_ordinary(rules: &[Rule]) -> bool {
    let mut rules = rules.to_vec();
    rules.sort_by_key(|rule| rule.priority);
    let tables: Vec<_> = rules.iter().map(|rule| rule.table).collect();
    let ordinary = [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT].map(Some);
    tables == ordinary || tables == ordinary[..2]
}

/// A few prefixes, sorted and disjoint. A prefix consists of its first 64 bits, the first of them the highest, and its
/// length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusions(Vec<(u64, u8)>);

impl Exclusions {
    fn new(destinations: impl Iterator<Item = IpNet>) -> Self {
        let mut prefixes: Vec<(u64, u8)> = destinations.map(bits).collect();
        prefixes.sort_unstable();
        prefixes.dedup_by(|later, earlier| covers(*earlier, *later));
        while prefixes.len() > EXCLUDED {
            join_nearest(&mut prefixes);
        }
        Self(prefixes)
    }

    /// Whether all addresses of a prefix are excluded.
    #[must_use]
    pub fn cover(&self, destination: IpNet) -> bool {
        self.0.iter().any(|&prefix| covers(prefix, bits(destination)))
    }

    fn prefixes(&self) -> Vec<ExcludedPrefix> {
        self.0.iter().map(|&(bits, length)| ExcludedPrefix::new(bits, length)).collect()
    }
}

/// The first 64 bits of a prefix, and its length, at most 64.
fn bits(net: IpNet) -> (u64, u8) {
    match net.network() {
        IpAddr::V4(address) => (u64::from(address.to_bits()) << 32, net.prefix_len()),
        IpAddr::V6(address) => ((Ipv6Addr::to_bits(address) >> 64) as u64, net.prefix_len().min(64)),
    }
}

fn covers((bits, length): (u64, u8), (other, longer): (u64, u8)) -> bool {
    length <= longer && common(bits, other) >= length
}

/// The number of leading bits that two prefixes have in common.
const fn common(bits: u64, other: u64) -> u8 {
    (bits ^ other).leading_zeros() as u8
}

/// Joins the two neighbouring prefixes that are nearest to each other. In a sorted list of disjoint prefixes, the
/// nearest are always neighbours, and the shortest prefix of both contains no others.
fn join_nearest(prefixes: &mut Vec<(u64, u8)>) {
    let lengths = prefixes.windows(2).map(|pair| common(pair[0].0, pair[1].0)).enumerate();
    let Some((at, length)) = lengths.max_by_key(|&(_, length)| length) else { return };
    let mask = if length == 0 { 0 } else { !0 << (64 - u32::from(length)) };
    prefixes[at] = (prefixes[at].0 & mask, length);
    prefixes.remove(at + 1);
}
