//! nginx and `HAProxy`, with the configurations that their manuals recommend.

mod haproxy;
mod nginx;
mod rule;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use balancer_demo::namespace::Namespace;
use nix::sys::signal::Signal;

pub use self::rule::Rule;
use crate::part::{GLANCE, PATIENCE, Part};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    /// The weight of the server, which determines its share of clients.
    pub weight: u16,
    /// Whether the server is drained, so that it gets no new clients.
    pub drained: bool,
}

impl Server {
    /// Makes a server with the default weight.
    #[must_use]
    pub fn new(name: String, address: SocketAddr) -> Self {
        Self { name, address, weight: 10, drained: false }
    }
}

/// The values that a proxy's configuration contains.
#[derive(Debug)]
struct Setup {
    rule: Rule,
    servers: Vec<Server>,
    target: SocketAddr,
    /// The path that health checks request; empty if there are no checks.
    health: &'static str,
    config: PathBuf,
}

/// A running nginx or `HAProxy`. Dropping the value ends the proxy.
#[derive(Debug)]
pub struct Proxy {
    part: Option<Part>,
    setup: Setup,
}

impl Proxy {
    /// Starts the proxy on `host`, with its files in `files`, and waits until it listens at `target`. `health` is the
    /// path that health checks request; an empty path means no checks.
    ///
    /// # Errors
    /// Fails if the proxy does not start.
    pub fn start(
        host: &Namespace,
        rule: Rule,
        servers: Vec<Server>,
        target: SocketAddr,
        health: &'static str,
        files: &Path,
    ) -> Result<Self> {
        let setup = Setup { rule, servers, target, health, config: files.join("proxy.conf") };
        let mut this = Self { part: None, setup };
        this.run(host)?;
        Ok(this)
    }

    /// The servers in the proxy's configuration, which callers may change. Changes of this list take effect at a
    /// [restart](Self::restart) or reload.
    pub const fn servers(&mut self) -> &mut Vec<Server> {
        &mut self.setup.servers
    }

    /// Returns a server by its name.
    ///
    /// # Errors
    /// Fails if no server has this name.
    pub fn server(&mut self, name: &str) -> Result<&mut Server> {
        let found = self.setup.servers.iter_mut().find(|server| server.name == name);
        found.with_context(|| format!("there is no server {name}"))
    }

    /// Adds a server to the running proxy.
    ///
    /// # Errors
    /// Fails if the proxy refuses the server.
    pub fn add(&mut self, server: Server) -> Result<()> {
        let Server { name, address, weight, .. } = &server;
        // HAProxy adds the server at run time, because in tests, a reload lost the stick table in spite of `peers`.
        let commands = [
            format!("add server web/{name} {address} weight {weight} check"),
            format!("enable health web/{name}"),
            format!("enable server web/{name}"),
        ];
        self.setup.servers.push(server);
        if self.setup.rule != Rule::HaproxyTable {
            return self.reload();
        }
        commands.iter().try_for_each(|command| self.command(command))
    }

    /// Changes the weight of a server in the running proxy.
    ///
    /// # Errors
    /// Fails if the proxy refuses the weight.
    pub fn weigh(&mut self, name: &str, weight: u16) -> Result<()> {
        self.server(name)?.weight = weight;
        if self.setup.rule.is_nginx() {
            return self.reload();
        }
        self.command(&format!("set weight web/{name} {weight}"))
    }

    /// Drains a server in the running proxy, or makes it ready again.
    ///
    /// # Errors
    /// Fails if the proxy refuses the change.
    pub fn drain(&mut self, name: &str, drained: bool) -> Result<()> {
        self.server(name)?.drained = drained;
        if self.setup.rule.is_nginx() {
            return self.reload();
        }
        let state = if drained { "drain" } else { "ready" };
        self.command(&format!("set server web/{name} state {state}"))
    }

    /// Kills the proxy, and starts it again with the current servers.
    ///
    /// # Errors
    /// Fails if the proxy does not start.
    pub fn restart(&mut self, host: &Namespace) -> Result<()> {
        self.kill()?;
        self.run(host)
    }

    /// The id of the proxy's main process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.part.as_ref().map(Part::pid)
    }

    /// Kills the running proxy.
    ///
    /// # Errors
    /// Fails if the process cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.part.take().map_or(Ok(()), |mut part| part.kill())
    }

    fn reload(&mut self) -> Result<()> {
        self.setup.write()?;
        let signal = if self.setup.rule.is_nginx() { Signal::SIGHUP } else { Signal::SIGUSR2 };
        self.part.as_mut().context("the proxy does not run")?.signal_alone(signal)
    }

    /// Sends a command to the running HAProxy.
    fn command(&self, text: &str) -> Result<()> {
        let path = self.setup.socket();
        let mut stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
        stream.write_all(format!("{text}\n").as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        let good = said.trim().is_empty() || said.contains("registered");
        ensure!(good, "HAProxy does not take `{text}`: {}", said.trim());
        Ok(())
    }

    fn run(&mut self, host: &Namespace) -> Result<()> {
        let Setup { rule, target, ref config, .. } = self.setup;
        let listens = || host.run_in_thread(|| TcpStream::connect(target)).is_ok_and(|connected| connected.is_ok());
        // The child processes of a killed process end a little later than the process itself.
        wait_until_free(target, listens)?;
        self.setup.write()?;
        let mut command = host.command(rule.program().0);
        if rule.is_nginx() {
            command.arg("-c").arg(config).arg("-e").arg(config.with_extension("log"));
        } else {
            command.arg("-W").arg("-db").arg("-f").arg(config);
        }
        let files = config.parent().context("a file without a directory")?;
        let mut part = Part::start(rule.program().0, &mut command, files)?;
        part.wait("listening", listens)?;
        self.part = Some(part);
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("a proxy is left running: {error:#}");
        }
    }
}

fn wait_until_free(target: SocketAddr, listens: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while listens() {
        ensure!(Instant::now() < deadline, "somebody else listens at {target}");
        thread::sleep(GLANCE);
    }
    Ok(())
}

impl Setup {
    fn write(&self) -> Result<()> {
        let text = if self.rule.is_nginx() { nginx::text(self)? } else { haproxy::text(self) };
        fs::write(&self.config, text).with_context(|| self.config.display().to_string())
    }

    fn socket(&self) -> PathBuf {
        self.config.with_extension("sock")
    }
}
