//! Tests with a load generator that opens a connection for each request, as a newcomer's first benchmark does, against
//! nginx and a balancer with default settings.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

use crate::{
    real_servers::{NGINX_PORT, start_nginx},
    support::wait,
};

const REQUESTS: u64 = 30_000;
const SHOP_PORT: u16 = 90;

/// Sends the requests of one client address, 50 at a time, and returns what `ab` reports under `what`.
fn ab(site: &Site, vip: SocketAddr, program: &Path) -> impl Fn(&str) -> u64 {
    // The host's own address is on the link of the servers, which would answer it past the balancer with `nat`.
    let client = site.topology().client_address(Family::V4, 1).to_string();
    let arguments = ["-n", &REQUESTS.to_string(), "-c", "50", "-B", &client, &format!("http://{vip}/")];
    let output = site.topology().client().command(program).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    move |what| {
        let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        line.and_then(|figure| figure.trim().parse().ok()).unwrap_or_else(|| panic!("{what} of {text}"))
    }
}

#[test]
fn when_one_client_opens_a_connection_for_each_request_then_all_requests_are_served() {
    let program = PathBuf::from("/usr/bin/ab");
    assert!(program.exists(), "ab is missing: `cargo xtask setup` installs it");
    for forwarding in [Forwarding::Snat, Forwarding::Nat] {
        let mut shop = None;
        let site = Site::start(Shape::OneLegged, forwarding, 2, |settings, topology| {
            let vip = SocketAddr::new(topology.vip(Family::V4), SHOP_PORT);
            let mode = forwarding_word(forwarding);
            settings.lines = format!("[[service]]\nname = \"shop\"\naddress = \"{vip}\"\nforwarding = \"{mode}\"\n");
            for number in 1..=2 {
                let address = SocketAddr::new(topology.backend_address(Family::V4, number - 1), NGINX_PORT);
                settings.lines += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n");
            }
            shop = Some(vip);
            Ok(())
        })
        .unwrap();
        let _servers = [1, 2].map(|number| start_nginx(&site, number).unwrap());
        let backends = || {
            let service = site.status().unwrap().services.into_iter().find(|service| service.name == "shop").unwrap();
            service.backends
        };
        wait("the servers are not up", || backends().iter().all(|backend| backend.state == "up"));
        let figure = ab(&site, shop.unwrap(), &program);
        assert_eq!((figure("Complete requests"), figure("Failed requests")), (REQUESTS, 0), "{forwarding:?}");
        assert_eq!(String::from_utf8(site.output(&["ready"]).unwrap().stdout).unwrap(), "ready\n", "{forwarding:?}");
        let counted: Vec<_> = backends().into_iter().filter_map(|backend| backend.handshakes).collect();
        println!("{forwarding:?}: {counted:?}");
        assert!(counted.iter().all(|of| of.unanswered * 100 <= of.completed), "{forwarding:?}: {counted:?}");
    }
}
