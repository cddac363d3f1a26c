//! Measures what many services and backends cost the controller: in a start, a restart and changes, in memory, or in
//! health checks. A real balancer runs in a network namespace, and the benchmark sends requests to the balancer's
//! socket. No client sends packets.

mod checks;
mod clients;
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
use balancer_bench::{
    failover::hosts::{Hosts, backend, settings},
    figures::{Spread, milliseconds},
    report::document::{Document, Series},
};
use balancer_config::names::BackendName;
use balancer_testkit::{binaries, controller::Controller, outcome::outcome};
use clap::Parser;
use tokio::runtime::Runtime;

use self::machine::{maps, resident};

const PATIENCE: Duration = Duration::from_secs(300);

/// Measures what many services cost the controller; needs root.
#[derive(Debug, Parser)]
struct Options {
    /// Number of configured services.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    services: u16,
    /// Number of backends of each service.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    backends: u16,
    /// Number of slots of each lookup table.
    #[arg(long, default_value_t = 4099)]
    table_size: u32,
    /// How packets reach backends.
    #[arg(long, default_value = "nat")]
    forwarding: String,
    /// Check each backend by TCP in this interval, such as 5s, and measure the checks instead of starts and changes.
    #[arg(long, value_parser = humantime::parse_duration)]
    checks: Option<Duration>,
    /// Make this number of clients known, and measure changes of `remember` instead of starts and changes.
    #[arg(long, conflicts_with = "checks")]
    clients: Option<u32>,
    /// How often the benchmark makes each change, or for how many periods it checks the backends.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..))]
    rounds: u16,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    outcome(measure(&Options::parse()))
}

fn measure(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes network namespaces");
    let Options { services, backends, table_size, ref forwarding, checks, clients, rounds, json } = *options;
    let all = u32::from(services) * u32::from(backends);
    let about = format!("{services} services × {backends} `{forwarding}` backends = {all}, {table_size} slots each");
    let mut table = Vec::new();
    let mut site = Site::new(options)?;
    match (checks, clients) {
        (Some(interval), _) => checks::checks(&mut site, interval, rounds, &mut table)?,
        (None, Some(clients)) => clients::clients(&mut site, clients, all, rounds, &mut table)?,
        (None, None) => site.controls(rounds, &mut table)?,
    }
    if json {
        return document(about, table).print();
    }
    println!("{about}");
    table.iter().for_each(print);
    Ok(())
}

fn times(what: &str, times: Vec<Duration>) -> Series {
    Series::ours("controller", what, "ms", times.into_iter().map(milliseconds).collect())
}

fn bytes(what: &str, bytes: u64) -> Series {
    Series::ours("controller", what, "MB", vec![bytes as f64 / 1e6])
}

fn print(series: &Series) {
    let Series { what, unit, samples, .. } = series;
    let Spread { least, median, most, .. } = Spread::of(samples.iter().copied());
    if samples.len() == 1 {
        println!("{what:<44} {least:>9.1} {unit}");
    } else {
        println!("{what:<44} {least:>9.1} {median:>9.1} {most:>9.1} {unit} (least, median, most)");
    }
}

fn document(about: String, series: Vec<Series>) -> Document {
    let title = "Starts, changes and memory of a large balancer".to_owned();
    Document { benchmark: "scale".to_owned(), title, about, series, left_out: Vec::new() }
}

/// A balancer and its files, on simulated hosts. Rust drops the hosts last, because their field is the last.
struct Site {
    controller: Option<Controller>,
    config: PathBuf,
    text: String,
    /// The last backend of the last service, which requests change. Configuration files change the first backend of the
    /// first service.
    last: BackendName,
    files: tempfile::TempDir,
    hosts: Hosts,
}

impl Site {
    fn new(options: &Options) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let config = files.path().join("balancer.toml");
        let text = configuration(options, files.path())?;
        fs::write(&config, &text)?;
        let Options { services, backends, .. } = options;
        let last = BackendName { service: format!("service{}", services - 1), backend: format!("web{}", backends - 1) };
        Ok(Self { controller: None, config, text, last, files, hosts: Hosts::new()? })
    }

    /// Measures a start of the balancer, several changes and a restart.
    fn controls(&mut self, rounds: u16, table: &mut Vec<Series>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        table.push(times("start, until it is ready", vec![self.start()?]));
        self.memory("after its start", table)?;
        self.changes(&runtime, rounds, table)?;
        let size = fs::metadata(self.files.path().join("state.json"))?.len();
        table.push(bytes("state file", size));
        self.memory("after the changes", table)?;
        table.push(times("restart, until it is ready", vec![self.start()?]));
        Ok(())
    }

    /// Starts or restarts the balancer, and returns how long the start took.
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

    /// Measures the time from request to answer for two kinds of request: changes of one weight, and configuration
    /// files with and without a changed weight.
    fn changes(&self, runtime: &Runtime, rounds: u16, table: &mut Vec<Series>) -> Result<()> {
        let api = self.api();
        let [mut weight, mut applied, mut unchanged, mut status] = [const { Vec::new() }; 4];
        for round in 0..rounds {
            weight.push(timed(|| runtime.block_on(api.set_weight(&self.last, 50 + round)))?);
            let changed = self.text.replacen("weight = 100", &format!("weight = {}", 200 + round), 1);
            let apply = |text: String| {
                let configuration = ApplyConfiguration {
                    file: "balancer.toml".to_owned(),
                    text,
                    dry_run: false,
                    age_seconds: None,
                    force: false,
                    reset: false,
                    path: None,
                };
                timed(|| runtime.block_on(api.apply(&configuration)))
            };
            applied.push(apply(changed.clone())?);
            unchanged.push(apply(changed)?);
            status.push(timed(|| runtime.block_on(api.status()))?);
        }
        table.push(times("one weight changed", weight));
        table.push(times("a file with one weight changed", applied));
        table.push(times("an unchanged file", unchanged));
        table.push(times("status", status));
        Ok(())
    }

    fn memory(&mut self, when: &str, table: &mut Vec<Series>) -> Result<()> {
        let pid = self.controller.as_mut().context("no balancer runs")?.process().pid();
        table.push(bytes(&format!("memory of the controller {when}"), resident(pid)?));
        table.push(bytes(&format!("memory of its maps {when}"), maps(pid)?));
        Ok(())
    }
}

fn timed<T, E: std::error::Error + Send + Sync + 'static>(what: impl FnOnce() -> Result<T, E>) -> Result<Duration> {
    let begin = Instant::now();
    what()?;
    Ok(begin.elapsed())
}

fn configuration(options: &Options, files: &std::path::Path) -> Result<String> {
    let Options { services, backends, table_size, forwarding, checks, clients, .. } = options;
    let mut text = settings(files);
    let mut remember = String::new();
    if let Some(clients) = clients {
        writeln!(text, "[client_table]\ncapacity = {clients}")?;
        remember = format!("remember = \"{}\"\n", clients::REMEMBER[0]);
    }
    let check = match checks {
        Some(interval) => format!("type = \"tcp\", interval = \"{}\"", humantime::format_duration(*interval)),
        None => "type = \"none\"".to_owned(),
    };
    for service in 0..*services {
        let [high, low] = service.to_be_bytes();
        write!(
            text,
            "[[service]]\nname = \"service{service}\"\naddress = \"10.2.{high}.{low}:80\"\nforwarding = \"{forwarding}\"\n\
             table_size = {table_size}\n{remember}check = {{ {check} }}\n"
        )?;
        for number in 0..*backends {
            // The backends use all available addresses; additional backends would have the addresses of earlier
            // backends.
            let all = u32::from(service) * u32::from(*backends) + u32::from(number);
            let address = backend(u16::try_from(all % 65_000 + 256)?);
            writeln!(text, "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\nweight = 100")?;
        }
    }
    Ok(text)
}
