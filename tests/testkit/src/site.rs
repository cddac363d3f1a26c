//! A whole site: hosts, web servers, clients, and the real balancer between clients and web servers.
//!
//! Backends are `web1`, `web2`, … on the hosts with the same numbers. The IPv4 service is `web`, and the IPv6 service
//! is `web6`.

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
    pace::patience,
    process::Process,
    topology::{Family, Shape, Topology},
};

/// The time limit for a start, a change of state or a slow answer on a busy machine; see [`patience`].
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The number of concurrent connections of clients.
pub const WORKERS: usize = 8;

/// A running site with all its processes. Dropping the value ends all processes, the balancer first.
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
    /// Starts `hosts` backends and a balancer, and waits until the balancer is ready. `adapt` changes the balancer's
    /// settings, which [`Settings::new`] creates.
    ///
    /// # Errors
    /// Fails if a program cannot be started, or the balancer ends.
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
        site.controller.wait_ready(patience(PATIENCE))?;
        Ok(site)
    }

    /// Stops the balancer cleanly, and starts it with other settings.
    ///
    /// # Errors
    /// Fails if the balancer reports an error when it ends, or does not become ready.
    pub fn restart(&mut self, adapt: impl FnOnce(&mut Settings)) -> Result<()> {
        let status = self.controller.process().stop()?;
        ensure!(status.success(), "the balancer ended with {status}: {}", self.controller.process().tail(20)?);
        adapt(&mut self.settings);
        self.controller = start_controller(&self.topology, &self.settings, self.files.path())?;
        self.controller.wait_ready(patience(PATIENCE))?;
        Ok(())
    }

    /// Kills the balancer.
    ///
    /// # Errors
    /// Fails if the kernel refuses the signal.
    pub fn kill_balancer(&mut self) -> Result<()> {
        self.controller.process().kill().map(drop)
    }

    /// Kills the balancer and starts it with other settings.
    ///
    /// # Errors
    /// Fails if the balancer does not become ready.
    pub fn kill_and_restart(&mut self, adapt: impl FnOnce(&mut Settings)) -> Result<()> {
        self.controller.process().kill()?;
        adapt(&mut self.settings);
        self.start_again()
    }

    /// Stops the balancer, if it runs, and starts it with the current contents of its configuration file.
    ///
    /// # Errors
    /// Fails if the balancer does not become ready.
    pub fn restart_with_the_file_as_it_is(&mut self) -> Result<()> {
        if self.controller.process().exited()?.is_none() {
            self.controller.process().stop()?;
        }
        self.start_with_the_file_as_it_is()
    }

    /// Kills the balancer and starts it with the current contents of its configuration file.
    ///
    /// # Errors
    /// Fails if the balancer does not become ready.
    pub fn kill_and_restart_with_the_file_as_it_is(&mut self) -> Result<()> {
        self.controller.process().kill()?;
        self.start_with_the_file_as_it_is()
    }

    fn start_with_the_file_as_it_is(&mut self) -> Result<()> {
        let files = self.files.path();
        let (binary, socket, log) = (self.settings.binary()?, files.join("balancer.sock"), files.join("balancer.log"));
        self.controller = Controller::start(self.topology.balancer(), &binary, &config_path(files), &socket, &log)?;
        self.controller.wait_ready(patience(PATIENCE))?;
        Ok(())
    }

    /// Starts the balancer again with the same settings after it has ended.
    ///
    /// # Errors
    /// Fails if the balancer does not become ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.controller = start_controller(&self.topology, &self.settings, self.files.path())?;
        self.controller.wait_ready(patience(PATIENCE))?;
        Ok(())
    }

    /// Writes other settings into the configuration file, and makes the running balancer apply the file. Returns the
    /// balancer's answer.
    ///
    /// # Errors
    /// Fails if the balancer refuses the file.
    pub fn apply(&mut self, adapt: impl FnOnce(&mut Settings)) -> Result<String> {
        adapt(&mut self.settings);
        let config = write_config(&self.topology, &self.settings, self.files.path())?;
        self.cli(&["apply", &config.to_string_lossy()])
    }

    /// Runs `balancer detach` in the balancer's network namespace.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn detach(&self) -> Result<Output> {
        let mut command = self.topology.balancer().command(self.settings.binary()?);
        command.arg("detach").output().context("cannot start `balancer detach`")
    }

    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns the hosts, so that a test can change their network.
    pub const fn topology_mut(&mut self) -> &mut Topology {
        &mut self.topology
    }

    /// Returns the running balancer.
    pub const fn controller(&mut self) -> &mut Controller {
        &mut self.controller
    }

    /// The directory of the balancer's files: `balancer.toml`, `balancer.sock`, `balancer.log`.
    #[must_use]
    pub fn files(&self) -> &Path {
        self.files.path()
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        config_path(self.files.path())
    }

    /// Returns the running web server `web{number}`.
    ///
    /// # Errors
    /// Fails if the web server does not run.
    pub fn backend(&mut self, number: u16) -> Result<&mut Backend> {
        let slot = self.backends.get_mut(usize::from(number) - 1).and_then(Option::as_mut);
        slot.with_context(|| format!("web{number} is not running"))
    }

    /// The `balancer decap` process on the host of `web{number}`.
    ///
    /// # Errors
    /// Fails if the site does not use a tunnel.
    pub fn decap(&mut self, number: u16) -> Result<&mut Process> {
        self.decaps.get_mut(usize::from(number) - 1).with_context(|| format!("no tunnel ends at web{number}"))
    }

    /// Kills the web server `web{number}`.
    ///
    /// # Errors
    /// Fails if the web server does not run or cannot be killed.
    pub fn kill_backend(&mut self, number: u16) -> Result<()> {
        self.backend(number)?.process().kill()?;
        self.backends[usize::from(number) - 1] = None;
        Ok(())
    }

    /// Starts the web server `web{number}` again.
    ///
    /// # Errors
    /// Fails if the web server does not start.
    pub fn start_backend(&mut self, number: u16) -> Result<()> {
        let backend = start_backend(&self.topology, self.settings.forwarding, number, self.files.path())?;
        self.backends[usize::from(number) - 1] = Some(backend);
        Ok(())
    }

    /// Changes the answer of `web{number}`'s health check to `mode`: `503`, `hang` or `ok`.
    ///
    /// # Errors
    /// Fails if the web server does not run or does not answer.
    pub fn fail_backend(&self, number: u16, mode: &str) -> Result<()> {
        let index = usize::from(number) - 1;
        let backend = self.backends.get(index).and_then(Option::as_ref).context("not running")?;
        backend.fail(&self.topology.backends()[index], mode)
    }

    /// The settings with which the balancer runs.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
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

    /// Sends one request from each client, with the time limit `limit`.
    ///
    /// # Errors
    /// Fails if the clients' namespace cannot be entered.
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

    /// Returns the backend that answers each client. Checks that the backend saw the client's own address, or, with
    /// `snat`, an address other than the client's.
    ///
    /// # Errors
    /// Fails if a connection fails.
    pub fn homes(
        &self,
        family: Family,
        clients: impl IntoIterator<Item = u16> + Clone,
    ) -> Result<BTreeMap<u16, String>> {
        self.homes_within(patience(PATIENCE), family, clients)
    }

    /// Does the same as [`Site::homes`], with a time limit for each answer.
    ///
    /// # Errors
    /// Fails if a connection fails.
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

    /// Returns the slot and the backend to which the balancer steers a client, according to the controller.
    ///
    /// # Errors
    /// Fails if the controller refuses, or reports that it drops the client's packets.
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
    /// Fails if the controller refuses the request, or does not answer.
    pub fn api<T, F: Future<Output = Answer<T>>>(&self, ask: impl FnOnce(Client) -> F) -> Result<T> {
        Ok(self.runtime.block_on(ask(self.client.clone()))?)
    }

    /// Runs a command line such as `["backend", "drain", "web/web2"]`, and returns its standard output.
    ///
    /// # Errors
    /// Fails if the command fails; the error contains the command's message.
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
    /// Fails if the program cannot be started.
    pub fn output(&self, arguments: &[&str]) -> Result<std::process::Output> {
        self.controller.cli(arguments)
    }

    /// Runs `balancer status --json`.
    ///
    /// # Errors
    /// Fails if the command fails.
    pub fn status(&self) -> Result<StatusView> {
        self.controller.status()
    }

    /// Waits until every service shows one of `states` for `web{number}`.
    ///
    /// # Errors
    /// Fails if the time limit expires.
    pub fn wait_state(&mut self, number: u16, states: &[&str]) -> Result<()> {
        let name = format!("web{number}");
        self.controller.wait_for(patience(PATIENCE), &format!("{name} to be one of {states:?}"), |status| {
            status.services.iter().filter(|service| !service.name.starts_with(settings::CROWD)).all(|service| {
                let found = service.backends.iter().find(|backend| backend.name == name);
                found.is_some_and(|backend| states.contains(&backend.state.as_str()))
            })
        })?;
        Ok(())
    }

    /// Returns the metrics that `/metrics` reports.
    ///
    /// # Errors
    /// Fails if the balancer does not answer, or a value is not a number.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.metrics_text()?)
    }

    /// Returns the metrics as text.
    ///
    /// # Errors
    /// Fails if the balancer does not answer.
    pub fn metrics_text(&self) -> Result<String> {
        scrape_text(self.topology.balancer(), PATIENCE)
    }

    /// Returns a controller core in the test's process, with the site's configuration file. The core shows what another
    /// balancer of the fleet would do, and what the site's balancer would do after a restart.
    ///
    /// # Errors
    /// Fails if the file is not valid.
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

/// Starts a balancer with `settings` and its files in `files`, and does not wait for the balancer to become ready.
///
/// # Errors
/// Fails if the program cannot be started.
pub fn start_controller(topology: &Topology, settings: &Settings, files: &Path) -> Result<Controller> {
    let config = write_config(topology, settings, files)?;
    let (socket, log) = (files.join("balancer.sock"), files.join("balancer.log"));
    Controller::start(topology.balancer(), &settings.binary()?, &config, &socket, &log)
}

/// Starts the web server `web{number}` on its host. With `nat` and `snat`, the server listens on the addresses of its
/// host; otherwise, the server also listens on the VIPs.
///
/// # Errors
/// Fails if the web server does not start.
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

/// Starts `balancer decap` on the host of `web{number}`, and waits for the program's report that it is ready.
///
/// # Errors
/// Fails if the program does not become ready.
pub fn start_decap(topology: &Topology, number: u16, xdp_mode: &str, logs: &Path) -> Result<Process> {
    let name = format!("decap{number}");
    let mut command = topology.backends()[usize::from(number) - 1].command(binaries::balancer()?);
    command.args(["decap", "--interface", "eth0", "--xdp-mode", xdp_mode]);
    let mut decap = Process::spawn(&name, &mut command, &logs.join(format!("{name}.log")))?;
    wait_log(&mut decap, "that it strips tunnel headers", |line| line.contains("stripping tunnel headers"))?;
    Ok(decap)
}

/// Waits until `expected` accepts the last line of a process's log.
///
/// # Errors
/// Fails if the process has ended, or the time limit expires.
pub fn wait_log(process: &mut Process, what: &str, expected: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + patience(PATIENCE);
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
