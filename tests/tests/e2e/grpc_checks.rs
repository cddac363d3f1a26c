//! Tests of health checks by gRPC's health service, in every forwarding mode. The checks use the VIP in the forwarding
//! modes that require the VIP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path};

use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;
use balancer_testkit::{
    process::Process,
    site::Site,
    topology::{Family, Shape, Topology},
};

use crate::support::wait;

const PORT: u16 = 50_051;
const BACKENDS: u16 = 2;

const NGINX: &str = "
user root;
worker_processes 1;
pid DIRECTORY/nginxNUMBER.pid;
error_log stderr;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path DIRECTORY/nginxNUMBER-body;
    proxy_temp_path DIRECTORY/nginxNUMBER-proxy;
    fastcgi_temp_path DIRECTORY/nginxNUMBER-fastcgi;
    uwsgi_temp_path DIRECTORY/nginxNUMBER-uwsgi;
    scgi_temp_path DIRECTORY/nginxNUMBER-scgi;
    default_type application/grpc;
    server {
        listen PORT http2;
        listen [::]:PORT http2;
        root DIRECTORY;
        location = /grpc.health.v1.Health/Check { error_page 404 405 =200 /stateNUMBER; }
        location = /stateNUMBER { add_trailer grpc-status 0; }
    }
}
";

const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";
const NOT_SERVING: &[u8] = b"\0\0\0\0\x02\x08\x02";

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "rpc",
        Family::V6 => "rpc6",
    }
}

/// Returns a service for each family; the balancer checks the service's backends by gRPC.
fn services(forwarding: Forwarding, topology: &Topology) -> String {
    let through = if matches!(forwarding, Forwarding::Nat | Forwarding::Snat) { "backend" } else { "service" };
    let mode = forwarding_word(forwarding);
    let mut text = String::new();
    for family in Family::BOTH {
        let (name, vip) = (name(family), SocketAddr::new(topology.vip(family), PORT));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nforwarding = \"{mode}\"\n\
             check = {{ type = \"grpc\", via = \"{through}\", interval = \"400ms\", timeout = \"300ms\", \
             fast_interval = \"200ms\", fall = 2, rise = 1 }}\n"
        );
        for number in 0..BACKENDS {
            let address = SocketAddr::new(topology.backend_address(family, number), PORT);
            let _ = write!(text, "[[service.backend]]\nname = \"b{}\"\naddress = \"{address}\"\n", number + 1);
        }
    }
    text
}

fn put(files: &Path, number: u16, state: &[u8]) {
    let new = files.join("new");
    fs::write(&new, state).unwrap();
    fs::rename(new, files.join(format!("state{number}"))).unwrap();
}

fn start_nginx(site: &Site, files: &Path, number: u16) -> Process {
    let config = files.join(format!("nginx{number}.conf"));
    let text = NGINX
        .replace("DIRECTORY", &files.display().to_string())
        .replace("NUMBER", &number.to_string())
        .replace("PORT", &PORT.to_string());
    fs::write(&config, text).unwrap();
    put(files, number, SERVING);
    let name = format!("nginx{number}");
    let mut command = site.topology().backends()[usize::from(number) - 1].command("/usr/sbin/nginx");
    command.arg("-p").arg(files).arg("-c").arg(&config).args(["-g", "daemon off;"]);
    Process::spawn(&name, &mut command, &files.join(format!("{name}.log"))).unwrap()
}

/// Waits until the second backend has the given state and reason in both families, and the first backend is up.
#[track_caller]
fn wait_second(site: &Site, state: &str, reason: &str) {
    wait(&format!("the second backend is not {state} {reason:?}"), || {
        let status = site.status().unwrap();
        Family::BOTH.iter().all(|&family| {
            let service = status.services.iter().find(|service| service.name == name(family)).unwrap();
            let (first, second) = (&service.backends[0], &service.backends[1]);
            first.state == "up" && second.state == state && second.reason.contains(reason)
        })
    });
}

fn a_server_that_is_not_serving_is_down(shape: Shape, forwarding: Forwarding) {
    assert!(Path::new("/usr/sbin/nginx").exists(), "nginx is missing: `cargo xtask setup` installs it");
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path();
    let site = Site::start(shape, forwarding, BACKENDS, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        settings.lines = services(forwarding, topology);
        Ok(())
    })
    .unwrap();
    let _servers: Vec<Process> = (1..=BACKENDS).map(|number| start_nginx(&site, files, number)).collect();
    wait_second(&site, "up", "");
    put(files, 2, NOT_SERVING);
    wait_second(&site, "down", "is not serving (NOT_SERVING)");
    put(files, 2, SERVING);
    wait_second(&site, "up", "");
}

#[test]
fn when_a_grpc_server_is_not_serving_behind_gue_then_it_is_down() {
    a_server_that_is_not_serving_is_down(Shape::TwoLegged, Forwarding::Gue);
}

#[test]
fn when_a_grpc_server_is_not_serving_behind_snat_then_it_is_down() {
    a_server_that_is_not_serving_is_down(Shape::TwoLegged, Forwarding::Snat);
}
