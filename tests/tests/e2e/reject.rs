//! Tests of `reject = true`: if no backend can take a client, the balancer's answer makes the client's kernel report an
//! error at once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

/// A time limit that is longer than an answer takes and shorter than a client's own timeout.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts a site with UDP services that have no backends and with TCP services, all with the given setting of `reject`.
fn site(reject: bool, forwarding: Forwarding) -> Site {
    Site::start(Shape::TwoLegged, forwarding, 1, |settings, topology| {
        settings.families = vec![Family::V4, Family::V6];
        settings.service_lines = format!("reject = {reject}");
        for family in Family::BOTH {
            let address = SocketAddr::new(topology.vip(family), 53);
            settings.lines += &format!(
                "[[service]]\nname = \"udp-{family:?}\"\naddress = \"{address}\"\nprotocol = \"udp\"\n\
                 forwarding = \"nat\"\nreject = {reject}\n"
            );
        }
        Ok(())
    })
    .unwrap()
}

fn connect(site: &Site, family: Family) -> ErrorKind {
    let vip = SocketAddr::new(site.topology().vip(family), 80);
    let client = site.topology().client();
    client.run_in_thread(|| TcpStream::connect_timeout(&vip, PATIENCE)).unwrap().unwrap_err().kind()
}

/// Sends a datagram, and returns the error that the client gets.
fn ask(site: &Site, family: Family, patience: Duration) -> ErrorKind {
    let vip = SocketAddr::new(site.topology().vip(family), 53);
    let asked = site.topology().client().run_in_thread(|| {
        let socket = UdpSocket::bind(if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(vip)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(b"anybody?")?;
        socket.recv(&mut [0; 16])
    });
    asked.unwrap().unwrap_err().kind()
}

#[test]
fn when_a_service_has_no_backend_for_clients_then_they_are_refused_at_once() {
    let site = site(true, Forwarding::Nat);
    for family in Family::BOTH {
        site.cli(&["backend", "maint", &format!("{}/web1", balancer_testkit::site::service(family))]).unwrap();
        assert_eq!(connect(&site, family), ErrorKind::ConnectionRefused, "{family:?}");
        assert_eq!(ask(&site, family, PATIENCE), ErrorKind::ConnectionRefused, "{family:?}");
    }
    let rejected = site.metrics().unwrap().sum("replies_total", &["kind=\"rejected\""]).unwrap();
    assert!(rejected >= 4.0, "{rejected}");
}

#[test]
fn when_a_rule_denies_clients_then_they_are_refused_at_once() {
    let site = site(true, Forwarding::Nat);
    for (family, everybody) in [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")] {
        site.cli(&["rule", "add", balancer_testkit::site::service(family), everybody, "deny"]).unwrap();
        assert_eq!(connect(&site, family), ErrorKind::ConnectionRefused, "{family:?}");
    }
}

/// A change of `reject` takes effect at once. Without `reject = true`, clients get no answer.
#[test]
fn when_a_reload_changes_reject_then_it_takes_effect_at_once() {
    let site = site(false, Forwarding::Nat);
    assert_eq!(ask(&site, Family::V4, Duration::from_millis(300)), ErrorKind::WouldBlock);
    let file = site.config();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("reject = false", "reject = true")).unwrap();
    site.cli(&["apply", file.to_str().unwrap()]).unwrap();
    for family in Family::BOTH {
        assert_eq!(ask(&site, family, PATIENCE), ErrorKind::ConnectionRefused, "{family:?}");
    }
}
