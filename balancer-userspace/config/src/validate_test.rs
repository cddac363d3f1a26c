use std::net::IpAddr;

use balancer_common::map_types::Forwarding;
use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::{
    fixture::{backend, service, web},
    listeners::{Listener, PortRange},
    protocol::Protocol,
    quic::{Format, Keyed, QuicConfig},
    rule::{Action, RuleConfig},
    service::BackendConfig,
    shared::shared,
};

fn nat(name: &str, at: &str, backend: &str) -> ServiceConfig {
    service(name, at, Forwarding::Nat, &[&format!("b {backend}")])
}

fn dsr(name: &str, at: &str, backend: &str) -> ServiceConfig {
    service(name, at, Forwarding::Dsr, &[&format!("b {backend}")])
}

fn refusal(list: &[ServiceConfig]) -> String {
    services(&shared(list.to_vec()), &Valid::default()).map_or_else(|problem| problem.to_string(), |()| String::new())
}

#[test]
fn when_a_rule_is_violated_then_it_refuses_with_its_own_line() {
    let mut named_twice = web();
    named_twice.backends[1].name = "web1".to_owned();
    let mut badly_named = web();
    badly_named.backends[1].name = "web 2".to_owned();
    let mut small = web();
    small.table_size = 3.into();
    let mut even = web();
    even.table_size = 65_536.into();
    let v4 = "198.51.100.10:80";
    for (list, expected) in [
        (vec![named_twice], "the backend name \"web1\" is taken; choose another"),
        (vec![badly_named], "the name \"web 2\" contains ' '"),
        (vec![small], "table_size = 3 is too small for 4 backends"),
        (vec![even], "table_size = 65536 is not prime"),
        (vec![web(), web()], "the service name \"web\" is taken"),
        (vec![web(), nat("api", v4, "10.0.0.1:80")], "tcp 198.51.100.10:80 is service web already"),
        (vec![nat("a b", v4, "10.0.0.1:80")], "the name \"a b\" contains ' '"),
        (vec![dsr("a", v4, "10.0.0.1:81")], "dsr cannot change the service's 80"),
        (vec![dsr("a", v4, "[2001:db8::1]:80")], "give an IPv4 address"),
        (vec![nat("a", "[2001:db8::2]:80", "10.0.0.1:80")], "give an IPv6 address"),
        (vec![nat("a", v4, "0.0.0.0:80")], "give the unicast address of one host"),
        (vec![nat("a", v4, "224.0.0.1:80")], "give the unicast address of one host"),
        (vec![nat("a", v4, "198.51.100.10:81")], "the service's own"),
        (vec![nat("a", "198.51.100.10:0", "10.0.0.1:80")], "the service listens on every port"),
    ] {
        let refusal = refusal(&list);
        assert!(refusal.contains(expected) && !refusal.contains('\n'), "{refusal:?} should say {expected:?}");
    }
    assert_eq!(refusal(&[web(), dsr("a", "198.51.100.11:80", "10.0.0.11:80")]), "");
}

#[test]
fn when_listeners_are_too_many_then_they_are_refused() {
    let with_ports = |index: u8, count: u16| {
        let mut one =
            service(&format!("s{index}"), &format!("198.51.{index}.10:1"), Forwarding::Dsr, &["b 10.0.0.1:1"]);
        let first = one.listen[0];
        one.listen = (1..=count).map(|port| Listener { ports: PortRange::of(port), ..first }).collect();
        one
    };
    assert_eq!(refusal(&[with_ports(0, 64)]), "");
    assert_eq!(refusal(&[with_ports(0, 65)]), "more than 64 listeners of one service; remove some");
    // The services have 64 × 1,024 listeners, which is one more than the maximum.
    let mut all: Vec<ServiceConfig> = (0..1024u16)
        .map(|index| {
            let mut one = with_ports(index as u8, 64);
            one.name = format!("s{index}");
            for listener in &mut one.listen {
                listener.address = IpAddr::from([198, 51, (index >> 8) as u8, index as u8]);
            }
            one
        })
        .collect();
    assert_eq!(refusal(&all), "more than 65535 listeners over all services; remove some");
    all.last_mut().unwrap().listen.pop();
    assert_eq!(refusal(&all), "");
}

#[test]
fn when_services_with_quic_are_too_many_then_they_are_refused() {
    let quic = QuicConfig {
        format: Format::Nlb,
        server_id_length: 8,
        nonce_length: 7,
        current: Keyed { config: 0, key: None },
        before: None,
        learn: false,
    };
    let all: Vec<ServiceConfig> = (0..=MAX_QUIC_SERVICES as u16)
        .map(|index| {
            let mut one = dsr(&format!("s{index}"), &format!("198.51.{index}.10:443"), "10.0.0.1:443");
            one.listen.push(Listener { protocol: Protocol::Quic, ..one.listen[0] });
            one.quic = Some(quic.clone());
            one
        })
        .collect();
    let said = "more than 127 services with quic, those of both address families counted twice; remove some";
    assert_eq!(refusal(&all), said);
    assert_eq!(refusal(&all[..MAX_QUIC_SERVICES]), "");
}

#[test]
fn when_there_are_more_rules_than_fit_then_they_are_refused() {
    let deny = |number: u32| RuleConfig {
        prefix: IpNet::from(IpAddr::from((0x0a00_0000 + number).to_be_bytes())),
        action: Action::Deny,
        ttl: None,
    };
    let mut first = dsr("a", "198.51.100.10:80", "10.0.0.1:80");
    first.rules = (0..MAX_RULES).map(deny).collect();
    let mut second = dsr("b", "198.51.100.11:80", "10.0.0.1:80");
    assert_eq!(refusal(&[first.clone(), second.clone()]), "");
    second.rules = vec![deny(0)];
    assert_eq!(refusal(&[first, second]), "more than 65,536 rules over all services; remove some");
}

#[test]
fn when_backends_are_too_many_then_they_are_refused() {
    let mut many = nat("a", "198.51.100.10:0", "10.0.0.1:0");
    let backend = many.backends[0].clone();
    many.backends = (0..65_535u32)
        .map(|n| BackendConfig {
            name: format!("b{n}"),
            address: (IpAddr::from((0x0a00_0001 + n).to_be_bytes()), 0).into(),
            ..backend.clone()
        })
        .collect();
    assert_eq!(refusal(&[many.clone()]), "service a: more than 65534 backends over all services; remove some");
    many.backends.pop();
    assert_eq!(refusal(&[many.clone()]), "");
    // Each backend needs one id for each address family.
    let second = Listener { address: "2001:db8::1".parse().unwrap(), ..many.listen[0] };
    many.listen.push(second);
    many.backends.iter_mut().zip(1u128..).for_each(|(backend, n)| {
        backend.address6 = Some((IpAddr::from(((0x2001_0db8 << 96) + (1 << 64) + n).to_be_bytes()), 0).into());
    });
    many.backends.truncate(32_768);
    assert_eq!(
        refusal(&[many.clone()]),
        "service a: more than 65534 backends over all services, those of services of both address families counted \
         twice; remove some"
    );
    many.backends.pop();
    assert_eq!(refusal(&[many]), "");
}

#[test]
fn when_replies_could_belong_to_two_services_then_the_second_is_refused() {
    let a = |backend: &str| nat("a", "198.51.100.10:80", backend);
    let every = |vip: &str| nat("every", &format!("{vip}:0"), "10.0.0.1:0");
    let clash = |first: ServiceConfig, second: ServiceConfig| !refusal(&[first, second]).is_empty();
    assert!(clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.1:80")));
    assert!(clash(a("10.0.0.1:8080"), nat("b", "198.51.100.10:81", "10.0.0.1:8080")));
    assert!(!clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.1:81")));
    assert!(!clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.2:80")));
    assert!(!clash(a("10.0.0.1:80"), dsr("b", "198.51.100.11:80", "10.0.0.1:80")));
    let mut udp = nat("b", "198.51.100.11:80", "10.0.0.1:80");
    udp.listen[0].protocol = Protocol::Udp;
    assert!(!clash(a("10.0.0.1:80"), udp));

    assert!(!clash(a("10.0.0.1:80"), every("198.51.100.10")));
    assert!(!clash(every("198.51.100.10"), a("10.0.0.1:80")));
    assert!(clash(a("10.0.0.1:8080"), every("198.51.100.10")));
    assert!(clash(every("198.51.100.11"), a("10.0.0.1:80")));
    let text = "nat could not tell the tcp replies of a/b (10.0.0.1:80) and every/b (10.0.0.1:0) apart; give one of them \
                another address or port";
    assert_eq!(refusal(&[a("10.0.0.1:80"), every("198.51.100.11")]), text);

    // Either of the two services may be the one that is known to be valid.
    for known in [a("10.0.0.1:80"), every("198.51.100.11")] {
        let known = Valid::new(shared(vec![known])).unwrap();
        let both = [a("10.0.0.1:80"), every("198.51.100.11")].map(Arc::new);
        assert_eq!(services(&both, &known).unwrap_err().to_string(), text);
    }
}

prop_compose! {
    /// A service that easily conflicts with other services in the test.
    fn crowded()(
        name in 0..6_u8,
        nat in prop::bool::weighted(0.9),
        listen in prop::collection::vec((0..2_u8, prop::sample::select(vec![(0_u16, 0_u16), (80, 80), (81, 81), (80, 90)])), 1..3),
        backends in prop::collection::vec((1..4_u8, prop::sample::select(vec![0_u16, 80, 81])), 0..3),
    ) -> Arc<ServiceConfig> {
        let mode = if nat { Forwarding::Nat } else { Forwarding::Dsr };
        let mut of = service(&format!("s{name}"), "198.51.100.10:80", mode, &[]);
        let first = of.listen[0];
        let listener = |(vip, (first_port, last)): (u8, (u16, u16))| Listener {
            address: IpAddr::from([198, 51, 100, 10 + vip]),
            ports: PortRange { first: first_port, last: if last == 0 { u16::MAX } else { last } },
            ..first
        };
        of.listen = listen.into_iter().map(listener).collect();
        let backends = backends.into_iter().zip('a'..);
        of.backends = backends
            .map(|((host, port), name)| backend(&name.to_string(), &format!("10.0.0.{host}:{port}")))
            .collect();
        Arc::new(of)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn when_some_services_are_known_to_be_valid_then_no_problem_is_hidden(
        candidates in prop::collection::vec(crowded(), 1..8),
        others in prop::collection::vec((any::<prop::sample::Index>(), crowded()), 0..4),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, 0..2_u16), 0..4),
        removed in any::<bool>(),
    ) {
        let mut list: Vec<Arc<ServiceConfig>> = Vec::new();
        for candidate in candidates {
            list.push(candidate);
            if services(&list, &Valid::default()).is_err() {
                list.pop();
            }
        }
        let known = Valid::new(list.clone()).unwrap();
        if removed && !list.is_empty() {
            list.remove(0);
        }
        for (place, host, port) in edits {
            if !list.is_empty() {
                let service = Arc::make_mut(place.get_mut(&mut list));
                if host == 0 {
                    let first = service.listen[0];
                    service.listen.push(Listener { ports: PortRange::of(80 + port), ..first });
                } else {
                    let name = format!("n{host}");
                    service.backends.push(backend(&name, &format!("10.0.0.{host}:{}", 80 * port)));
                }
            }
        }
        for (place, other) in others {
            list.insert(place.index(list.len() + 1), other);
        }
        let said = |known: &Valid| problems(&list, known).iter().map(Problem::to_string).collect::<Vec<_>>();
        prop_assert_eq!(said(&known), said(&Valid::default()));
    }
}
