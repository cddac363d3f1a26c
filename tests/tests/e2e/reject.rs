//! `reject = true`: clients that nobody takes are told at once, by their own kernel's words.
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

/// Long past what an answer takes, and long before a client gives up by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// A site whose services, over TCP, have no backends, beside ones over UDP; `reject` as it says.
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
fn clients_of_nobody_are_refused_at_once() {
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
fn the_denied_are_refused_at_once() {
    let site = site(true, Forwarding::Nat);
    for (family, everybody) in [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")] {
        site.cli(&["rule", "add", balancer_testkit::site::service(family), everybody, "deny"]).unwrap();
        assert_eq!(connect(&site, family), ErrorKind::ConnectionRefused, "{family:?}");
    }
}

/// With a file that says otherwise, at once; and nobody is told unless it says so.
#[test]
fn a_reload_changes_it() {
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
