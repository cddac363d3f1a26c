//! Tests that nginx, HAProxy and keepalived themselves accept the sample configurations.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{samples, text_of};
use tempfile::TempDir;

/// The paths at which distributions install nginx's `stream` module.
const STREAM_MODULES: [&str; 2] =
    ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"];

/// Runs a program to check a configuration file.
fn accepts(program: &str, arguments: &[&str], file: &Path) {
    let output = Command::new(program).args(arguments).arg(file).output();
    let output = output.expect("`cargo xtask setup` installs nginx, HAProxy and keepalived");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a directory that contains a certificate and its key, for nginx and HAProxy.
fn with_certificate() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["site".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(directory.path().join("site.pem"), format!("{certificate}{key}")).unwrap();
    fs::write(directory.path().join("api.pem"), certificate).unwrap();
    fs::write(directory.path().join("api.key"), key).unwrap();
    directory
}

/// `nginx -t` opens sockets and files, so the addresses and paths in the configuration have to exist on this machine.
fn made_local(text: &str, directory: &Path) -> String {
    let text =
        text.replace("/etc/ssl", directory.to_str().unwrap()).replace("/var/log/nginx", directory.to_str().unwrap());
    let mut local = String::new();
    for line in text.lines() {
        let rest = line.trim_start().strip_prefix("listen ").and_then(|rest| rest.split_once([' ', ';']));
        match rest {
            Some((listener, _)) => {
                let host = if listener.starts_with("[::]") { "[::1]" } else { "127.0.0.1" };
                let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
                local += &line.replace(listener, &format!("{host}:{port}"));
            }
            None if line.starts_with("user ") => continue,
            None => local += &line.replace("/run/nginx.pid", directory.join("pid").to_str().unwrap()),
        }
        local.push('\n');
    }
    local
}

#[test]
fn when_nginx_checks_its_sample_then_it_accepts_it() {
    let directory = with_certificate();
    let root = directory.path();
    fs::create_dir(root.join("conf.d")).unwrap();
    for name in ["nginx.conf", "mime.types", "upstreams.conf", "conf.d/app.conf", "conf.d/api.conf"] {
        let mut text = made_local(&text_of(&format!("nginx/{name}")), root);
        if name == "nginx.conf" {
            let module = STREAM_MODULES.into_iter().find(|module| Path::new(module).exists());
            let module = module.expect("nginx's module for `stream` is missing; `cargo xtask setup` installs it");
            text.insert_str(0, &format!("load_module {module};\n"));
        }
        fs::write(root.join(name), text).unwrap();
    }
    accepts("nginx", &["-t", "-c"], &root.join("nginx.conf"));
}

#[test]
fn when_haproxy_checks_its_sample_then_it_accepts_it() {
    let directory = with_certificate();
    let file: PathBuf = directory.path().join("haproxy.cfg");
    fs::write(&file, text_of("haproxy.cfg").replace("/etc/ssl", directory.path().to_str().unwrap())).unwrap();
    accepts("haproxy", &["-c", "-f"], &file);
}

#[test]
fn when_keepalived_checks_its_sample_then_it_accepts_it() {
    accepts("keepalived", &["-t", "-f"], &samples().join("keepalived/keepalived.conf"));
}
