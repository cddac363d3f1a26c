//! Tests of replies to many clients behind a router: the controller publishes the router as the next hop, and replies
//! arrive whatever changes on the way to the router.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use aya::maps::{Array, Map, MapData};
use balancer_common::map_types::{
    DefaultHopHeader, DefaultHopRow, FAMILY_V4, FAMILY_V6, Forwarding, Mac, default_hop_header, default_hop_row,
};
use balancer_dataplane::coarse_now;
use balancer_testkit::{
    far::Far,
    http_client::{Request, send_all},
    site::{PATIENCE, Site, WORKERS},
    topology::{Family, Shape, Topology},
};

use crate::support::wait;

/// The MAC address that the router gets during the test.
const OTHER_MAC: (&str, Mac) = ("02:00:00:00:08:77", [2, 0, 0, 0, 8, 0x77]);

/// The rows of the map of next hops of a running controller.
struct NextHops(Array<MapData, [u64; 8]>);

impl NextHops {
    /// Opens the map of the process `process`.
    fn of(process: u32) -> Self {
        let ids = fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap().filter_map(|file| {
            let text = fs::read_to_string(file.unwrap().path()).ok()?;
            text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u32>().ok())
        });
        let mut maps = ids.filter_map(|id| MapData::from_id(id).ok());
        let map = maps.find(|map| map.info().is_ok_and(|info| info.name_as_str() == Some("NEXT_HOP_CACHE")));
        Self(Map::Array(map.unwrap()).try_into().unwrap())
    }

    /// The MAC address of the gateway that the controller has published; `None`: the program asks the kernel.
    fn gateway(&self, family: Family) -> Option<Mac> {
        let number = if family == Family::V4 { FAMILY_V4 } else { FAMILY_V6 };
        let header: DefaultHopHeader = bytemuck::cast(self.0.get(&default_hop_header(number), 0).unwrap());
        if u128::from(header.until) <= coarse_now().unwrap().as_nanos() {
            return None;
        }
        let row: DefaultHopRow =
            bytemuck::cast(self.0.get(&default_hop_row(number, header.until as u32 & 1), 0).unwrap());
        Some(row.destination_mac)
    }
}

struct Clients {
    site: Site,
    far: Far,
    clients: Vec<(Family, Vec<IpAddr>)>,
}

impl Clients {
    fn new(forwarding: Forwarding) -> Self {
        let site = Site::start(Shape::OneLegged, forwarding, 3, |settings, _: &Topology| {
            settings.families = Family::BOTH.to_vec();
            settings.on_exit = "keep";
            Ok(())
        })
        .unwrap();
        let far = Far::join(site.topology(), forwarding).unwrap();
        // The router tells its neighbours when its MAC address changes.
        far.gateway().sysctl("net/ipv4/conf/eth0/arp_notify", "1").unwrap();
        far.gateway().sysctl("net/ipv6/conf/eth0/ndisc_notify", "1").unwrap();
        let clients =
            Family::BOTH.map(|family| (family, far.add_clients(site.topology(), forwarding, family).unwrap()));
        Self { site, far, clients: clients.into() }
    }

    fn are_answered(&self, when: &str) {
        for (family, clients) in &self.clients {
            let requests: Vec<Request> = clients
                .iter()
                .map(|&client| Request {
                    source: SocketAddr::new(client, 0),
                    timeout: PATIENCE,
                    ..self.site.request(*family, 1)
                })
                .collect();
            for (request, reply) in requests.iter().zip(send_all(self.far.host(), &requests, WORKERS).unwrap()) {
                assert!(reply.is_ok(), "{when}: {request:?}: {reply:?}");
            }
        }
    }

    fn next_hops(&mut self) -> NextHops {
        NextHops::of(self.site.controller().process().pid())
    }

    fn both(&self, arguments: &str, [v4, v6]: [&str; 2]) {
        for (flag, address) in [("-4", v4), ("-6", v6)] {
            self.site.topology().balancer().ip(&format!("{flag} {}", arguments.replace("ADDRESS", address))).unwrap();
        }
    }
}

/// Waits until the gateway that the controller has published for each family is as wanted.
fn await_gateways(hops: &NextHops, what: &str, wanted: impl Fn(Option<Mac>) -> bool) {
    wait(what, || Family::BOTH.into_iter().all(|family| wanted(hops.gateway(family))));
}

fn follow(forwarding: Forwarding) {
    let mut clients = Clients::new(forwarding);
    let hops = clients.next_hops();
    await_gateways(&hops, "the router is published", |mac| mac.is_some());
    clients.are_answered("before any change");

    clients.far.gateway().ip(&format!("link set eth0 address {}", OTHER_MAC.0)).unwrap();
    await_gateways(&hops, "the router's other MAC address is published", |mac| mac == Some(OTHER_MAC.1));
    clients.are_answered("after the router's MAC address has changed");

    let routers = Family::BOTH.map(|family| Far::router(family).to_string());
    let routers = routers.each_ref().map(String::as_str);
    let vips = Family::BOTH.map(|family| clients.site.topology().vip(family).to_string());
    let vips = vips.each_ref().map(String::as_str);
    clients.both("route add default via ADDRESS table 100", routers);
    clients.both("rule add from ADDRESS lookup 100", vips);
    await_gateways(&hops, "nothing is published with policy rules", |mac| mac.is_none());
    clients.are_answered("with policy rules");
    clients.both("rule del from ADDRESS lookup 100", vips);
    await_gateways(&hops, "the router is published without policy rules", |mac| mac == Some(OTHER_MAC.1));

    // A killed controller leaves the program alone, which then asks the kernel.
    clients.site.kill_balancer().unwrap();
    clients.far.gateway().ip("link set eth0 address 02:00:00:00:08:78").unwrap();
    clients.are_answered("without a controller");
    clients.site.start_again().unwrap();
    await_gateways(&clients.next_hops(), "the next controller publishes the router", |mac| {
        mac == Some([2, 0, 0, 0, 8, 0x78])
    });
    clients.are_answered("with the next controller");
}

#[test]
fn when_the_way_to_many_clients_changes_then_nat_replies_follow() {
    follow(Forwarding::Nat);
}

#[test]
fn when_the_way_to_many_clients_changes_then_snat_replies_follow() {
    follow(Forwarding::Snat);
}
