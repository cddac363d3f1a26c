//! etcd servers, each of which runs in a given namespace.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::{http_client::Request, namespace::Namespace, process::Process};

/// The ports on which an etcd server accepts clients and other etcd servers.
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
/// The time limit for the health check of an etcd server.
const HEALTH_LIMIT: Duration = Duration::from_millis(500);

/// The PEM files for TLS between an etcd server and its clients. The server requires a certificate from each client.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate of the authority that signs the clients' certificates.
    pub ca: PathBuf,
    /// The file with the server's certificate.
    pub cert: PathBuf,
    /// The file with the server's private key.
    pub key: PathBuf,
}

/// A server of an etcd cluster. Dropping the value kills the server: the server has nothing to store, and a frozen
/// server would not react to SIGTERM.
#[derive(Debug)]
pub struct Server {
    name: String,
    endpoint: String,
    address: IpAddr,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

/// Returns the servers `etcd1`, `etcd2`, … at these addresses; the function does not start them. The servers' data and
/// logs are in `directory`; `more` contains additional arguments.
#[must_use]
pub fn servers(addresses: &[IpAddr], tls: Option<&Tls>, directory: &Path, more: &[String]) -> Vec<Server> {
    let named: Vec<(String, IpAddr)> =
        (1..).zip(addresses).map(|(number, &address)| (format!("etcd{number}"), address)).collect();
    let initial: Vec<String> =
        named.iter().map(|(name, address)| format!("{name}={}", url("http", *address, PEERS))).collect();
    let initial = initial.join(",");
    let server = |(name, address): (String, IpAddr)| {
        let endpoint = url(if tls.is_some() { "https" } else { "http" }, address, CLIENTS);
        let mut arguments = arguments(&name, &endpoint, address, &initial, directory);
        if let Some(Tls { ca, cert, key }) = tls {
            arguments.push("--client-cert-auth".to_owned());
            for (name, path) in [("trusted-ca-file", ca), ("cert-file", cert), ("key-file", key)] {
                arguments.push(format!("--{name}={}", path.display()));
            }
        }
        arguments.extend_from_slice(more);
        Server { log: directory.join(format!("{name}.log")), name, endpoint, address, arguments, process: None }
    };
    named.into_iter().map(server).collect()
}

impl Server {
    /// The server's name, such as `etcd1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the server's URL for clients.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the arguments with which `etcd` is started.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Returns the process of the server, if the server was started and not killed afterwards.
    pub const fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// The last `lines` lines of the server's output; `None` if the server is not running.
    #[must_use]
    pub fn tail(&self, lines: usize) -> Option<String> {
        self.process.as_ref()?.tail(lines).ok()
    }

    /// Whether the server was started and not killed afterwards.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the server with the data that it has stored. The kernel kills the server when the calling thread ends,
    /// unless it has ended before.
    ///
    /// # Errors
    /// Fails if the server process cannot be started.
    pub fn start(&mut self, namespace: &Namespace) -> Result<()> {
        let mut command = namespace.command("etcd");
        command.args(&self.arguments);
        self.process = Some(Process::spawn(&self.name, &mut command, &self.log)?);
        Ok(())
    }

    /// Kills the server without warning, as a power failure would.
    ///
    /// # Errors
    /// Fails if the process cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// Whether clients on the server's own host can read from the server.
    #[must_use]
    pub fn is_well(&self, host: &Namespace) -> bool {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let request = Request::new(any, SocketAddr::new(self.address, CLIENTS)).path("/health");
        let request = Request { timeout: HEALTH_LIMIT, ..request };
        host.run_in_thread(|| request.send()).is_ok_and(|reply| reply.is_ok_and(|reply| reply.status == 200))
    }

    /// Sends a signal to the server.
    ///
    /// # Errors
    /// Fails if the server is not running, or if the signal cannot be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().with_context(|| format!("{} does not run", self.name))?.signal(signal)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} is left running: {error:#}", self.name);
        }
    }
}

fn arguments(name: &str, endpoint: &str, address: IpAddr, initial: &str, directory: &Path) -> Vec<String> {
    let peers = url("http", address, PEERS);
    let data = directory.join(name).display().to_string();
    [
        ("name", name),
        ("data-dir", &data),
        ("listen-client-urls", endpoint),
        ("advertise-client-urls", endpoint),
        ("listen-peer-urls", &peers),
        ("initial-advertise-peer-urls", &peers),
        ("initial-cluster", initial),
        ("initial-cluster-state", "new"),
        ("logger", "zap"),
        ("log-level", "warn"),
    ]
    .map(|(name, value)| format!("--{name}={value}"))
    .into()
}

fn url(scheme: &str, address: IpAddr, port: u16) -> String {
    format!("{scheme}://{}", SocketAddr::new(address, port))
}
