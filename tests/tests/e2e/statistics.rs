//! Tests that all reported numbers of known clients, packets and moves are correct.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use balancer_api::statistics::{StatsView, TopClient};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    metrics::Metrics,
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};

const FAMILY: Family = Family::V4;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=200;
const TABLE_SIZE: f64 = 65_537.0;
const BULK_PORT: u16 = 5300;
const PAYLOAD: usize = 958;
/// The length of an Ethernet frame with an IPv4 header, a UDP header and the payload, in bytes.
const FRAME: f64 = (14 + 20 + 8 + PAYLOAD) as f64;

/// Makes all clients send a request, and updates `homes`. Returns the clients that have moved, each with its previous
/// backend.
fn visit(site: &Site, homes: &mut BTreeMap<u16, String>) -> BTreeMap<u16, String> {
    let now = site.homes(FAMILY, CLIENTS).unwrap();
    let moved = homes.iter().filter(|&(client, home)| now.get(client) != Some(home));
    let moved = moved.map(|(&client, home)| (client, home.clone())).collect();
    *homes = now;
    moved
}

fn of(homes: &BTreeMap<u16, String>, backend: &str) -> usize {
    homes.values().filter(|home| *home == backend).count()
}

/// Returns the number of frames that the balancer's first interface has received, according to the kernel.
fn received(site: &Site) -> f64 {
    let interface = site.topology().interfaces()[0];
    let shown = site.topology().balancer().ip(&format!("-s -j link show dev {interface}")).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_f64().unwrap()
}

fn at_rest(site: &Site) -> (f64, Metrics) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = received(site);
        let metrics = site.metrics().unwrap();
        if received(site) == before {
            return (before, metrics);
        }
        assert!(Instant::now() < deadline, "no silence on the balancer's interface");
        thread::sleep(Duration::from_millis(20));
    }
}

fn top(site: &Site, arguments: &[&str]) -> Vec<TopClient> {
    let text = site.cli(&[&["client", "top", "--json"], arguments].concat()).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn when_clients_traffic_and_moves_are_known_then_every_reported_number_is_right() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, topology| {
        settings.remember = "60s";
        settings.check =
            r#"{ type = "http", path = "/healthz", interval = "300ms", timeout = "250ms", fall = 3, rise = 2 }"#
                .to_owned();
        settings.service_lines = "failback = \"return\"\n".to_owned();
        let vip = SocketAddr::new(topology.vip(FAMILY), BULK_PORT);
        settings.lines = format!(
            "[statistics]\nsample_interval = 1\nheavy_client_share = 0.5\n\
             [[service]]\nname = \"bulk\"\naddress = \"{vip}\"\nprotocol = \"udp\"\nforwarding = \"nat\"\nspread_heavy = 0.2\n\
             remember = \"60s\"\ncheck = {{ type = \"none\" }}\n"
        );
        for number in 1..=4 {
            let address = SocketAddr::new(topology.backend_address(FAMILY, number - 1), 5301);
            settings.lines += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n");
        }
        Ok(())
    })
    .unwrap();
    for number in 1..=4 {
        site.wait_state(number, &["up", "checking"]).unwrap();
    }
    let discard = SocketAddr::new(site.topology().client_address(FAMILY, 1), 9);
    let connect = || TcpStream::connect_timeout(&discard, PATIENCE).unwrap_err().kind();
    assert_eq!(site.topology().balancer().run_in_thread(connect).unwrap(), io::ErrorKind::ConnectionRefused);
    // The metrics also count the refused connection, so the test reads the metrics only after the refusal.
    let (frames_before, before) = at_rest(&site);

    // The test records which clients move to which backend at which time.
    let everybody = CLIENTS.count();
    let mut homes = BTreeMap::new();
    visit(&site, &mut homes);
    assert!(visit(&site, &mut homes).is_empty());
    let at_web3 = of(&homes, "web3");
    site.kill_backend(3).unwrap();
    site.controller().wait_for(PATIENCE, "web3 of web to be down", |status| state(status, "web3") == "down").unwrap();
    assert_eq!(visit(&site, &mut homes).len(), at_web3);
    site.start_backend(3).unwrap();
    site.controller().wait_for(PATIENCE, "web3 of web to be up", |status| state(status, "web3") == "up").unwrap();
    assert_eq!(visit(&site, &mut homes).len(), at_web3);
    assert_eq!(of(&homes, "web3"), at_web3);
    let at_web2 = of(&homes, "web2");
    site.cli(&["backend", "drain", "web/web2", "--timeout", "2s", "--wait"]).unwrap();
    assert_eq!(visit(&site, &mut homes).len(), at_web2);
    let at_web1 = of(&homes, "web1");
    site.cli(&["backend", "remove", "web/web1", "--force"]).unwrap();
    assert_eq!(visit(&site, &mut homes).len(), at_web1);
    let visits = 6 * everybody;
    let moved = 2 * at_web3 + at_web2 + at_web1;
    assert!(at_web1 > 0 && at_web2 > 0 && at_web3 > 0);

    let (frames, after) = at_rest(&site);
    let gained =
        |name: &str, labels: &[&str]| after.sum(name, labels).unwrap() - before.sum(name, labels).unwrap_or(0.0);
    let decided = |result: &str| gained("decisions_total", &["service=\"web\"", &format!("result=\"{result}\"")]);
    assert_eq!(decided("new"), everybody as f64);
    assert_eq!(decided("moved"), moved as f64);
    assert_eq!(decided("kept"), (visits - everybody - moved) as f64);
    assert_eq!(gained("decisions_total", &["service=\"web\""]), visits as f64);
    let moves = |from: &str, cause: &str| {
        let labels = ["service=\"web\"", &format!("from=\"{from}\""), &format!("cause=\"{cause}\"")];
        after.sum("moves_total", &labels).unwrap_or(0.0)
    };
    assert_eq!(moves("web3", "down"), at_web3 as f64);
    assert_eq!(moves("web2", "drain"), at_web2 as f64);
    assert_eq!(moves("web1", "removed"), at_web1 as f64);
    assert_eq!(after.sum("moves_total", &["service=\"web\"", "cause=\"failback\""]).unwrap(), at_web3 as f64);
    assert_eq!(after.sum("moves_total", &["service=\"web\""]).unwrap(), moved as f64);
    let stickiness = after.sum("stickiness_ratio", &["service=\"web\""]).unwrap();
    let truth = (visits - everybody - moved) as f64 / (visits - everybody) as f64;
    assert!((stickiness - truth).abs() < 1e-9, "{stickiness} instead of {truth}");
    assert_eq!(after.sum("table_slots", &["service=\"web\""]).unwrap(), TABLE_SIZE);
    assert_eq!(frames - frames_before, gained("packets_seen_total", &[]), "verdicts and frames");

    // After the next sweep, the number of known clients is correct.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = site.metrics().unwrap();
        let known = |backend: &str| {
            metrics.sum("known_clients", &["service=\"web\"", &format!("backend=\"{backend}\"")]).unwrap() as usize
        };
        if ["web2", "web3", "web4"].iter().all(|backend| known(backend) == of(&homes, backend)) {
            break;
        }
        assert!(Instant::now() < deadline, "known clients: {homes:?}");
        thread::sleep(Duration::from_millis(100));
    }

    // The output of `stats` contains the same numbers.
    let stats: Vec<StatsView> = serde_json::from_str(&site.cli(&["stats", "web", "--json"]).unwrap()).unwrap();
    let start = stats[0].periods.iter().find(|period| period.period == "start").unwrap();
    assert_eq!(start.decisions["moved"], moved as u64);
    assert_eq!(
        (start.moves["down"], start.moves["drain"], start.moves["removed"]),
        (at_web3 as u64, at_web2 as u64, at_web1 as u64)
    );
    let change = stats[0].table.last_change.clone().unwrap();
    assert!(change.message.contains("web/web1 removed") && change.slots_moved > 0, "{change:?}");
    println!("{}", site.cli(&["stats", "web"]).unwrap());

    heavy_clients_are_named(&mut site);
}

/// One of 21 clients sends 60% of the bytes of `bulk`.
fn heavy_clients_are_named(site: &mut Site) {
    const HEAVY: u16 = 700;
    let vip = SocketAddr::new(site.topology().vip(FAMILY), BULK_PORT);
    let before = site.metrics().unwrap();
    let client = |number| site.topology().client_address(FAMILY, number);
    let sending = || -> io::Result<()> {
        let heavy = UdpSocket::bind((client(HEAVY), 0))?;
        let others = (1..=20).map(|number| UdpSocket::bind((client(number), 0))).collect::<io::Result<Vec<_>>>()?;
        for _ in 0..100 {
            (0..30).try_for_each(|_| heavy.send_to(&[0; PAYLOAD], vip).map(drop))?;
            others.iter().try_for_each(|other| other.send_to(&[0; PAYLOAD], vip).map(drop))?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    site.topology().client().run_in_thread(sending).unwrap().unwrap();
    let (_, after) = at_rest(site);
    let gained = |name: &str| {
        let labels = ["service=\"bulk\""];
        after.sum(name, &labels).unwrap() - before.sum(name, &labels).unwrap()
    };
    assert_eq!((gained("packets_total"), gained("bytes_total")), (5000.0, 5000.0 * FRAME));
    assert_eq!((gained("connections_total"), gained("decisions_total")), (21.0, 21.0));

    let heavy = format!("{}/32", client(HEAVY));
    let deadline = Instant::now() + PATIENCE;
    let first = loop {
        let clients = top(site, &["--service", "bulk", "-n", "3"]);
        if let Some(first) = clients.first().filter(|first| (first.share - 0.6).abs() < 0.06) {
            assert!(clients[1].share < 0.1, "{clients:?}");
            break first.clone();
        }
        assert!(Instant::now() < deadline, "{clients:?}");
        thread::sleep(Duration::from_millis(200));
    };
    assert_eq!((first.client.as_str(), first.service.as_str(), first.known), (heavy.as_str(), "bulk", true));
    let backend = first.backend.clone().unwrap();
    let of_backend = top(site, &["--backend", &format!("bulk/{backend}"), "--by", "packets"]);
    assert_eq!(of_backend[0].client, heavy);
    let share = site.metrics().unwrap().sum("top_client_share_ratio", &["service=\"bulk\"", "rank=\"1\""]).unwrap();
    assert!((share - 0.6).abs() < 0.06, "{share}");

    // This client causes most of the load of its backend. Status and log report the client and a remedy. The events
    // also report the client, because the service asks for proposals.
    let warned = |status: &balancer_api::model::StatusView| {
        let bulk = status.services.iter().find(|service| service.name == "bulk").unwrap();
        bulk.warnings.iter().any(|warning| warning.contains(&format!("balancer rule add bulk {heavy} spread")))
    };
    site.controller().wait_for(PATIENCE, "a warning of the heavy client", warned).unwrap();
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains(&format!("client {heavy} sends 6")) && events.contains("spread_heavy is 20%"), "{events}");
    let log = std::fs::read_to_string(site.files().join("balancer.log")).unwrap();
    assert_eq!(log.matches(&format!("client {heavy} sends")).count(), 1, "{log}");
}

fn state(status: &balancer_api::model::StatusView, name: &str) -> String {
    let web = status.services.iter().find(|service| service.name == "web");
    let backend = web.and_then(|web| web.backends.iter().find(|backend| backend.name == name));
    backend.map(|backend| backend.state.clone()).unwrap_or_default()
}

/// `promtool check metrics` must accept the metrics without complaints.
#[test]
fn when_promtool_checks_the_metrics_then_it_accepts_them() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "60s";
        Ok(())
    })
    .unwrap();
    site.homes(FAMILY, 1..=20).unwrap();
    let text = site.metrics_text().unwrap();
    let mut promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install prometheus, or cargo xtask setup");
    io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
