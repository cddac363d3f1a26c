//! The processes and hosts of the lab.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use balancer_common::map_types::Forwarding;
use nix::sys::signal::Signal;

use super::{
    Kind, Options,
    member::{BACKENDS, Member},
    patience::Patience,
    script::Script,
};
use crate::{
    backend::{self, Backend},
    config::{listen, name},
    etcd::{Server, servers},
    files::Files,
    namespace::Namespace,
    process::Process,
    routing,
    topology::{Family, Shape, Topology},
};

/// The host numbers of the etcd servers on the backends' segment.
const ENGINES: [u16; 3] = [61, 62, 63];

/// Additional arguments for etcd, whose data need not outlive the lab.
const ENGINES_ARGUMENTS: [&str; 2] = ["--auto-compaction-retention=5m", "--unsafe-no-fsync"];

/// The time from the first to the second SIGTERM that the lab sends. After the second SIGTERM, a balancer ends without
/// waiting for routers.
const FAREWELL: Duration = Duration::from_millis(200);

/// An etcd server and its host.
pub(super) struct Engine {
    pub(super) server: Server,
    pub(super) host: Namespace,
}

impl Engine {
    /// Whether clients can read from the etcd server.
    pub(super) fn is_well(&self) -> bool {
        self.server.is_well(&self.host)
    }
}

/// The lab with its processes and hosts. Rust drops the fields in the order of their declaration, and dropping a field
/// ends its processes.
pub(super) struct Lab {
    pub(super) members: Vec<Member>,
    routing: Vec<Process>,
    backends: Vec<Backend>,
    pub(super) engines: Vec<Engine>,
    pub(super) topology: Topology,
    pub(super) kind: Kind,
    pub(super) program: PathBuf,
    pub(super) files: Files,
    /// The directory that contains etcd's data.
    data: Files,
}

impl Lab {
    /// Starts the lab, and waits until clients get answers. After an error, the function ends everything that it has
    /// started.
    pub(super) fn start(options: &Options, patience: &Patience<'_>) -> Result<Self> {
        let (files, data) = (Files::new()?, Files::on_disk()?);
        let mut topology = Topology::new(Shape::Routed, Forwarding::Dsr, usize::from(BACKENDS) + 1)?;
        for _ in 1..options.kind.balancers() {
            topology.add_balancer()?;
        }
        let mut lab = Self {
            members: Vec::new(),
            routing: Vec::new(),
            backends: Vec::new(),
            engines: Vec::new(),
            topology,
            kind: options.kind,
            program: options.program.clone(),
            files,
            data,
        };
        lab.start_engines()?;
        lab.start_backends()?;
        patience.until(|| lab.engine_that_is_not_well())?;
        lab.start_members(options)?;
        patience.until(|| lab.member_that_is_not_ready())?;
        lab.start_routing(patience)?;
        lab.write_scripts(options)?;
        Ok(lab)
    }

    /// The names of the balancers that receive clients' packets.
    pub(super) fn in_use(&self) -> Vec<String> {
        let vip = self.topology.vip(Family::V4);
        let hosts = (0..).zip(self.topology.balancers());
        match self.kind {
            Kind::Spread(_) => {
                let routes = self.topology.router().ip(&format!("-4 route show {vip}")).unwrap_or_default();
                let has = |index| has_word(&routes, &Topology::balancers_address(Family::V4, index).to_string());
                hosts.filter(|&(index, _)| has(index)).map(|(index, _)| member_name(index)).collect()
            }
            Kind::Standby => {
                let has = |host: &Namespace| {
                    host.ip("-4 addr show dev eth0").is_ok_and(|text| has_word(&text, &format!("{vip}/32")))
                };
                hosts.filter(|&(_, host)| has(host)).map(|(index, _)| member_name(index)).collect()
            }
        }
    }

    /// Records which processes have ended.
    pub(super) fn reap(&mut self) {
        let engines = self.engines.iter_mut().filter_map(|engine| engine.server.process());
        let members = self.members.iter_mut().map(|member| member.controller.process());
        let backends = self.backends.iter_mut().map(Backend::process);
        for process in engines.chain(members).chain(backends).chain(&mut self.routing) {
            // This call only reaps a process that has ended; the view sends a request to find out whether the balancer
            // works.
            let _ended = process.exited();
        }
    }

    fn start_engines(&mut self) -> Result<()> {
        let addresses: Vec<IpAddr> = ENGINES.map(|host| Topology::host_address(Family::V4, host)).into();
        let arguments = ENGINES_ARGUMENTS.map(str::to_owned);
        for (server, number) in servers(&addresses, None, self.data.path(), &arguments).into_iter().zip(ENGINES) {
            let host = self.topology.add_host(server.name(), number)?;
            self.engines.push(Engine { server, host });
        }
        self.engines.iter_mut().try_for_each(|Engine { server, host }| server.start(host))
    }

    fn start_backends(&mut self) -> Result<()> {
        for index in 0..BACKENDS {
            let host = &self.topology.backends()[usize::from(index)];
            let listen = listen(&self.topology, Forwarding::Dsr, index);
            self.backends.push(Backend::start(&self.program, host, &name(index), &listen, self.files.path())?);
        }
        Ok(())
    }

    fn start_members(&mut self, options: &Options) -> Result<()> {
        let endpoints: Vec<&str> = self.engines.iter().map(|engine| engine.server.endpoint()).collect();
        for index in 0..options.kind.balancers() {
            self.members.push(Member::start(options, &self.topology, index, &endpoints, self.files.path())?);
        }
        Ok(())
    }

    fn start_routing(&mut self, patience: &Patience<'_>) -> Result<()> {
        match self.kind {
            Kind::Spread(balancers) => {
                self.start_birds(balancers)?;
                patience.until(|| self.what_routing_lacks())
            }
            // The balancers start one after the other, so that the first balancer gets the VIP.
            Kind::Standby => (0..self.kind.balancers()).try_for_each(|index| {
                self.start_keepalived(index)?;
                patience.until(|| self.what_routing_lacks())
            }),
        }
    }

    fn start_birds(&mut self, balancers: u16) -> Result<()> {
        let router = self.topology.router();
        for family in ["ipv4", "ipv6"] {
            // The router includes ports in the hash, so that each client reaches all balancers.
            router.sysctl(&format!("net/{family}/fib_multipath_hash_policy"), "1")?;
        }
        let config = self.write("router.conf", &routing::router(balancers)?)?;
        self.routing.push(routing::start_bird(router, &config)?);
        for (index, host) in (0..).zip(self.topology.balancers()) {
            let config = self.write(&format!("{}/bird.conf", member_name(index)), &routing::balancer(index)?)?;
            self.routing.push(routing::start_bird(host, &config)?);
        }
        Ok(())
    }

    fn start_keepalived(&mut self, index: u16) -> Result<()> {
        if index == 0 {
            // The VIP belongs to the segment, whichever balancer has it.
            let vip = self.topology.vip(Family::V4);
            self.topology.router().ip(&format!("-4 route add {vip} dev eth0"))?;
        }
        let mut hosts = self.topology.balancers().zip(&self.members);
        let (host, member) = hosts.nth(index.into()).context("there is no such balancer")?;
        let ready = format!("{} --socket {} ready --announced", self.program.display(), member.socket().display());
        let text = routing::keepalived(&self.topology, index, &ready)?;
        let config = self.write(&format!("{}/keepalived.conf", member.name), &text)?;
        self.routing.push(routing::start_keepalived(host, &config)?);
        Ok(())
    }

    /// Writes a file with this text, and returns the path.
    fn write(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.path().join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn engine_that_is_not_well(&mut self) -> Result<Option<String>> {
        for engine in &mut self.engines {
            if !engine.is_well() {
                let name = engine.server.name().to_owned();
                let Some(process) = engine.server.process() else { bail!("{name} was not started") };
                ensure_running(process)?;
                return Ok(Some(format!("{name} is not well: {}", process.tail(5)?)));
            }
        }
        Ok(None)
    }

    fn member_that_is_not_ready(&mut self) -> Result<Option<String>> {
        for member in &mut self.members {
            member.controller.ensure_running()?;
            if !member.controller.status().is_ok_and(|status| status.ready.state.serves()) {
                let log = member.controller.process().tail(20)?;
                return Ok(Some(format!("{} is not ready; the last lines of its log:\n{log}", member.name)));
            }
        }
        Ok(None)
    }

    fn what_routing_lacks(&mut self) -> Result<Option<String>> {
        self.routing.iter_mut().try_for_each(ensure_running)?;
        let in_use = self.in_use();
        let enough = match self.kind {
            Kind::Spread(balancers) => usize::from(balancers),
            Kind::Standby => 1,
        };
        if in_use.len() >= enough {
            return Ok(None);
        }
        let logs: Vec<String> = self.routing.iter().filter_map(|process| process.tail(3).ok()).collect();
        Ok(Some(format!("clients come to {} of the balancers: {in_use:?}\n{}", in_use.len(), logs.join("\n"))))
    }

    fn write_scripts(&mut self, options: &Options) -> Result<()> {
        let files = self.files.path().to_owned();
        for (member, host) in self.members.iter_mut().zip(self.topology.balancers()) {
            let config = member.files.join("balancer.toml").display().to_string();
            let arguments = ["run".to_owned(), "--config".to_owned(), config];
            let script = Script { name: &member.name, host, program: &options.balancer, arguments: &arguments };
            script.write(&files, Some(member.controller.process().pid()))?;
        }
        for Engine { server, host } in &mut self.engines {
            let pid = server.process().map(|process| process.pid());
            let (name, arguments) = (server.name().to_owned(), server.arguments().to_vec());
            Script { name: &name, host, program: Path::new("etcd"), arguments: &arguments }.write(&files, pid)?;
        }
        for (index, host) in (0..).zip(self.topology.backends()) {
            let arguments = backend::arguments(&name(index), &listen(&self.topology, Forwarding::Dsr, index));
            let pid = self.backends.get_mut(usize::from(index)).map(|backend| backend.process().pid());
            let script = Script { name: &name(index), host, program: &options.program, arguments: &arguments };
            script.write(&files, pid)?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The lab sends the signals to all balancers, so that they end at the same time.
        for again in [false, true] {
            for member in &mut self.members {
                // If the process has already ended, the signal is not needed.
                let _gone = member.controller.process().signal(Signal::SIGTERM);
            }
            if !again {
                self.routing.iter_mut().for_each(|process| drop(process.signal(Signal::SIGTERM)));
                thread::sleep(FAREWELL);
            }
        }
    }
}

/// Returns the name of a balancer: `lb1` for index 0.
fn member_name(index: u16) -> String {
    format!("lb{}", index + 1)
}

fn has_word(text: &str, wanted: &str) -> bool {
    text.split_whitespace().any(|word| word == wanted)
}

fn ensure_running(process: &mut Process) -> Result<()> {
    if let Some(status) = process.exited()? {
        bail!("{} has ended ({status}): {}", process.what(), process.tail(5)?);
    }
    Ok(())
}
