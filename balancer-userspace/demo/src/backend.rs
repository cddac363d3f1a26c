//! A running [web server](crate::server) of the demo.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    http_client::{Reply, Request},
    namespace::Namespace,
    process::Process,
};

/// The maximum time for a backend to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A web server that runs in a namespace. Dropping the value ends the server.
#[derive(Debug)]
pub struct Backend {
    process: Process,
    listen: Vec<SocketAddr>,
}

impl Backend {
    /// Starts a backend and waits until it answers. `balancer` is the path of the balancer program, which contains the
    /// web server. The backend appends its output to `NAME.log` in `logs`.
    ///
    /// # Errors
    /// Fails if the backend cannot be started, if it ends, or if it does not answer within ten seconds.
    pub fn start(
        balancer: &Path,
        namespace: &Namespace,
        name: &str,
        listen: &[SocketAddr],
        logs: &Path,
    ) -> Result<Self> {
        let mut command = namespace.command(balancer);
        command.args(arguments(name, listen));
        let process = Process::spawn(name, &mut command, &logs.join(format!("{name}.log")))?;
        let mut backend = Self { process, listen: listen.to_vec() };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let reply = backend.ask(namespace, "GET", "/healthz");
            if reply.as_ref().is_ok_and(|reply| reply.backend == name) {
                return Ok(backend);
            }
            if let Some(status) = backend.process.exited()? {
                bail!("{name} has ended ({status}): {}", backend.process.tail(5)?);
            }
            if Instant::now() > deadline {
                bail!("{name} does not answer: {reply:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes the backend answer health checks according to `mode`: `503`, `hang`, `slow` (2 s), `reset` or `ok`.
    ///
    /// # Errors
    /// Fails if the backend does not answer or does not know the mode.
    pub fn fail(&self, namespace: &Namespace, mode: &str) -> Result<()> {
        let reply = self.ask(namespace, "POST", &format!("/fail?mode={mode}"))?;
        ensure!(reply.status == 204, "{} answered {}", self.process.what(), reply.status);
        Ok(())
    }

    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Sends a request to the backend from the backend's own host.
    fn ask(&self, namespace: &Namespace, method: &'static str, path: &str) -> Result<Reply> {
        let mut target = *self.listen.first().context("a backend needs an address to listen on")?;
        let unspecified: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        if target.ip() == unspecified {
            target.set_ip(if target.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        let request = Request { method, ..Request::new(SocketAddr::new(unspecified, 0), target).path(path) };
        Ok(namespace.run_in_thread(|| request.send())??)
    }
}

/// The arguments that make `balancer` run a demo web server.
#[must_use]
pub fn arguments(name: &str, listen: &[SocketAddr]) -> Vec<String> {
    let named = ["demo", "server", "--name", name].map(str::to_owned);
    named.into_iter().chain(listen.iter().flat_map(|address| ["--listen".to_owned(), address.to_string()])).collect()
}
