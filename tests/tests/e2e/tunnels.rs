//! Tests of `ipip` and `gue` with `balancer decap` on the backends: clients keep their backends, large uploads arrive,
//! and the backends refuse tunnel packets of other senders.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    frame::Frame,
    process::Process,
    site::{PATIENCE, Site, counts, wait_log},
    topology::{Family, Shape},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=200;
const BACKENDS: u16 = 3;
/// The size of an upload, which fills about 3,500 segments of the largest size.
const UPLOAD: usize = 5 << 20;
const MTU: usize = 1500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Usual,
    /// The backends' addresses belong to the address family that the VIP does not use.
    Crossed,
    /// The balancer and the backends use generic XDP.
    Generic,
}

/// Returns the size of the outer headers, in bytes.
fn overhead(forwarding: Forwarding, outer: Family) -> usize {
    let ip = match outer {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    ip + if forwarding == Forwarding::Gue { 8 } else { 0 }
}

fn site(shape: Shape, forwarding: Forwarding, backends: u16, variant: Variant) -> Site {
    Site::start(shape, forwarding, backends, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        settings.crossed = variant == Variant::Crossed;
        if variant == Variant::Generic {
            settings.xdp_mode = "generic";
        }
        Ok(())
    })
    .unwrap()
}

/// Ends `balancer decap` on a backend, and returns the program's final counts of stripped, refused, malformed and
/// passed packets.
fn end(site: &mut Site, number: u16) -> [u64; 4] {
    let decap = site.decap(number).unwrap();
    let status = decap.stop().unwrap();
    let line = decap.tail(1).unwrap();
    assert!(status.success(), "{status}: {line}");
    assert!(line.contains("SIGTERM: detached; packets: "), "{line}");
    let (_, list) = line.split_once("packets: ").unwrap();
    let words = ["stripped", "refused", "malformed", "passed"];
    let mut counters = [0; 4];
    for ((part, word), counter) in list.split(", ").zip(words).zip(&mut counters) {
        let (count, said) = part.split_once(' ').unwrap();
        assert_eq!(said, word, "{line}");
        *counter = count.parse().unwrap();
    }
    let links = site.topology().backends()[usize::from(number) - 1].ip("-details link show dev eth0").unwrap();
    assert!(!links.contains("prog/xdp"), "{links}");
    counters
}

/// Accepts one connection, and sends back all data that arrives.
fn echo_one(listener: &TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    stream.write_all(&bytes)
}

/// Sends `bytes` from `source`, and returns the bytes that come back.
fn upload(source: IpAddr, target: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    Ok(back)
}

/// Checks that large uploads arrive, although full-sized segments of a client do not fit the tunnel: the balancer
/// reports the smaller MTU, and the connection adapts.
fn large_uploads_arrive(site: &mut Site, family: Family, fits: usize) {
    let client = *CLIENTS.start();
    let home = site.homes(family, [client]).unwrap().remove(&client).unwrap();
    let number: u16 = home.strip_prefix("web").unwrap().parse().unwrap();
    site.kill_backend(number).unwrap();
    let target = site.request(family, client).target;
    let source = site.topology().client_address(family, client);
    let bytes: Vec<u8> = (0..UPLOAD).map(|at| (at * 31 + (at >> 8) * 7) as u8).collect();

    let host = &site.topology().backends()[usize::from(number) - 1];
    let listener = host.run_in_thread(|| TcpListener::bind(target)).unwrap().unwrap();
    let back = thread::scope(|scope| {
        let server = scope.spawn(|| echo_one(&listener));
        let back = site.topology().client().run_in_thread(|| upload(source, target, &bytes)).unwrap();
        let back = back.unwrap();
        server.join().unwrap().unwrap();
        back
    });
    assert!(back == bytes, "{} of {UPLOAD} bytes came back, or others", back.len());

    let route = site.topology().client().ip(&format!("route get {} from {source}", target.ip())).unwrap();
    assert!(route.contains(&format!("mtu {fits} ")), "the path's MTU should be {fits}: {route}");
    drop(listener);
    site.start_backend(number).unwrap();
}

/// Waits until the balancer sends no more packets to backends, and returns the number of packets that the balancer has
/// sent.
fn sent(site: &Site) -> f64 {
    let count = || -> f64 {
        let metrics = site.metrics().unwrap();
        let of = |service| metrics.sum("packets_total", &[&format!("service=\"{service}\"")]).unwrap();
        ["web", "web6"].map(of).iter().sum()
    };
    let deadline = Instant::now() + PATIENCE;
    let mut before = count();
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = count();
        if now == before {
            return now;
        }
        assert!(Instant::now() < deadline, "packets without end");
        before = now;
    }
}

/// Returns whether the kernel merges packets that a backend receives.
fn merges(site: &Site, number: u16) -> bool {
    let host = &site.topology().backends()[usize::from(number) - 1];
    let output = host.command("ethtool").args(["-k", "eth0"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().contains("generic-receive-offload: on")
}

fn serves(shape: Shape, forwarding: Forwarding, variant: Variant) {
    let mut site = site(shape, forwarding, BACKENDS, variant);
    assert_eq!(merges(&site, 1), variant != Variant::Generic, "generic mode sees packets as they came");
    for family in Family::BOTH {
        let homes = site.homes(family, CLIENTS).unwrap();
        for _ in 0..2 {
            assert_eq!(site.homes(family, CLIENTS).unwrap(), homes, "{shape:?} {forwarding:?} {family:?}");
        }
        for (&client, home) in &homes {
            assert_eq!(&site.locate(family, client).unwrap().1, home, "client {client}");
        }
        let shares = counts(homes.values());
        println!("{shape:?} {forwarding:?} {family:?} {variant:?}: {shares:?}");
        assert_eq!(shares.len(), usize::from(BACKENDS));

        let outer = if variant == Variant::Crossed { family.other() } else { family };
        large_uploads_arrive(&mut site, family, MTU - overhead(forwarding, outer));
    }
    let sent = sent(&site);
    let counters: Vec<[u64; 4]> = (1..=BACKENDS).map(|number| end(&mut site, number)).collect();
    println!("{shape:?} {forwarding:?} {variant:?}: {sent} packets sent, decap counted {counters:?}");
    assert!(merges(&site, 1), "receive offload is on again");
    let total = |index: usize| counters.iter().map(|counters| counters[index]).sum::<u64>();
    assert_eq!((total(0) as f64, total(1), total(2)), (sent, 0, 0));
}

#[test]
fn when_gue_runs_on_one_leg_then_clients_are_served() {
    serves(Shape::OneLegged, Forwarding::Gue, Variant::Usual);
}

#[test]
fn when_gue_leads_to_backends_of_the_other_family_then_clients_are_served() {
    serves(Shape::TwoLegged, Forwarding::Gue, Variant::Crossed);
}

#[test]
fn when_gue_runs_in_generic_mode_then_clients_are_served() {
    serves(Shape::TwoLegged, Forwarding::Gue, Variant::Generic);
}

/// A host other than the balancer sends tunnel packets, and only the packets for the VIP pass.
#[test]
fn when_tunnel_packets_are_for_other_addresses_then_they_are_refused_and_counted() {
    const EACH: u64 = 10;
    const SOURCE: &str = "10.1.0.5:4000";
    let mut site = site(Shape::OneLegged, Forwarding::Gue, 1, Variant::Usual);
    let vip = SocketAddr::new(site.topology().vip(Family::V4), 7777);
    let own = site.topology().backend_address(Family::V4, 0);
    let strangers = ["10.9.9.9:7777".to_owned(), format!("{own}:7777"), "127.0.0.1:7777".to_owned()];
    let wanted = Frame { payload: b"for the VIP".to_vec(), ..Frame::udp(SOURCE, &vip.to_string()) };

    let any = SocketAddr::from(([0, 0, 0, 0], 7777));
    let received = site.topology().backends()[0].run_in_thread(|| UdpSocket::bind(any)).unwrap().unwrap();
    received.set_read_timeout(Some(PATIENCE)).unwrap();
    site.topology()
        .client()
        .run_in_thread(|| {
            let gue = UdpSocket::bind("0.0.0.0:0").unwrap();
            let ipip = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(4))).unwrap();
            for stranger in &strangers {
                let packet = Frame { payload: b"for others".to_vec(), ..Frame::udp(SOURCE, stranger) }.packet();
                for _ in 0..EACH {
                    gue.send_to(&packet, (own, 6080)).unwrap();
                    ipip.send_to(&packet, &SockAddr::from(SocketAddr::new(own, 0))).unwrap();
                }
            }
            // The test also sends a GUE control message, and a tunnel packet whose inner packet ends too early.
            gue.send_to(&[0x20; 40], (own, 6080)).unwrap();
            gue.send_to(&wanted.packet()[..30], (own, 6080)).unwrap();
            gue.send_to(&wanted.packet(), (own, 6080)).unwrap();
        })
        .unwrap();

    let mut buffer = [0; 64];
    let (length, sender) = received.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], sender.to_string()), (wanted.payload.as_slice(), SOURCE.to_owned()));
    site.homes(Family::V4, CLIENTS).unwrap();
    received.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(received.recv_from(&mut buffer).is_err(), "got {buffer:?}");

    let [stripped, refused, malformed, passed] = end(&mut site, 1);
    println!("{stripped} stripped, {refused} refused, {malformed} malformed, {passed} passed");
    assert_eq!((refused, malformed), (2 * EACH * strangers.len() as u64, 2));
    assert!(stripped > u64::from(*CLIENTS.end()) && passed > 0);
}

#[test]
fn when_addresses_change_then_decap_follows() {
    let mut site = site(Shape::OneLegged, Forwarding::Ipip, 1, Variant::Usual);
    let vip = site.topology().vip(Family::V4);
    let other = site.topology().vip(Family::V6).to_string();
    let last = |site: &mut Site, expected: &[&str], unexpected: &str| {
        wait_log(site.decap(1).unwrap(), &format!("{expected:?}"), |line| {
            line.contains("stripping")
                && expected.iter().all(|word| line.contains(word))
                && (unexpected.is_empty() || !line.contains(unexpected))
        })
        .unwrap();
    };
    site.homes(Family::V4, [1]).unwrap();
    last(&mut site, &[&vip.to_string(), &other], "");

    site.topology().backends()[0].ip(&format!("addr del {vip}/32 dev lo")).unwrap();
    last(&mut site, &[&other], &format!("{vip}"));
    let reply = site.ask(Family::V4, [1], Duration::from_millis(300)).unwrap().remove(0);
    assert!(reply.is_err(), "{reply:?}");
    site.homes(Family::V6, [1]).unwrap();

    site.topology().backends()[0].ip(&format!("addr add {vip}/32 dev lo")).unwrap();
    last(&mut site, &[&vip.to_string(), &other], "");
    site.homes(Family::V4, [1]).unwrap();
    let [_, refused, malformed, _] = end(&mut site, 1);
    assert!(refused > 0 && malformed == 0, "{refused} refused, {malformed} malformed");
}

#[test]
fn when_decap_cannot_start_then_it_says_why_in_one_line() {
    let mut site = site(Shape::OneLegged, Forwarding::Ipip, 1, Variant::Usual);
    let decap = |site: &Site, arguments: &[&str]| -> Output {
        let mut command = site.topology().backends()[0].command(binaries::balancer().unwrap());
        command.arg("decap").args(arguments).output().unwrap()
    };
    let refused = |site: &Site, arguments: &[&str], code: i32, words: &str| {
        let output = decap(site, arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
        if code == 1 {
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    };
    refused(&site, &["--interface", "eth0"], 1, "interface eth0 already has an XDP program");
    refused(&site, &["--interface", "eht0"], 1, "interface eht0 does not exist: did you mean eth0?");
    refused(&site, &["--interface", "lo"], 1, "interface lo is the loopback");
    refused(&site, &[], 2, "--interface");
    refused(&site, &["--interface", "eth0", "--vip", "10.2.0.10:80"], 2, "give an address without a port");
    refused(&site, &["--interface", "eth0", "--vip", "0.0.0.0"], 2, "the address of one host");
    refused(&site, &["--interface", "eth0", "--from", "10.0.0.1/24"], 2, "did you mean 10.0.0.0/24?");
    refused(&site, &["--interface", "eth0", "--from", "everybody"], 2, "give a prefix or an address");
    // The failed starts have not affected the program that was already running.
    site.homes(Family::V4, [1]).unwrap();
    end(&mut site, 1);
}

/// If the sender of tunnel packets is outside the given prefixes, `balancer decap` refuses all tunnel packets of that
/// sender.
#[test]
fn when_a_tunnels_sender_is_not_allowed_then_its_packets_are_refused() {
    const EACH: usize = 10;
    let mut site = site(Shape::OneLegged, Forwarding::Ipip, 1, Variant::Usual);
    end(&mut site, 1);
    let host = &site.topology().backends()[0];
    let own = site.topology().backend_address(Family::V4, 0);
    let client = site.topology().client().run_in_thread(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let source = site.topology().client().run_in_thread(|| {
        let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
        probe.connect((own, 6080)).unwrap();
        probe.local_addr().unwrap().ip()
    });
    let source = source.unwrap();
    let received = host.run_in_thread(|| UdpSocket::bind((own, 7777))).unwrap().unwrap();
    received.set_read_timeout(Some(PATIENCE)).unwrap();
    let packet = Frame::udp("10.1.0.5:4000", &format!("{own}:7777")).packet();
    for (from, served) in [("192.0.2.0/24".to_owned(), false), (source.to_string(), true)] {
        let mut command = host.command(binaries::balancer().unwrap());
        let vip = own.to_string();
        command.args(["decap", "--interface", "eth0", "--vip", &vip, "--from", &from]);
        let log = site.files().join(format!("from-{served}.log"));
        let mut decap = Process::spawn("decap", &mut command, &log).unwrap();
        wait_log(&mut decap, "the VIP", |line| line.contains("stripping") && line.contains(&vip)).unwrap();
        for _ in 0..EACH {
            client.send_to(&packet, (own, 6080)).unwrap();
        }
        if served {
            received.recv_from(&mut [0; 64]).unwrap();
        }
        decap.stop().unwrap();
        let line = decap.tail(1).unwrap();
        let refused = if served { 0 } else { EACH };
        assert!(line.contains(&format!(" {refused} refused")), "{from}: {line}");
    }
}

/// If the command line names an address of the attached interface as a VIP, `balancer decap` serves the address, also
/// in generic mode.
#[test]
fn when_a_vip_is_given_then_decap_serves_it() {
    let mut site = site(Shape::OneLegged, Forwarding::Gue, 1, Variant::Usual);
    end(&mut site, 1);
    let host = &site.topology().backends()[0];
    let own = site.topology().backend_address(Family::V4, 0);
    let mut command = host.command(binaries::balancer().unwrap());
    command.args(["decap", "--interface", "eth0", "--xdp-mode", "generic", "--vip", &own.to_string()]);
    let log = site.files().join("named.log");
    let mut decap = Process::spawn("decap", &mut command, &log).unwrap();
    wait_log(&mut decap, "the VIP", |line| line.contains("stripping") && line.contains(&own.to_string())).unwrap();

    let packet = Frame::udp("10.1.0.5:4000", &format!("{own}:7777")).packet();
    let received = host.run_in_thread(|| UdpSocket::bind((own, 7777))).unwrap().unwrap();
    received.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = site.topology().client().run_in_thread(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    sender.send_to(&packet, (own, 6080)).unwrap();
    let (_, source) = received.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(source.to_string(), "10.1.0.5:4000");

    // A killed `balancer decap` leaves no program attached.
    decap.kill().unwrap();
    assert!(!host.ip("-details link show dev eth0").unwrap().contains("prog/xdp"));
}
