//! Measures how long a failure takes from its detection to its effect, by the packets between a running balancer and
//! its backends.
//!
//! The benchmark closes a backend's port while the packets of the backend's clients continue. After the port is closed,
//! the kernel refuses the balancer's checks; only with the `fall`-th refusal in a row can the balancer know of the
//! failure. The benchmark measures two durations from the `fall`-th refusal: until the last client packet at the dead
//! backend, and until the next packet of the same clients at another backend. The true duration lies between the two
//! measured durations. The kernel stamps all packets with one clock, so the measured durations include the check's
//! socket, the queues of events, the new table, and packets in progress.

mod figures;
mod signals;

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_bench::failover::{
    hosts::{Hosts, PORT, Servers, VIP, backend, settings},
    load::{self, Load},
    scrape,
    wire::Wire,
};
use balancer_testkit::{
    binaries,
    controller::Controller,
    frame::{ACK, SYN},
    metrics::Metrics,
    outcome::outcome,
};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::figures::Figures;

/// The intervals of health checks, as settings.
const CHECK: &str = "interval = \"1s\", fast_interval = \"100ms\"";
/// The number of consecutive failed checks that make a backend down.
const FALL: usize = 3;
/// The number of clients, all of which the balancer knows before the first failure.
const CLIENTS: u16 = 10_000;
/// The pause between two client packets of one backend: first for a single failure, then for failures of several
/// backends.
const PAUSES: [Duration; 2] = [Duration::from_micros(50), Duration::from_micros(250)];
/// How long clients send packets before the failure.
const LEAD: Duration = Duration::from_millis(100);
/// If a dead backend receives no packet for `SILENCE`, the benchmark assumes that no more packets will arrive.
const SILENCE: Duration = Duration::from_millis(200);
/// The time limit for the detection of a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures how long failures take from detection to effect; needs root.
#[derive(Parser)]
struct Options {
    /// Measure only scenarios with this number of backends.
    #[arg(long)]
    backends: Option<u16>,
    /// Measure only scenarios with this memory: 3h or 0s.
    #[arg(long)]
    remember: Option<String>,
    /// Failures of a single backend in each scenario; each scenario has a quarter as many failures of several backends.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(4..))]
    rounds: u16,
    /// Measure the time from death to effect instead, with failures that only clients' handshakes show.
    #[arg(long)]
    signals: bool,
    /// How packets reach the backends.
    #[arg(long, default_value = "nat", value_parser = ["nat", "ipip", "gue"])]
    forwarding: String,
}

impl Options {
    /// The part of a scenario's name that describes the forwarding mode.
    fn mode(&self) -> String {
        if self.forwarding == "nat" { String::new() } else { format!(", {}", self.forwarding) }
    }
}

fn main() -> ExitCode {
    outcome(measure(&Options::parse()))
}

fn measure(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes network namespaces");
    // The benchmark needs one file descriptor for each backend, and the balancer needs one file descriptor for each
    // check.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    println!("from the deciding refusal of a check, in ms: min / median / max");
    println!(
        "{:<38} {:>8} {:>20} {:>20} {:>20} {:>7}",
        "", "failures", "last packet there", "next elsewhere", "controller's own", "tables"
    );
    for backends in [8, 1000] {
        for remember in ["3h", "0s"] {
            let wanted = options.backends.is_none_or(|only| only == backends)
                && options.remember.as_ref().is_none_or(|only| only == remember);
            if wanted && !options.signals {
                scenario(backends, remember, options)
                    .with_context(|| format!("{backends} backends, remember {remember}"))?;
            }
        }
    }
    if options.signals { signals::measure(options) } else { Ok(()) }
}

fn scenario(backends: u16, remember: &str, options: &Options) -> Result<()> {
    let mut site = Site::new(backends, &options.forwarding, remember, CHECK)?;
    let several = 10.min(backends / 2);
    for (at_once, rounds) in [(1, options.rounds), (several, options.rounds / 4)] {
        let mut figures = Figures::default();
        for _ in 0..rounds {
            site.fail(at_once, &mut figures)?;
        }
        let how = if at_once == 1 { "one at a time".to_owned() } else { format!("{at_once} at once") };
        let what = format!("{backends} backends, remember {remember}, {how}{}", options.mode());
        figures.print(&what, rounds, at_once);
    }
    Ok(())
}

/// The balancer under test, with its clients and backends. Rust drops the fields in the order of their declarations.
struct Site {
    controller: Controller,
    wire: Wire,
    servers: Servers,
    /// The number of the backend that fails next.
    next: u16,
    backends: u16,
    hosts: Hosts,
    _files: tempfile::TempDir,
}

impl Site {
    fn new(backends: u16, forwarding: &str, remember: &str, check: &str) -> Result<Self> {
        let hosts = Hosts::new()?;
        let mut servers = Servers::default();
        hosts.listen(&(1..=backends).collect::<Vec<_>>(), &mut servers)?;
        let wire = Wire::tap(hosts.backends.entrance())?;
        let files = tempfile::tempdir()?;
        let (config, socket) = (files.path().join("balancer.toml"), files.path().join("balancer.sock"));
        fs::write(&config, configuration((backends, forwarding, remember, check), files.path())?)?;
        let log = files.path().join("balancer.log");
        let controller = Controller::start(&hosts.balancer, &binaries::balancer()?, &config, &socket, &log)?;
        let mut site = Self { controller, wire, servers, next: 1, backends, hosts, _files: files };
        site.controller.wait_for(PATIENCE, "every backend being up", |status| {
            status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
        })?;
        Ok(site)
    }

    /// Makes `at_once` backends fail at the same time, and restores these backends afterwards.
    fn fail(&mut self, at_once: u16, figures: &mut Figures) -> Result<()> {
        load::once(&self.hosts.clients, 1..=CLIENTS, SYN)?;
        thread::sleep(LEAD);
        let failing = self.choose(at_once)?;
        let groups: Vec<Vec<u16>> = {
            let mut seen = self.wire.seen()?;
            seen.watch(&failing);
            let of = |backend| seen.home.iter().filter(move |(_, home)| **home == backend).map(|(&client, _)| client);
            failing.iter().map(|&backend| of(backend).collect()).collect()
        };
        let before = self.tables()?;
        let pause = PAUSES[usize::from(at_once > 1)];
        let load = Load::start(self.hosts.clients.entrance(), &groups, &[ACK], pause, PATIENCE);
        thread::sleep(LEAD);
        for &number in &failing {
            self.servers.close(number);
        }
        self.await_silence()?;
        load.stop()?;
        let metrics = self.metrics()?;
        figures.builds.push(metrics.sum("table_build_seconds", &[])? * 1e3);
        figures.tables += metrics.sum("table_generation", &[])? - before;
        self.take(figures)?;
        self.bring_back(&failing)
    }

    /// Chooses the next `count` backends that have clients.
    fn choose(&mut self, count: u16) -> Result<Vec<u16>> {
        let seen = self.wire.seen()?;
        ensure!(seen.clients.len() == usize::from(CLIENTS), "only {} clients were served", seen.clients.len());
        let mut chosen = Vec::new();
        for _ in 0..self.backends {
            let number = self.next;
            self.next = self.next % self.backends + 1;
            if seen.clients.values().any(|&backend| backend == number) {
                chosen.push(number);
                if chosen.len() == usize::from(count) {
                    return Ok(chosen);
                }
            }
        }
        bail!("fewer than {count} backends have clients")
    }

    fn await_silence(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            thread::sleep(Duration::from_millis(20));
            self.controller.ensure_running()?;
            let seen = self.wire.seen()?;
            let silent = seen.watched.values().all(|watched| {
                watched.refused.len() >= FALL
                    && watched.last.is_some_and(|last| seen.now.saturating_sub(last) > SILENCE)
            });
            if silent {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "clients still go to a dead backend: {:?}", seen.watched);
        }
    }

    fn take(&mut self, figures: &mut Figures) -> Result<()> {
        for (number, watched) in &self.wire.seen()?.watched {
            let missing = || format!("backend {number}: {watched:?}");
            let detected = watched.refused.get(FALL - 1).with_context(missing)?;
            let since = |at: Option<Duration>| -> Result<f64> {
                Ok((at.with_context(missing)?.as_secs_f64() - detected.as_secs_f64()) * 1e3)
            };
            figures.last.push(since(watched.last)?);
            figures.elsewhere.push(since(watched.elsewhere)?);
        }
        Ok(())
    }

    fn bring_back(&mut self, numbers: &[u16]) -> Result<()> {
        self.hosts.listen(numbers, &mut self.servers)?;
        for number in numbers {
            let output = self.controller.cli(&["wait", &format!("web/web{number}"), "up", "--timeout", "20s"])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn tables(&self) -> Result<f64> {
        self.metrics()?.sum("table_generation", &[])
    }

    fn metrics(&self) -> Result<Metrics> {
        scrape(&self.hosts.balancer)
    }
}

fn configuration((backends, forwarding, remember, check): (u16, &str, &str, &str), files: &Path) -> Result<String> {
    let mut text = settings(files);
    write!(
        text,
        "[[service]]\nname = \"web\"\naddress = \"{VIP}\"\nforwarding = \"{forwarding}\"\ntable_size = 65537\n\
         remember = \"{remember}\"\n\
         check = {{ type = \"tcp\", port = {PORT}, {check}, timeout = \"1s\", fall = {FALL}, rise = 1 }}\n"
    )?;
    for number in 1..=backends {
        let address = backend(number);
        // A tunnel packet keeps the port of the VIP.
        let address = if forwarding == "nat" { address.to_string() } else { address.ip().to_string() };
        write!(text, "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n")?;
    }
    Ok(text)
}
