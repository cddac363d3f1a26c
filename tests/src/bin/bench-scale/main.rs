//! What many services and backends cost the controller: a start, a restart, changes, memory. A real balancer in a
//! network namespace, asked through its socket; no packet is sent.

mod machine;

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use balancer_api::{client::Client, model::ApplyConfiguration};
use balancer_model::names::BackendName;
use balancer_tests::{
    binaries,
    controller::Controller,
    failover::hosts::{Hosts, backend, settings},
    outcome::outcome,
};
use clap::Parser;
use tokio::runtime::Runtime;

use self::machine::{maps, resident};

const PATIENCE: Duration = Duration::from_secs(300);

/// Measures what many services cost the controller; needs root.
#[derive(Debug, Parser)]
struct Options {
    /// Services.
    #[arg(long, default_value_t = 1000)]
    services: u16,
    /// Backends of each.
    #[arg(long, default_value_t = 16)]
    backends: u16,
    /// Slots of each lookup table.
    #[arg(long, default_value_t = 4099)]
    table_size: u32,
    /// How packets reach backends.
    #[arg(long, default_value = "nat")]
    forwarding: String,
    /// How often each change is made.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..))]
    rounds: u16,
}

fn main() -> ExitCode {
    outcome(measure(&Options::parse()))
}

fn measure(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes network namespaces");
    let Options { services, backends, table_size, ref forwarding, rounds } = *options;
    let all = u32::from(services) * u32::from(backends);
    println!("{services} services × {backends} `{forwarding}` backends = {all}, {table_size} slots each");
    let mut site = Site::new(options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    row("start, until it is ready", &mut [site.start()?]);
    site.memory()?;
    site.changes(&runtime, rounds)?;
    let size = fs::metadata(site.files.path().join("state.json"))?.len();
    println!("{:<44} {:>9.1} MB", "state file", size as f64 / 1e6);
    site.memory()?;
    row("restart, until it is ready", &mut [site.start()?]);
    Ok(())
}

/// A line of the table: least, median and most of `times`.
fn row(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    let [least, median, most] = [times.first(), times.get(times.len() / 2), times.last()].map(ms);
    if times.len() == 1 {
        println!("{what:<44} {least:>9.1} ms");
    } else {
        println!("{what:<44} {least:>9.1} {median:>9.1} {most:>9.1} ms (least, median, most)");
    }
}

/// A balancer and its files. The hosts are dropped last.
struct Site {
    controller: Option<Controller>,
    config: PathBuf,
    text: String,
    files: tempfile::TempDir,
    hosts: Hosts,
}

impl Site {
    fn new(options: &Options) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let config = files.path().join("balancer.toml");
        let text = configuration(options, files.path())?;
        fs::write(&config, &text)?;
        Ok(Self { controller: None, config, text, files, hosts: Hosts::new()? })
    }

    /// Starts the balancer, or stops it and starts it again; how long the start takes.
    fn start(&mut self) -> Result<Duration> {
        if let Some(controller) = &mut self.controller {
            controller.process().stop()?;
        }
        let [socket, log] = ["balancer.sock", "balancer.log"].map(|name| self.files.path().join(name));
        let begin = Instant::now();
        let mut controller =
            Controller::start(&self.hosts.balancer, &binaries::balancer()?, &self.config, &socket, &log)?;
        controller.wait_ready(PATIENCE)?;
        let took = begin.elapsed();
        self.controller = Some(controller);
        Ok(took)
    }

    fn api(&self) -> Client {
        Client::new(&self.files.path().join("balancer.sock"))
    }

    /// Changes of one weight, files with and without one, from question to answer.
    fn changes(&self, runtime: &Runtime, rounds: u16) -> Result<()> {
        let api = self.api();
        let name = BackendName { service: "service1".to_owned(), backend: "web1".to_owned() };
        let mut times = [const { Vec::new() }; 4];
        for round in 0..rounds {
            let [weight, applied, unchanged, status] = &mut times;
            weight.push(timed(|| runtime.block_on(api.set_weight(&name, 50 + round)))?);
            let changed = self.text.replacen("weight = 100", &format!("weight = {}", 200 + round), 1);
            let apply = |text: String| {
                let configuration = ApplyConfiguration { file: "balancer.toml".to_owned(), text, dry_run: false };
                timed(|| runtime.block_on(api.apply(&configuration)))
            };
            applied.push(apply(changed.clone())?);
            unchanged.push(apply(changed)?);
            status.push(timed(|| runtime.block_on(api.status()))?);
        }
        let [weight, applied, unchanged, status] = &mut times;
        row("one weight changed", weight);
        row("a file with one weight changed", applied);
        row("an unchanged file", unchanged);
        row("status", status);
        Ok(())
    }

    fn memory(&mut self) -> Result<()> {
        let pid = self.controller.as_mut().context("no balancer runs")?.process().pid();
        println!("{:<44} {:>9.1} MB", "memory of the controller", resident(pid)? as f64 / 1e6);
        println!("{:<44} {:>9.1} MB", "memory of its maps", maps(pid)? as f64 / 1e6);
        Ok(())
    }
}

fn timed<T, E: std::error::Error + Send + Sync + 'static>(what: impl FnOnce() -> Result<T, E>) -> Result<Duration> {
    let begin = Instant::now();
    what()?;
    Ok(begin.elapsed())
}

fn configuration(options: &Options, files: &std::path::Path) -> Result<String> {
    let Options { services, backends, table_size, forwarding, .. } = options;
    let mut text = settings(files);
    for service in 0..*services {
        let [high, low] = service.to_be_bytes();
        write!(
            text,
            "[[service]]\nname = \"service{service}\"\naddress = \"10.2.{high}.{low}:80\"\nforwarding = \"{forwarding}\"\n\
             table_size = {table_size}\ncheck = {{ type = \"none\" }}\n"
        )?;
        for number in 0..*backends {
            // As many as there are addresses; beyond, with other ports.
            let all = u32::from(service) * u32::from(*backends) + u32::from(number);
            let address = backend(u16::try_from(all % 65_000 + 256)?);
            writeln!(text, "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\nweight = 100")?;
        }
    }
    Ok(text)
}
