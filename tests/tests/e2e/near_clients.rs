//! Tests of clients in the same subnet as their `nat` backends. The backends' answers bypass the balancer, so the
//! clients time out, and the balancer must tell the operator the reason.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use balancer_api::model::StatusView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, PORT, Site},
    topology::{Family, Shape, Topology},
};

/// The time limit of the client, which expires after the second SYN.
const SHORT: Duration = Duration::from_millis(1500);

fn own_address(site: &Site, family: Family) -> IpAddr {
    let peer = SocketAddr::new(site.topology().backend_address(family, 0), 9);
    let of_route = || {
        let socket = UdpSocket::bind(if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(peer)?;
        socket.local_addr()
    };
    site.topology().client().run_in_thread(of_route).unwrap().unwrap().ip()
}

fn connect(site: &Site, family: Family) -> io::Result<TcpStream> {
    let vip = SocketAddr::new(site.topology().vip(family), PORT);
    site.topology().client().run_in_thread(|| TcpStream::connect_timeout(&vip, SHORT)).unwrap()
}

fn named(status: &StatusView, client: IpAddr) -> bool {
    let line =
        |warning: &String| warning.starts_with(&format!("client {client} and backend web")) && warning.contains("snat");
    status.services.iter().flat_map(|service| &service.warnings).any(line)
}

/// Checks that the log names the client once after `pause`.
fn is_said_once(pause: Duration) {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        settings.remember = "60s";
        settings.check = balancer_testkit::site::QUICK_CHECK.to_owned();
        Ok(())
    })
    .unwrap();
    let [v4, v6] = Family::BOTH.map(|family| own_address(&site, family));
    // With the following routes, the backends answer through the balancer.
    let (balancer, _) = Topology::balancer_address(Family::V6);
    for backend in site.topology().backends() {
        backend.ip(&format!("route add {v6} via {balancer}")).unwrap();
    }
    for _ in 0..3 {
        let error = connect(&site, Family::V4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        connect(&site, Family::V6).unwrap();
    }
    site.homes(Family::V4, 1..=10).unwrap();
    site.controller().wait_for(3 * PATIENCE, "the client is not named", |status| named(status, v4)).unwrap();
    assert!(!named(&site.status().unwrap(), v6));
    let said = site.cli(&["status"]).unwrap();
    assert!(said.contains(&format!("client {v4} and backend web")), "{said}");
    std::thread::sleep(pause);
    let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
    assert_eq!(
        (log.matches(&format!("client {v4} and")).count(), log.matches("are on the same link (eth0)").count()),
        (1, 1),
        "{log}"
    );
}

#[test]
fn when_a_client_is_in_the_subnet_of_nat_backends_then_that_is_said_once_and_only_of_those_without_an_answer() {
    is_said_once(Duration::ZERO);
}
