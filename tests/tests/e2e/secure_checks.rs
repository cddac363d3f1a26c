//! Tests of health checks of an nginx server that uses HTTP/2, requests client certificates, and acts as a gRPC health
//! service.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use balancer_api::model::BackendView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    pace::patience,
    process::Process,
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::wait;

const PORT: u16 = 8443;
const NAME: &str = "www.example.com";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "an authority");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Returns a signed certificate and its key.
fn signed(authority: &Authority) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, NAME);
    format!("{}{}", params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

/// Replaces a file atomically.
fn put(file: &Path, text: impl AsRef<[u8]>) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

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
        listen PORT ssl http2;
        listen [::]:PORT ssl http2;
        ssl_certificate DIRECTORY/server.pem;
        ssl_certificate_key DIRECTORY/server.pem;
        ssl_client_certificate DIRECTORY/ca.pem;
        ssl_verify_client on;
        root DIRECTORY;
        location = /healthz { return 200 \"$server_protocol $ssl_client_verify\"; }
        location = /grpc.health.v1.Health/Check { error_page 404 405 =200 /stateNUMBER; }
        location = /stateNUMBER { add_trailer grpc-status 0; }
    }
}
";

const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";
const NOT_SERVING: &[u8] = b"\0\0\0\0\x02\x08\x02";

/// Starts nginx in the foreground on the host of `web{number}`.
fn start_nginx(site: &Site, files: &Path, number: u16) -> Process {
    let config = files.join(format!("nginx{number}.conf"));
    let text = NGINX
        .replace("DIRECTORY", &files.display().to_string())
        .replace("NUMBER", &number.to_string())
        .replace("PORT", &PORT.to_string());
    fs::write(&config, text).unwrap();
    put(&files.join(format!("state{number}")), SERVING);
    let name = format!("nginx{number}");
    let mut command = site.topology().backends()[usize::from(number) - 1].command("/usr/sbin/nginx");
    command.arg("-p").arg(files).arg("-c").arg(&config).args(["-g", "daemon off;"]);
    Process::spawn(&name, &mut command, &files.join(format!("{name}.log"))).unwrap()
}

/// Waits until a backend fulfils the condition `is_so` in the services of both families.
#[track_caller]
fn wait_of_both(site: &Site, number: usize, what: &str, is_so: impl Fn(&BackendView) -> bool) {
    let of = |site: &Site| -> Vec<BackendView> {
        site.status().unwrap().services.into_iter().map(|service| service.backends[number - 1].clone()).collect()
    };
    let deadline = Instant::now() + patience(3 * PATIENCE);
    loop {
        let both = of(site);
        if both.len() == 2 && both.iter().all(&is_so) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {both:?}");
        sleep(Duration::from_millis(20));
    }
}

fn wait_up(site: &Site) {
    for number in 1..=2 {
        wait_of_both(site, number, "not up in both families", |backend| backend.state == "up");
    }
}

fn wait_failing(site: &Site, number: usize, why: &str) {
    wait_of_both(site, number, why, |backend| backend.state != "up" && backend.reason.contains(why));
}

#[test]
fn when_a_server_asks_for_certificates_then_checks_by_grpc_and_http2_show_theirs_and_follow_its_file() {
    assert!(Path::new("/usr/sbin/nginx").exists(), "nginx is missing: `cargo xtask setup` installs it");
    let (authority, directory) = (authority(), tempfile::tempdir().unwrap());
    let files = directory.path();
    let client = files.join("client.pem");
    put(&files.join("ca.pem"), authority.pem());
    put(&files.join("server.pem"), signed(&authority));
    put(&client, signed(&authority));
    let check = |of: &str| {
        format!(
            r#"{{ {of}, port = {PORT}, sni = "{NAME}", ca_file = "{files}/ca.pem", client_cert = "{files}/client.pem", interval = "1s", timeout = "1s", fast_interval = "200ms", fall = 3, rise = 1 }}"#,
            files = files.display()
        )
    };
    let by_grpc = check(r#"type = "grpcs", service = "shop.Cart""#);
    let by_http = check(r#"type = "https", http2 = true, path = "/healthz", expect_body = "HTTP/2.0 SUCCESS""#);
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        settings.on_exit = "keep";
        settings.check.clone_from(&by_grpc);
        Ok(())
    })
    .unwrap();
    let _servers: Vec<Process> = (1..=2).map(|number| start_nginx(&site, files, number)).collect();
    wait_up(&site);
    let shown = site.cli(&["health", "show", "web"]).unwrap();
    assert!(shown.contains("grpcs shop.Cart every 1s"), "{shown}");

    put(&files.join("state1"), NOT_SERVING);
    wait_failing(&site, 1, "grpcs: the service \"shop.Cart\" is not serving (NOT_SERVING)");
    wait_of_both(&site, 2, "the other one", |backend| backend.state == "up");
    put(&files.join("state1"), SERVING);
    wait_up(&site);

    // nginx sends an error page to a client if nginx does not accept the client's certificate.
    put(&client, signed(&self::authority()));
    wait_failing(&site, 1, "grpcs: HTTP status 400");
    put(&client, signed(&authority));
    wait_up(&site);

    let ready = |site: &Site| String::from_utf8(site.output(&["ready"]).unwrap().stdout).unwrap();
    let hindered = format!("the client_cert {} cannot be read: No such file", client.display());
    fs::remove_file(&client).unwrap();
    wait("it is not degraded", || ready(&site).contains(&hindered));
    site.kill_and_restart(|_| {}).unwrap();
    wait("it is not degraded after a restart", || ready(&site).contains(&hindered));
    wait_up(&site);
    put(&client, signed(&authority));
    wait("it is degraded", || ready(&site) == "ready\n");

    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replace(&by_grpc, &by_http)).unwrap();
    let file = site.config().display().to_string();
    let plan = site.cli(&["apply", &file, "--dry-run"]).unwrap();
    assert!(plan.contains("2 services changed: 0 of"), "{plan}");
    site.cli(&["apply", &file]).unwrap();
    let by_http2 = |site: &Site| site.cli(&["health", "show", "web"]).unwrap().contains("https GET /healthz HTTP/2");
    wait("the check is not the new one", || by_http2(&site));
    put(&client, signed(&self::authority()));
    wait_failing(&site, 2, "status 400");
    put(&client, signed(&authority));
    wait_up(&site);
}
