//! Tests of every kind of failure with real servers: the demo's web server with simulated failures, and nginx. The
//! tests count the moves of each client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::{Request, send_all},
    process::Process,
    site::{PATIENCE, Site, WORKERS, counts},
    stop::StopOnDrop,
    topology::{Family, Shape},
    users::{Users, find_the_way_to_the_clients},
};
use nix::sys::signal::Signal;

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=300;
const NEWCOMERS: std::ops::RangeInclusive<u16> = 301..=400;
const FAMILY: Family = Family::V4;

fn generation(site: &Site) -> u64 {
    site.status().unwrap().services[0].table_generation
}

/// The backend does not answer: each client of the backend moves once, and no other client moves. After the backend's
/// recovery, the moved clients stay with their new backends.
#[test]
fn when_a_backend_fails_hard_in_any_way_then_only_its_clients_move_once() {
    let mut users = Users::new(Forwarding::Nat, |_| {});
    users.visit(CLIENTS);
    let mut down = 0;
    for (number, kind, reason) in [
        (1, "reset", "reset"),
        (2, "hang", "timeout"),
        (3, "slow", "timeout"),
        (4, "link", ""),
        (2, "killed", "refused"),
    ] {
        let before = generation(&users.site);
        let link = |state: &str| users.site.topology().switch().ip(&format!("link set web{number} {state}")).map(drop);
        match kind {
            "link" => link("down").unwrap(),
            "killed" => users.site.kill_backend(number).unwrap(),
            mode => users.site.fail_backend(number, mode).unwrap(),
        }
        users.site.wait_state(number, &["down"]).unwrap();
        assert!(users.shown(number).1.contains(reason), "{kind}: {:?}", users.shown(number));
        assert_eq!(generation(&users.site), before + 1, "{kind}: one table for one failure");
        let moved = users.only_its_clients_move(&format!("web{number}"));
        down += moved;
        users.assert_moves(&[("down", down)]);
        println!("{kind}: {moved} clients of web{number} moved, once each");

        match kind {
            "link" => users.site.topology().switch().ip(&format!("link set web{number} up")).map(drop).unwrap(),
            "killed" => users.site.start_backend(number).unwrap(),
            _ => users.site.fail_backend(number, "ok").unwrap(),
        }
        users.site.wait_state(number, &["up"]).unwrap();
        users.nobody_moves("when it was back");
        assert_eq!(generation(&users.site), before + 2, "{kind}: one table for one return");
    }
    users.assert_moves(&[("down", down)]);
}

/// The backend answers with a failure: the backend's clients stay until the drain is over, and then move. The cause of
/// these moves is the drain.
#[test]
fn when_a_backend_fails_softly_in_any_way_then_known_clients_stay_until_the_deadline() {
    let mut users = Users::new(Forwarding::Nat, |settings| {
        settings.check = settings.check.replace(" }", r#", expect_body = "ok" }"#);
        settings.service_lines += "drain = { timeout = \"5s\" }\n";
    });
    users.visit(CLIENTS);
    let mut drained = 0;
    for (number, mode, reason, newcomers) in [(1, "503", "status 503", NEWCOMERS), (2, "body", "body", 401..=500)] {
        users.site.fail_backend(number, mode).unwrap();
        users.site.wait_state(number, &["draining (health)"]).unwrap();
        assert!(users.shown(number).1.contains(reason), "{:?}", users.shown(number));
        let name = format!("web{number}");
        let known = users.clients_of(&name);
        users.nobody_moves("when it said no");
        users.visit(newcomers);
        assert_eq!(users.clients_of(&name), known, "new clients of a backend that says no");
        users.site.wait_state(number, &["down"]).unwrap();
        drained += users.only_its_clients_move(&name);
        users.assert_moves(&[("drain", drained)]);
        users.site.fail_backend(number, "ok").unwrap();
        users.site.wait_state(number, &["up"]).unwrap();
        users.nobody_moves("when it said yes");
    }
    users.assert_moves(&[("drain", drained)]);
    println!("{drained} clients moved after their deadlines, once each");
}

#[test]
fn when_a_draining_backend_fails_softly_then_its_clients_stay_and_if_it_dies_they_move() {
    let mut users = Users::new(Forwarding::Dsr, |_| {});
    users.visit(CLIENTS);
    users.site.cli(&["backend", "drain", "web/web2", "--timeout", "1h"]).unwrap();
    users.site.fail_backend(2, "503").unwrap();
    let soft = "balancer_health_checks_total{backend=\"web2\",result=\"soft\",service=\"web\"}";
    wait_metric(&users.site, "health_checks_total", &["backend=\"web2\"", "result=\"soft\""], 4.0, soft);
    assert_eq!(users.shown(2).0, "draining");
    users.nobody_moves("while web2 drained and said no");
    users.site.kill_backend(2).unwrap();
    users.site.wait_state(2, &["down"]).unwrap();
    let moved = users.only_its_clients_move("web2");
    users.assert_moves(&[("down", moved)]);
}

#[test]
fn when_on_failure_words_are_swapped_then_the_reactions_are_swapped() {
    let mut users = Users::new(Forwarding::Nat, |settings| {
        settings.service_lines += "on_failure = { hard = \"drain\", soft = \"move\" }\n";
    });
    users.visit(CLIENTS);
    // The backend still serves clients, but does not answer its health check.
    users.site.fail_backend(1, "hang").unwrap();
    users.site.wait_state(1, &["draining (health)"]).unwrap();
    users.nobody_moves("when the check of web1 was not answered");
    users.site.fail_backend(2, "503").unwrap();
    users.site.wait_state(2, &["down"]).unwrap();
    let moved = users.only_its_clients_move("web2");
    users.assert_moves(&[("down", moved)]);
}

fn wait_metric(site: &Site, name: &str, labels: &[&str], at_least: f64, what: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while site.metrics().unwrap().sum(name, labels).unwrap_or(0.0) < at_least {
        assert!(std::time::Instant::now() < deadline, "{what} does not come to {at_least}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Two of three checks fail repeatedly, alternately with hard and soft failures. The number of consecutive failures
/// stays below `fall`, so the balancer does not react.
#[test]
fn when_a_backend_flaps_below_fall_then_no_client_moves() {
    const MANY: std::ops::RangeInclusive<u16> = 1..=600;
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        settings.check =
            r#"{ type = "http", path = "/healthz", interval = "500ms", timeout = "500ms", fast_interval = "100ms", fall = 3, rise = 2 }"#
                .to_owned();
        Ok(())
    })
    .unwrap();
    for number in 1..=4 {
        site.wait_state(number, &["up"]).unwrap();
    }
    let homes = site.homes(FAMILY, MANY).unwrap();
    let before = generation(&site);
    for number in [1, 3] {
        site.fail_backend(number, "flap").unwrap();
    }
    for round in 1..=3 {
        for result in ["soft", "hard", "passed"] {
            let labels = ["backend=\"web3\"", &format!("result=\"{result}\"")];
            wait_metric(&site, "health_checks_total", &labels, f64::from(4 * round), result);
        }
        assert_eq!(site.homes(FAMILY, MANY).unwrap(), homes);
    }
    assert_eq!(generation(&site), before);
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("table_slots_moved_total", &["service=\"web\""]).unwrap(), 0.0);
    let failed =
        ["soft", "hard"].map(|result| metrics.sum("health_checks_total", &[&format!("result=\"{result}\"")]).unwrap());
    println!("{failed:?} checks failed softly and hard: {} clients, 0 moved", homes.len());
}

/// The port of nginx and of the service `shop`.
pub(crate) const NGINX_PORT: u16 = 8088;
const SHOP_PORT: u16 = 8000;

/// Starts nginx in the foreground on the host of `web{number}`. While a file `sick{number}` exists, nginx answers
/// health checks with a failure.
pub(crate) fn start_nginx(site: &Site, number: u16) -> Result<Process> {
    let files = site.files();
    let config = files.join(format!("nginx{number}.conf"));
    let text = NGINX
        .replace("DIRECTORY", &files.display().to_string())
        .replace("NUMBER", &number.to_string())
        .replace("PORT", &NGINX_PORT.to_string());
    fs::write(&config, text)?;
    let name = format!("nginx{number}");
    let mut command = site.topology().backends()[usize::from(number) - 1].command("/usr/sbin/nginx");
    command.arg("-p").arg(files).arg("-c").arg(&config).args(["-g", "daemon off;"]);
    Process::spawn(&name, &mut command, &files.join(format!("{name}.log")))
}

const NGINX: &str = "
user root;
worker_processes 2;
pid DIRECTORY/nginxNUMBER.pid;
error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path DIRECTORY/nginxNUMBER-body;
    proxy_temp_path DIRECTORY/nginxNUMBER-proxy;
    fastcgi_temp_path DIRECTORY/nginxNUMBER-fastcgi;
    uwsgi_temp_path DIRECTORY/nginxNUMBER-uwsgi;
    scgi_temp_path DIRECTORY/nginxNUMBER-scgi;
    server {
        listen PORT reuseport backlog=1024;
        add_header x-backend webNUMBER always;
        location / { return 200 \"$remote_addr\\n\"; }
        location /healthz {
            if (-f DIRECTORY/sickNUMBER) { return 503; }
            return 200 ok;
        }
    }
}
";

/// Sends one request of each client to the service `shop`, and returns the backend of each client.
fn shop(site: &Site, clients: std::ops::RangeInclusive<u16>) -> BTreeMap<u16, String> {
    let requests: Vec<Request> = clients.clone().map(|client| shopper(site, client)).collect();
    let replies = send_all(site.topology().client(), &requests, WORKERS).unwrap();
    clients
        .zip(replies)
        .map(|(client, reply)| {
            let reply = reply.map_err(|error| format!("client {client}: {error}")).unwrap();
            let seen = String::from_utf8(reply.body).unwrap();
            assert_eq!(seen.trim(), site.topology().client_address(FAMILY, client).to_string());
            (client, reply.backend)
        })
        .collect()
}

fn shopper(site: &Site, client: u16) -> Request {
    let request = site.request(FAMILY, client);
    Request { target: SocketAddr::new(request.target.ip(), SHOP_PORT), timeout: PATIENCE, ..request }
}

fn moved(before: &BTreeMap<u16, String>, after: &BTreeMap<u16, String>) -> Vec<u16> {
    before.iter().filter(|(client, home)| after[client] != **home).map(|(&client, _)| client).collect()
}

fn of(homes: &BTreeMap<u16, String>, backend: &str) -> Vec<u16> {
    homes.iter().filter(|(_, home)| *home == backend).map(|(&client, _)| client).collect()
}

#[test]
fn when_nginx_is_reloaded_stopped_started_or_fails_then_clients_move_only_as_they_must() {
    assert!(Path::new("/usr/sbin/nginx").exists(), "nginx is missing: `cargo xtask setup` installs it");
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, topology| {
        let vip = SocketAddr::new(topology.vip(FAMILY), SHOP_PORT);
        settings.lines = format!(
            "[[service]]\nname = \"shop\"\naddress = \"{vip}\"\nforwarding = \"nat\"\nremember = \"60s\"\n\
             drain = {{ timeout = \"8s\" }}\ncheck = {{ type = \"http\", path = \"/healthz\", expect_body = \"ok\", \
             interval = \"300ms\", timeout = \"250ms\", fall = 3, rise = 2 }}\n"
        );
        for number in 1..=3 {
            let address = SocketAddr::new(topology.backend_address(FAMILY, number - 1), NGINX_PORT);
            settings.lines += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n");
        }
        Ok(())
    })
    .unwrap();
    let mut servers: Vec<Process> = (1..=3).map(|number| start_nginx(&site, number).unwrap()).collect();
    for number in 1..=3 {
        wait_shop(&mut site, number, "up");
    }
    find_the_way_to_the_clients(&site);
    let homes = shop(&site, CLIENTS);
    assert_eq!(counts(homes.values()).len(), 3, "{:?}", counts(homes.values()));

    // During five graceful reloads under load, no request fails and no client moves.
    let stop = AtomicBool::new(false);
    let requests: Vec<(Request, String)> =
        homes.iter().map(|(&client, home)| (shopper(&site, client), home.clone())).collect();
    let clients = site.topology().client();
    let done = thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let load = scope.spawn(|| {
            clients.enter().unwrap();
            let mut done = 0;
            for (request, home) in requests.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                assert_eq!(request.send().unwrap().backend, *home);
                done += 1;
            }
            done
        });
        for _ in 0..5 {
            servers.iter_mut().for_each(|server| server.signal(Signal::SIGHUP).unwrap());
            thread::sleep(Duration::from_millis(600));
        }
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(done > 300, "no load: {done}");
    println!("{done} requests during 5 reloads of 3 servers, none failed, 0 clients moved");

    // When nginx stops on one host, its clients move once. When nginx starts again, the moved clients stay with their
    // new backends.
    servers[1].stop().unwrap();
    wait_shop(&mut site, 2, "down");
    let after = shop(&site, CLIENTS);
    assert_eq!(moved(&homes, &after), of(&homes, "web2"));
    assert_eq!(shop(&site, CLIENTS), after, "moved a second time");
    servers[1] = start_nginx(&site, 2).unwrap();
    wait_shop(&mut site, 2, "up");
    assert_eq!(shop(&site, CLIENTS), after, "moved when it was back");
    assert!(!of(&shop(&site, NEWCOMERS), "web2").is_empty());

    // When nginx answers its check with 503, nginx's clients stay until the drain is over.
    let known = shop(&site, CLIENTS);
    fs::write(site.files().join("sick3"), "").unwrap();
    wait_shop(&mut site, 3, "draining (health)");
    assert_eq!(shop(&site, CLIENTS), known, "moved while it drained");
    assert!(of(&shop(&site, 401..=500), "web3").is_empty());
    wait_shop(&mut site, 3, "down");
    let after = shop(&site, CLIENTS);
    assert_eq!(moved(&known, &after), of(&known, "web3"));
    let metrics = site.metrics().unwrap();
    let cause =
        |cause: &str| metrics.sum("moves_total", &["service=\"shop\"", &format!("cause=\"{cause}\"")]).unwrap_or(0.0);
    assert_eq!((cause("down"), cause("drain")), (of(&homes, "web2").len() as f64, of(&known, "web3").len() as f64));
    println!("{} clients moved for down, {} for drain", cause("down"), cause("drain"));
}

fn wait_shop(site: &mut Site, number: u16, state: &str) {
    let name = format!("web{number}");
    let shown = |status: &balancer_api::model::StatusView| {
        status
            .services
            .iter()
            .filter(|service| service.name == "shop")
            .any(|service| service.backends.iter().any(|backend| backend.name == name && backend.state == state))
    };
    site.controller().wait_for(PATIENCE, &format!("shop/{name} to be {state}"), shown).unwrap();
}
