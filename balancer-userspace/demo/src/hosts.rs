//! The balancer and the backends that the demo runs.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use balancer_api::model::StatusView;
use balancer_common::map_types::Forwarding;

use crate::{
    Options,
    backend::{self, Backend},
    config::{self, Config, listen, name},
    controller::Controller,
    files::Files,
    interrupt::Interrupt,
    topology::{Shape, Topology},
};

/// The number of backends that the demo starts at first.
pub(crate) const STARTED: u16 = 3;

/// The index of a backend that the demo prepares but does not start.
pub(crate) const SPARE: u16 = 3;

/// The hosts of the demo with their processes. Rust drops the fields in the order of their declaration, and dropping a
/// field ends its processes.
pub(crate) struct Hosts {
    pub(crate) running: Running,
    pub(crate) topology: Topology,
    forwarding: Forwarding,
    program: PathBuf,
    files: Files,
}

pub(crate) struct Running {
    controller: Controller,
    pub(crate) backends: Vec<Backend>,
}

impl Running {
    /// Waits until the balancer reports its status; `None` if a signal arrives first.
    pub(crate) fn wait_ready(&mut self, limit: Duration, interrupt: &Interrupt) -> Result<Option<StatusView>> {
        let deadline = Instant::now() + limit;
        loop {
            self.controller.ensure_running()?;
            match self.controller.status() {
                Ok(status) => return Ok(Some(status)),
                Err(error) => {
                    if Instant::now() > deadline {
                        let log = self.controller.process().tail(20)?;
                        bail!("no status within {limit:?}: {error:#}; the last lines of the balancer's log:\n{log}");
                    }
                }
            }
            if interrupt.wait(Duration::from_millis(20))? {
                return Ok(None);
            }
        }
    }

    /// Runs a command of the `balancer` program.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Result<Output> {
        self.controller.cli(arguments)
    }

    pub(crate) fn stop_backend(&mut self, name: &str) {
        self.backends.retain_mut(|backend| backend.process().what() != name);
    }

    /// Records backends that have ended, and returns the balancer's status.
    pub(crate) fn status(&mut self) -> Result<StatusView> {
        for backend in &mut self.backends {
            backend.process().exited()?;
        }
        let status = self.controller.status();
        if status.is_err() {
            // If the balancer is about to end, its log will contain the reason.
            for _ in 0..10 {
                self.controller.ensure_running()?;
                thread::sleep(Duration::from_millis(50));
            }
        }
        status
    }
}

impl Hosts {
    /// Starts the balancer and the backends. After an error, the function ends everything that it has started.
    pub(crate) fn start(options: &Options) -> Result<Self> {
        let Options { forwarding, ref program, ref balancer, remember, .. } = *options;
        let files = Files::new()?;
        let topology = Topology::new(Shape::OneLegged, forwarding, usize::from(STARTED) + 1)?;
        let backends = (0..STARTED)
            .map(|index| {
                let namespace = &topology.backends()[usize::from(index)];
                Backend::start(program, namespace, &name(index), &listen(&topology, forwarding, index), files.path())
            })
            .collect::<Result<Vec<_>>>()?;
        let config = files.path().join("balancer.toml");
        let socket = files.path().join("balancer.sock");
        let settings =
            Config { forwarding, remember, backends: STARTED, files: files.path(), tables: "", service_lines: "" };
        fs::write(&config, settings.text(&topology)).with_context(|| config.display().to_string())?;
        let log = files.path().join("balancer.log");
        let controller = Controller::start(topology.balancer(), balancer, &config, &socket, &log)?;
        Ok(Self { running: Running { controller, backends }, topology, forwarding, program: program.clone(), files })
    }

    /// Starts the backend `index` and waits until it answers.
    pub(crate) fn start_backend(&mut self, index: u16) -> Result<()> {
        let namespace = &self.topology.backends()[usize::from(index)];
        let listen = listen(&self.topology, self.forwarding, index);
        self.running.backends.push(Backend::start(&self.program, namespace, &name(index), &listen, self.files.path())?);
        Ok(())
    }

    /// The address of the backend `index` in the balancer's configuration.
    pub(crate) fn backend_address(&self, index: u16) -> SocketAddr {
        config::backend_address(&self.topology, self.forwarding, index)
    }

    /// A shell command that starts the backend `index` on its host.
    pub(crate) fn start_command(&self, index: u16) -> String {
        let program = &self.program;
        let arguments = backend::arguments(&name(index), &listen(&self.topology, self.forwarding, index)).join(" ");
        let namespace = self.topology.backends()[usize::from(index)].name();
        format!("ip netns exec {namespace} {} {arguments} &", program.display())
    }

    /// The path of the balancer program, for commands that users type.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.files.path().join("balancer.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.files.path().join("balancer.log")
    }
}
