//! Pools that result from lists of targets.

use std::path::PathBuf;

use balancer_common::map_types::Forwarding;
use balancer_config::{discover::Floor, fixture::service};

use super::*;

fn list(min: u32) -> DiscoverConfig {
    DiscoverConfig { min: Floor::Targets(min), ..DiscoverConfig::new(Source::File(PathBuf::from("/t.json"))) }
}

fn target(name: &str, host: u8, weight: u16) -> Target {
    let addresses = vec![[10, 0, 0, host].into()];
    Target { name: name.to_owned(), addresses, why: None, fault: None, port: Some(8080), weight, backup: false }
}

fn web(backends: Vec<BackendConfig>) -> ServiceConfig {
    let web = service("web", "198.51.100.10:80", Forwarding::Nat, &["own 10.0.0.1:8080"]);
    let backends = if backends.is_empty() { web.backends.clone() } else { backends };
    ServiceConfig { discover: vec![list(1)], backends, ..web }
}

/// The pool after a version of the list for which no backend waits.
fn pool(
    service: &ServiceConfig,
    list: &DiscoverConfig,
    targets: &[Target],
    admin: impl Fn(&str) -> Admin,
) -> Result<Pool, String> {
    let (waiting, impossible) = (BTreeSet::new(), BTreeMap::new());
    super::pool(service, list, Version { targets, waiting: &waiting, impossible: &impossible }, admin)
}

fn next(before: &Pool, targets: &[Target]) -> Pool {
    pool(&web(before.backends.clone()), &list(1), targets, |_| Admin::Ready).unwrap()
}

fn names(pool: &Pool) -> Vec<&str> {
    pool.backends.iter().map(|backend| backend.name.as_str()).collect()
}

fn two() -> [Target; 2] {
    [target("a", 2, 100), target("b", 3, 50)]
}

#[test]
fn when_a_list_is_shuffled_then_nothing_changes() {
    let first = next(&Pool::default(), &two());
    assert_eq!((names(&first), &*first.summary()), (vec!["own", "a", "b"], "2 backends added"));
    assert_eq!(first.backends[2].weight, 50);
    let [a, b] = two();
    let second = next(&first, &[b, a]);
    assert_eq!(second, Pool { backends: first.backends, ..Pool::default() });
}

#[test]
fn when_a_target_is_gone_and_comes_back_then_it_is_as_the_operator_had_it() {
    let first = next(&Pool::default(), &two());
    let service = web(first.backends.clone());
    let gone = pool(&service, &list(1), &two()[..1], |_| Admin::Maint).unwrap();
    assert_eq!((names(&gone), &*gone.gone), (vec!["own", "a", "b"], &["b".to_owned()][..]));
    let still = next(&gone, &two()[..1]);
    assert_eq!((still.summary(), &still.backends), (String::new(), &gone.backends));
    let back = next(&gone, &two());
    assert_eq!((&back.backends, &*back.back), (&first.backends, &[("b".to_owned(), Admin::Maint)][..]));
}

#[test]
fn when_a_list_has_fewer_targets_than_the_floor_then_nothing_is_taken_over() {
    let first = next(&Pool::default(), &two());
    let service = web(first.backends);
    let refused = |min, targets: &[Target]| pool(&service, &list(min), targets, |_| Admin::Ready).unwrap_err();
    assert_eq!(refused(1, &[]), "has 0 targets, fewer than min = 1; if that is meant, lower min");
    assert!(refused(3, &two()).starts_with("has 2 targets, fewer than min = 3"));
    assert_eq!(pool(&service, &list(0), &[], |_| Admin::Ready).unwrap().gone.len(), 2);
}

#[test]
fn when_a_weight_was_set_at_run_time_then_it_stays_until_the_list_says_another() {
    let mut first = next(&Pool::default(), &two());
    first.backends[1].weight = 7;
    let same = next(&first, &two());
    assert_eq!((same.backends[1].weight, same.summary()), (7, String::new()));
    let other = next(&first, &[target("a", 2, 80), target("b", 9, 50)]);
    assert_eq!((other.backends[1].weight, other.changed.len()), (80, 2));
    assert_eq!(other.backends[2].address, "10.0.0.9:8080".parse().unwrap());
}

#[test]
fn when_a_target_is_called_like_a_backend_of_the_file_then_it_is_left_out() {
    let refused = pool(&web(Vec::new()), &list(1), &[target("own", 2, 1)], |_| Admin::Ready).unwrap_err();
    let fault = "a target is called own, and so is a backend that is not of this list; give one of them another name";
    assert_eq!(refused, format!("lacks 1 of 1 target, so no part of it is applied: {fault}"));
    let [a, b] = two();
    let taken = pool(&web(Vec::new()), &list(1), &[a, target("own", 2, 1), b], |_| Admin::Ready).unwrap();
    assert_eq!((names(&taken), &*taken.left_out), (vec!["own", "a", "b"], &[fault.to_owned()][..]));
}

#[test]
fn when_a_service_has_another_list_than_before_then_that_decides_about_the_backends_of_the_former() {
    let first = next(&Pool::default(), &two());
    let other = DiscoverConfig { source: Source::File(PathBuf::from("/other.json")), ..list(1) };
    let service = ServiceConfig { discover: vec![other.clone()], ..web(first.backends) };
    let taken = pool(&service, &other, &two()[..1], |_| Admin::Ready).unwrap();
    let sources: Vec<_> =
        taken.backends.iter().filter_map(|of| Some(of.discovered.as_ref()?.source.to_string())).collect();
    assert_eq!(sources, ["/other.json", "/t.json"]);
    assert_eq!((taken.added.len(), &*taken.gone), (0, &["b".to_owned()][..]));
}

/// An entry about the backend that is no target.
fn faulty(name: &str) -> Target {
    Target { addresses: Vec::new(), fault: Some(format!("{name} is wrong")), ..target(name, 9, 100) }
}

#[test]
fn when_an_entry_is_wrong_then_its_backend_stays_as_it_is_and_the_others_follow_the_list() {
    let all = [target("a", 2, 100), target("b", 3, 50), target("c", 4, 50)];
    let first = next(&Pool::default(), &all);
    let [a, _, _] = all;
    let second = next(&first, &[a.clone(), faulty("b"), faulty("target 3"), target("d", 4, 50), target("e", 5, 50)]);
    assert_eq!(second.left_out, ["b is wrong", "target 3 is wrong"]);
    assert_eq!((names(&second), second.gone.len()), (vec!["own", "a", "b", "d", "e"], 0), "c is called d now");
    assert_eq!(second.backends[2], first.backends[2]);
    let port_0 = Target { port: Some(0), ..target("a", 2, 100) };
    let third = next(&first, &[port_0, target("b", 3, 50), target("c", 4, 50)]);
    assert!(third.left_out[0].starts_with("backend \"a\" has port 0"), "{:?}", third.left_out);
    assert_eq!(third.backends, first.backends);
    // More than half of the entries are wrong.
    let refused = pool(&web(first.backends), &list(1), &[a, faulty("b"), faulty("c")], |_| Admin::Ready).unwrap_err();
    assert_eq!(refused, "lacks 2 of 3 targets, so no part of it is applied: b is wrong");
}

#[test]
fn when_a_missing_target_waits_then_its_backend_stays_unless_its_address_has_another_name() {
    let first = next(&Pool::default(), &[target("a", 2, 100), target("b", 3, 50)]);
    let waiting = ["b".to_owned()].into();
    let after = |targets: &[Target]| {
        let version = Version { targets, waiting: &waiting, impossible: &BTreeMap::new() };
        super::pool(&web(first.backends.clone()), &list(1), version, |_| Admin::Ready).unwrap()
    };
    let waits = after(&[target("a", 2, 100), target("c", 4, 100)]);
    assert_eq!((names(&waits), waits.gone.len()), (vec!["own", "a", "b", "c"], 0));
    assert_eq!(waits.backends[2], first.backends[2]);
    let renamed = after(&[target("a", 2, 100), target("c", 3, 100)]);
    assert_eq!((names(&renamed), renamed.renamed.len()), (vec!["own", "a", "c"], 1));
    // A listed target takes over the address.
    let displaced = after(&[target("a", 3, 100)]);
    assert_eq!((names(&displaced), displaced.displaced.len()), (vec!["own", "a"], 1));
}

fn srv(min: Floor) -> DiscoverConfig {
    let name = "_http._tcp.web.internal".to_owned();
    let dns = DnsSource { records: Records::Services, name, family: None, servers: Vec::new() };
    DiscoverConfig { min, ..DiscoverConfig::new(Source::Dns(dns)) }
}

fn host(name: &str, port: u16, addresses: &[&str]) -> Target {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let why = Some("NXDOMAIN".to_owned()).filter(|_| !name.starts_with("web"));
    Target { name: name.to_owned(), addresses, why, fault: None, port: Some(port), weight: 1, backup: false }
}

/// Returns the backends that result from a series of DNS answers, with their addresses.
fn after(listen: &str, forwarding: Forwarding, answers: &[&[Target]]) -> Vec<String> {
    let listen = listen.split(' ').map(|text| text.parse().unwrap()).collect();
    let mut web = ServiceConfig { listen, discover: vec![srv(Floor::default())], ..web(Vec::new()) };
    (web.forwarding, web.backends) = (forwarding, Vec::new());
    for targets in answers {
        web.backends = pool(&web, &web.discover[0], targets, |_| Admin::Ready).unwrap().backends;
    }
    let shown = |backend: &BackendConfig| {
        let of = backend.discovered.as_ref().unwrap();
        let address6 = backend.address6.map(|address| format!(" {address}")).unwrap_or_default();
        let gone = if of.gone.is_some() { " gone" } else { "" };
        format!("{} {}{address6}{gone}", backend.name, backend.address)
    };
    web.backends.iter().map(shown).collect()
}

const V4: &str = "198.51.100.10:80";
const BOTH: &str = "198.51.100.10:80 [2001:db8::10]:80";

#[test]
fn when_a_host_has_several_addresses_then_the_one_in_use_stays_and_otherwise_the_lowest_counts() {
    let of = |addresses: &[&str]| [host("web1", 8080, addresses)];
    let nat = |answers: &[&[Target]]| after(V4, Forwarding::Nat, answers).join(", ");
    let first = of(&["10.0.0.3", "10.0.0.2"]);
    assert_eq!(nat(&[&first]), "web1 10.0.0.2:8080");
    assert_eq!(nat(&[&first, &of(&["10.0.0.1", "10.0.0.2"])]), "web1 10.0.0.2:8080");
    assert_eq!(nat(&[&first, &of(&["10.0.0.9", "10.0.0.3"])]), "web1 10.0.0.3:8080");
    assert_eq!(nat(&[&first, &of(&[])]), "web1 10.0.0.2:8080", "it has no address any more");
    assert_eq!(nat(&[&first, &of(&["fd00::1"])]), "web1 10.0.0.2:8080", "none of the service's family");
    assert_eq!(nat(&[&first, &of(&["10.0.0.2"]), &[host("web1", 80, &["10.0.0.2"])]]), "web1 10.0.0.2:0");
}

#[test]
fn when_a_mode_keeps_ports_then_records_may_name_the_port_of_any_listener() {
    let two = "198.51.100.10:80 198.51.100.10:443";
    let records = [host("web1", 80, &["10.0.0.1"]), host("web1", 443, &["10.0.0.1"]), host("web2", 443, &["10.0.0.2"])];
    for mode in [Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue] {
        let once = after(two, mode, &[&records]);
        assert_eq!(once, ["web1 10.0.0.1:0", "web2 10.0.0.2:0"], "{mode:?}");
        assert_eq!(after(two, mode, &[&records[1..], &records]), once, "{mode:?}");
        assert_eq!(after(two, mode, &[&[host("web1", 8080, &["10.0.0.1"])]]), ["web1 10.0.0.1:8080"], "it is refused");
    }
    assert_eq!(
        after(two, Forwarding::Nat, &[&records]),
        ["web1-80 10.0.0.1:80", "web1-443 10.0.0.1:443", "web2 10.0.0.2:443"]
    );
}

#[test]
fn when_a_service_has_both_families_then_a_target_needs_both_except_in_tunnels() {
    let web1 = host("web1", 8080, &["fd00::1", "10.0.0.1"]);
    let all = [web1, host("web2", 8080, &["10.0.0.2"]), host("web3", 8080, &["fd00::3"])];
    assert_eq!(after(BOTH, Forwarding::Nat, &[&all]), ["web1 10.0.0.1:8080 [fd00::1]:8080"]);
    let tunnel = ["web1 10.0.0.1:8080 [fd00::1]:8080", "web2 10.0.0.2:8080", "web3 [fd00::3]:8080"];
    assert_eq!(after(BOTH, Forwarding::Ipip, &[&all]), tunnel);
    let kept = [host("web1", 8080, &["10.0.0.7"])];
    assert_eq!(after(BOTH, Forwarding::Nat, &[&all, &kept]), ["web1 10.0.0.7:8080 [fd00::1]:8080"]);
}

#[test]
fn when_targets_have_no_addresses_then_that_is_told_and_new_ones_wait() {
    let service = ServiceConfig { discover: vec![srv(Floor::default())], ..web(Vec::new()) };
    let told = |targets: &[Target]| unresolved(&service, &service.discover[0], targets);
    assert_eq!(told(&[host("web1", 80, &["10.0.0.1"])]), None);
    let [a, b] = ["a", "b"].map(|name| host(name, 80, &[]));
    let expected = "a has not the addresses that the service needs: NXDOMAIN; nor have 1 more";
    assert_eq!(told(&[a.clone(), b]).as_deref(), Some(expected));
    assert_eq!(after(V4, Forwarding::Nat, &[&[host("web1", 8080, &["10.0.0.1"]), a]]), ["web1 10.0.0.1:8080"]);
}

#[test]
fn when_a_host_gets_a_second_port_and_loses_the_first_then_backends_keep_their_names() {
    let at = |port| host("web1", port, &["10.0.0.1"]);
    let answers: [&[Target]; 4] = [&[at(8080)], &[at(8080), at(8081)], &[at(8081)], &[at(8081), at(8080)]];
    let nat = |count: usize| after(V4, Forwarding::Nat, &answers[..count]).join(", ");
    assert_eq!(nat(2), "web1 10.0.0.1:8080, web1-8081 10.0.0.1:8081");
    assert_eq!(nat(3), "web1 10.0.0.1:8080 gone, web1-8081 10.0.0.1:8081");
    assert_eq!(nat(4), nat(2));
    // The address of a backend omits the listener's port.
    let implied: [&[Target]; 2] = [&[at(80)], &[at(81), at(80)]];
    assert_eq!(after(V4, Forwarding::Nat, &implied).join(", "), "web1 10.0.0.1:0, web1-81 10.0.0.1:81");
}

#[test]
fn when_names_of_hosts_and_ports_collide_then_one_of_them_is_left_out() {
    let service = ServiceConfig { discover: vec![srv(Floor::default())], ..web(Vec::new()) };
    let at = |name, port| host(name, port, &["10.0.0.1"]);
    let targets = [at("web1", 80), at("web1", 81), at("web1-80", 82)];
    let taken = pool(&service, &service.discover[0], &targets, |_| Admin::Ready).unwrap();
    assert_eq!(taken.left_out, ["two targets are called web1-80; give one of them another name"]);
    assert_eq!(taken.added.len(), 2);
}

#[test]
fn when_the_floor_is_a_share_then_it_is_one_of_those_listed_before() {
    let at = |number| host(&format!("web{number}"), 80, &[&format!("10.0.0.{number}")]);
    let hosts: Vec<Target> = (1..=4).map(at).collect();
    let mut service = ServiceConfig { discover: vec![srv(Floor::Share(50))], ..web(Vec::new()) };
    let take =
        |service: &ServiceConfig, count: usize| pool(service, &service.discover[0], &hosts[..count], |_| Admin::Ready);
    assert!(take(&service, 0).unwrap_err().starts_with("has 0 targets, fewer than min = 1"));
    service.backends = take(&service, 4).unwrap().backends;
    assert_eq!(
        take(&service, 1).unwrap_err(),
        "has 1 target, fewer than 50 % of the 4 before; if that is meant, lower min"
    );
    service.backends = take(&service, 2).unwrap().backends;
    assert_eq!(take(&service, 1).unwrap().gone.len(), 1, "half of the two that are left");
}

#[test]
fn when_other_servers_are_asked_for_the_same_records_then_no_other_list_takes_their_backends_away() {
    let mut service = ServiceConfig { discover: vec![srv(Floor::default()), list(1)], ..web(Vec::new()) };
    let targets = [host("web1", 8080, &["10.0.0.7"])];
    service.backends = pool(&service, &service.discover[0], &targets, |_| Admin::Ready).unwrap().backends;
    let Source::Dns(dns) = &mut service.discover[0].source else { panic!() };
    dns.servers = vec!["192.0.2.53:53".parse().unwrap()];
    let of_file = pool(&service, &service.discover[1], &two(), |_| Admin::Ready).unwrap();
    assert_eq!((of_file.added.len(), of_file.gone.len()), (2, 0));
    let none_now = pool(&service, &service.discover[0], &[host("web2", 80, &["10.0.0.8"])], |_| Admin::Ready);
    assert_eq!(none_now.unwrap().gone, ["web1"]);
    // Without the DNS records, the configuration file decides.
    service.discover.remove(0);
    assert_eq!(pool(&service, &service.discover[0], &two(), |_| Admin::Ready).unwrap().gone, ["web1"]);
}

fn named(backend: &str, host: &str, weight: u16) -> DiscoverConfig {
    let records = Records::Backend { backend: backend.to_owned(), port: Some(8080) };
    let dns = DnsSource { records, name: host.to_owned(), family: None, servers: Vec::new() };
    let own = Some(Own { weight, backup: false });
    DiscoverConfig { own, ..DiscoverConfig::new(Source::Dns(dns)) }
}

#[test]
fn when_the_address_of_a_backend_is_another_name_then_no_other_list_takes_the_backend_away() {
    let one = [host("web1", 8080, &["10.0.0.1"])];
    let mut service = ServiceConfig { discover: vec![named("web1", "a.internal", 7)], ..web(Vec::new()) };
    service.backends = pool(&service, &service.discover[0], &one, |_| Admin::Ready).unwrap().backends;
    let backend = service.backends.last().unwrap();
    assert_eq!((backend.name.as_str(), backend.weight), ("web1", 7), "the weight is the configuration's");
    service.discover = vec![named("web1", "b.internal", 7), list(1), named("web2", "c.internal", 7)];
    for (at, target) in [(1, target("a", 2, 100)), (2, host("web2", 8080, &["10.0.0.3"]))] {
        let pool = pool(&service, &service.discover[at], &[target], |_| Admin::Ready).unwrap();
        assert!(pool.gone.is_empty(), "{:?}", pool.gone);
    }
    let moved = [host("web1", 8080, &["10.0.0.9"])];
    let taken = pool(&service, &service.discover[0], &moved, |_| Admin::Ready).unwrap();
    assert_eq!((&*taken.changed, taken.added.len()), (&["web1".to_owned()][..], 0));
}
