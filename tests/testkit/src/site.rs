//! A whole site: hosts, web servers, and the real balancer between them and the clients.
//!
//! Backends are `web1`, `web2`, … on the hosts with the same number. The service for IPv4 is `web`, that for IPv6
//! `web6`.

mod expected;
mod settings;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_api::{
    client::{Answer, Client},
    model::{ClientQuery, StatusView},
};
use balancer_common::map_types::Forwarding;
use balancer_control::controller::Controller as Core;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::settings::config_path;
pub use self::{
    expected::{change, core, counts, deviation, home},
    settings::{PORT, QUICK_CHECK, QUICK_HTTP_CHECK, Settings, backend_port, service, write_config},
};
use crate::{
    backend::Backend,
    binaries,
    controller::Controller,
    http_client::{Reply, Request, send_all},
    metrics::{Metrics, scrape_text},
    process::Process,
    topology::{Family, Shape, Topology},
};

/// How long a start, a change of state or a slow answer may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The number of concurrent connections.
pub const WORKERS: usize = 8;

/// The running site. Dropping the value ends everything, the balancer first.
#[derive(Debug)]
pub struct Site {
    controller: Controller,
    decaps: Vec<Process>,
    backends: Vec<Option<Backend>>,
    topology: Topology,
    settings: Settings,
    client: Client,
    runtime: Runtime,
    files: TempDir,
}

impl Site {
    /// Starts `hosts` backends and a balancer, whose settings are those of [`Settings::new`] after `adapt`. Waits until
    /// the balancer is ready.
    ///
    /// # Errors
    /// If something cannot be started, or the balancer ends.
    pub fn start(
        shape: Shape,
        forwarding: Forwarding,
        hosts: u16,
        adapt: impl FnOnce(&mut Settings, &Topology) -> Result<()>,
    ) -> Result<Self> {
        let topology = Topology::new(shape, forwarding, usize::from(hosts))?;
        let mut settings = Settings::new(&topology, forwarding, hosts);
        adapt(&mut settings, &topology)?;
        let files = tempfile::tempdir()?;
        let backends = (1..=hosts)
            .map(|number| start_backend(&topology, forwarding, number, files.path()).map(Some))
            .collect::<Result<_>>()?;
        let decaps = match forwarding {
            Forwarding::Dsr | Forwarding::Nat | Forwarding::Snat => Vec::new(),
            Forwarding::Ipip | Forwarding::Gue => (1..=hosts)
                .map(|number| start_decap(&topology, number, settings.xdp_mode, files.path()))
                .collect::<Result<_>>()?,
        };
        let controller = start_controller(&topology, &settings, files.path())?;
        let mut site = Self {
            controller,
            decaps,
            backends,
            client: Client::new(&files.path().join("balancer.sock")),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            topology,
            settings,
            files,
        };
        site.controller.wait_ready(PATIENCE)?;
        Ok(site)
    }

    /// Ends the balancer cleanly, and starts it with other settings.
    ///
    /// # Errors
    /// If it does not end well, or does not come back.
    pub fn restart(&mut self, adapt: impl FnOnce(&mut Settings)) -> Result<()> {
        let status = self.controller.process().stop()?;
        ensure!(status.success(), "the balancer ended with {status}: {}", self.controller.process().tail(20)?);
        adapt(&mut self.settings);
        self.controller = start_controller(&self.topology, &self.settings, self.files.path())?;
        self.controller.wait_ready(PATIENCE)?;
        Ok(())
    }

    /// Kills the balancer.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill_balancer(&mut self) -> Result<()> {
        self.controller.process().kill().map(drop)
    }

    /// Kills the balancer and starts it with other settings.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn kill_and_restart(&mut self, adapt: impl FnOnce(&mut Settings)) -> Result<()> {
        self.controller.process().kill()?;
        adapt(&mut self.settings);
        self.start_again()
    }

    /// Ends the balancer, if it runs, and starts it with the current contents of its configuration file.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn restart_with_the_file_as_it_is(&mut self) -> Result<()> {
        if self.controller.process().exited()?.is_none() {
            self.controller.process().stop()?;
        }
        self.start_with_the_file_as_it_is()
    }

    /// Kills the balancer and starts it with the current contents of its configuration file.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn kill_and_restart_with_the_file_as_it_is(&mut self) -> Result<()> {
        self.controller.process().kill()?;
        self.start_with_the_file_as_it_is()
    }

    fn start_with_the_file_as_it_is(&mut self) -> Result<()> {
        let files = self.files.path();
        let (binary, socket, log) = (self.settings.binary()?, files.join("balancer.sock"), files.join("balancer.log"));
        self.controller = Controller::start(self.topology.balancer(), &binary, &config_path(files), &socket, &log)?;
        self.controller.wait_ready(PATIENCE)?;
        Ok(())
    }

    /// Starts the balancer again with the same settings after it has ended.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        self.controller = start_controller(&self.topology, &self.settings, self.files.path())?;
        self.controller.wait_ready(PATIENCE)?;
        Ok(())
    }

    /// Writes other settings into the file, and makes the running balancer apply it. Returns its answer.
    ///
    /// # Errors
    /// If it refuses.
    pub fn apply(&mut self, adapt: impl FnOnce(&mut Settings)) -> Result<String> {
        adapt(&mut self.settings);
        let config = write_config(&self.topology, &self.settings, self.files.path())?;
        self.cli(&["apply", &config.to_string_lossy()])
    }

    /// Runs `balancer detach` in the balancer's network namespace.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn detach(&self) -> Result<Output> {
        let mut command = self.topology.balancer().command(self.settings.binary()?);
        command.arg("detach").output().context("cannot start `balancer detach`")
    }

    /// The hosts.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The hosts, for changes to their network.
    pub const fn topology_mut(&mut self) -> &mut Topology {
        &mut self.topology
    }

    /// The balancer.
    pub const fn controller(&mut self) -> &mut Controller {
        &mut self.controller
    }

    /// The directory of its files: `balancer.toml`, `balancer.sock`, `balancer.log`.
    #[must_use]
    pub fn files(&self) -> &Path {
        self.files.path()
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        config_path(self.files.path())
    }

    /// The running web server `web{number}`.
    ///
    /// # Errors
    /// If it is not running.
    pub fn backend(&mut self, number: u16) -> Result<&mut Backend> {
        let slot = self.backends.get_mut(usize::from(number) - 1).and_then(Option::as_mut);
        slot.with_context(|| format!("web{number} is not running"))
    }

    /// The `balancer decap` on the host of `web{number}`.
    ///
    /// # Errors
    /// If the backends are not reached by a tunnel.
    pub fn decap(&mut self, number: u16) -> Result<&mut Process> {
        self.decaps.get_mut(usize::from(number) - 1).with_context(|| format!("no tunnel ends at web{number}"))
    }

    /// Kills `web{number}`.
    ///
    /// # Errors
    /// If it is not running or cannot be killed.
    pub fn kill_backend(&mut self, number: u16) -> Result<()> {
        self.backend(number)?.process().kill()?;
        self.backends[usize::from(number) - 1] = None;
        Ok(())
    }

    /// Starts `web{number}` again.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_backend(&mut self, number: u16) -> Result<()> {
        let backend = start_backend(&self.topology, self.settings.forwarding, number, self.files.path())?;
        self.backends[usize::from(number) - 1] = Some(backend);
        Ok(())
    }

    /// Changes the answer of `web{number}`'s health check to `mode`: `503`, `hang` or `ok`.
    ///
    /// # Errors
    /// If it is not running or does not answer.
    pub fn fail_backend(&self, number: u16, mode: &str) -> Result<()> {
        let index = usize::from(number) - 1;
        let backend = self.backends.get(index).and_then(Option::as_ref).context("not running")?;
        backend.fail(&self.topology.backends()[index], mode)
    }

    /// The address and port of `web{number}` in a configuration.
    #[must_use]
    pub fn backend_address(&self, family: Family, number: u16) -> SocketAddr {
        SocketAddr::new(self.topology.backend_address(family, number - 1), backend_port(self.settings.forwarding))
    }

    /// A client's request `GET /`, from a new source port.
    #[must_use]
    pub fn request(&self, family: Family, client: u16) -> Request {
        let source = SocketAddr::new(self.topology.client_address(family, client), 0);
        Request::new(source, SocketAddr::new(self.topology.vip(family), PORT))
    }

    /// Sends one request from each client.
    ///
    /// # Errors
    /// If the clients' namespace cannot be entered.
    pub fn ask(
        &self,
        family: Family,
        clients: impl IntoIterator<Item = u16>,
        limit: Duration,
    ) -> Result<Vec<io::Result<Reply>>> {
        let requests: Vec<Request> =
            clients.into_iter().map(|client| Request { timeout: limit, ..self.request(family, client) }).collect();
        send_all(self.topology.client(), &requests, WORKERS)
    }

    /// The backend that answers each client. Checks that the backend saw the client's own address, or with `snat`
    /// another address.
    ///
    /// # Errors
    /// If a connection fails.
    pub fn homes(
        &self,
        family: Family,
        clients: impl IntoIterator<Item = u16> + Clone,
    ) -> Result<BTreeMap<u16, String>> {
        self.homes_within(PATIENCE, family, clients)
    }

    /// [`Site::homes`] with a time limit for each answer.
    ///
    /// # Errors
    /// If a connection fails.
    pub fn homes_within(
        &self,
        limit: Duration,
        family: Family,
        clients: impl IntoIterator<Item = u16> + Clone,
    ) -> Result<BTreeMap<u16, String>> {
        let replies = self.ask(family, clients.clone(), limit)?;
        let mut homes = BTreeMap::new();
        for (client, reply) in clients.into_iter().zip(replies) {
            let answer = reply.and_then(|reply| reply.answer()).with_context(|| format!("client {client}"))?;
            let address = self.topology.client_address(family, client);
            let hidden = self.settings.forwarding == Forwarding::Snat;
            ensure!((answer.client != address.to_string()) == hidden, "{address} was seen as {}", answer.client);
            homes.insert(client, answer.backend);
        }
        Ok(homes)
    }

    /// The slot and backend to which the controller says that a client is steered.
    ///
    /// # Errors
    /// If the controller refuses, or says that the client's packets are dropped.
    pub fn locate(&self, family: Family, client: u16) -> Result<(u32, String)> {
        let query = ClientQuery {
            address: self.topology.client_address(family, client),
            service: Some(service(family).to_owned()),
        };
        let views = self.api(|api| async move { api.client(&query).await })?;
        let [view] = views.as_slice() else { bail!("{} views of one client", views.len()) };
        Ok((view.slot, view.backend.clone().context("dropped")?))
    }

    /// Sends a request to the running controller's socket.
    ///
    /// # Errors
    /// If the controller refuses the request, or does not answer.
    pub fn api<T, F: Future<Output = Answer<T>>>(&self, ask: impl FnOnce(Client) -> F) -> Result<T> {
        Ok(self.runtime.block_on(ask(self.client.clone()))?)
    }

    /// Runs a command line such as `["backend", "drain", "web/web2"]`, and returns its standard output.
    ///
    /// # Errors
    /// If the command fails; the error contains its message.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let output = self.controller.cli(arguments)?;
        if !output.status.success() {
            bail!("{arguments:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a command line and returns its exit code and output.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn output(&self, arguments: &[&str]) -> Result<std::process::Output> {
        self.controller.cli(arguments)
    }

    /// Runs `balancer status --json`.
    ///
    /// # Errors
    /// If it fails.
    pub fn status(&self) -> Result<StatusView> {
        self.controller.status()
    }

    /// Waits until `web{number}` of every service is shown as one of `states`.
    ///
    /// # Errors
    /// If it takes too long.
    pub fn wait_state(&mut self, number: u16, states: &[&str]) -> Result<()> {
        let name = format!("web{number}");
        self.controller.wait_for(PATIENCE, &format!("{name} to be one of {states:?}"), |status| {
            status.services.iter().filter(|service| !service.name.starts_with(settings::CROWD)).all(|service| {
                let found = service.backends.iter().find(|backend| backend.name == name);
                found.is_some_and(|backend| states.contains(&backend.state.as_str()))
            })
        })?;
        Ok(())
    }

    /// Returns the metrics of `/metrics`.
    ///
    /// # Errors
    /// If the balancer does not answer, or a value is not a number.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.metrics_text()?)
    }

    /// Returns the metrics as text.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn metrics_text(&self) -> Result<String> {
        scrape_text(self.topology.balancer(), PATIENCE)
    }

    /// The controller's core with the configuration file, in this process. It shows what another balancer of the fleet,
    /// or this one after a restart, would do.
    ///
    /// # Errors
    /// If the file is not valid.
    pub fn core(&self) -> Result<Core> {
        core(&self.config())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.settings.on_exit == "keep" {
            let stopped = self.controller.process().stop().map(drop);
            let detached = stopped.and_then(|()| self.detach());
            match detached {
                Ok(output) if output.status.success() => {}
                other => eprintln!("pins may be left behind: {other:?}"),
            }
        }
    }
}

/// Starts a balancer with `settings` and its files in `files`, without waiting for it.
///
/// # Errors
/// If the program cannot be started.
pub fn start_controller(topology: &Topology, settings: &Settings, files: &Path) -> Result<Controller> {
    let config = write_config(topology, settings, files)?;
    let (socket, log) = (files.join("balancer.sock"), files.join("balancer.log"));
    Controller::start(topology.balancer(), &settings.binary()?, &config, &socket, &log)
}

/// Starts the web server `web{number}` on its host: with `nat` at its own addresses, otherwise also at the VIPs.
///
/// # Errors
/// If it does not come up.
pub fn start_backend(topology: &Topology, forwarding: Forwarding, number: u16, logs: &Path) -> Result<Backend> {
    let port = backend_port(forwarding);
    let own = Family::BOTH.map(|family| SocketAddr::new(topology.backend_address(family, number - 1), port));
    let vip = Family::BOTH.map(|family| SocketAddr::new(topology.vip(family), port));
    let listen = match forwarding {
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => own.into_iter().chain(vip).collect(),
        Forwarding::Nat | Forwarding::Snat => own.to_vec(),
    };
    Backend::start(
        &binaries::balancer()?,
        &topology.backends()[usize::from(number) - 1],
        &format!("web{number}"),
        &listen,
        logs,
    )
}

/// Starts `balancer decap` on the host of `web{number}` and waits until it serves.
///
/// # Errors
/// If it does not come up.
pub fn start_decap(topology: &Topology, number: u16, xdp_mode: &str, logs: &Path) -> Result<Process> {
    let name = format!("decap{number}");
    let mut command = topology.backends()[usize::from(number) - 1].command(binaries::balancer()?);
    command.args(["decap", "--interface", "eth0", "--xdp-mode", xdp_mode]);
    let mut decap = Process::spawn(&name, &mut command, &logs.join(format!("{name}.log")))?;
    wait_log(&mut decap, "that it strips tunnel headers", |line| line.contains("stripping tunnel headers"))?;
    Ok(decap)
}

/// Waits until the last line of a process's log is as `expected`.
///
/// # Errors
/// If the process has ended, or it takes too long.
pub fn wait_log(process: &mut Process, what: &str, expected: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let line = process.tail(1)?;
        if expected(&line) {
            return Ok(());
        }
        if let Some(status) = process.exited()? {
            bail!("{} has ended ({status}): {}", process.what(), process.tail(5)?);
        }
        ensure!(Instant::now() < deadline, "{} does not say {what}; last: {line}", process.what());
        thread::sleep(Duration::from_millis(10));
    }
}
