//! Tests of switching that take longer than a landing has time for.

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    process::Process,
    site::{PORT, Site, counts},
};

use super::{FAMILY, Waiting, elsewhere, import, site, site_with, snat, start, start_balancer, steer};
use crate::support::{homes, requests, under_load};

const NGINX: &str = "
user root;
worker_processes 1;
pid DIRECTORY/front.pid;
error_log stderr;
events { worker_connections 2048; }
http {
    log_format clients '$remote_addr - - [$time_local] \"$request\" $status $body_bytes_sent \"-\" \"-\" $upstream_addr';
    access_log DIRECTORY/access.log clients;
    client_body_temp_path DIRECTORY/front-body;
    proxy_temp_path DIRECTORY/front-proxy;
    fastcgi_temp_path DIRECTORY/front-fastcgi;
    uwsgi_temp_path DIRECTORY/front-uwsgi;
    scgi_temp_path DIRECTORY/front-scgi;
    upstream shop {
        ip_hash;
SERVERS    }
    server {
        listen VIP;
        location / { proxy_pass http://shop; }
    }
}
";

/// Starts nginx, which assigns clients to the servers by `ip_hash`.
fn start_nginx(site: &Site, servers: u16) -> Process {
    let vip = SocketAddr::new(site.topology().vip(FAMILY), PORT);
    let servers: String =
        (1..=servers).map(|number| format!("        server {};\n", site.backend_address(FAMILY, number))).collect();
    let config = site.files().join("nginx.conf");
    let text = NGINX
        .replace("DIRECTORY", &site.files().display().to_string())
        .replace("SERVERS", &servers)
        .replace("VIP", &vip.to_string());
    fs::write(&config, text).unwrap();
    let files = site.files().to_string_lossy().into_owned();
    start(site, "nginx", "/usr/sbin/nginx", &["-p", &files, "-c", &config.to_string_lossy(), "-g", "daemon off;"])
}

#[test]
fn when_nginx_with_ip_hash_is_left_then_its_log_says_where_ten_thousand_clients_are_and_they_stay_there() {
    let mut site = site(4);
    let mut nginx = start_nginx(&site, 4);
    let all = requests(site.topology(), FAMILY, PORT, 1..=10_000);
    let before = homes(site.topology(), &all);

    let (imported, said) = import(&site, &site.files().join("nginx.conf"), &[]);
    println!("{}", said.trim());
    // For the clients in nginx's log, the simulation of `ip_hash` yields the same shares as nginx.
    let log = site.files().join("access.log");
    let simulated = Command::new(binaries::balancer().unwrap())
        .args(["simulate", "--json", "--config"])
        .arg(&imported)
        .arg(&log)
        .output()
        .unwrap();
    assert!(simulated.status.success(), "{}", String::from_utf8_lossy(&simulated.stderr));
    let simulated: serde_json::Value = serde_json::from_slice(&simulated.stdout).unwrap();
    let rules = simulated["rules"].as_array().unwrap();
    let ip_hash = rules.iter().find(|rule| rule["rule"]["kind"] == "nginx_ip_hash").unwrap();
    let simulated: BTreeMap<String, u64> = (1..)
        .zip(ip_hash["servers"].as_array().unwrap())
        .map(|(number, server)| (format!("web{number}"), server["clients"].as_u64().unwrap()))
        .collect();
    let did = counts(&before).into_iter().map(|(name, clients)| (name.clone(), clients as u64));
    assert_eq!(simulated, did.collect());

    // The log of nginx contains each client's server, so the test converts each line of the log into a line for the
    // import.
    let names: BTreeMap<String, String> = (1..=4)
        .map(|number| {
            let address = site.backend_address(FAMILY, number);
            (address.to_string(), address.to_string().replace(':', "-"))
        })
        .collect();
    let text = fs::read_to_string(&log).unwrap();
    let lines = text.lines().map(|line| {
        let (client, server) = (line.split(' ').next().unwrap(), line.rsplit(' ').next().unwrap());
        format!("{client} {}\n", names[server])
    });
    let clients = site.files().join("clients.txt");
    fs::write(&clients, lines.collect::<String>()).unwrap();

    start_balancer(&mut site, &imported, 0);
    let said = site.cli(&["client", "import", "shop", &clients.to_string_lossy()]).unwrap();
    println!("{}", said.trim());
    println!("{}", steer(&site, "shop", 100).trim());
    nginx.stop().unwrap();
    let after = homes(site.topology(), &all);
    assert_eq!(elsewhere(&before, &after), 0);
    println!("{} clients of nginx: 0 on another server: {:?}", before.len(), counts(&before));
}

#[test]
fn when_nginx_is_left_for_snat_and_comes_back_then_no_client_moves_no_request_fails_and_no_connection_ends() {
    let mut site = site_with(Forwarding::Snat, 3, &[FAMILY]);
    let mut nginx = start_nginx(&site, 3);
    let all = requests(site.topology(), FAMILY, PORT, 1..=2000);
    let before = homes(site.topology(), &all);
    let (imported, said) = import(&site, &site.files().join("nginx.conf"), &[]);
    println!("{}", said.trim());
    // The servers have no route through the balancer's machine.
    let services = fs::read_to_string(imported).unwrap().replace("forwarding = \"nat\"", "forwarding = \"snat\"");
    snat::watch(&mut site, &services);
    let log = site.files().join("access.log");
    let entrance = site.topology().client().entrance();
    let mut open: Vec<Waiting> = Vec::new();
    let load = under_load(&entrance, &all, || {
        for percent in [0, 1, 10, 50, 100, 10, 0, 100] {
            println!("{}", site.cli(&["client", "import", "shop", &log.to_string_lossy(), "--from", "nginx"]).unwrap());
            println!("{}", steer(&site, "shop", percent).trim());
            for waiting in &mut open {
                waiting.ask().unwrap_or_else(|error| panic!("at {percent}%: {error}"));
            }
            open.extend((1..=20).map(|client| Waiting::open(&site, FAMILY, client)));
            assert_eq!(elsewhere(&before, &homes(site.topology(), &all)), 0, "at {percent}%");
        }
        for waiting in &mut open {
            waiting.ask().unwrap_or_else(|error| panic!("in the end: {error}"));
        }
    });
    load.assert_answered(1000);
    nginx.stop().unwrap();
    let load = under_load(&entrance, &all, || {
        assert_eq!(elsewhere(&before, &homes(site.topology(), &all)), 0, "without nginx");
    });
    load.assert_answered(100);
    println!("2,000 clients: 0 on another server, 0 failed requests; {} connections stayed open", open.len());
}
