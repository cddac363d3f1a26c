//! The configuration files of the demo's balancers.

use std::{net::SocketAddr, path::Path, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;

use crate::topology::{Family, Topology};

/// The port of the demo's service.
pub(crate) const PORT: u16 = 80;

/// The settings that differ between the configurations.
pub(crate) struct Config<'a> {
    pub(crate) forwarding: Forwarding,
    pub(crate) remember: Duration,
    pub(crate) backends: u16,
    /// The directory that contains the state file and the control socket.
    pub(crate) files: &'a Path,
    /// Additional tables for the configuration.
    pub(crate) tables: &'a str,
    /// Additional lines for the table of the service.
    pub(crate) service_lines: &'a str,
}

impl Config<'_> {
    pub(crate) fn text(&self, topology: &Topology) -> String {
        let Self { forwarding, remember, backends, files, tables, service_lines } = self;
        let mut text = format!(
            r#"interfaces = {interfaces:?}
xdp_mode   = "native"
state_file = "{files}/state.json"

[control]
socket = "{files}/balancer.sock"
{tables}
[[service]]
name       = "web"
address    = "{vip}"
protocol   = "tcp"
forwarding = "{word}"
remember   = "{remember}"
check      = {{ type = "http", path = "/healthz", interval = "1s", timeout = "500ms", fall = 2, rise = 2 }}
{service_lines}"#,
            interfaces = topology.interfaces(),
            files = files.display(),
            vip = SocketAddr::new(topology.vip(Family::V4), PORT),
            word = forwarding_word(*forwarding),
            remember = humantime::format_duration(*remember),
        );
        for index in 0..*backends {
            let address = backend_address(topology, *forwarding, index);
            text += &format!("\n  [[service.backend]]\n  name    = \"{}\"\n  address = \"{address}\"\n", name(index));
        }
        text
    }
}

/// Returns the name of a backend: `web1` for index 0.
pub(crate) fn name(index: u16) -> String {
    format!("web{}", index + 1)
}

/// The address of the backend `index` in the balancer's configuration.
pub(crate) fn backend_address(topology: &Topology, forwarding: Forwarding, index: u16) -> SocketAddr {
    SocketAddr::new(topology.backend_address(Family::V4, index), backend_port(forwarding))
}

/// The addresses on which the backend `index` listens.
pub(crate) fn listen(topology: &Topology, forwarding: Forwarding, index: u16) -> Vec<SocketAddr> {
    let port = backend_port(forwarding);
    let own = Family::BOTH.map(|family| SocketAddr::new(topology.backend_address(family, index), port));
    let vip = Family::BOTH.map(|family| SocketAddr::new(topology.vip(family), port));
    match forwarding {
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => own.into_iter().chain(vip).collect(),
        Forwarding::Nat | Forwarding::Snat => own.to_vec(),
    }
}

/// The port on which backends listen. With `nat` and `snat`, the balancer changes the port.
const fn backend_port(forwarding: Forwarding) -> u16 {
    match forwarding {
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => PORT,
        Forwarding::Nat | Forwarding::Snat => 8080,
    }
}
