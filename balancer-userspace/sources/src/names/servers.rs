//! The DNS servers to query: the servers in the configuration or, if there are none, the system's servers.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use balancer_runtime::file_version::{Version, version};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The maximum time to wait for a DNS server's answer.
const PATIENCE: Duration = Duration::from_secs(2);
const PORT: u16 = 53;

/// The DNS servers that the balancer currently queries.
#[derive(Default)]
pub(super) struct Servers {
    /// The DNS servers in the configuration; if empty, the balancer queries the system's servers.
    named: Vec<SocketAddr>,
    /// The resolver, and the version of `resolv.conf` from which the resolver was made.
    present: Option<(Version, Resolver)>,
}

/// A resolver that queries a set of DNS servers.
#[derive(Clone)]
pub(super) struct Resolver {
    pub(super) asks: TokioResolver,
    /// The addresses of the DNS servers as text.
    pub(super) servers: String,
}

impl Servers {
    pub(super) fn new(named: Vec<SocketAddr>) -> Self {
        Self { named, present: None }
    }

    /// Returns the resolver; makes a new one if the system's `resolv.conf` has changed.
    ///
    /// # Errors
    /// Fails if the system's `resolv.conf` names no server.
    pub(super) fn resolver(&mut self) -> Result<Resolver, String> {
        let version = if self.named.is_empty() { version(Path::new(RESOLV_CONF)) } else { None };
        if let Some((at, resolver)) = &self.present
            && *at == version
        {
            return Ok(resolver.clone());
        }
        let servers = if self.named.is_empty() { of_system()? } else { self.named.clone() };
        let resolver = build(&servers)?;
        self.present = Some((version, resolver.clone()));
        Ok(resolver)
    }
}

fn of_system() -> Result<Vec<SocketAddr>, String> {
    let give = "give servers = [\"192.0.2.53\"]";
    let text = fs::read(RESOLV_CONF).map_err(|error| format!("cannot read {RESOLV_CONF}: {error}; {give}"))?;
    let servers = listed(&String::from_utf8_lossy(&text));
    if servers.is_empty() {
        return Err(format!("{RESOLV_CONF} names no server; {give}"));
    }
    Ok(servers.into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect())
}

/// The DNS servers in the text of a `resolv.conf`.
fn listed(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next()? == "nameserver";
        words.next()?.parse().ok().filter(|_| is_server)
    };
    text.lines().filter_map(server).collect()
}

fn build(servers: &[SocketAddr]) -> Result<Resolver, String> {
    let configs = servers.iter().map(|server| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = server.port();
            connection
        });
        NameServerConfig::new(server.ip(), true, connections.into())
    });
    let mut options = ResolverOpts::default();
    options.timeout = PATIENCE;
    options.attempts = 1;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.edns0 = true;
    options.preserve_intermediates = true;
    // The kernel chooses a source port that is not reserved for `snat` connections.
    options.os_port_selection = true;
    let config = ResolverConfig::from_parts(None, Vec::new(), configs.collect());
    let asks = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| format!("this machine cannot ask DNS: {error}"))?;
    let shown = |server: &SocketAddr| if server.port() == PORT { server.ip().to_string() } else { server.to_string() };
    Ok(Resolver { asks, servers: servers.iter().map(shown).collect::<Vec<_>>().join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_systems_file_is_read_then_its_servers_count_and_nothing_else_of_it() {
        let text = "# by hand\nsearch internal\n nameserver 192.0.2.53\nnameserver\tfd00::53 # second\n\
                    ;nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\noptions ndots:5";
        let expected: Vec<IpAddr> = vec!["192.0.2.53".parse().unwrap(), "fd00::53".parse().unwrap()];
        assert_eq!(listed(text), expected);
    }
}
