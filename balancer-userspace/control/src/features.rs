//! The features of the kernel program that services use. The controller loads the program with the code of these
//! features only.

use std::{collections::BTreeSet, net::IpAddr};

use balancer_common::{features::Features, map_types::Forwarding, share};
use balancer_config::{
    config::{BackendConfig, ServiceConfig},
    limits::WhenFull,
    listeners::Family,
};

use crate::io::{BackendSpec, ServiceSpec};

/// Each feature with its name in messages.
const NAMES: [(Features, &str); 13] = [
    (Features::V4, "IPv4"),
    (Features::V6, "IPv6"),
    (Features::DSR, "dsr"),
    (Features::NAT, "nat"),
    (Features::SNAT, "snat"),
    (Features::CROSS, "backends of the other address family"),
    (Features::TUNNEL, "tunnels"),
    (Features::MEMORY, "client memory"),
    (Features::QUIC, "quic"),
    (Features::REJECT, "reject"),
    (Features::RULES, "rules"),
    (Features::SHARE, "steer"),
    (Features::LOCAL, "backends on this machine"),
];

/// The features of a configured service, with the backends and rules in its configuration. The addresses `local` belong
/// to this machine.
#[must_use]
pub fn of(service: &ServiceConfig, local: &BTreeSet<IpAddr>) -> Features {
    let families = service.listen.iter().map(|listener| listener.family());
    let of = |family| of_leg(service, family, &service.backends, local);
    union(families.map(of)) | of_rules(!service.rules.is_empty())
}

/// The features of a service with these settings for clients of one address family.
pub(crate) fn of_leg<'a>(
    settings: &ServiceConfig,
    family: Family,
    backends: impl IntoIterator<Item = &'a BackendConfig>,
    local: &BTreeSet<IpAddr>,
) -> Features {
    let forwarding = settings.forwarding;
    let mut features = of_family(family) | of_forwarding(forwarding);
    let mut add = |condition, feature| {
        if condition {
            features |= feature;
        }
    };
    add(!settings.remember.is_zero(), Features::MEMORY);
    add(settings.quic.is_some(), Features::QUIC);
    add(settings.reject || settings.when_full == WhenFull::Reject, Features::REJECT);
    add(settings.deny.is_some(), of_rules(true));
    add(settings.steer < share::WHOLE, Features::SHARE);
    // Most services need no look at their backends, of which there may be thousands.
    if of_crossing(forwarding) != Features::NONE || !local.is_empty() {
        for backend in backends {
            let address = backend.address_for(family, forwarding).unwrap_or(backend.address).ip();
            add(Family::of(address) != family, of_crossing(forwarding));
            add(local.contains(&address), if_local(forwarding));
        }
    }
    features
}

/// The features that the kernel program needs for a published service.
#[must_use]
pub fn of_published(spec: &ServiceSpec) -> Features {
    let mut features = of_family(spec.family) | of_forwarding(spec.forwarding) | of_rules(spec.rules);
    let mut add = |condition, feature| {
        if condition {
            features |= feature;
        }
    };
    add(!spec.remember.is_zero(), Features::MEMORY);
    add(spec.quic.is_some(), Features::QUIC);
    add(spec.reject, Features::REJECT);
    add(!spec.share.is_all(), Features::SHARE);
    add(!spec.local.is_empty(), if_local(spec.forwarding));
    let crosses = spec.backends.iter().any(|(_, address)| Family::of(address.ip()) != spec.family);
    add(crosses, of_crossing(spec.forwarding));
    features
}

/// The features for listeners of an address family.
const fn of_family(family: Family) -> Features {
    match family {
        Family::V4 => Features::V4,
        Family::V6 => Features::V6,
    }
}

/// The features that the kernel program needs for the row of a backend.
#[must_use]
pub fn of_row(row: &BackendSpec) -> Features {
    let is_local = row.next_hop.is_some_and(|hop| hop.local);
    of_forwarding(row.forwarding) | if is_local { if_local(row.forwarding) } else { Features::NONE }
}

const fn of_forwarding(forwarding: Forwarding) -> Features {
    match forwarding {
        Forwarding::Dsr => Features::DSR,
        Forwarding::Nat => Features::NAT,
        Forwarding::Snat => Features::SNAT,
        Forwarding::Ipip | Forwarding::Gue => Features::TUNNEL,
    }
}

/// The features for backends that are this machine itself: packets to them need no tunnel, and connections to them no
/// address of the pool.
pub(crate) fn if_local(forwarding: Forwarding) -> Features {
    match forwarding {
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => Features::LOCAL | Features::DSR,
        Forwarding::Nat | Forwarding::Snat => Features::LOCAL | Features::NAT,
    }
}

/// The features for backends whose address family differs from their clients': answers and error messages of such
/// backends arrive in the other family.
fn of_crossing(forwarding: Forwarding) -> Features {
    let both = Features::V4 | Features::V6;
    match forwarding {
        Forwarding::Snat => both | Features::CROSS,
        Forwarding::Ipip | Forwarding::Gue => both,
        Forwarding::Dsr | Forwarding::Nat => Features::NONE,
    }
}

pub(crate) const fn of_rules(any: bool) -> Features {
    if any { Features::RULES } else { Features::NONE }
}

/// The features for the row of a removed backend that may still have known clients. `family` is the address family of
/// the backend's service, if the service still exists.
pub(crate) fn of_gone(row: &BackendSpec, family: Option<Family>) -> Features {
    let crosses = family.is_some_and(|family| family != Family::of(row.address.ip()));
    of_row(row) | if crosses { of_crossing(row.forwarding) } else { Features::NONE }
}

pub(crate) fn union(all: impl IntoIterator<Item = Features>) -> Features {
    all.into_iter().fold(Features::NONE, |all, one| all | one)
}

/// The features as a list of words for messages.
#[must_use]
pub fn words(features: Features) -> String {
    let names: Vec<&str> = NAMES.iter().filter(|(one, _)| features.has(*one)).map(|(_, name)| *name).collect();
    if names.is_empty() { "no feature".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use balancer_config::{
        fixture::web,
        rule::{Action, RuleConfig},
    };

    use super::*;

    fn features(change: impl FnOnce(&mut ServiceConfig)) -> Features {
        let mut service = ServiceConfig { remember: Duration::ZERO, ..web() };
        change(&mut service);
        of(&service, &BTreeSet::new())
    }

    fn at(service: &mut ServiceConfig, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        service.backends[0] = BackendConfig { address, address6: None, ..service.backends[0].clone() };
    }

    #[test]
    fn when_a_service_uses_an_option_then_its_feature_is_added() {
        use Forwarding::{Dsr, Gue, Ipip, Nat, Snat};
        let plain = Features::V4;
        let modes = [
            (Dsr, Features::DSR),
            (Nat, Features::NAT),
            (Snat, Features::SNAT),
            (Ipip, Features::TUNNEL),
            (Gue, Features::TUNNEL),
        ];
        for (mode, feature) in modes {
            assert_eq!(features(|service| service.forwarding = mode), plain | feature, "{mode:?}");
        }
        let nat = plain | Features::NAT;
        let of = |change: fn(&mut ServiceConfig)| {
            features(|service| {
                service.forwarding = Nat;
                change(service);
            })
        };
        assert_eq!(of(|service| service.remember = Duration::from_secs(60)), nat | Features::MEMORY);
        assert_eq!(of(|service| service.reject = true), nat | Features::REJECT);
        assert_eq!(of(|service| service.when_full = WhenFull::Reject), nat | Features::REJECT);
        assert_eq!(of(|service| service.steer = 99), nat | Features::SHARE);
        assert_eq!(of(|service| service.rules = vec![rule()]), nat | Features::RULES);
        assert_eq!(of(|service| at(service, "[fd00::1]:80")), nat);
    }

    #[test]
    fn when_a_backend_has_the_other_family_then_both_families_arrive() {
        let both = Features::V4 | Features::V6;
        let crosses = |mode| {
            features(|service| {
                service.forwarding = mode;
                at(service, "[fd00::1]:80");
            })
        };
        assert_eq!(crosses(Forwarding::Snat), both | Features::CROSS | Features::SNAT);
        assert_eq!(crosses(Forwarding::Gue), both | Features::TUNNEL);
    }

    #[test]
    fn when_a_backend_is_this_machine_then_the_mode_for_it_is_added() {
        let own = BTreeSet::from([web().backends[0].address.ip()]);
        for (forwarding, feature) in [
            (Forwarding::Dsr, Features::DSR),
            (Forwarding::Nat, Features::NAT),
            (Forwarding::Snat, Features::SNAT | Features::NAT),
            (Forwarding::Gue, Features::TUNNEL | Features::DSR),
        ] {
            let service = ServiceConfig { forwarding, remember: Duration::ZERO, ..web() };
            assert_eq!(of(&service, &own), Features::V4 | Features::LOCAL | feature, "{forwarding:?}");
        }
    }

    #[test]
    fn when_features_are_named_then_each_has_its_own_words() {
        assert_eq!(words(Features::V4 | Features::SNAT), "IPv4, snat");
        assert_eq!(words(Features::NONE), "no feature");
        let all = NAMES.iter().fold(0, |bits, (feature, name)| {
            assert!(feature.bits().is_power_of_two() && bits & feature.bits() == 0, "{name}");
            bits | feature.bits()
        });
        assert_eq!(all, (1 << NAMES.len()) - 1);
    }

    fn rule() -> RuleConfig {
        RuleConfig { prefix: "203.0.113.0/24".parse().unwrap(), action: Action::Deny, ttl: None }
    }
}
