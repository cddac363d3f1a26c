//! Tests of a link with a smaller MTU than client and backend expect. ICMP errors of routers and of the balancer must
//! reach the sender, and large transfers must arrive in both directions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::net::IpAddr;

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    far::{Far, NARROW},
    namespace::{Namespace, join},
    site::Site,
    topology::{Family, Shape, Topology},
    transfer::{Transfer, add_services},
};

use crate::support::wait;

const BYTES: u64 = 8 << 20;
/// An upload of one MiB contains segments of the largest size.
const UPLOAD: u64 = 1 << 20;
const BACKENDS: u16 = 4;

fn site(shape: Shape, forwarding: Forwarding) -> Site {
    Site::start(shape, forwarding, BACKENDS, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        add_services(settings, topology);
        Ok(())
    })
    .unwrap()
}

/// Returns the MTU that the kernel of `host` has learnt for the path from `from` to `to`.
fn learnt(host: &Namespace, from: IpAddr, to: IpAddr) -> Option<u32> {
    let route = host.ip(&format!("route get {to} from {from}")).unwrap();
    let (_, rest) = route.split_once(" mtu ")?;
    rest.split_whitespace().next().unwrap().parse().ok()
}

/// Returns the source address of packets that a backend sends.
fn own_address(site: &Site, forwarding: Forwarding, family: Family, number: u16) -> IpAddr {
    match forwarding {
        Forwarding::Nat | Forwarding::Snat => site.topology().backend_address(family, number - 1),
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => site.topology().vip(family),
    }
}

/// Returns the address to which a backend sends its answers: with `snat` the balancer's own.
fn answers_to(forwarding: Forwarding, family: Family, client: IpAddr) -> IpAddr {
    if forwarding == Forwarding::Snat { Topology::balancer_address(family).0 } else { client }
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
        let to = answers_to(forwarding, family, client);
        assert_eq!((learnt(far.host(), client, vip), learnt(backend, own, to)), (None, None));

        let took = transfer.tcp(BYTES, BYTES).unwrap();
        println!("{shape:?} {forwarding:?} {family:?}: {} MB up and down in {took:?}", BYTES >> 20);
        assert_eq!(learnt(far.host(), client, vip), Some(NARROW), "{forwarding:?} {family:?}: the client");
        assert_eq!(learnt(backend, own, to), Some(NARROW), "{forwarding:?} {family:?}: the backend");
    }
}

#[test]
fn when_a_router_has_a_smaller_mtu_with_nat_then_transfers_adapt() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Nat);
}

#[test]
fn when_a_router_has_a_smaller_mtu_with_gue_then_transfers_adapt() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Gue);
}

/// Checks transfers over a link of the balancer with the smallest MTU. The balancer reports the MTU of this link to the
/// sender.
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
            learnt(&site.topology().backends()[usize::from(number) - 1], own, answers_to(forwarding, family, client)),
        );
        let expected = |learns: bool| learns.then_some(NARROW);
        assert_eq!(learnt, (expected(client_learns), expected(backend_learns)), "{forwarding:?} {family:?}");
    }
}

#[test]
fn when_the_balancers_link_to_the_clients_is_narrow_with_nat_then_transfers_adapt() {
    adapts_to_the_balancers_link(Forwarding::Nat, "eth0", false, true);
}

/// A router on the balancer's segment, on the way to the backends, with a smaller MTU.
fn narrow_router(site: &Site) -> Namespace {
    let topology = site.topology();
    let router = Namespace::new("router").unwrap();
    join((&router, "eth0"), (topology.switch(), "router")).unwrap();
    topology.switch().ip("link set router master br0").unwrap();
    for (namespace, setting, value) in [
        (&router, "net/ipv4/conf/all/forwarding", "1"),
        (&router, "net/ipv6/conf/all/forwarding", "1"),
        // The router sends packets back to the segment from which the packets came, and must not send redirects because
        // of these packets.
        (&router, "net/ipv4/conf/all/send_redirects", "0"),
        (&router, "net/ipv4/conf/eth0/send_redirects", "0"),
        (topology.balancer(), "net/ipv6/conf/all/accept_redirects", "0"),
        (topology.balancer(), "net/ipv6/conf/eth0/accept_redirects", "0"),
    ] {
        namespace.sysctl(setting, value).unwrap();
    }
    for family in Family::BOTH {
        let (length, nodad) = if family == Family::V4 { (16, "") } else { (64, "nodad") };
        router.ip(&format!("addr add {}/{length} dev eth0 {nodad}", Far::router(family))).unwrap();
        for number in 0..BACKENDS {
            let backend = topology.backend_address(family, number);
            router.ip(&format!("route add {backend} dev eth0 mtu lock {NARROW}")).unwrap();
        }
    }
    router
}

fn way_to_backends(site: &Site, family: Family, and: &str) {
    for number in 0..BACKENDS {
        let (backend, router) = (site.topology().backend_address(family, number), Far::router(family));
        site.topology().balancer().ip(&format!("route replace {backend} via {router} {and}")).unwrap();
    }
}

/// Checks that a client adapts to each of several MTUs, which become smaller and smaller. The client's path MTU only
/// decreases, so the test need not make the client forget a learnt value.
fn adapts_to_the_tunnels_way(forwarding: Forwarding, overhead: [u32; 2]) {
    let site = site(Shape::OneLegged, forwarding);
    let _router = narrow_router(&site);
    for (family, overhead) in Family::BOTH.into_iter().zip(overhead) {
        let transfer = Transfer::new(&site, forwarding, family, 1);
        let believes = |fits: u32| {
            transfer.tcp(UPLOAD, 100).unwrap();
            learnt(site.topology().client(), transfer.source, site.topology().vip(family)) == Some(fits - overhead)
        };
        assert!(believes(1500), "{forwarding:?} {family:?}: the segment");
        way_to_backends(&site, family, "");
        wait(&format!("{forwarding:?} {family:?}: a router's error is not heard"), || believes(NARROW));
        way_to_backends(&site, family, "mtu 1360");
        wait(&format!("{forwarding:?} {family:?}: the route's MTU is not heeded"), || believes(1360));
    }
}

#[test]
fn when_a_router_on_the_way_of_gue_or_the_route_is_narrow_then_clients_adapt() {
    adapts_to_the_tunnels_way(Forwarding::Gue, [28, 48]);
}
