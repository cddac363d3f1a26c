//! The classics: nginx and `HAProxy`, each with the configuration that its manual recommends.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use balancer_demo::topology::{Family, Topology};
use nix::sys::signal::Signal;

use crate::{
    hosts::Hosts,
    part::Part,
    row::Front as Kind,
    servers::{HEALTH, PORT},
};

const FAMILY: Family = Family::V4;

/// What a server is to its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    weight: u16,
    drained: bool,
}

/// A proxy that runs on the first balancer's host.
#[derive(Debug)]
pub(crate) struct Proxy {
    kind: Kind,
    part: Option<Part>,
    servers: BTreeMap<u16, Share>,
    config: PathBuf,
}

impl Proxy {
    pub(crate) fn start(hosts: &Hosts, kind: Kind, servers: u16) -> Result<Self> {
        let share = Share { weight: 10, drained: false };
        let servers = (1..=servers).map(|number| (number, share)).collect();
        let config = hosts.directory("proxy")?.join("proxy.conf");
        let mut this = Self { kind, part: None, servers, config };
        let (vip, host) = (hosts.topology.vip(FAMILY), hosts.topology.balancer());
        host.ip(&format!("addr add {vip}/32 dev lo"))?;
        let (first, _) = Topology::balancer_address(FAMILY);
        hosts.topology.router().ip(&format!("-4 route replace {vip} via {first}"))?;
        this.write(hosts)?;
        this.run(hosts)?;
        Ok(this)
    }

    /// Adds a server.
    pub(crate) fn add(&mut self, hosts: &Hosts, number: u16) -> Result<()> {
        self.servers.insert(number, Share { weight: 10, drained: false });
        if self.kind != Kind::HaproxyTable {
            return self.reload(hosts);
        }
        // A reload has been seen to lose the table, in spite of `peers`.
        let address = address(&hosts.topology, number);
        self.command(&format!("add server web/web{number} {address} weight 10 check"))?;
        self.command(&format!("enable health web/web{number}"))?;
        self.command(&format!("enable server web/web{number}"))
    }

    /// Changes the weight of a server, of 10.
    pub(crate) fn weigh(&mut self, hosts: &Hosts, number: u16, weight: u16) -> Result<()> {
        self.servers.entry(number).and_modify(|share| share.weight = weight);
        if is_nginx(self.kind) {
            return self.reload(hosts);
        }
        self.command(&format!("set weight web/web{number} {weight}"))
    }

    /// Drains a server, or takes it back.
    pub(crate) fn drain(&mut self, hosts: &Hosts, number: u16, drained: bool) -> Result<()> {
        self.servers.entry(number).and_modify(|share| share.drained = drained);
        if is_nginx(self.kind) {
            return self.reload(hosts);
        }
        let state = if drained { "drain" } else { "ready" };
        self.command(&format!("set server web/web{number} state {state}"))
    }

    fn reload(&mut self, hosts: &Hosts) -> Result<()> {
        self.write(hosts)?;
        let signal = if is_nginx(self.kind) { Signal::SIGHUP } else { Signal::SIGUSR2 };
        self.part.as_mut().context("the proxy does not run")?.signal_alone(signal)
    }

    /// A command for HAProxy while it runs.
    fn command(&self, text: &str) -> Result<()> {
        let path = self.socket();
        let mut stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
        stream.write_all(format!("{text}\n").as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        let good = said.trim().is_empty() || said.contains("registered");
        ensure!(good, "HAProxy does not take `{text}`: {}", said.trim());
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.config.with_extension("sock")
    }

    /// Stops it and starts it again.
    pub(crate) fn restart(&mut self, hosts: &Hosts) -> Result<()> {
        if let Some(mut part) = self.part.take() {
            part.kill()?;
        }
        self.run(hosts)
    }

    pub(crate) fn end(mut self, hosts: &Hosts) -> Result<()> {
        if let Some(mut part) = self.part.take() {
            part.kill()?;
        }
        let vip = hosts.topology.vip(FAMILY);
        hosts.topology.balancer().ip(&format!("addr del {vip}/32 dev lo"))?;
        hosts.topology.router().ip(&format!("-4 route flush {vip}")).map(drop)
    }

    fn run(&mut self, hosts: &Hosts) -> Result<()> {
        let host = hosts.topology.balancer();
        let (name, mut command) = if is_nginx(self.kind) {
            let mut command = host.command("nginx");
            command.arg("-c").arg(&self.config).arg("-e").arg(self.config.with_extension("log"));
            ("nginx", command)
        } else {
            let mut command = host.command("haproxy");
            command.arg("-W").arg("-db").arg("-f").arg(&self.config);
            ("haproxy", command)
        };
        let mut part = Part::start(name, &mut command, hosts.files())?;
        let target = SocketAddr::new(hosts.topology.vip(FAMILY), PORT);
        part.wait("listening", || {
            host.run_in_thread(|| std::net::TcpStream::connect(target)).is_ok_and(|connected| connected.is_ok())
        })?;
        self.part = Some(part);
        Ok(())
    }

    fn write(&self, hosts: &Hosts) -> Result<()> {
        let text = if is_nginx(self.kind) { self.nginx(&hosts.topology) } else { self.haproxy(&hosts.topology) };
        fs::write(&self.config, text).with_context(|| self.config.display().to_string())
    }

    fn nginx(&self, topology: &Topology) -> String {
        let at = |end: &str| self.config.with_extension(end).display().to_string();
        let line = |number: u16, share: Share, more: &str| {
            let down = if share.drained { " down" } else { "" };
            format!("server {} weight={}{down}{more};\n", address(topology, number), share.weight)
        };
        let all: String = self.servers.iter().map(|(&number, &share)| line(number, share, "")).collect();
        let (upstream, pass, more) = match self.kind {
            Kind::NginxIpHash => (format!("upstream pool {{\nip_hash;\n{all}}}\n"), "pool", String::new()),
            Kind::NginxConsistent => {
                (format!("upstream pool {{\nhash $remote_addr consistent;\n{all}}}\n"), "pool", String::new())
            }
            _ => {
                let (mut text, mut target, mut chosen) =
                    (format!("upstream pool {{\n{all}}}\n"), String::new(), String::new());
                for (&number, &share) in &self.servers {
                    let others = self.servers.iter().filter(|&(&other, share)| other != number && !share.drained);
                    let backups: String = others.map(|(&other, &share)| line(other, share, " backup")).collect();
                    // A drained server keeps those whose cookie names it.
                    let own = line(number, Share { drained: false, ..share }, "");
                    // Writing to a string cannot fail.
                    let _ = write!(text, "upstream web{number} {{\n{own}{backups}}}\n");
                    let _ = writeln!(target, "web{number} web{number};");
                    let _ = writeln!(chosen, "~{}$ web{number};", address(topology, number));
                }
                let _ = write!(
                    text,
                    "map $cookie_route $target {{\ndefault pool;\n{target}}}\nmap $upstream_addr $chosen {{\n{chosen}}}\n"
                );
                (text, "$target", "add_header Set-Cookie \"route=$chosen\" always;\n".to_owned())
            }
        };
        format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {};\nerror_log {} error;\nevents {{ worker_connections 2048; }}\n\
             http {{\naccess_log off;\nclient_body_temp_path {};\nproxy_temp_path {};\nfastcgi_temp_path {};\n\
             uwsgi_temp_path {};\nscgi_temp_path {};\n{upstream}server {{\nlisten {PORT};\nlocation / {{\n\
             proxy_pass http://{pass};\nproxy_connect_timeout 1s;\nproxy_read_timeout 2s;\n{more}}}\n}}\n}}\n",
            at("pid"),
            at("log"),
            at("body"),
            at("proxied"),
            at("fastcgi"),
            at("uwsgi"),
            at("scgi"),
        )
    }

    fn haproxy(&self, topology: &Topology) -> String {
        let (frontend, cookies) = match self.kind {
            Kind::HaproxySource => ("balance source\nhash-type consistent\n", false),
            Kind::HaproxyTable => {
                ("balance roundrobin\nstick-table type ip size 100k expire 3h peers own\nstick on src\n", false)
            }
            _ => ("balance roundrobin\ncookie route insert indirect nocache\n", true),
        };
        let mut text = format!(
            "global\nlocalpeer own\nstats socket {} mode 600 level admin\ndefaults\nmode http\ntimeout connect 1s\ntimeout client 5s\ntimeout server 5s\nretries 2\n\
             option redispatch\npeers own\npeer own 127.0.0.1:10000\nlisten web\nbind :{PORT}\noption httpchk GET {HEALTH}\n\
             {frontend}default-server inter 500ms fastinter 200ms fall 3 rise 2\n",
            self.socket().display()
        );
        for (&number, &share) in &self.servers {
            let cookie = if cookies { format!(" cookie web{number}") } else { String::new() };
            let weight = share.weight;
            let address = address(topology, number);
            let _ = writeln!(text, "server web{number} {address} check weight {weight}{cookie}");
        }
        text
    }
}

const fn is_nginx(kind: Kind) -> bool {
    matches!(kind, Kind::NginxIpHash | Kind::NginxConsistent | Kind::NginxCookie)
}

fn address(topology: &Topology, number: u16) -> SocketAddr {
    SocketAddr::new(topology.backend_address(FAMILY, number - 1), PORT)
}
