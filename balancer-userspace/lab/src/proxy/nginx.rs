//! The configuration of nginx.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Rule, Server, Setup};

pub(super) fn text(setup: &Setup) -> Result<String> {
    match setup.rule {
        Rule::NginxStream => stream(setup),
        _ => Ok(http(setup)),
    }
}

fn http(setup: &Setup) -> String {
    let at = |end: &str| setup.config.with_extension(end).display().to_string();
    let (upstream, pass, more) = match setup.rule {
        Rule::NginxIpHash => (upstream(setup, "ip_hash;\n"), "pool", String::new()),
        Rule::NginxHash => (upstream(setup, "hash $remote_addr;\n"), "pool", String::new()),
        Rule::NginxConsistent => (upstream(setup, CONSISTENT), "pool", String::new()),
        _ => (cookies(setup), "$target", "add_header Set-Cookie \"route=$chosen\" always;\n".to_owned()),
    };
    format!(
        "{}worker_processes 1;\nevents {{ worker_connections 2048; }}\n\
         http {{\naccess_log off;\nclient_body_temp_path {};\nproxy_temp_path {};\nfastcgi_temp_path {};\n\
         uwsgi_temp_path {};\nscgi_temp_path {};\n{upstream}server {{\nlisten {};\nlocation / {{\n\
         proxy_pass http://{pass};\nproxy_connect_timeout 1s;\nproxy_read_timeout 2s;\n{more}}}\n}}\n}}\n",
        process(&setup.config),
        at("body"),
        at("proxied"),
        at("fastcgi"),
        at("uwsgi"),
        at("scgi"),
        setup.target.port(),
    )
}

fn stream(setup: &Setup) -> Result<String> {
    let module = module()?.map_or_else(String::new, |path| format!("load_module {};\n", path.display()));
    Ok(format!(
        "{module}{}worker_processes auto;\nevents {{ worker_connections 8192; }}\nstream {{\n{}server {{\nlisten {};\n\
         proxy_pass pool;\nproxy_connect_timeout 1s;\nproxy_timeout 5s;\n}}\n}}\n",
        process(&setup.config),
        upstream(setup, CONSISTENT),
        setup.target.port(),
    ))
}

const CONSISTENT: &str = "hash $remote_addr consistent;\n";

fn process(config: &Path) -> String {
    let at = |end: &str| config.with_extension(end).display().to_string();
    format!("daemon off;\nuser root;\npid {};\nerror_log {} error;\n", at("pid"), at("log"))
}

fn upstream(setup: &Setup, rule: &str) -> String {
    let all: String = setup.servers.iter().map(|server| line(server, "")).collect();
    format!("upstream pool {{\n{rule}{all}}}\n")
}

fn line(server: &Server, more: &str) -> String {
    let down = if server.drained { " down" } else { "" };
    format!("server {} weight={}{down}{more};\n", server.address, server.weight)
}

/// An upstream for each server, in which the other servers are backups, and a map from cookies to upstreams.
fn cookies(setup: &Setup) -> String {
    let (mut text, mut target, mut chosen) = (upstream(setup, ""), String::new(), String::new());
    for server in &setup.servers {
        let name = &server.name;
        let others = setup.servers.iter().filter(|other| other.name != *name && !other.drained);
        let backups: String = others.map(|other| line(other, " backup")).collect();
        // A drained server keeps the clients that have its cookie.
        let own = line(&Server { drained: false, ..server.clone() }, "");
        // Writing to a string cannot fail.
        let _ = write!(text, "upstream {name} {{\n{own}{backups}}}\n");
        let _ = writeln!(target, "{name} {name};");
        let _ = writeln!(chosen, "~{}$ {name};", server.address);
    }
    let _ = write!(
        text,
        "map $cookie_route $target {{\ndefault pool;\n{target}}}\nmap $upstream_addr $chosen {{\n{chosen}}}\n"
    );
    text
}

/// The file of nginx's stream module; `None` if the module is built into nginx.
pub(super) fn module() -> Result<Option<PathBuf>> {
    let output = Command::new("nginx").arg("-V").output().context("cannot start nginx")?;
    let Some(path) = module_of(&String::from_utf8_lossy(&output.stderr)) else { return Ok(None) };
    let shown = path.display();
    ensure!(
        path.is_file(),
        "nginx's module for streams ({shown}) is missing: it is in the package libnginx-mod-stream"
    );
    Ok(Some(path))
}

/// Finds the file of the stream module in the output of `nginx -V`; `None` if the module is built into nginx.
fn module_of(said: &str) -> Option<PathBuf> {
    let mut words = said.split_whitespace();
    if words.clone().any(|word| word == "--with-stream") {
        return None;
    }
    let directory = words.find_map(|word| word.strip_prefix("--modules-path=")).unwrap_or("/usr/lib/nginx/modules");
    Some(Path::new(directory).join("ngx_stream_module.so"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::module_of;

    #[test]
    fn when_the_stream_module_is_not_built_in_then_its_file_is_found() {
        assert_eq!(module_of("configure arguments: --with-stream --modules-path=/opt/modules"), None);
        let dynamic = "--modules-path=/opt/modules --with-stream=dynamic --with-stream_ssl_module";
        assert_eq!(module_of(dynamic).as_deref(), Some(Path::new("/opt/modules/ngx_stream_module.so")));
    }
}
