//! Measures how long new clients wait if one of four CPU-bound servers is slow. The benchmark alternates between
//! measurements with and without `bounded_load = { by = "latency" }`, and also measures whether known clients stay at
//! their servers.

mod load;
mod server;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use balancer_api::model::BackendView;
use balancer_bench::{
    figures::{Spread, percentile},
    http_server::Server,
    machine,
    report::document::{Document, Series},
};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    controller::Controller,
    outcome::outcome,
    site::{PATIENCE, Settings, backend_port, start_controller, write_config},
    topology::{Shape, Topology},
};
use clap::Parser;
use tempfile::TempDir;

use self::load::{Clients, Span, homes};

const SERVERS: u16 = 4;
/// The name of the slow server, which is the last server.
const SLOW: &str = "web4";
/// The number of clients that arrive before the first measurement and send another request at the end.
const FIRST: u16 = 100;
const RULE: &str = "bounded_load = { factor = 1.25, by = \"latency\" }";
/// A long queue of requests must not make the health check of a backend fail. On a busy machine, the slow server's
/// queue takes seconds, because the server gets its processor time later.
const CHECK: &str = r#"{ type = "http", path = "/", interval = "5s", timeout = "5s", fall = 10, passive = false }"#;
/// The time limits for the first table change and for later table changes. The balancer changes the lookup table of a
/// service at most once in ten minutes.
const FIRST_CHANGE: Duration = Duration::from_secs(90);
const LATER_CHANGE: Duration = Duration::from_secs(700);

/// Measures how long clients wait if one of four CPU-bound servers is slow, with and without bounded load; needs root.
#[derive(Parser)]
struct Options {
    /// Number of rounds; each round measures with and without bounded load.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    rounds: u16,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(10..=600))]
    seconds: u16,
    /// Requests per second over all clients.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u16).range(10..=400))]
    rate: u16,
    /// Milliseconds of processor time that an answer of the three fast servers takes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    fast: u16,
    /// Milliseconds of processor time that an answer of the slow server takes.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=500))]
    slow: u16,
    /// Number of table changes to wait for in the last round; each change after the first takes ten minutes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4))]
    changes: u16,
    /// The seed of the clients' arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// The servers, the balancer and the clients. Rust drops the fields in the order of their declarations, which ends the
/// programs.
struct Scene {
    controller: Controller,
    _servers: Vec<Server>,
    topology: Topology,
    settings: Settings,
    clients: Clients,
    files: TempDir,
}

/// The measurements while the slow server keeps the same percentage of its slots as in this row.
struct Row {
    /// The percentage of its slots that the slow server keeps; `None` without bounded load.
    keeps: Option<u8>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// The percentage of new clients that the slow server gets, by measurement.
    part: Vec<f64>,
    /// The 99th percentile of latencies, relative to the previous measurement without bounded load.
    ratio: Vec<f64>,
    failed: usize,
    moved: usize,
}

fn main() -> ExitCode {
    outcome(measure(&Options::parse()))
}

fn measure(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes network namespaces");
    let mut scene = Scene::start(options)?;
    let numbers = scene.take(FIRST);
    let first = homes(&scene.topology, numbers)?;
    let mut rows = Vec::new();
    for round in 1..=options.rounds {
        let time = Duration::from_secs(options.seconds.into());
        let without = scene.clients.play(&scene.topology, time)?;
        let before = percentile(&without.latencies, 0.99);
        note(&mut rows, None, &without, before);
        scene.apply(RULE)?;
        for change in 1..=if round == options.rounds { options.changes } else { 1 } {
            let keeps = scene.wait_for_change(if change == 1 { FIRST_CHANGE } else { LATER_CHANGE })?;
            let with = scene.clients.play(&scene.topology, time)?;
            note(&mut rows, Some(keeps), &with, before);
        }
        if round == options.rounds {
            let again = homes(&scene.topology, 1..=FIRST)?;
            ensure!(first.failed + again.failed == 0, "some of the first clients were not answered");
            let stayed = first.homes.iter().filter(|(client, home)| again.homes.get(client) == Some(home)).count();
            report(options, &rows, first.part(SLOW), usize::from(FIRST) - stayed)?;
        }
        scene.apply("")?;
    }
    Ok(())
}

impl Scene {
    fn start(options: &Options) -> Result<Self> {
        let topology = Topology::new(Shape::TwoLegged, Forwarding::Nat, SERVERS.into())?;
        let port = backend_port(Forwarding::Nat);
        let server = |(host, number): (&_, u16)| {
            let name = format!("web{number}");
            let time = if name == SLOW { options.slow } else { options.fast };
            server::start(host, name, port, Duration::from_millis(time.into()))
        };
        let servers = topology.backends().iter().zip(1..).map(server).collect::<Result<_>>()?;
        let settings =
            Settings { remember: "3h", check: CHECK.to_owned(), ..Settings::new(&topology, Forwarding::Nat, SERVERS) };
        let files = tempfile::tempdir()?;
        let mut controller = start_controller(&topology, &settings, files.path())?;
        controller.wait_for(PATIENCE, "every server being up", |status| {
            status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
        })?;
        let clients = Clients::new(options.rate.into(), options.seed);
        Ok(Self { controller, _servers: servers, topology, settings, clients, files })
    }

    /// Returns the numbers of the next `count` new clients.
    fn take(&mut self, count: u16) -> impl Iterator<Item = u16> + use<> {
        let before = self.clients.number;
        self.clients.number += count;
        before + 1..=before + count
    }

    /// Applies a configuration in which the service contains `line`.
    fn apply(&mut self, line: &str) -> Result<()> {
        line.clone_into(&mut self.settings.service_lines);
        let config = write_config(&self.topology, &self.settings, self.files.path())?;
        let output = self.controller.cli(&["apply", &config.to_string_lossy()])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Lets new clients arrive until the slow server keeps another percentage of its slots, and returns the new
    /// percentage.
    fn wait_for_change(&mut self, limit: Duration) -> Result<u8> {
        let (before, begin) = (keeps(&self.slow()?), Instant::now());
        loop {
            self.clients.play(&self.topology, Duration::from_secs(5))?;
            let slow = self.slow()?;
            let BackendView { state, reason, .. } = &slow;
            ensure!(
                slow.state == "up",
                "{SLOW} is {state} ({reason}), so that its load cannot be bounded: the machine is too busy for --rate and --slow"
            );
            if let Some(keeps) = keeps(&slow).filter(|&keeps| Some(keeps) != before) {
                return Ok(keeps);
            }
            let kept = before.unwrap_or(100);
            ensure!(begin.elapsed() < limit, "{SLOW} has kept {kept}% of its slots for {limit:?} ({reason})");
        }
    }

    fn slow(&self) -> Result<BackendView> {
        let backends = self.controller.status()?.services.into_iter().flat_map(|service| service.backends);
        backends.into_iter().find(|backend| backend.name == SLOW).context("no slow server")
    }
}

/// Returns the percentage of its slots that a backend keeps because of its load.
fn keeps(backend: &BackendView) -> Option<u8> {
    backend.bound.as_ref().map(|bound| bound.keeps_percent)
}

/// Adds a measurement to the row with the same percentage of kept slots.
fn note(rows: &mut Vec<Row>, keeps: Option<u8>, span: &Span, before: f64) {
    if !rows.iter().any(|row| row.keeps == keeps) {
        let [p50, p99, part, ratio] = [const { Vec::new() }; 4];
        rows.push(Row { keeps, p50, p99, part, ratio, failed: 0, moved: 0 });
    }
    let Some(row) = rows.iter_mut().find(|row| row.keeps == keeps) else { return };
    let [p50, p99] = [0.5, 0.99].map(|share| percentile(&span.latencies, share));
    row.p50.push(p50 / 1e3);
    row.p99.push(p99 / 1e3);
    row.part.push(100.0 * span.part(SLOW));
    row.ratio.push(p99 / before);
    row.failed += span.failed;
    row.moved += span.moved;
}

impl Row {
    fn title(&self) -> String {
        self.keeps.map_or_else(|| "without".to_owned(), |keeps| format!("by = \"latency\", keeps {keeps}%"))
    }
}

fn report(options: &Options, rows: &[Row], part: f64, moved: usize) -> Result<()> {
    let Options { rounds, rate, fast, slow, .. } = options;
    let about = format!(
        "{rate} requests a second, each over a connection of its own, by clients that come, ask four times and leave. \
         Each of {SERVERS} servers answers one request at a time, with {fast} ms of processor time, {SLOW} with {slow} \
         ms. {rounds} rounds, in turns. Of the {FIRST} clients that came first, {:.0} were at {SLOW}; {moved} of all \
         {FIRST} moved.",
        part * f64::from(FIRST)
    );
    if options.json {
        return document(rows, about).print();
    }
    println!("{}\n{about}\n", machine::describe());
    println!("| | new clients at {SLOW} | p50 | p99 | p99 over that without | clients that moved | failed |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        let spread = |figures: &[f64], unit: &str, digits: usize| {
            let Spread { least, median, most, .. } = Spread::of(figures.iter().copied());
            format!("{median:.digits$}{unit} ({least:.digits$} to {most:.digits$})")
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.title(),
            spread(&row.part, "%", 1),
            spread(&row.p50, " ms", 1),
            spread(&row.p99, " ms", 0),
            spread(&row.ratio, "", 2),
            row.moved,
            row.failed
        );
    }
    Ok(())
}

fn document(rows: &[Row], about: String) -> Document {
    let series = |row: &Row| {
        let of = |what: &str, unit: &str, samples: &Vec<f64>| Series::ours(row.title(), what, unit, samples.clone());
        [
            of("p99", "ms", &row.p99).under("99th percentile of answers"),
            of("p50", "ms", &row.p50),
            of("new clients at the slow server", "%", &row.part),
            of("p99 over that without", "", &row.ratio),
            of("clients that moved", "clients", &vec![row.moved as f64]),
            of("failed", "requests", &vec![row.failed as f64]),
        ]
    };
    Document {
        benchmark: "slow".to_owned(),
        title: "One of four servers is slow".to_owned(),
        about,
        series: rows.iter().flat_map(series).collect(),
        left_out: Vec::new(),
    }
}
