//! Tests of services with several listeners, with real client programs: `curl` with HTTP, HTTPS and datagrams; `iperf3`
//! with TCP and UDP; and `dig`, which repeats questions over TCP. Each client must use the same backend for all
//! listeners of a service.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    process::Output,
    thread,
};

use balancer_api::model::ClientQuery;
use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;
use balancer_testkit::{
    process::Process,
    site::{PATIENCE, Settings, Site, wait_log},
    topology::{Family, Shape, Topology},
};
use rcgen::{CertificateParams, KeyPair};

/// Maps each client to its backend.
type Homes = BTreeMap<IpAddr, String>;

const NOBODY: [IpAddr; 0] = [];

/// Runs a program on the clients' host, which must succeed, and returns its output.
fn client_program(site: &Site, program: &str, arguments: &[&str]) -> String {
    let output = site.topology().client().command(program).args(arguments).output();
    assert!(output.is_ok(), "{program}: {output:?}; `cargo xtask setup` installs what is missing");
    let Output { status, stdout, stderr } = output.unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(status.success(), "{program} {arguments:?}: {status}: {stdout}{stderr}");
    stdout
}

/// Starts a program on the host of `web{number}`. The output of the server program goes to the site's file `log`.
fn server_program(site: &Site, program: &str, number: u16, log: &str, arguments: &[String]) -> Process {
    let mut command = site.topology().backends()[usize::from(number) - 1].command(program);
    Process::spawn(log, command.args(arguments), &site.files().join(format!("{log}.log"))).unwrap()
}

/// Returns the addresses on which the server of `web{number}` listens: first the address for clients, then the address
/// for checks, if they differ.
fn served(topology: &Topology, forwarding: Forwarding, family: Family, number: u16) -> Vec<IpAddr> {
    let own = topology.backend_address(family, number - 1);
    if translates(forwarding) { vec![own] } else { vec![topology.vip(family), own] }
}

/// Whether backends get packets for their own addresses.
const fn translates(forwarding: Forwarding) -> bool {
    matches!(forwarding, Forwarding::Nat | Forwarding::Snat)
}

/// The address that backends see for a client: with `snat` the balancer's own.
fn seen_as(forwarding: Forwarding, client: IpAddr) -> IpAddr {
    if forwarding == Forwarding::Snat { Topology::balancer_address(family(client)).0 } else { client }
}

/// Returns the configuration of a service `shop` with the given number of backends. Each VIP of the two families has
/// every listener in `listeners`, such as `443/udp`.
fn service(topology: &Topology, forwarding: Forwarding, listeners: &[&str], more: &str, backends: u16) -> String {
    let listen: Vec<String> = Family::BOTH
        .iter()
        .flat_map(|&family| {
            let vip = SocketAddr::new(topology.vip(family), 0).to_string();
            let vip = vip.trim_end_matches('0').to_owned();
            listeners.iter().map(move |listener| format!("{vip}{listener}"))
        })
        .collect();
    let mut text = format!(
        "[[service]]\nname = \"shop\"\nforwarding = \"{}\"\nremember = \"1h\"\nclient_prefix = {{ v4 = 32, v6 = 128 }}\n\
         listen = {listen:?}\n{more}",
        forwarding_word(forwarding)
    );
    for number in 1..=backends {
        let [address, address6] = Family::BOTH.map(|family| topology.backend_address(family, number - 1));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\naddress6 = \"{address6}\"\n"
        );
    }
    text
}

/// Starts the balancer and `hosts` hosts, on which no servers run yet.
fn start(forwarding: Forwarding, hosts: u16, adapt: impl FnOnce(&mut Settings, &Topology)) -> Site {
    let shape = if forwarding == Forwarding::Dsr { Shape::OneLegged } else { Shape::TwoLegged };
    let mut site = Site::start(shape, forwarding, hosts, |settings, topology| {
        settings.on_exit = "keep";
        settings.families = Vec::new();
        adapt(settings, topology);
        Ok(())
    })
    .unwrap();
    (1..=hosts).for_each(|number| site.kill_backend(number).unwrap());
    site
}

const fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Returns the backend that the controller names for a client.
fn located(site: &Site, address: IpAddr) -> String {
    let query = ClientQuery { address, service: Some("shop".to_owned()) };
    let views = site.api(|api| async move { api.client(&query).await }).unwrap();
    assert_eq!(views.len(), 1, "a client of a service has one place, whatever its listeners: {views:?}");
    views[0].backend.clone().unwrap()
}

/// Waits until `web{number}` has the state `state` in both families.
fn wait_both(site: &mut Site, number: u16, state: &str) {
    let name = format!("web{number}");
    let waited = site.controller().wait_for(PATIENCE, &format!("{name} to be {state}"), |status| {
        let backend = status.services[0].backends.iter().find(|backend| backend.name == name).unwrap();
        backend.families.len() == 2 && backend.families.iter().all(|family| family.state == state)
    });
    waited.unwrap();
}

/// Returns the clients whose backend has changed.
fn moved(before: &Homes, after: &Homes) -> Vec<IpAddr> {
    before.iter().filter(|(client, home)| after[*client] != **home).map(|(&client, _)| client).collect()
}

/// Returns a metric's value for one listener, such as `80/tcp` of IPv4.
fn counted(site: &Site, metric: &str, family: Family, port: u16, protocol: &str) -> f64 {
    let listener = format!("listener=\"{}/{protocol}\"", SocketAddr::new(site.topology().vip(family), port));
    site.metrics().unwrap().sum(metric, &["service=\"shop\"", &listener]).unwrap()
}

const NGINX: &str = "
user root;
worker_processes 1;
pid FILES/nginxNUMBER.pid;
error_log stderr;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path FILES/nginxNUMBER-body;
    proxy_temp_path FILES/nginxNUMBER-proxy;
    fastcgi_temp_path FILES/nginxNUMBER-fastcgi;
    uwsgi_temp_path FILES/nginxNUMBER-uwsgi;
    scgi_temp_path FILES/nginxNUMBER-scgi;
    ssl_certificate FILES/certificate.pem;
    ssl_certificate_key FILES/key.pem;
    server {
        listen 0.0.0.0:PLAIN;
        listen [::]:PLAIN ipv6only=on;
        listen 0.0.0.0:SECURE ssl http2;
        listen [::]:SECURE ssl http2 ipv6only=on;
        location / { return 200 \"webNUMBER $remote_addr $server_protocol\\n\"; }
    }
}
";

/// Returns the two server ports that correspond to ports 80 and 443 of the VIP.
const fn web_ports(forwarding: Forwarding) -> [u16; 2] {
    if translates(forwarding) { [8080, 8443] } else { [80, 443] }
}

/// Starts nginx with HTTP and HTTPS on the host of `web{number}`.
fn start_nginx(site: &Site, forwarding: Forwarding, number: u16) -> Process {
    let [plain, secure] = web_ports(forwarding);
    let config = site.files().join(format!("nginx{number}.conf"));
    let text = NGINX
        .replace("FILES", &site.files().display().to_string())
        .replace("NUMBER", &number.to_string())
        .replace("PLAIN", &plain.to_string())
        .replace("SECURE", &secure.to_string());
    fs::write(&config, text).unwrap();
    let files = site.files().display().to_string();
    let arguments = ["-p", &files, "-c", &config.display().to_string(), "-g", "daemon off;"].map(str::to_owned);
    server_program(site, "/usr/sbin/nginx", number, &format!("nginx{number}"), &arguments)
}

/// Creates a certificate for the VIPs, and writes the certificate and its key to files.
fn make_certificate(topology: &Topology, files: &Path) {
    let names = Family::BOTH.map(|family| topology.vip(family).to_string());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    fs::write(files.join("certificate.pem"), certificate.pem()).unwrap();
    fs::write(files.join("key.pem"), key.serialize_pem()).unwrap();
}

/// Answers datagrams to port 443 in the place of an HTTP/3 server, until the test ends. Each answer contains the
/// server's name and the sender's address.
fn answer_datagrams(site: &Site, forwarding: Forwarding, number: u16) {
    let [_, port] = web_ports(forwarding);
    for family in Family::BOTH {
        let at = SocketAddr::new(served(site.topology(), forwarding, family, number)[0], port);
        let host = &site.topology().backends()[usize::from(number) - 1];
        let socket = host.run_in_thread(|| UdpSocket::bind(at)).unwrap().unwrap();
        thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 2048]) {
                let _ = socket.send_to(format!("web{number} {} h3", from.ip()).as_bytes(), from);
            }
        });
    }
}

/// Sends a client's datagram, which is as large as a QUIC Initial packet, and returns the answer.
fn datagram(site: &Site, client: IpAddr) -> String {
    let (from, vip) = (SocketAddr::new(client, 0), SocketAddr::new(site.topology().vip(family(client)), 443));
    let answer = site.topology().client().run_in_thread(|| {
        let socket = UdpSocket::bind(from)?;
        socket.connect(vip)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&[0xc0; 1200])?;
        let mut answer = [0; 128];
        let length = socket.recv(&mut answer)?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    });
    answer.unwrap().unwrap()
}

/// The backend of each of `clients`. Checks that it is the same for HTTP, HTTPS and datagrams, and sees the expected
/// address.
fn shoppers(site: &Site, forwarding: Forwarding, clients: std::ops::Range<u16>) -> Homes {
    let authority = site.files().join("certificate.pem").display().to_string();
    let mut homes = Homes::new();
    for family in Family::BOTH {
        let vip = SocketAddr::new(site.topology().vip(family), 0).to_string();
        let vip = vip.trim_end_matches(":0");
        for client in clients.clone() {
            let client = site.topology().client_address(family, client);
            let address = client.to_string();
            let [http, https] = ["http", "https"].map(|scheme| format!("{scheme}://{vip}/"));
            let curl =
                ["-sS", "-g", "--noproxy", "*", "--max-time", "20", "--interface", &address, "--cacert", &authority];
            let mut answers = client_program(site, "curl", &[&curl[..], &[&http, &https]].concat());
            answers += &datagram(site, client);
            let lines: Vec<Vec<&str>> = answers.lines().map(|line| line.split(' ').collect()).collect();
            let home = lines[0][0];
            let seen = seen_as(forwarding, client).to_string();
            let expected = ["HTTP/1.1", "HTTP/2.0", "h3"].map(|protocol| vec![home, &seen, protocol]);
            assert_eq!(lines, expected, "{client}");
            homes.insert(client, home.to_owned());
        }
    }
    homes
}

fn shop(topology: &Topology, forwarding: Forwarding, backends: u16) -> String {
    let ports = if translates(forwarding) { "ports = { 80 = 8080, 443 = 8443 }\n" } else { "" };
    let check =
        "check = { type = \"http\", path = \"/\", interval = \"300ms\", timeout = \"250ms\", fall = 3, rise = 2 }\n";
    service(topology, forwarding, &["80", "443", "443/udp"], &format!("{ports}{check}"), backends)
}

/// Returns the clients of `web{number}`.
fn of(homes: &Homes, number: u16) -> Vec<IpAddr> {
    homes.iter().filter(|(_, home)| **home == format!("web{number}")).map(|(&client, _)| client).collect()
}

fn http_https_and_datagrams_agree(forwarding: Forwarding) {
    const KNOWN: std::ops::Range<u16> = 1..13;
    const NEW: std::ops::Range<u16> = 13..25;
    let mut site = start(forwarding, 4, |settings, topology| settings.lines = shop(topology, forwarding, 3));
    make_certificate(site.topology(), site.files());
    let mut servers: Vec<Process> = (1..=4).map(|number| start_nginx(&site, forwarding, number)).collect();
    (1..=4).for_each(|number| answer_datagrams(&site, forwarding, number));
    (1..=3).for_each(|number| wait_both(&mut site, number, "up"));
    let homes = shoppers(&site, forwarding, KNOWN);
    for number in 1..=3 {
        assert!(!of(&homes, number).is_empty(), "nobody is on web{number}: {homes:?}");
    }
    homes.iter().for_each(|(&client, home)| assert_eq!(located(&site, client), *home));

    // An additional backend gets new clients at all listeners, and no known client moves.
    let lines = shop(site.topology(), forwarding, 4);
    site.apply(|settings| settings.lines = lines).unwrap();
    wait_both(&mut site, 4, "up");
    assert_eq!(moved(&homes, &shoppers(&site, forwarding, KNOWN)), NOBODY);
    let new = shoppers(&site, forwarding, NEW);
    assert!(!of(&new, 4).is_empty(), "{new:?}");

    // A draining backend keeps its clients, and gets no new clients.
    site.cli(&["backend", "drain", "shop/web1", "--timeout", "10m"]).unwrap();
    assert_eq!(moved(&homes, &shoppers(&site, forwarding, KNOWN)), NOBODY);
    assert_eq!(of(&shoppers(&site, forwarding, 25..31), 1), NOBODY);

    // A restart of the controller moves no client.
    site.restart(|_| {}).unwrap();
    assert_eq!(moved(&homes, &shoppers(&site, forwarding, KNOWN)), NOBODY);
    assert_eq!(moved(&new, &shoppers(&site, forwarding, NEW)), NOBODY);

    // The clients of a failed backend move once, with all connections at the same time, and then stay.
    servers[1].stop().unwrap();
    wait_both(&mut site, 2, "down");
    let after = shoppers(&site, forwarding, KNOWN);
    assert_eq!(moved(&homes, &after), of(&homes, 2));
    servers[1] = start_nginx(&site, forwarding, 2);
    wait_both(&mut site, 2, "up");
    assert_eq!(moved(&after, &shoppers(&site, forwarding, KNOWN)), NOBODY);
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("moves_total", &["service=\"shop\""]).unwrap(), of(&homes, 2).len() as f64);
}

#[test]
fn when_a_client_uses_http_https_and_datagrams_with_nat_then_it_has_one_backend() {
    http_https_and_datagrams_agree(Forwarding::Nat);
}

#[test]
fn when_a_client_uses_http_https_and_datagrams_with_snat_then_it_has_one_backend() {
    http_https_and_datagrams_agree(Forwarding::Snat);
}

#[test]
fn when_a_client_uses_http_https_and_datagrams_with_dsr_then_it_has_one_backend() {
    http_https_and_datagrams_agree(Forwarding::Dsr);
}

#[test]
fn when_a_client_uses_http_https_and_datagrams_with_gue_then_it_has_one_backend() {
    http_https_and_datagrams_agree(Forwarding::Gue);
}

/// Checks that the control connection of `iperf3` and the data, over TCP and UDP, reach the same server. If a datagram
/// reached another server, that server would refuse the datagram, and the transfer would not begin.
fn control_and_data_agree(forwarding: Forwarding) {
    let site = start(forwarding, 3, |settings, topology| {
        settings.lines = service(topology, forwarding, &["5201", "5201/udp"], "check = { type = \"none\" }\n", 3);
    });
    let mut servers = Vec::new();
    for (number, family) in (1..=3).flat_map(|number| Family::BOTH.map(|family| (number, family))) {
        // The server binds its address explicitly, so that the server's answers to datagrams come from this address.
        let at = served(site.topology(), forwarding, family, number)[0].to_string();
        let arguments = ["-s", "--forceflush", "-B", &at].map(str::to_owned);
        servers
            .push((number, server_program(&site, "iperf3", number, &format!("iperf{number}{family:?}"), &arguments)));
    }
    for (_, server) in &mut servers {
        wait_log(server, "that it listens", |line| line.contains("-----")).unwrap();
    }
    for family in Family::BOTH {
        let vip = site.topology().vip(family).to_string();
        for client in 1..=3 {
            let address = site.topology().client_address(family, client);
            let source = address.to_string();
            let line = format!("Accepted connection from {},", seen_as(forwarding, address));
            let count = |server: &Process| server.tail(1000).unwrap().matches(&line).count();
            let accepted = |servers: &[(u16, Process)]| -> Vec<usize> {
                servers.iter().map(|(_, server)| count(server)).collect()
            };
            let before = accepted(&servers);
            let iperf = ["-c", &vip, "-B", &source, "--json", "-n", "64K", "-b", "4M", "-l", "1K"];
            for (more, sum) in [(&[][..], "sum_received"), (&["-R"][..], "sum_received"), (&["-u"][..], "sum")] {
                let arrives = || {
                    let report = client_program(&site, "iperf3", &[&iperf[..], more].concat());
                    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
                    let number = |key: &str| report["end"][sum][key].as_f64().unwrap_or(0.0);
                    number("bytes") > 1024.0 * number("lost_packets")
                };
                // On a busy machine, a server may fail to count data that it has not read before the transfer ends.
                assert!((0..5).any(|_| arrives()), "{source} {more:?}: nothing arrives");
            }
            // Only the log of the backend that the controller names has new lines about them.
            let now = accepted(&servers);
            let more = servers.iter().zip(now.iter().zip(&before)).filter(|(_, (now, before))| now > before);
            let numbers: Vec<String> = more.map(|((number, _), _)| format!("web{number}")).collect();
            assert_eq!(numbers, [located(&site, address)], "{source}");
        }
        // Each transfer has a control connection, and a TCP transfer also has a data connection.
        let connections = counted(&site, "listener_connections_total", family, 5201, "tcp");
        assert!(connections >= 9.0, "{connections} connections");
        let datagrams = counted(&site, "listener_packets_total", family, 5201, "udp");
        assert!(datagrams >= 3.0 * 64.0, "{datagrams} datagrams");
    }
}

#[test]
fn when_iperf3_runs_with_nat_then_control_and_data_reach_one_backend() {
    control_and_data_agree(Forwarding::Nat);
}

#[test]
fn when_iperf3_runs_with_snat_then_control_and_data_reach_one_backend() {
    control_and_data_agree(Forwarding::Snat);
}

#[test]
fn when_iperf3_runs_with_dsr_then_control_and_data_reach_one_backend() {
    control_and_data_agree(Forwarding::Dsr);
}

/// Starts a name server on the host of `web{number}`. Each answer of the name server begins with the server's name, and
/// one answer is too long for a datagram.
fn start_dnsmasq(site: &Site, forwarding: Forwarding, number: u16) -> Process {
    let port = if translates(forwarding) { 5353 } else { 53 };
    let name = format!("web{number}");
    let long = vec!["x".repeat(250); 16].join(",");
    let mut arguments =
        ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
            .map(str::to_owned)
            .to_vec();
    arguments.extend(["--user=root", "--pid-file", "--log-facility=-"].map(str::to_owned));
    arguments.push(format!("--port={port}"));
    for family in Family::BOTH {
        let addresses = served(site.topology(), forwarding, family, number);
        arguments.extend(addresses.into_iter().map(|address| format!("--listen-address={address}")));
    }
    arguments.push(format!("--txt-record=who.test,{name}"));
    arguments.push(format!("--txt-record=long.test,{name},{long}"));
    server_program(site, "/usr/sbin/dnsmasq", number, &name, &arguments)
}

/// Returns the backend of each client, after checking that `dig` reaches the same backend over UDP, over TCP, and over
/// TCP after a truncated answer.
fn askers(site: &Site) -> Homes {
    let mut homes = Homes::new();
    for (family, number) in Family::BOTH.into_iter().flat_map(|family| (1..=8).map(move |number| (family, number))) {
        let client = site.topology().client_address(family, number);
        let (at, source) = (format!("@{}", site.topology().vip(family)), client.to_string());
        let dig = ["+short", "+tries=2", "+time=10", "-b", &source, &at, "TXT"];
        let ask = |more: &[&str]| client_program(site, "dig", &[&dig[..], more].concat());
        let [udp, tcp] = [ask(&["+notcp", "who.test"]), ask(&["+tcp", "who.test"])];
        assert_eq!(udp, tcp, "{client}");
        let long = ask(&["long.test"]);
        assert!(long.len() > 4000 && long.starts_with(udp.trim()), "{client}: {udp} then {long}");
        homes.insert(client, udp.trim().trim_matches('"').to_owned());
    }
    homes
}

/// Checks that a client gets answers over UDP and TCP from the same name server, even when a server fails.
fn names_over_udp_and_tcp_agree(forwarding: Forwarding) {
    let mut site = start(forwarding, 3, |settings, topology| {
        let ports = if translates(forwarding) { "ports = { 53 = 5353 }\n" } else { "" };
        let check = "check = { type = \"tcp\", interval = \"300ms\", timeout = \"250ms\", fall = 3, rise = 2 }\n";
        settings.lines = service(topology, forwarding, &["53/udp", "53"], &format!("{ports}{check}"), 3);
    });
    let mut servers: Vec<Process> = (1..=3).map(|number| start_dnsmasq(&site, forwarding, number)).collect();
    (1..=3).for_each(|number| wait_both(&mut site, number, "up"));
    let homes = askers(&site);
    for number in 1..=3 {
        assert!(!of(&homes, number).is_empty(), "nobody is on web{number}: {homes:?}");
    }
    servers[2].stop().unwrap();
    wait_both(&mut site, 3, "down");
    assert_eq!(moved(&homes, &askers(&site)), of(&homes, 3));
    for family in Family::BOTH {
        // In each of two rounds, each of eight clients asks one question over TCP and two questions over UDP. After a
        // truncated answer, `dig` repeats one of the UDP questions over TCP.
        for (metric, protocol) in [("connections_total", "tcp"), ("packets_total", "udp")] {
            let counted = counted(&site, &format!("listener_{metric}"), family, 53, protocol);
            assert!(counted >= 32.0, "{family:?} {protocol}: {counted}");
        }
    }
}

#[test]
fn when_a_client_uses_dns_over_udp_and_tcp_with_nat_then_it_has_one_backend() {
    names_over_udp_and_tcp_agree(Forwarding::Nat);
}

#[test]
fn when_a_client_uses_dns_over_udp_and_tcp_with_snat_then_it_has_one_backend() {
    names_over_udp_and_tcp_agree(Forwarding::Snat);
}

#[test]
fn when_a_client_uses_dns_over_udp_and_tcp_with_dsr_then_it_has_one_backend() {
    names_over_udp_and_tcp_agree(Forwarding::Dsr);
}
