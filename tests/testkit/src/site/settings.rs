//! The settings of a site's balancer.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;

use crate::{
    binaries,
    topology::{Family, Topology},
};

/// The prefix of the names of additional services.
pub(super) const CROWD: &str = "crowd";
/// The port of the services.
pub const PORT: u16 = 80;

/// The settings that go into the configuration file.
#[derive(Clone, Debug)]
pub struct Settings {
    pub forwarding: Forwarding,
    /// The interfaces to which the balancer attaches.
    pub interfaces: Vec<String>,
    /// The value of `xdp_mode`: `auto`, `native` or `generic`. The setting also applies to `balancer decap` on the
    /// backends.
    pub xdp_mode: &'static str,
    /// The address families; each family has one service.
    pub families: Vec<Family>,
    /// Whether a service's backends have addresses of the family that the VIP does not have, which only tunnels allow.
    pub crossed: bool,
    /// The numbers of the backends, from 1, and their weights, in the order of the file.
    pub backends: Vec<(u16, u16)>,
    /// The health check, as an inline table of TOML.
    pub check: String,
    /// How long the balancer remembers clients.
    pub remember: &'static str,
    /// The client prefix length for IPv4.
    pub prefix_v4: u8,
    /// The value of `on_exit`: `detach` or `keep`.
    pub on_exit: &'static str,
    /// The path of the state file, unless the state file is next to the configuration file.
    pub state: Option<PathBuf>,
    /// The path of the balancer program, unless tests use the current build.
    pub binary: Option<PathBuf>,
    /// The number of additional services with ten unused backends each. Forty additional services make a large state.
    pub crowd: u16,
    /// Additional lines in the section of each service.
    pub service_lines: String,
    /// Additional lines before the services, possibly with tables.
    pub lines: String,
}

/// A check that notices a dead server within a second, but tolerates delays on a loaded machine.
pub const QUICK_CHECK: &str =
    r#"{ type = "tcp", interval = "300ms", timeout = "300ms", fast_interval = "100ms", fall = 5, rise = 1 }"#;

/// The equivalent of [`QUICK_CHECK`] for a server that reports its health over HTTP.
pub const QUICK_HTTP_CHECK: &str = r#"{ type = "http", path = "/healthz", interval = "300ms", timeout = "300ms", fast_interval = "100ms", fall = 5, rise = 2 }"#;

impl Settings {
    /// Settings for one IPv4 service with the equal backends `1..=backends` and without checks, on all interfaces of
    /// the balancer's host.
    #[must_use]
    pub fn new(topology: &Topology, forwarding: Forwarding, backends: u16) -> Self {
        Self {
            forwarding,
            interfaces: topology.interfaces().iter().map(|&name| name.to_owned()).collect(),
            xdp_mode: "native",
            families: vec![Family::V4],
            crossed: false,
            backends: (1..=backends).map(|number| (number, 100)).collect(),
            check: r#"{ type = "none" }"#.to_owned(),
            remember: "0s",
            prefix_v4: 32,
            on_exit: "detach",
            state: None,
            binary: None,
            crowd: 0,
            service_lines: String::new(),
            lines: String::new(),
        }
    }

    pub(super) fn binary(&self) -> Result<PathBuf> {
        self.binary.clone().map_or_else(binaries::balancer, Ok)
    }

    fn text(&self, topology: &Topology, files: &Path) -> String {
        let Self { interfaces, xdp_mode, check, remember, prefix_v4, on_exit, service_lines, lines, .. } = self;
        let (forwarding, port) = match self.forwarding {
            mode @ (Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue) => (forwarding_word(mode), PORT),
            mode @ (Forwarding::Nat | Forwarding::Snat) => (forwarding_word(mode), backend_port(mode)),
        };
        let mut text = format!(
            "interfaces = {interfaces:?}\nxdp_mode = \"{xdp_mode}\"\non_exit = \"{on_exit}\"\nstate_file = \"{state}/state.json\"\n\
             [control]\nsocket = \"{files}/balancer.sock\"\n\
             [hash]\nkey = \"hex:000102030405060708090a0b0c0d0e0f\"\n{lines}\n",
            files = files.display(),
            state = self.state.as_deref().unwrap_or(files).display()
        );
        for &family in &self.families {
            let (name, vip) = (service(family), SocketAddr::new(topology.vip(family), PORT));
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nforwarding = \"{forwarding}\"\n\
                 remember = \"{remember}\"\nclient_prefix = {{ v4 = {prefix_v4}, v6 = 128 }}\ncheck = {check}\n\
                 {service_lines}\n"
            );
            for &(number, weight) in &self.backends {
                let of = if self.crossed { family.other() } else { family };
                let address = SocketAddr::new(topology.backend_address(of, number - 1), port);
                let _ = write!(
                    text,
                    "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\nweight = {weight}\n"
                );
            }
        }
        text + &self.crowd(topology)
    }

    fn crowd(&self, topology: &Topology) -> String {
        let vip = topology.vip(Family::V4);
        let server = topology.backend_address(Family::V4, 0);
        let service = |number: u16| {
            let backends = (0..10).map(|backend| {
                let port = 20_000 + 10 * number + backend;
                format!("[[service.backend]]\nname = \"idle{backend}\"\naddress = \"{server}:{port}\"\n")
            });
            format!(
                "[[service]]\nname = \"{CROWD}{number}\"\naddress = \"{vip}:{port}\"\nforwarding = \"nat\"\n\
                 table_size = 1009\ncheck = {{ type = \"none\" }}\n{backends}",
                port = 10_000 + number,
                backends = backends.collect::<String>()
            )
        };
        (0..self.crowd).map(service).collect()
    }
}

/// Returns the name of the service of an address family.
#[must_use]
pub const fn service(family: Family) -> &'static str {
    match family {
        Family::V4 => "web",
        Family::V6 => "web6",
    }
}

/// Writes the configuration for `settings` into `files`, and returns the configuration's path.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_config(topology: &Topology, settings: &Settings, files: &Path) -> Result<PathBuf> {
    let config = config_path(files);
    fs::write(&config, settings.text(topology, files)).with_context(|| config.display().to_string())?;
    Ok(config)
}

pub(super) fn config_path(files: &Path) -> PathBuf {
    files.join("balancer.toml")
}

/// Returns the port on which the servers listen. With `nat` and `snat`, the server's port differs from the service's
/// port.
#[must_use]
pub const fn backend_port(forwarding: Forwarding) -> u16 {
    match forwarding {
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => PORT,
        Forwarding::Nat | Forwarding::Snat => 8080,
    }
}
