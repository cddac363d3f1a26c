//! Tests of the thread that publishes the default next hops, with the kernel's real tables: after each change, replies
//! leave as the kernel would send them. Each test waits until the thread has seen the change.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::{ExcludedPrefix, address_key, ingress_bit};
use balancer_control::default_hop::DefaultHop;
use balancer_netlink::neighbours::{DefaultHopThread, PublishedHops};
use balancer_testkit::{
    rig::{IN_MAC, ROUTER_MAC, Rig},
    site::PATIENCE,
};

use crate::next_hop_cache::{BACKENDS, LATER, OTHER_ROUTER_MAC, XDP_REDIRECT, XDP_TX, ip, leaves, with_own_rig};

const XDP_DROP: u32 = 1;
const NEAR: (u32, [u8; 6]) = (XDP_TX, ROUTER_MAC);
const FAR: (u32, [u8; 6]) = (XDP_REDIRECT, OTHER_ROUTER_MAC);
/// Clients that have no route but the default route.
const CLIENTS: [&str; 2] = ["198.18.4.4:40000", "[2001:db8:e::7]:40000"];
/// Clients in prefixes that get a route of their own during the test.
const PREFERRED: [&str; 2] = ["198.19.8.8:40000", "[2001:db8:f::7]:40000"];

/// A rig whose default routes lead to the router on the ingress interface, and the thread that follows the routes.
struct Following {
    rig: Rig,
    thread: DefaultHopThread,
}

fn with_default_routes(test: impl FnOnce(&Following) + Send + 'static) {
    with_own_rig(|mut rig| {
        ip("route add default via 10.0.0.254");
        ip("-6 route add default via fd00::fe");
        let thread = rig.follow_default_routes().unwrap();
        let this = Following { rig, thread };
        this.await_both(ROUTER_MAC);
        this.all_leave(NEAR);
        test(&this);
    });
}

impl Following {
    /// Waits until the published next hops are as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&PublishedHops) -> bool) {
        let begun = Instant::now();
        while !wanted(&self.thread.published()) {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", self.thread.published());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn await_both(&self, mac: [u8; 6]) {
        self.until("both families are published", |published| {
            published.iter().all(|hop| hop.as_ref().is_some_and(|hop| hop.destination_mac == mac))
        });
    }

    fn await_none(&self, what: &str) {
        self.until(what, |published| published.iter().all(Option::is_none));
    }

    /// Checks that replies to the clients leave as expected. Before, the next hops expire that the program has cached.
    fn leave(&self, clients: [&str; 2], expected: (u32, [u8; 6])) {
        thread::sleep(LATER);
        for ((backend, _), client) in BACKENDS.iter().zip(clients) {
            for _ in 0..3 {
                assert_eq!(leaves(&self.rig, backend, client), expected, "{client}");
            }
        }
    }

    fn all_leave(&self, expected: (u32, [u8; 6])) {
        self.leave(CLIENTS, expected);
        self.leave(PREFERRED, expected);
    }
}

/// Runs the same command for IPv4 and for IPv6.
fn both(v4: &str, v6: &str) {
    ip(v4);
    ip(&format!("-6 {v6}"));
}

fn excludes(hop: &DefaultHop, client: &str) -> bool {
    let client: SocketAddr = client.parse().unwrap();
    let key = match client.ip() {
        IpAddr::V4(address) => address_key(&[u32::from_ne_bytes(address.octets()), 0, 0, 0]),
        IpAddr::V6(address) => address_key(&bytemuck::cast(address.octets())),
    };
    hop.excluded.iter().any(|prefix: &ExcludedPrefix| prefix.contains(key))
}

#[test]
fn when_the_gateway_gets_another_mac_then_replies_follow() {
    with_default_routes(|this| {
        const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
        both(
            "neigh replace 10.0.0.254 lladdr 02:00:00:00:00:77 dev in0 nud reachable",
            "neigh replace fd00::fe lladdr 02:00:00:00:00:77 dev in0 nud reachable",
        );
        this.await_both(OTHER);
        this.all_leave((XDP_TX, OTHER));
        both("neigh del 10.0.0.254 dev in0", "neigh del fd00::fe dev in0");
        this.await_none("the gateways have no MAC addresses");
        both(
            "neigh replace 10.0.0.254 lladdr 02:00:00:00:00:09 dev in0 nud permanent",
            "neigh replace fd00::fe lladdr 02:00:00:00:00:09 dev in0 nud permanent",
        );
        this.await_both(ROUTER_MAC);
        this.all_leave(NEAR);
    });
}

#[test]
fn when_a_more_specific_route_appears_then_only_its_destinations_leave_by_it() {
    with_default_routes(|this| {
        both("route add 198.19.0.0/16 via 10.0.1.254", "route add 2001:db8:f::/48 via fd01::fe");
        let is_excluded = |published: &PublishedHops| {
            let hops = published.iter().zip(PREFERRED);
            hops.into_iter().all(|(hop, client)| hop.as_ref().is_some_and(|hop| excludes(hop, client)))
        };
        this.until("the new prefixes are excluded", is_excluded);
        this.leave(PREFERRED, FAR);
        this.leave(CLIENTS, NEAR);
        both("route del 198.19.0.0/16", "route del 2001:db8:f::/48");
        this.all_leave(NEAR);
    });
}

#[test]
fn when_the_default_route_changes_then_replies_follow() {
    with_default_routes(|this| {
        both("route replace default via 10.0.1.254", "route replace default via fd01::fe");
        this.await_both(OTHER_ROUTER_MAC);
        this.all_leave(FAR);
        // Of two default routes, the kernel chooses the one with the lower metric.
        both("route add default via 10.0.0.254 metric 7", "route add default via fd00::fe metric 7");
        this.await_none("there are two default routes");
        both("route del default via 10.0.1.254", "route del default via fd01::fe");
        this.await_both(ROUTER_MAC);
        this.all_leave(NEAR);
        both("route del default", "route del default");
        this.await_none("there is no default route");
    });
}

#[test]
fn when_the_default_route_is_not_plain_then_the_kernel_is_asked() {
    with_default_routes(|this| {
        let dropped = (XDP_DROP, IN_MAC);
        for (route, leave) in [
            ("default via NEAR mtu 1200", Some(NEAR)),
            ("unreachable default", Some(dropped)),
            ("default nexthop via NEAR weight 256 nexthop via FAR weight 1", None),
        ] {
            let of = |near, far| format!("route add {}", route.replace("NEAR", near).replace("FAR", far));
            both("route flush exact default", "route flush exact default");
            both(&of("10.0.0.254", "10.0.1.254"), &of("fd00::fe", "fd01::fe"));
            this.await_none(route);
            if let Some(leave) = leave {
                this.all_leave(leave);
            }
            both("route flush exact default", "route flush exact default");
            both("route add default via 10.0.0.254", "route add default via fd00::fe");
            this.await_both(ROUTER_MAC);
            this.all_leave(NEAR);
        }
    });
}

#[test]
fn when_a_policy_rule_appears_then_the_kernel_is_asked() {
    with_default_routes(|this| {
        both("route add default via 10.0.1.254 table 100", "route add default via fd01::fe table 100");
        both("rule add from 198.51.100.20 lookup 100", "rule add from 2001:db8::20 lookup 100");
        this.await_none("there are policy rules");
        this.all_leave(FAR);
        both("rule del from 198.51.100.20 lookup 100", "rule del from 2001:db8::20 lookup 100");
        this.await_both(ROUTER_MAC);
        this.all_leave(NEAR);
    });
}

#[test]
fn when_an_interface_changes_then_replies_follow() {
    with_default_routes(|this| {
        let bit = ingress_bit(this.rig.in_ifindex);
        for family in ["ipv4", "ipv6"] {
            fs::write(format!("/proc/sys/net/{family}/conf/in0/forwarding"), "0").unwrap();
        }
        this.until("packets of the interface are not forwarded", |published| {
            published.iter().all(|hop| hop.as_ref().is_none_or(|hop| hop.ingresses & bit == 0))
        });
        for family in ["ipv4", "ipv6"] {
            fs::write(format!("/proc/sys/net/{family}/conf/in0/forwarding"), "1").unwrap();
        }
        this.await_both(ROUTER_MAC);
        this.until("packets of the interface are forwarded", |published| {
            published.iter().all(|hop| hop.as_ref().is_some_and(|hop| hop.ingresses & bit != 0))
        });
        this.all_leave(NEAR);
        ip("link set in0 address 02:00:00:00:00:03");
        // The kernel forgets the neighbours of an interface whose address changes.
        both(
            "neigh replace 10.0.0.254 lladdr 02:00:00:00:00:09 dev in0 nud permanent",
            "neigh replace fd00::fe lladdr 02:00:00:00:00:09 dev in0 nud permanent",
        );
        this.until("the interface has another MAC address", |published| {
            published.iter().all(|hop| hop.as_ref().is_some_and(|hop| hop.source_mac == [2, 0, 0, 0, 0, 3]))
        });
        ip("link set in0 down");
        this.await_none("the interface is down");
    });
}
