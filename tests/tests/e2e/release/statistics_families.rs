//! Tests of a service with listeners of both address families: the heavy clients, the sums and the statistics of the
//! last hour include both families.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use balancer_api::{
    model::ClientQuery,
    statistics::{PeriodView, StatsView, TopClient},
};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape, Topology},
};

const PORT: u16 = 5300;
const PAYLOAD: usize = 900;
const ROUNDS: u32 = 100;
/// The number of clients of each family that send one datagram per round.
const OTHERS: u16 = 15;
const HEAVY: u16 = 700;
const CLIENTS: u64 = 2 * (OTHERS as u64 + 1);

/// Returns the number of datagrams that the heavy client sends per round.
const fn heavy_sends(family: Family) -> u32 {
    match family {
        Family::V4 => 30,
        Family::V6 => 40,
    }
}

/// Returns the number of datagrams that a family's listener receives in all rounds.
fn sent(family: Family) -> u32 {
    ROUNDS * (heavy_sends(family) + u32::from(OTHERS))
}

/// Sends all datagrams of all clients.
fn send(topology: &Topology) -> io::Result<()> {
    let mut sockets = Vec::new();
    for family in Family::BOTH {
        let clients = (1..=OTHERS).map(|number| (number, 1)).chain([(HEAVY, heavy_sends(family))]);
        for (number, times) in clients {
            let socket = UdpSocket::bind((topology.client_address(family, number), 0))?;
            sockets.push((socket, times, SocketAddr::new(topology.vip(family), PORT)));
        }
    }
    for _ in 0..ROUNDS {
        for (socket, times, vip) in &sockets {
            (0..*times).try_for_each(|_| socket.send_to(&[0; PAYLOAD], vip).map(drop))?;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn service(topology: &Topology) -> String {
    let [v4, v6] = Family::BOTH.map(|family| SocketAddr::new(topology.vip(family), PORT));
    let mut text = format!(
        "[statistics]\nsample_interval = 1\nheavy_client_share = 0.2\n\
         [[service]]\nname = \"bulk\"\nlisten = [\"{v4}/udp\", \"{v6}/udp\"]\nforwarding = \"nat\"\nremember = \"1h\"\n\
         client_prefix = {{ v4 = 32, v6 = 128 }}\ncheck = {{ type = \"none\" }}\n"
    );
    for number in 1..=3 {
        let [address, address6] = Family::BOTH.map(|family| topology.backend_address(family, number - 1));
        text += &format!(
            "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\naddress6 = \"{address6}\"\n"
        );
    }
    text
}

fn stats(site: &Site) -> StatsView {
    let stats: Vec<StatsView> = serde_json::from_str(&site.cli(&["stats", "bulk", "--json"]).unwrap()).unwrap();
    let [of] = <[StatsView; 1]>::try_from(stats).unwrap();
    of
}

fn period(stats: &StatsView, name: &str) -> Option<PeriodView> {
    stats.periods.iter().find(|period| period.period == name).cloned()
}

fn top(site: &Site, arguments: &[&str]) -> Vec<TopClient> {
    let text = site.cli(&[&["client", "top", "--json", "--by", "packets"], arguments].concat()).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Repeats an attempt until the attempt returns a value.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(200));
    }
}

fn wait_packets(site: &Site, packets: u32) {
    let total = || site.metrics().unwrap().sum("packets_total", &["service=\"bulk\""]).unwrap();
    eventually("all packets", || (total() >= f64::from(packets)).then_some(()));
    assert_eq!(total(), f64::from(packets));
}

/// Returns the backend of each client, according to the controller.
fn homes(site: &Site) -> BTreeMap<IpAddr, String> {
    let numbers = || (1..=OTHERS).chain([HEAVY]);
    let clients = Family::BOTH.into_iter().flat_map(|family| numbers().map(move |number| (family, number)));
    let home = |(family, number)| {
        let address = site.topology().client_address(family, number);
        let query = ClientQuery { address, service: Some("bulk".to_owned()) };
        let views = site.api(|api| async move { api.client(&query).await }).unwrap();
        (address, views[0].backend.clone().unwrap())
    };
    clients.map(home).collect()
}

/// Returns the heavy client of a family in the form in which commands print it.
fn heavy(site: &Site, family: Family) -> String {
    format!("{}/{}", site.topology().client_address(family, HEAVY), if family == Family::V4 { 32 } else { 128 })
}

#[test]
fn when_a_service_has_both_families_then_reports_are_of_both() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, topology| {
        settings.families = Vec::new();
        settings.lines = service(topology);
        Ok(())
    })
    .unwrap();
    // The statistics of the last hour begin with the first sample.
    eventually("a first look", || period(&stats(&site), "hour"));
    let began = Instant::now();
    site.topology().client().run_in_thread(|| send(site.topology())).unwrap().unwrap();
    let all: u32 = Family::BOTH.into_iter().map(sent).sum();
    wait_packets(&site, all);

    heavy_clients_are_of_both(&site);

    // The totals of the service and of the service's listeners must be correct.
    let metrics = site.metrics().unwrap();
    let of = |name: &str, label: &str| metrics.sum(name, &["service=\"bulk\"", label]).unwrap();
    for family in Family::BOTH {
        let listener = format!("listener=\"{}/udp\"", SocketAddr::new(site.topology().vip(family), PORT));
        assert_eq!(of("listener_packets_total", &listener), f64::from(sent(family)));
    }
    let bytes = f64::from(sent(Family::V4)) * (14 + 20 + 8 + PAYLOAD) as f64
        + f64::from(sent(Family::V6)) * (14 + 40 + 8 + PAYLOAD) as f64;
    assert_eq!(metrics.sum("bytes_total", &["service=\"bulk\""]).unwrap(), bytes);
    assert_eq!(of("decisions_total", "result=\"new\""), CLIENTS as f64);

    // When web1 goes into maintenance, the clients of web1 in both families move, and the statistics of each period
    // include these moves.
    let before = homes(&site);
    site.cli(&["backend", "maint", "bulk/web1"]).unwrap();
    site.topology().client().run_in_thread(|| send(site.topology())).unwrap().unwrap();
    wait_packets(&site, 2 * all);
    let moved = before.values().filter(|home| *home == "web1").count() as u64;
    for family in Family::BOTH {
        let mut there =
            before.iter().filter(|(client, home)| client.is_ipv4() == (family == Family::V4) && *home == "web1");
        assert!(there.next().is_some(), "nobody of {family:?} is on web1: {before:?}");
    }
    let told = stats(&site);
    for name in ["minute", "hour", "start"] {
        let period = period(&told, name).unwrap();
        if period.seconds.is_some_and(|seconds| seconds < began.elapsed().as_secs()) {
            // The period began later than the test, so the numbers of the period may be incomplete.
            continue;
        }
        assert_eq!((period.decisions["new"], period.moves["maint"]), (CLIENTS, moved), "{name}");
        assert_eq!(period.connections, period.decisions.values().sum::<u64>(), "{name}");
    }
    let after = homes(&site);
    let known = eventually("a sweep", || {
        let told = stats(&site);
        let there = |name: &str| after.values().filter(|home| *home == name).count() as u64;
        told.backends.iter().all(|backend| backend.known_clients == there(&backend.name)).then_some(told)
    });
    let shares: f64 = known.backends.iter().filter_map(|backend| backend.share).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
}

/// Checks that the two heavy clients come first, with their shares of the packets of both families, and that the output
/// proposes a remedy for each.
fn heavy_clients_are_of_both(site: &Site) {
    let all = f64::from(Family::BOTH.into_iter().map(sent).sum::<u32>());
    let expected =
        [Family::V6, Family::V4].map(|family| (heavy(site, family), f64::from(ROUNDS * heavy_sends(family)) / all));
    let first = eventually("both heavy clients", || {
        let clients = top(site, &["--service", "bulk", "-n", "3"]);
        let as_expected = clients.iter().zip(&expected).all(|(client, (name, share))| {
            client.client == *name && (client.share - share).abs() < 0.05 && client.known
        });
        (clients.len() == 3 && as_expected).then_some(clients)
    });
    assert!(first[2].share < 0.05, "{first:?}");
    for client in &first[..2] {
        let address = client.client.split('/').next().unwrap().parse().unwrap();
        assert_eq!(homes(site).get(&address), client.backend.as_ref());
        let of_backend = top(site, &["--backend", &format!("bulk/{}", client.backend.as_ref().unwrap())]);
        assert!(of_backend.iter().any(|other| other.client == client.client), "{of_backend:?}");
    }
    let shown = top(site, &["-n", "100"]);
    assert_eq!(shown.len() as u64, CLIENTS);
    let sum: f64 = shown.iter().map(|client| client.share).sum();
    assert!((sum - 1.0).abs() < 0.01, "{sum}");
    eventually("a warning of both", || {
        let warnings = &site.status().unwrap().services[0].warnings;
        let named =
            |family| warnings.iter().any(|of| of.contains(&format!("rule add bulk {} spread", heavy(site, family))));
        Family::BOTH.into_iter().all(named).then_some(())
    });
}
