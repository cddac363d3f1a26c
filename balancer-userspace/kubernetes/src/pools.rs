//! Assigns addresses from the pools to Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// An address family, with the number of bits of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The address family IPv4, with 32 bits.
    V4,
    /// The address family IPv6, with 128 bits.
    V6,
}

impl Family {
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The addresses that a Service needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    /// The namespace of the Service. Only Services of the same namespace may share an address.
    pub namespace: String,
    /// The name of the Service, as `NAMESPACE/NAME`.
    pub name: String,
    /// The address families of the Service, which needs one address in each family.
    pub families: BTreeSet<Family>,
    /// The addresses that the Service requests.
    pub asked: Vec<IpAddr>,
    /// The addresses that the Service has had until now.
    pub held: Vec<IpAddr>,
    /// The protocols and ports on which the Service listens.
    pub ports: BTreeSet<(String, u16)>,
}

/// The addresses that a Service gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The granted addresses, at most one in each address family.
    pub addresses: BTreeMap<Family, IpAddr>,
    /// The reasons why the Service did not get all addresses.
    pub problems: Vec<Problem>,
}

/// A reason why a Service does not get an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// All addresses are in use, or the pools have no addresses in this family.
    Exhausted(Family, Vec<IpNet>),
    /// The requested address is in no pool.
    OfNoPool(IpAddr, Vec<IpNet>),
    /// The requested address belongs to another service of the balancer.
    Taken(IpAddr, String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |pools: &[IpNet]| pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Exhausted(family, pools) if pools.is_empty() => {
                write!(f, "there is no pool with {family} addresses; give one with --pool")
            }
            Self::Exhausted(family, pools) => {
                write!(f, "no {family} address is left in the pool: {}; give a larger one with --pool", list(pools))
            }
            Self::OfNoPool(address, pools) => {
                write!(f, "address {address} is in no pool; ask for one of {}", list(pools))
            }
            Self::Taken(address, by) => write!(f, "address {address} is in use by {by}; ask for another"),
        }
    }
}

/// The pools, and the Services to which addresses are assigned.
struct Book<'a> {
    pools: &'a [IpNet],
    /// The numbers of the claims to which each address is assigned.
    owners: BTreeMap<IpAddr, Vec<usize>>,
    /// The addresses of services of other authors, each with the name of the service.
    others: &'a BTreeMap<IpAddr, String>,
    claims: &'a [Claim],
}

/// Assigns addresses to the claims, which are sorted from the oldest to the newest. `others` contains the addresses of
/// services of other authors.
///
/// All Services that have addresses keep them before any Service gets a new address.
#[must_use]
pub fn allocate(pools: &[IpNet], claims: &[Claim], others: &BTreeMap<IpAddr, String>) -> Vec<Grant> {
    let mut book = Book { pools, owners: BTreeMap::new(), others, claims };
    let mut grants = vec![Grant::default(); claims.len()];
    let is_wanted = |claim: &Claim, address: IpAddr| {
        let family = Family::of(address);
        let asked = claim.asked.iter().filter(|asked| Family::of(**asked) == family).collect::<Vec<_>>();
        claim.families.contains(&family) && (asked.is_empty() || asked.contains(&&address))
    };
    // A Service keeps the addresses that it has, unless it now requests other addresses.
    for (number, claim) in claims.iter().enumerate() {
        for &address in claim.held.iter().filter(|address| is_wanted(claim, **address)) {
            let _ = book.give(number, address, &mut grants);
        }
    }
    for (number, claim) in claims.iter().enumerate() {
        for &address in claim.asked.iter().filter(|address| claim.families.contains(&Family::of(**address))) {
            if let Err(problem) = book.give(number, address, &mut grants) {
                grants[number].problems.push(problem);
            }
        }
        for &address in claim.held.iter().filter(|address| claim.families.contains(&Family::of(**address))) {
            let _ = book.give(number, address, &mut grants);
        }
    }
    for (number, claim) in claims.iter().enumerate() {
        for &family in &claim.families {
            let waits = claim.asked.iter().any(|asked| Family::of(*asked) == family);
            if waits || grants[number].addresses.contains_key(&family) {
                continue;
            }
            match book.free(family) {
                Some(address) => drop(book.give(number, address, &mut grants)),
                None => grants[number].problems.push(Problem::Exhausted(family, book.of(family))),
            }
        }
    }
    grants
}

/// The number of free addresses in the pools, by address family.
#[must_use]
pub fn left(pools: &[IpNet], used: &BTreeSet<IpAddr>) -> BTreeMap<Family, f64> {
    let mut left = BTreeMap::new();
    let apart = IpNet::aggregate(&pools.to_vec());
    for pool in apart {
        let bits = i32::from(pool.max_prefix_len() - pool.prefix_len());
        let used = used.iter().filter(|address| pool.contains(*address)).count();
        *left.entry(Family::of(pool.addr())).or_insert(0.0) += 2f64.powi(bits) - used as f64;
    }
    left
}

impl Book<'_> {
    fn of(&self, family: Family) -> Vec<IpNet> {
        self.pools.iter().filter(|pool| Family::of(pool.addr()) == family).copied().collect()
    }

    fn give(&mut self, number: usize, address: IpAddr, grants: &mut [Grant]) -> Result<(), Problem> {
        let (family, claim) = (Family::of(address), &self.claims[number]);
        if grants[number].addresses.contains_key(&family) {
            return Ok(());
        }
        if !self.pools.iter().any(|pool| pool.contains(&address)) {
            return Err(Problem::OfNoPool(address, self.of(family)));
        }
        if let Some(other) = self.others.get(&address) {
            return Err(Problem::Taken(address, format!("service {other} of the balancer")));
        }
        let owners = self.owners.entry(address).or_default();
        let strangers = owners.iter().map(|owner| &self.claims[*owner]);
        let mut clash =
            strangers.filter(|other| other.namespace != claim.namespace || !other.ports.is_disjoint(&claim.ports));
        if let Some(other) = clash.next() {
            return Err(Problem::Taken(address, format!("Service {}", other.name)));
        }
        owners.push(number);
        grants[number].addresses.insert(family, address);
        Ok(())
    }

    /// The first address that no service has and no Service requests.
    fn free(&self, family: Family) -> Option<IpAddr> {
        let asked = |address: &IpAddr| self.claims.iter().any(|claim| claim.asked.contains(address));
        let is_free = |address: &IpAddr| {
            !self.owners.contains_key(address) && !self.others.contains_key(address) && !asked(address)
        };
        self.of(family).into_iter().find_map(|pool| addresses(pool).find(is_free))
    }
}

fn addresses(pool: IpNet) -> impl Iterator<Item = IpAddr> {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let (first, last) = (number(pool.network()), number(pool.broadcast()));
    let is_v4 = pool.addr().is_ipv4();
    (first..=last).map(move |number| match u32::try_from(number) {
        Ok(number) if is_v4 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn claim(name: &str) -> Claim {
        Claim {
            namespace: "shop".to_owned(),
            name: format!("shop/{name}"),
            families: [Family::V4].into(),
            ports: [("TCP".to_owned(), 80)].into(),
            ..Claim::default()
        }
    }

    fn given(pools: &[IpNet], claims: &[Claim]) -> Vec<(Vec<String>, Vec<String>)> {
        let grants = allocate(pools, claims, &BTreeMap::new());
        let texts = |grant: Grant| {
            (
                grant.addresses.values().map(ToString::to_string).collect(),
                grant.problems.iter().map(ToString::to_string).collect(),
            )
        };
        grants.into_iter().map(texts).collect()
    }

    #[test]
    fn when_services_need_both_families_then_each_gets_the_first_free_address_of_both() {
        let pools = pools(&["198.51.100.0/31", "2001:db8:1::/120"]);
        let both = |name| Claim { families: [Family::V4, Family::V6].into(), ..claim(name) };
        let given = given(&pools, &[both("a"), both("b"), both("c")]);
        assert_eq!(given[0].0, ["198.51.100.0", "2001:db8:1::"]);
        assert_eq!(given[1].0, ["198.51.100.1", "2001:db8:1::1"]);
        assert_eq!(given[2].0, ["2001:db8:1::2"]);
        assert_eq!(given[2].1, ["no IPv4 address is left in the pool: 198.51.100.0/31; give a larger one with --pool"]);
    }

    #[test]
    fn when_a_younger_service_has_an_address_then_an_older_one_without_does_not_get_it() {
        let pools = pools(&["198.51.100.0/31"]);
        let held = Claim { held: vec![address("198.51.100.0")], ..claim("young") };
        assert_eq!(
            given(&pools, &[claim("old"), held.clone()]).iter().map(|given| &given.0[0]).collect::<Vec<_>>(),
            ["198.51.100.1", "198.51.100.0"]
        );
        let asks = Claim { asked: vec![address("198.51.100.0")], ..claim("old") };
        let given = given(&pools, &[asks, held]);
        assert_eq!(given[0].1, ["address 198.51.100.0 is in use by Service shop/young; ask for another"]);
        assert_eq!(given[1].0, ["198.51.100.0"]);
    }

    #[test]
    fn when_another_address_is_asked_for_then_the_service_gets_it_or_keeps_its_own_if_it_cannot() {
        let pools = pools(&["198.51.100.0/28"]);
        let held = vec![address("198.51.100.3")];
        let asks = |text: &str| Claim { held: held.clone(), asked: vec![address(text)], ..claim("a") };
        assert_eq!(given(&pools, &[asks("198.51.100.9")])[0].0, ["198.51.100.9"]);
        let given = given(&pools, &[asks("203.0.113.9")]);
        assert_eq!(given[0].0, ["198.51.100.3"]);
        assert_eq!(given[0].1, ["address 203.0.113.9 is in no pool; ask for one of 198.51.100.0/28"]);
    }

    #[test]
    fn when_two_services_ask_for_one_address_then_they_share_it_within_a_namespace_with_different_ports() {
        let pools = pools(&["198.51.100.0/28"]);
        let asks = |name, namespace: &str, port| Claim {
            namespace: namespace.to_owned(),
            asked: vec![address("198.51.100.5")],
            ports: [("TCP".to_owned(), port)].into(),
            ..claim(name)
        };
        let given =
            given(&pools, &[asks("a", "shop", 80), asks("b", "shop", 443), asks("c", "shop", 80), asks("d", "x", 22)]);
        let addresses: Vec<usize> = given.iter().map(|given| given.0.len()).collect();
        assert_eq!(addresses, [1, 1, 0, 0], "{given:?}");
    }

    #[test]
    fn when_the_balancer_uses_an_address_otherwise_then_nobody_gets_it() {
        let others = [(address("198.51.100.0"), "web".to_owned())].into();
        let pools = pools(&["198.51.100.0/31"]);
        let asks = Claim { asked: vec![address("198.51.100.0")], ..claim("b") };
        let grants = allocate(&pools, &[claim("a"), asks], &others);
        assert_eq!(grants[0].addresses[&Family::V4], address("198.51.100.1"));
        assert_eq!(
            grants[1].problems,
            [Problem::Taken(address("198.51.100.0"), "service web of the balancer".to_owned())]
        );
    }

    #[test]
    fn when_pools_overlap_then_what_is_left_is_counted_once() {
        let pools = pools(&["198.51.100.0/28", "198.51.100.0/30", "2001:db8::/64"]);
        let left = left(&pools, &[address("198.51.100.2"), address("192.0.2.1")].into());
        assert_eq!((left[&Family::V4], left[&Family::V6]), (15.0, 2f64.powi(64)));
    }
}
