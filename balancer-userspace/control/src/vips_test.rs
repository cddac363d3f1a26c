//! Tests of the VIPs that a machine should have, and of the times at which the machine should have them.

use std::net::IpAddr;

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::{AssignVip, ServiceConfig, WhenAllDown},
    file,
    fixture::{KEY, backend, name, now, service},
    states::Admin,
};

use crate::{
    controller::Controller,
    controller_test::Bench,
    io::{Change, CheckOutcome},
};

fn on(interface: &str) -> AssignVip {
    AssignVip::On(interface.to_owned())
}

fn web(assign_vip: AssignVip, when_all_down: WhenAllDown) -> ServiceConfig {
    let web = service("web", "198.51.100.10:80", Forwarding::Nat, &["web1 10.0.0.11:80", "web2 10.0.0.12:80"]);
    ServiceConfig { assign_vip, when_all_down, ..web }
}

fn shown(bench: &Bench, ready: bool) -> Vec<String> {
    let place = |(on, vip): (Option<String>, IpAddr)| format!("{} {vip}", on.as_deref().unwrap_or("first"));
    bench.controller.assigned_vips(ready).into_iter().map(place).collect()
}

#[test]
fn when_another_machine_could_have_a_vip_then_it_needs_a_backend_to_steer_to() {
    use WhenAllDown::{Drop, Open};
    for (assign, when_all_down, [ready, not_ready, nobody]) in [
        (AssignVip::No, Drop, [None, None, None]),
        (AssignVip::First, Drop, [Some("first"), Some("first"), Some("first")]),
        (on("lo"), Drop, [Some("lo"), None, None]),
        (on("lo"), Open, [Some("lo"), None, Some("lo")]),
    ] {
        let vips = |on: Option<&str>| on.map(|on| format!("{on} 198.51.100.10")).into_iter().collect::<Vec<_>>();
        let (mut bench, _) = Bench::new(vec![web(assign.clone(), when_all_down)]);
        assert_eq!(shown(&bench, true), vips(ready), "{assign}");
        assert_eq!(shown(&bench, false), vips(not_ready), "{assign}, not ready");
        bench.refuse("web/web1");
        assert_eq!(shown(&bench, true), vips(ready), "{assign}, one is down");
        bench.refuse("web/web2");
        assert_eq!(shown(&bench, true), vips(nobody), "{assign}, all are down");
        bench.pass("web/web2");
        assert_eq!(shown(&bench, true), vips(ready), "{assign}, one is back");
    }
}

#[test]
fn when_the_host_serves_a_part_of_the_clients_then_the_vip_stays_without_a_backend() {
    for (steer, expected) in [(0, 1), (99, 1), (100, 0)] {
        let (mut bench, _) = Bench::new(vec![ServiceConfig { steer, ..web(on("lo"), WhenAllDown::Drop) }]);
        for backend in ["web/web1", "web/web2"] {
            bench.refuse(backend);
        }
        assert_eq!(shown(&bench, true).len(), expected, "steer = {steer}");
    }
}

#[test]
fn when_a_balancer_is_in_a_fleet_then_its_vips_follow_its_readiness() {
    let text = "[fleet]\nname = \"a\"\nendpoints = [\"https://192.0.2.1:2379\"]\n[[service]]\nname = \"web\"\n\
                address = \"198.51.100.10:80\"\nforwarding = \"nat\"\nassign_vip = true\nwhen_all_down = \"drop\"\n\
                [[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.11\"\n";
    let (config, _) = file::parse("file.toml".as_ref(), text.as_bytes()).unwrap();
    let controller = Controller::new(config, KEY);
    let mut bench = Bench { controller, now: now() };
    bench.controller.start(bench.now);
    assert_eq!(shown(&bench, true), ["first 198.51.100.10"]);
    assert!(shown(&bench, false).is_empty());
    bench.refuse("web/web1");
    assert!(shown(&bench, true).is_empty());
}

#[test]
fn when_a_backend_keeps_known_clients_then_the_vip_stays() {
    let mut web = web(on("lo"), WhenAllDown::Drop);
    web.remember = std::time::Duration::from_secs(3600);
    let (mut bench, _) = Bench::new(vec![web]);
    bench.refuse("web/web1");
    bench.admin("web/web2", Admin::Drain);
    assert_eq!(shown(&bench, true), ["lo 198.51.100.10"], "web2 drains");
    bench.admin("web/web2", Admin::Maint);
    assert!(shown(&bench, true).is_empty());
}

#[test]
fn when_two_services_share_a_vip_then_it_stays_for_either_and_each_family_has_its_own() {
    let mut both = web(on("lo"), WhenAllDown::Drop);
    both.listen = ["198.51.100.10:80", "[2001:db8::10]:80"].map(|listener| listener.parse().unwrap()).to_vec();
    both.backends = vec![backend("web1", "10.0.0.11:80")];
    both.backends[0].address6 = Some("[fd00::11]:80".parse().unwrap());
    let mail = service("mail", "198.51.100.10:25", Forwarding::Nat, &["mail1 10.0.0.21:25"]);
    let mail = ServiceConfig { assign_vip: on("lo"), when_all_down: WhenAllDown::Drop, ..mail };
    let (mut bench, _) = Bench::new(vec![both, mail]);
    assert_eq!(shown(&bench, true), ["lo 198.51.100.10", "lo 2001:db8::10"]);
    bench.refuse("mail/mail1");
    assert_eq!(shown(&bench, true), ["lo 198.51.100.10", "lo 2001:db8::10"]);
    bench.change(Change::SetAdmin { name: name("web/web1"), admin: Admin::Maint, timeout: None }).unwrap();
    assert!(shown(&bench, true).is_empty());
    bench.check("mail/mail1", CheckOutcome::Passed);
    bench.check("mail/mail1", CheckOutcome::Passed);
    assert_eq!(shown(&bench, true), ["lo 198.51.100.10"]);
    assert_eq!(bench.controller.vip_interfaces().into_iter().collect::<Vec<_>>(), ["lo"]);
}
