//! The session lab: real servers with sessions behind the balancer, clients that count theirs up, and everything that can
//! happen to them.
#![expect(clippy::wildcard_enum_match_arm, reason = "what a strategy, a front or an event does not need is not listed")]

mod front;
mod hosts;
mod interrupt;
mod load;
mod part;
mod play;
mod servers;
mod software;
mod stores;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use balancer_tests::sessions::{
    event::Event,
    page,
    results::Results,
    row::{Front, Row},
    strategy::Strategy,
    table,
};
use clap::Parser;

use crate::play::Scene;

/// Shows which way of keeping sessions survives what; needs root.
#[derive(Debug, Parser)]
struct Options {
    /// Only these strategies.
    #[arg(long, value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// Only with these in front of the servers.
    #[arg(long, value_delimiter = ',')]
    front: Vec<Front>,
    /// Only these events.
    #[arg(long, value_delimiter = ',')]
    event: Vec<Event>,
    /// Where results are kept; what is there is not played again.
    #[arg(long, default_value = "target/lab/sessions")]
    output: PathBuf,
    /// Everything is played again.
    #[arg(long)]
    fresh: bool,
    /// The results as JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Only what there is to play.
    #[arg(long)]
    list: bool,
    /// Leaves the logs of what went wrong.
    #[arg(long)]
    keep: bool,
    /// Clients with addresses of their own; 100 more share one.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=900))]
    clients: u16,
    /// Milliseconds between two requests of a client.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pause: u64,
}

impl Options {
    fn rows(&self) -> Vec<Row> {
        let wanted = |row: &Row| {
            (self.strategy.is_empty() || self.strategy.contains(&row.strategy))
                && (self.front.is_empty() || self.front.contains(&row.front))
        };
        Row::all().into_iter().filter(wanted).collect()
    }

    fn wants(&self, event: Event) -> bool {
        self.event.is_empty() || self.event.contains(&event)
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In one line, also where a log is quoted.
            let said = format!("{error:#}");
            eprintln!("error: {}", said.lines().map(str::trim).collect::<Vec<_>>().join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let rows = options.rows();
    let events: Vec<(Row, Event)> = rows
        .iter()
        .flat_map(|&row| row.events().filter(|&event| options.wants(event)).map(move |event| (row, event)))
        .collect();
    if options.list {
        for (row, event) in events {
            println!("{} {}", row.id(), event.id());
        }
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "the lab needs root, for network namespaces and XDP: run it with sudo");
    // Before any thread or child is there, so that none of them is ended by a signal meant for this one.
    interrupt::take_over()?;
    let results = Results::open(&options.output, options.fresh)?;
    let open: Vec<(Row, Event)> =
        events.iter().copied().filter(|&(row, event)| results.find(row, event).is_none()).collect();
    for &row in &rows {
        if open.iter().any(|&(other, _)| other == row) {
            software::ensure(row)?;
        }
    }
    let (begin, mut done) = (Instant::now(), 0);
    for &row in &rows {
        let of_row: Vec<Event> = open.iter().filter(|&&(other, _)| other == row).map(|&(_, event)| event).collect();
        if of_row.is_empty() {
            continue;
        }
        play(options, row, &of_row, &results, &mut |line| {
            done += 1;
            eprintln!("[{done}/{} {:>4} s] {line}", open.len(), begin.elapsed().as_secs());
        })?;
    }
    conclude(options, &rows, &results)
}

fn play(options: &Options, row: Row, events: &[Event], results: &Results, say: &mut dyn FnMut(String)) -> Result<()> {
    let pause = Duration::from_millis(options.pause);
    let mut scene = Scene::start(row, options.clients, pause, options.keep).with_context(|| row.title())?;
    for &event in events {
        interrupt::check()?;
        let cell = scene.play(event).with_context(|| format!("{}, {}", row.title(), event.title()))?;
        results.keep(&cell)?;
        say(format!("{} · {}: {}", row.title(), event.title(), table::line(&cell)));
    }
    Ok(())
}

fn conclude(options: &Options, rows: &[Row], results: &Results) -> Result<()> {
    let mut cells = results.cells(rows);
    cells.retain(|cell| options.wants(cell.event));
    let json = serde_json::to_string_pretty(&cells)?;
    if options.json {
        println!("{json}");
    } else {
        println!("{}", table::text(&cells));
    }
    let all = results.cells(&Row::all());
    let raw = results.write("results.json", &serde_json::to_string_pretty(&all)?)?;
    let page = results.write("index.html", &page::html(&all))?;
    eprintln!("{} results in {}, as a page in {}", all.len(), raw.display(), page.display());
    Ok(())
}
