//! Tests of large floods of packets that look like signs of a server's failure. The servers work, so the balancer must
//! check the servers rarely and move no client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    frame::{Frame, SYN, transport_checksum},
    site::{PATIENCE, PORT, Site},
    topology::{Family, Shape},
};
use socket2::{Domain, Socket, Type};

const SERVERS: u16 = 4;
const KNOWN: std::ops::RangeInclusive<u16> = 1..=60;
/// The number of forged SYNs: half as many as the client table has entries.
const FORGED: u32 = 131_072;
/// The number of packets that the test sends between two readings of the clock.
const SALVO: u32 = 20;
/// The highest number of packets that the test sends per second. At 150,000 packets per second, the servers still have
/// enough processor time to answer checks.
const RATE: u32 = 150_000;
/// The intervals and time limits of health checks. Regular checks of a working server are an hour apart, and a check
/// may wait long for a processor.
const TIMES: &str = r#"type = "tcp", interval = "1h", fast_interval = "1h", timeout = "10s""#;

/// A SYN to the service, which the test sends with varying source addresses and ports.
struct Syns {
    packet: Vec<u8>,
    /// The length of the IP header, in bytes.
    header: usize,
    destination: IpAddr,
}

impl Syns {
    fn new(site: &Site, family: Family) -> Self {
        let destination = site.topology().vip(family);
        let source = SocketAddr::new(forged(family, 0), 1).to_string();
        let frame = Frame::tcp(&source, &SocketAddr::new(destination, PORT).to_string(), SYN);
        let packet = Frame { payload: Vec::new(), ..frame }.packet();
        Self { packet, header: if family == Family::V4 { 20 } else { 40 }, destination }
    }

    fn of(&mut self, source: SocketAddr) -> &[u8] {
        let (address, segment) = self.packet.split_at_mut(self.header);
        match source.ip() {
            IpAddr::V4(source) => address[12..16].copy_from_slice(&source.octets()),
            IpAddr::V6(source) => address[8..24].copy_from_slice(&source.octets()),
        }
        segment[..2].copy_from_slice(&source.port().to_be_bytes());
        segment[16..18].fill(0);
        let checksum = transport_checksum(source.ip(), self.destination, 6, segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        &self.packet
    }
}

/// Returns a source address of the flood that belongs to no host.
const fn forged(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::from_bits(0xac10_0000 | number)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_0f00 << 80) | number as u128)),
    }
}

/// Gives all hosts a route to the forged sources. The network drops answers to the forged sources.
fn route_answers(site: &Site, family: Family) {
    let (flag, prefix) = if family == Family::V4 { ("-4", "172.16.0.0/12") } else { ("-6", "2001:db8:f00::/96") };
    let topology = site.topology();
    let client = topology.client_address(family, 1);
    for host in topology.backends().iter().chain([topology.balancer()]) {
        let route = host.ip(&format!("{flag} route get {client}")).unwrap();
        let gateway = route.split_whitespace().skip_while(|word| *word != "via").nth(1).unwrap();
        host.ip(&format!("{flag} route add {prefix} via {gateway}")).unwrap();
    }
}

/// Sends SYNs with the given sources from the clients' host, one after another.
fn send(site: &Site, family: Family, sources: impl Iterator<Item = SocketAddr> + Send) {
    let mut syns = Syns::new(site, family);
    let to = SocketAddr::new(syns.destination, 0).into();
    let send = || -> io::Result<()> {
        // The IP header of each packet comes from this program, not from the kernel.
        let raw = Socket::new(
            Domain::for_address(SocketAddr::new(syns.destination, 0)),
            Type::RAW,
            Some(libc::IPPROTO_RAW.into()),
        )?;
        let begun = Instant::now();
        for (number, source) in (0..).zip(sources) {
            raw.send_to(syns.of(source), &to)?;
            if number % SALVO == 0 {
                let due = Duration::from_secs(1) * number / RATE;
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
        Ok(())
    };
    site.topology().client().run_in_thread(send).unwrap().unwrap();
}

fn sum(site: &Site, metric: &str, labels: &[&str]) -> f64 {
    site.metrics().unwrap().sum(metric, labels).unwrap_or_default()
}

/// Returns the number of checks of each server.
fn checks(site: &Site) -> Vec<f64> {
    let of = |number| sum(site, "health_checks_total", &[&format!("backend=\"web{number}\"")]);
    (1..=SERVERS).map(of).collect()
}

/// Returns how often the balancer has taken a server down.
fn failures(site: &Site) -> f64 {
    sum(site, "backend_transitions_total", &["to=\"down\""])
}

/// The state of a site before a flood, for a comparison with the state afterwards.
struct Before {
    homes: std::collections::BTreeMap<u16, String>,
    checks: Vec<f64>,
    failures: f64,
    begun: Instant,
}

impl Before {
    fn new(site: &mut Site, family: Family) -> Self {
        (1..=SERVERS).for_each(|number| site.wait_state(number, &["up"]).unwrap());
        // A client's entry is established after two visits.
        let homes = [(); 2].map(|()| site.homes(family, KNOWN).unwrap())[1].clone();
        Self { homes, checks: checks(site), failures: failures(site), begun: Instant::now() }
    }

    /// Checks that the balancer checked each server at most once per second, that all servers are up, and that no
    /// client moved.
    fn assert_unchanged(&self, site: &Site, what: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let made: Vec<f64> = checks(site).iter().zip(&self.checks).map(|(after, before)| after - before).collect();
        println!("{what}: {made:?} checks in {seconds:.1} s");
        assert!(made.iter().all(|&count| count <= seconds + 2.0), "{what}: {made:?} checks in {seconds} s");
        let status = site.status().unwrap();
        let states: Vec<_> = status.services[0].backends.iter().map(|backend| backend.state.as_str()).collect();
        assert_eq!(states, ["up"; SERVERS as usize], "{what}");
        assert_eq!(sum(site, "moves_total", &[]), 0.0, "{what}");
        assert_eq!(failures(site), self.failures, "{what}");
    }
}

fn flood(forwarding: Forwarding, family: Family, count: u32) {
    let what = format!("{forwarding:?}, {family:?}");
    let mut site = Site::start(Shape::OneLegged, forwarding, SERVERS, |settings, _| {
        settings.families = vec![family];
        settings.check = format!("{{ {TIMES} }}");
        settings.remember = "1h";
        Ok(())
    })
    .unwrap();
    route_answers(&site, family);
    let before = Before::new(&mut site, family);
    let packets = sum(&site, "packets_total", &[]);
    for _ in 0..2 {
        send(&site, family, (0..count).map(|number| SocketAddr::new(forged(family, number), number as u16 | 1)));
    }
    let packets = sum(&site, "packets_total", &[]) - packets;
    println!("{what}: {packets} packets in {:?}", before.begun.elapsed());
    assert!(packets >= f64::from(count), "{what}: {packets} of twice {count} packets were forwarded");
    for number in 1..=SERVERS {
        let labels = [&format!("backend=\"web{number}\"")[..], "signal=\"unanswered\""];
        assert!(sum(&site, "signals_total", &labels) >= 1.0, "{what}: web{number} was not suspected");
    }
    before.assert_unchanged(&site, &what);
    assert_eq!(site.homes_within(PATIENCE, family, KNOWN).unwrap(), before.homes, "{what}");
}

#[test]
fn when_forged_syns_come_twice_to_nat_servers_then_checks_are_few_and_nothing_moves() {
    flood(Forwarding::Nat, Family::V4, FORGED);
}

#[test]
fn when_forged_syns_of_ipv6_come_twice_to_dsr_servers_then_checks_are_few_and_nothing_moves() {
    flood(Forwarding::Dsr, Family::V6, FORGED);
}

/// Closes the port of a server while the server's clients connect. The health checks use another port, which stays
/// open.
fn refuse(forwarding: Forwarding, family: Family, times: u32) {
    const CHECKED: u16 = 9999;
    const PORTS: u32 = 1000;
    const CLIENT: u16 = 100;
    let what = format!("{forwarding:?}, {family:?}");
    let mut listeners = Vec::new();
    let mut site = Site::start(Shape::OneLegged, forwarding, SERVERS, |settings, topology| {
        settings.families = vec![family];
        settings.check = format!("{{ {TIMES}, port = {CHECKED} }}");
        settings.remember = "1h";
        let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, CHECKED));
        for host in topology.backends() {
            listeners.push(host.run_in_thread(listen)??);
        }
        Ok(())
    })
    .unwrap();
    let before = Before::new(&mut site, family);
    let closed = site.locate(family, CLIENT).unwrap().1;
    let number = closed.trim_start_matches("web").parse().unwrap();
    site.kill_backend(number).unwrap();
    let refused = |site: &Site| {
        let reply = site.ask(family, [CLIENT], PATIENCE).unwrap().remove(0);
        assert_eq!(reply.unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{what}");
    };
    // The balancer withholds the first reset, so the client learns of the refusal a second later.
    refused(&site);
    let (withheld, forwarded) = (sum(&site, "withheld_total", &[]), sum(&site, "packets_total", &[]));
    let address = site.topology().client_address(family, CLIENT);
    send(&site, family, (0..times).map(|number| SocketAddr::new(address, 1024 + (number % PORTS) as u16)));
    refused(&site);
    let forwarded = sum(&site, "packets_total", &[]) - forwarded;
    assert!(forwarded >= f64::from(times / 2), "{what}: {forwarded} of {times} packets were forwarded");
    let labels = [&format!("backend=\"{closed}\"")[..], "signal=\"refused\""];
    assert!(sum(&site, "signals_total", &labels) >= 1.0, "{what}: {closed} was not suspected");
    assert_eq!(sum(&site, "withheld_total", &[]), withheld, "{what}: once");
    before.assert_unchanged(&site, &what);
    site.start_backend(number).unwrap();
    assert_eq!(site.homes_within(PATIENCE, family, KNOWN).unwrap(), before.homes, "{what}");
}

#[test]
fn when_a_client_is_refused_a_hundred_thousand_times_then_checks_are_few_and_nothing_moves() {
    for family in Family::BOTH {
        refuse(Forwarding::Nat, family, 100_000);
    }
}
