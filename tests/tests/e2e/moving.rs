//! Tests of switching from another balancer on the same machine that has the VIP. At first, nginx or HAProxy serves all
//! clients. Then the new balancer serves some of the clients, later all clients, and nginx or HAProxy ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;
mod snat;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    http_client::{Request, send_all},
    process::Process,
    site::{PATIENCE, PORT, Site, counts},
    topology::{Family, Shape},
    users::find_the_way_to_the_clients,
};
use socket2::{Domain, Socket, Type};

use crate::support::{homes, requests, under_load, wait};

const FAMILY: Family = Family::V4;

/// Starts servers behind a balancer's machine. The balancer starts only to create its files, and then ends.
fn site(hosts: u16) -> Site {
    site_with(Forwarding::Nat, hosts, &[FAMILY])
}

fn site_with(forwarding: Forwarding, hosts: u16, families: &[Family]) -> Site {
    let mut site = Site::start(Shape::TwoLegged, forwarding, hosts, |settings, _| {
        settings.families = families.to_vec();
        settings.service_lines = "steer = 0".to_owned();
        Ok(())
    })
    .unwrap();
    find_the_way_to_the_clients(&site);
    site.controller().process().stop().unwrap();
    site
}

/// Starts a program in the balancer's namespace, and waits until the program accepts connections to the VIP.
fn start(site: &Site, name: &str, program: &str, arguments: &[&str]) -> Process {
    assert!(Path::new(program).exists(), "{program} is missing: `cargo xtask setup` installs it");
    let mut command = site.topology().balancer().command(program);
    command.args(arguments);
    let process = Process::spawn(name, &mut command, &site.files().join(format!("{name}.log"))).unwrap();
    let [request] = <[Request; 1]>::try_from(requests(site.topology(), FAMILY, PORT, 1..=1)).unwrap();
    wait(&format!("{name} does not answer: {:?}", process.tail(5)), || {
        send_all(site.topology().client(), std::slice::from_ref(&request), 1).unwrap().iter().all(Result::is_ok)
    });
    process
}

fn start_haproxy(site: &Site, text: &str) -> Process {
    let config = site.files().join("haproxy.cfg");
    let socket = site.files().join("haproxy.sock");
    let head = format!("global\n    stats socket {} mode 600 level admin\n", socket.display());
    fs::write(&config, head + text).unwrap();
    start(site, "haproxy", "/usr/sbin/haproxy", &["-db", "-f", &config.to_string_lossy()])
}

/// Returns a `listen` section of HAProxy that remembers clients and assigns new clients to the servers round-robin.
fn sticky(site: &Site, servers: u16) -> String {
    let vip = SocketAddr::new(site.topology().vip(FAMILY), PORT);
    let servers: String = (1..=servers)
        .map(|number| format!("    server web{number} {} check\n", site.backend_address(FAMILY, number)))
        .collect();
    format!(
        "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n\
         listen web\n    bind {vip}\n    balance roundrobin\n    stick-table type ip size 100k expire 30m\n    \
         stick on src\n{servers}"
    )
}

/// Runs `balancer import` on a file with the given arguments, and returns the path of the result and the messages.
fn import(site: &Site, file: &Path, arguments: &[&str]) -> (PathBuf, String) {
    let imported = site.files().join("imported.toml");
    let output = Command::new(binaries::balancer().unwrap())
        .arg("import")
        .arg(file)
        .args(arguments)
        .arg("-o")
        .arg(&imported)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{said}");
    (imported, said)
}

/// Starts the balancer with the imported services, of whose clients it steers `steer` percent.
fn start_balancer(site: &mut Site, imported: &Path, steer: u8) {
    let services = fs::read_to_string(imported).unwrap();
    let services = services.replace("forwarding = \"nat\"\n", &format!("forwarding = \"nat\"\nsteer = {steer}\n"));
    assert!(services.contains(&format!("steer = {steer}")), "{services}");
    start_with(site, &services);
}

fn start_with(site: &mut Site, services: &str) {
    let own = fs::read_to_string(site.config()).unwrap();
    let (head, _) = own.split_once("[[service]]").unwrap();
    fs::write(site.config(), format!("{head}{services}")).unwrap();
    site.restart_with_the_file_as_it_is().unwrap();
}

fn steer(site: &Site, service: &str, percent: u8) -> String {
    site.cli(&["service", "steer", service, &percent.to_string()]).unwrap()
}

/// Returns the number of clients that have changed their server.
fn elsewhere(before: &[String], after: &[String]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

/// Returns the text of the chapter about switching, whose commands the test runs.
fn chapter() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join("docs/src/switching.md")).unwrap()
}

/// Returns the text of the code block that follows `head`.
fn block<'a>(chapter: &'a str, head: &str) -> &'a str {
    let (_, rest) = chapter.split_once(head).unwrap();
    rest.split_once("```").unwrap().0
}

/// Returns the commands of a code block, each with its output.
fn commands(block: &str) -> Vec<(&str, String)> {
    let mut commands: Vec<(&str, String)> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command, String::new())),
            (None, Some((_, printed))) => *printed += &format!("{line}\n"),
            (None, None) => unreachable!("{line} is what no command prints"),
        }
    }
    commands
}

#[test]
fn when_haproxy_is_left_as_in_the_book_then_no_client_comes_to_another_server_and_no_request_fails() {
    let chapter = chapter();
    let mut site = site(4);
    let mut haproxy = start_haproxy(&site, block(&chapter, "```haproxy\n"));
    let all = requests(site.topology(), FAMILY, PORT, 1..=2000);
    let before = homes(site.topology(), &all);
    assert_eq!(counts(&before).len(), 4, "{:?}", counts(&before));

    let (imported, said) = import(&site, &site.files().join("haproxy.cfg"), &[]);
    println!("{}", said.trim());
    start_balancer(&mut site, &imported, 0);
    (1..=4).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let socket = site.files().join("haproxy.sock");
    let socket = socket.to_str().unwrap();
    let entrance = site.topology().client().entrance();
    let mut shares = Vec::new();
    let typed = commands(block(&chapter, "```console\n"));
    let mut type_in = |command: &str, shown: &str| {
        let command = command.strip_prefix("balancer ").unwrap().replace("haproxy.sock", socket);
        let printed = site.cli(&command.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(printed, shown, "balancer {command}");
        if command.starts_with("service steer") {
            shares.extend(command.rsplit(' ').next().map(str::to_owned));
            assert_eq!(elsewhere(&before, &homes(site.topology(), &all)), 0, "{command}");
        }
    };
    // If the load started earlier, HAProxy would get clients that are missing in the copy of HAProxy's table.
    let first = typed.iter().position(|(command, _)| command.contains(" steer ")).unwrap();
    typed[..first].iter().for_each(|(command, shown)| type_in(command, shown));
    let load =
        under_load(&entrance, &all, || typed[first..].iter().for_each(|(command, shown)| type_in(command, shown)));
    load.assert_answered(100);
    assert_eq!(shares, ["10", "50", "100"]);
    // The remaining connections of HAProxy end with its process.
    haproxy.stop().unwrap();
    let load = under_load(&entrance, &all, || {
        assert_eq!(elsewhere(&before, &homes(site.topology(), &all)), 0, "without HAProxy");
    });
    load.assert_answered(100);
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("moves_total", &["service=\"web\""]).unwrap(), 0.0);
    assert_eq!(metrics.sum("service_steer_percent", &["service=\"web\""]).unwrap(), 100.0);
    // From this point, each server sees the client's own address instead of HAProxy's address.
    site.homes(FAMILY, 1..=20).unwrap();
    println!("2,000 clients: 0 on another server, 0 failed requests");
}

/// Starts three servers behind HAProxy, and a balancer that has imported HAProxy's configuration file and steers no
/// client.
fn beside_haproxy() -> (Site, Process) {
    let mut site = site(3);
    let text = sticky(&site, 3);
    let haproxy = start_haproxy(&site, &text);
    let (imported, _) = import(&site, &site.files().join("haproxy.cfg"), &[]);
    start_balancer(&mut site, &imported, 0);
    (1..=3).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    (site, haproxy)
}

/// An open connection of a client that has sent no request yet.
struct Waiting {
    client: u16,
    stream: TcpStream,
}

impl Waiting {
    fn open(site: &Site, family: Family, client: u16) -> Self {
        let source = SocketAddr::new(site.topology().client_address(family, client), 0);
        let target = SocketAddr::new(site.topology().vip(family), PORT);
        let stream = site
            .topology()
            .client()
            .run_in_thread(move || {
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
                socket.bind(&source.into())?;
                socket.connect_timeout(&target.into(), PATIENCE)?;
                Ok::<TcpStream, std::io::Error>(socket.into())
            })
            .unwrap()
            .unwrap();
        Self { client, stream }
    }

    /// Sends a request without closing the connection, and returns the client address that the server has seen.
    fn ask(&mut self) -> Result<String, String> {
        let error = |error: std::io::Error| format!("client {}: {error}", self.client);
        self.stream.set_read_timeout(Some(PATIENCE)).map_err(error)?;
        self.stream
            .write_all(b"GET / HTTP/1.1\r\nhost: web\r\naccept: application/json\r\ncontent-length: 0\r\n\r\n")
            .map_err(error)?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            let read = self.stream.read(&mut part).map_err(error)?;
            if read == 0 {
                return Err(format!("client {}: the connection was ended", self.client));
            }
            answer.extend_from_slice(&part[..read]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((_, rest)) = text.split_once("\"client\":")
                && let Some(address) = rest.split('"').nth(1).filter(|_| rest.contains('}'))
            {
                return Ok(address.to_owned());
            }
        }
    }
}

#[test]
fn when_the_share_grows_and_shrinks_under_load_then_open_connections_stay_on_their_side() {
    let (site, _haproxy) = beside_haproxy();
    let all = requests(site.topology(), FAMILY, PORT, 1..=300);
    homes(site.topology(), &all);

    let entrance = site.topology().client().entrance();
    let mut open: Vec<(Waiting, String)> = Vec::new();
    let mut steered = BTreeMap::new();
    let load = under_load(&entrance, &all, || {
        for percent in [0, 10, 50, 100, 10] {
            if percent > 0 {
                println!("{}", steer(&site, "web", percent).trim());
            }
            for (waiting, seen) in &mut open {
                assert_eq!(waiting.ask().as_ref(), Ok(&*seen), "at {percent}%");
            }
            for client in 1..=60 {
                let mut waiting = Waiting::open(&site, FAMILY, client);
                let seen = waiting.ask().unwrap_or_else(|error| panic!("at {percent}%: {error}"));
                let own = seen == site.topology().client_address(FAMILY, client).to_string();
                *steered.entry(percent).or_insert(0) += usize::from(own);
                open.push((waiting, seen));
            }
        }
        for (waiting, seen) in &mut open {
            assert_eq!(waiting.ask().as_ref(), Ok(&*seen), "in the end");
        }
    });
    load.assert_answered(100);
    println!("of 60 clients, steered at each share: {steered:?}; {} connections stayed open", open.len());
    // This map contains the sum of the two measurements at 10%.
    assert!(steered[&0] == 0 && steered[&100] == 60 && steered[&10] < steered[&50] * 2, "{steered:?}");
    let passed = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        site.metrics().unwrap().sum("unsteered_packets_total", &["service=\"web\"", &reason]).unwrap()
    };
    assert!(passed("unsteered") > 0.0 && passed("host_connection") > 0.0);
}

#[test]
fn when_a_service_is_watched_then_the_figures_are_there_before_a_packet_is_steered() {
    let (mut site, _haproxy) = beside_haproxy();
    let all = requests(site.topology(), FAMILY, PORT, 1..=200);
    for _ in 0..2 {
        homes(site.topology(), &all);
    }
    wait("the known clients are not counted", || {
        let status = site.status().unwrap();
        status.services[0].backends.iter().map(|backend| backend.known_clients).sum::<u64>() >= 200
    });
    let status = site.status().unwrap();
    let [service] = status.services.as_slice() else { panic!("{status:?}") };
    assert_eq!((service.steer, service.watched), (0, true));
    assert!(service.backends.iter().all(|backend| backend.connections > 50), "{:?}", service.backends);
    let verdicts: u64 = status.interfaces.iter().map(|of| of.packets_seen.tx + of.packets_seen.redirect).sum();
    assert_eq!(verdicts, 0, "something was steered");
    for (arguments, expected) in [
        (["stats", "web"], "watched (steer 0: what would be)"),
        (["stats", "web"], "PERIOD (WATCHED)"),
        (["status", "--json"], "\"watched\": true"),
        (["service", "list"], "web"),
    ] {
        let text = site.cli(&arguments).unwrap();
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let text = site.cli(&["status"]).unwrap();
    assert!(text.contains("steer 0: the host gets every packet"), "{text}");
    // A plan reports the effect of the change without making the change.
    let plan = site.cli(&["plan", "service", "steer", "web", "100"]).unwrap();
    assert!(plan.contains("100% of the clients would be steered, not 0%; ") && plan.contains("taken over"), "{plan}");
    assert_eq!(site.status().unwrap().services[0].steer, 0);
    let events = || site.cli(&["events"]).unwrap();
    steer(&site, "web", 30);
    assert!(events().contains("service web steer 0 → 30"), "{}", events());
    // The changed percentage survives a restart.
    site.restart_with_the_file_as_it_is().unwrap();
    assert_eq!(site.status().unwrap().services[0].steer, 30);
}

#[test]
fn when_clients_are_exported_and_imported_then_they_are_known_where_they_were() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 3, |settings, _| {
        settings.remember = "1h";
        Ok(())
    })
    .unwrap();
    find_the_way_to_the_clients(&site);
    let before = site.homes(FAMILY, 1..=300).unwrap();
    let file = site.files().join("clients.txt");
    let file = file.to_string_lossy();
    let within = ["--within", "10.1.0.0/16"];
    site.cli(&["client", "export", "web", "-o", &file, within[0], within[1]]).unwrap();
    let text = fs::read_to_string(&*file).unwrap();
    let lines: BTreeMap<&str, &str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(client, rest)| (client, rest.split(' ').next().unwrap()))
        .collect();
    for (&client, home) in &before {
        let address = site.topology().client_address(FAMILY, client).to_string();
        assert_eq!(lines.get(address.as_str()), Some(&home.as_str()), "{address}");
    }
    // The client table is new and has another size, and the imported file assigns all clients to one server: the import
    // moves all clients to that server.
    site.restart(|settings| settings.lines = "[client_table]\ncapacity = 65536\n".to_owned()).unwrap();
    let moved = text.replace(" web2 ", " web1 ").replace(" web3 ", " web1 ");
    fs::write(&*file, moved).unwrap();
    let said = site.cli(&["client", "import", "web", &file]).unwrap();
    assert!(said.starts_with("service web: 300 clients known from the file"), "{said}");
    let after = site.homes(FAMILY, 1..=300).unwrap();
    assert_eq!(counts(after.values()).keys().collect::<Vec<_>>(), ["web1"], "{:?}", counts(after.values()));
    // The error names the malformed line, and the remaining lines of the file have no effect.
    fs::write(&*file, "10.1.0.1 web2\n10.1.0.2 web9\n").unwrap();
    let error = site.cli(&["client", "import", "web", &file]).unwrap_err().to_string();
    assert!(error.contains("clients.txt:2: there is no backend \"web9\""), "{error}");
    assert_eq!(site.homes(FAMILY, 1..=1).unwrap()[&1], "web1");
}

#[test]
fn when_clients_have_ipv6_addresses_then_they_are_exported_by_prefix_and_imported_again() {
    let family = Family::V6;
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 3, |settings, _| {
        settings.families = vec![family];
        settings.remember = "1h";
        Ok(())
    })
    .unwrap();
    find_the_way_to_the_clients(&site);
    let file = site.files().join("clients.txt");
    let file = file.to_string_lossy();
    let export = |site: &Site, within: &str| -> Vec<String> {
        site.cli(&["client", "export", "web6", "-o", &file, "--within", within]).unwrap();
        let text = fs::read_to_string(&*file).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    let before = site.homes(family, 1..=100).unwrap();
    let lines = export(&site, "fd00:1::/112");
    for (&client, home) in &before {
        let line = format!("{} {home} ", site.topology().client_address(family, client));
        assert!(lines.iter().any(|found| found.starts_with(&line)), "{line}: {lines:?}");
    }
    let moved = fs::read_to_string(&*file).unwrap().replace(" web2 ", " web1 ").replace(" web3 ", " web1 ");
    fs::write(&*file, moved).unwrap();
    let said = site.cli(&["client", "import", "web6", &file, "--overwrite"]).unwrap();
    assert!(said.starts_with("service web6: 100 clients known from the file"), "{said}");
    let after = site.homes(family, 1..=100).unwrap();
    assert_eq!(counts(after.values()).keys().collect::<Vec<_>>(), ["web1"], "{:?}", counts(after.values()));
    // The prefix contains too many addresses for `client export` to search.
    let error = site.cli(&["client", "export", "web6", "--within", "fd00:1::/32"]).unwrap_err().to_string();
    assert!(error.contains("fd00:1::/32 holds too many clients to look at; name smaller prefixes"), "{error}");

    // If each client is a /64 prefix, all addresses of the test are one client, and the balancer can search a whole /44
    // prefix. A program that is not optimised searches it within a second, and a /32 prefix not within a request's time.
    let text = fs::read_to_string(site.config()).unwrap();
    assert!(text.contains("v6 = 128"), "{text}");
    fs::write(site.config(), text.replace("v6 = 128", "v6 = 64")).unwrap();
    site.restart_with_the_file_as_it_is().unwrap();
    let home = site.homes(family, 1..=1).unwrap().remove(&1).unwrap();
    let lines = export(&site, "fd00:1::/44");
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.starts_with(&format!("fd00:1:: {home} ")), "{line}");
    let other = if home == "web1" { "web2" } else { "web1" };
    fs::write(&*file, format!("fd00:1:: {other}\n")).unwrap();
    site.cli(&["client", "import", "web6", &file, "--overwrite"]).unwrap();
    let after = site.homes(family, 1..=20).unwrap();
    assert_eq!(counts(after.values()).keys().collect::<Vec<_>>(), [other], "{after:?}");
}

#[test]
fn when_haproxy_serves_both_families_from_ipv4_servers_then_the_imported_services_do_too() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Snat, 3, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        Ok(())
    })
    .unwrap();
    let vip = |family| SocketAddr::new(site.topology().vip(family), PORT);
    let second = format!("    bind {}\n    balance", vip(Family::V6));
    let other = sticky(&site, 3).replace(&vip(Family::V4).to_string(), &format!("{}:8081", vip(Family::V4).ip()));
    let (_, other) = other.split_once("listen web").unwrap();
    let text = format!("{}\nlisten other{other}", sticky(&site, 3).replacen("    balance", &second, 1));
    let file = site.files().join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let (imported, said) = import(&site, &file, &[]);
    assert!(said.contains("2 services, 6 backends; 0 directives need you"), "{said}");
    let services = fs::read_to_string(imported).unwrap();
    // The second service shares servers with the first, which nat cannot serve.
    assert_eq!(services.matches("forwarding = \"snat\"\n").count(), 2, "{services}");
    start_with(&mut site, &services);
    for family in Family::BOTH {
        let homes = site.homes(family, 1..=20).unwrap();
        assert_eq!((homes.len(), site.homes(family, 1..=20).unwrap()), (20, homes.clone()), "{homes:?}");
    }
}
