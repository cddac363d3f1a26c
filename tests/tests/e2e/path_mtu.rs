//! A link that is narrower than both ends believe: the errors of routers, and the balancer's own, reach whoever sends too
//! much, and large transfers arrive in both directions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    far::{Far, NARROW},
    namespace::Namespace,
    site::Site,
    topology::{Family, Shape},
    transfer::{Transfer, add_services},
};

const BYTES: u64 = 8 << 20;
const BACKENDS: u16 = 4;

fn site(shape: Shape, forwarding: Forwarding) -> Site {
    Site::start(shape, forwarding, BACKENDS, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        add_services(settings, topology);
        Ok(())
    })
    .unwrap()
}

/// What the kernel of `host` believes that fits the way from `from` to `to`.
fn learnt(host: &Namespace, from: IpAddr, to: IpAddr) -> Option<u32> {
    let route = host.ip(&format!("route get {to} from {from}")).unwrap();
    let (_, rest) = route.split_once(" mtu ")?;
    rest.split_whitespace().next().unwrap().parse().ok()
}

/// What a backend sends from.
fn own_address(site: &Site, forwarding: Forwarding, family: Family, number: u16) -> IpAddr {
    match forwarding {
        Forwarding::Nat | Forwarding::Snat => site.topology().backend_address(family, number - 1),
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => site.topology().vip(family),
    }
}

fn adapts_behind_routers(shape: Shape, forwarding: Forwarding) {
    let site = site(shape, forwarding);
    let far = Far::join(site.topology(), forwarding).unwrap();
    for family in Family::BOTH {
        let (vip, client) = (site.topology().vip(family), Far::client(family));
        let transfer = Transfer { host: far.host(), source: client, ..Transfer::new(&site, forwarding, family, 1) };
        let number = transfer.home("tcp", client).unwrap();
        assert_ne!(number, transfer.home("tcp", Far::router(family)).unwrap(), "by its address it would go elsewhere");
        let backend = &site.topology().backends()[usize::from(number) - 1];
        let own = own_address(&site, forwarding, family, number);
        assert_eq!((learnt(far.host(), client, vip), learnt(backend, own, client)), (None, None));

        let took = transfer.tcp(BYTES, BYTES).unwrap();
        println!("{shape:?} {forwarding:?} {family:?}: {} MB up and down in {took:?}", BYTES >> 20);
        assert_eq!(learnt(far.host(), client, vip), Some(NARROW), "{forwarding:?} {family:?}: the client");
        assert_eq!(learnt(backend, own, client), Some(NARROW), "{forwarding:?} {family:?}: the backend");
    }
}

#[test]
fn routers_are_heard_with_dsr() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Dsr);
}

#[test]
fn routers_are_heard_with_nat() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Nat);
}

#[test]
fn routers_are_heard_with_ipip() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Ipip);
}

#[test]
fn routers_are_heard_with_gue() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Gue);
}

/// The balancer's own link is the narrow one; it says so itself.
fn adapts_to_the_balancers_link(forwarding: Forwarding, narrow: &str, client_learns: bool, backend_learns: bool) {
    let site = site(Shape::TwoLegged, forwarding);
    site.topology().balancer().ip(&format!("link set {narrow} mtu {NARROW}")).unwrap();
    for family in Family::BOTH {
        let transfer = Transfer::new(&site, forwarding, family, 1);
        let (vip, client) = (site.topology().vip(family), transfer.source);
        let number = transfer.home("tcp", client).unwrap();
        let own = own_address(&site, forwarding, family, number);
        let (up, down) = (if client_learns { BYTES } else { 100 }, if backend_learns { BYTES } else { 0 });
        transfer.tcp(up, down).unwrap();
        let learnt = (
            learnt(site.topology().client(), client, vip),
            learnt(&site.topology().backends()[usize::from(number) - 1], own, client),
        );
        let expected = |learns: bool| learns.then_some(NARROW);
        assert_eq!(learnt, (expected(client_learns), expected(backend_learns)), "{forwarding:?} {family:?}");
    }
}

#[test]
fn the_balancers_link_to_the_backends_is_narrow_with_dsr() {
    adapts_to_the_balancers_link(Forwarding::Dsr, "eth1", true, false);
}

#[test]
fn the_balancers_link_to_the_backends_is_narrow_with_nat() {
    adapts_to_the_balancers_link(Forwarding::Nat, "eth1", true, false);
}

#[test]
fn the_balancers_link_to_the_clients_is_narrow_with_nat() {
    adapts_to_the_balancers_link(Forwarding::Nat, "eth0", false, true);
}
