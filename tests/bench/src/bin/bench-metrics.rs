//! Measures what a scrape of a large balancer costs: how long the scrape occupies the owner task, and how long reading
//! counters and writing text take. Reading the counters and writing the text happen outside the owner task.

use std::{
    fmt::Write as _,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::{
    figures::{Spread, milliseconds},
    report::document::{Document, Series},
};
use balancer_common::client::HashKey;
use balancer_config::file;
use balancer_control::controller::Controller;
use balancer_daemon::{
    metrics::render,
    neighbours::Neighbours,
    owner::{Beginning, Owner},
    prober::Prober,
    supervisor::Supervisor,
};
use balancer_dataplane::{Capacity, KernelDataplane};
use balancer_testkit::outcome::outcome;
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use tokio::sync::mpsc;

const ROUNDS: usize = 21;

/// Measures what a scrape costs; needs root.
#[derive(Parser)]
struct Options {
    /// Number of configured services.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    services: u16,
    /// Number of backends of each service.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=250))]
    backends: u16,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    outcome(measure(&Options::parse()))
}

fn measure(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it loads the program into the kernel");
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    let Options { services, backends, json } = *options;
    let mut text = String::new();
    for service in 0..services {
        let [high, low] = service.to_be_bytes();
        writeln!(text, "[[service]]\nname = \"service{service}\"\naddress = \"198.51.{high}.{low}:80\"")?;
        writeln!(text, "forwarding = \"dsr\"\ncheck = {{ type = \"none\" }}")?;
        for backend in 1..=backends {
            writeln!(text, "[[service.backend]]\nname = \"web{backend}\"\naddress = \"10.{high}.{low}.{backend}\"")?;
        }
    }
    let (config, _) = file::parse(Path::new("bench.toml"), text.as_bytes())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dataplane = KernelDataplane::load(Capacity::for_config(&config), &[1])?;
        let (events, _unread) = mpsc::channel(1);
        let controller = Controller::new(config, HashKey { k0: 1, k1: 2 });
        let neighbours = Neighbours::spawn(events.clone(), &Supervisor::default())?;
        let mut owner = Owner::new(
            Beginning::new(controller, &neighbours),
            dataplane,
            neighbours,
            Prober::new(events, &Supervisor::default())?,
            balancer_daemon::events::Events::new(),
        );
        owner.start()?;
        let mut times: [Vec<Duration>; 4] = Default::default();
        let mut length = 0;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let counting = owner.snapshot()?;
            let held = start.elapsed();
            let snapshot = counting.finish().whole();
            let read = start.elapsed();
            length = 0;
            length += render(&snapshot, &mut |piece| length += piece.len()).len();
            let written = start.elapsed();
            for (times, time) in times.iter_mut().zip([held, read - held, written - read, written]) {
                times.push(time);
            }
        }
        let what = ["controller held", "counters read", "text written", "scrape"];
        let series = what
            .into_iter()
            .zip(times)
            .map(|(what, times)| Series::ours("controller", what, "ms", times.into_iter().map(milliseconds).collect()));
        let document = Document {
            benchmark: "metrics".to_owned(),
            title: "A scrape of a large balancer".to_owned(),
            about: format!("{services} services × {backends} backends, {:.1} MB of text", length as f64 / 1e6),
            series: series.collect(),
            left_out: Vec::new(),
        };
        if json {
            return document.print();
        }
        println!("{}; median of {ROUNDS}", document.about);
        for Series { what, unit, samples, .. } in &document.series {
            println!("{what:<16} {:>7.2} {unit}", Spread::of(samples.iter().copied()).median);
        }
        Ok(())
    })
}
