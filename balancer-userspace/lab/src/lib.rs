//! The session lab: real servers with sessions behind the balancer, clients that check a counter in their session, and
//! events that may affect sessions. The lab needs root, and the programs of the servers and stores in the requested
//! rows.
//!
//! Begin with `row` (which servers behind which program), `event` and `play`.
#![expect(clippy::wildcard_enum_match_arm, reason = "what a strategy, a front or an event does not need is not listed")]

pub mod cell;
mod client;
pub mod event;
mod front;
mod hosts;
mod interrupt;
mod load;
mod page;
mod part;
mod play;
pub mod proxy;
mod results;
pub mod row;
mod servers;
mod software;
mod stores;
pub mod strategy;
mod table;
mod tally;

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{
    event::Event,
    hosts::Outside,
    play::Scene,
    results::Results,
    row::{Front, Row},
    strategy::Strategy,
};

/// Shows which events sessions survive under each strategy: real servers and stores behind the balancer, and all events
/// that can affect them.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Play only these strategies
    #[arg(long, value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// Play only rows with these programs in front of the servers
    #[arg(long, value_delimiter = ',')]
    front: Vec<Front>,
    /// Play only these events
    #[arg(long, value_delimiter = ',')]
    event: Vec<Event>,
    /// Directory of the results; the lab does not play events with existing results again
    #[arg(long, value_name = "DIRECTORY", default_value = "balancer-sessions")]
    output: PathBuf,
    /// Play all events again
    #[arg(long)]
    fresh: bool,
    /// Print the results as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Only list the events to play
    #[arg(long)]
    list: bool,
    /// Leave configurations and logs in place
    #[arg(long)]
    keep: bool,
    /// Clients with addresses of their own; 100 more clients share one address
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=900))]
    clients: u16,
    /// Milliseconds between two requests of a client
    #[arg(long, value_name = "N", default_value_t = 900, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pause: u64,
    /// Directory in which npm has installed the packages of the Node servers
    #[arg(long, value_name = "DIRECTORY")]
    node_modules: Option<PathBuf>,
    /// The balancer in front of the servers, instead of the program `balancer` beside this one
    #[arg(long, value_name = "PROGRAM")]
    balancer: Option<PathBuf>,
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

    fn balancer(&self) -> Result<PathBuf> {
        let balancer = match &self.balancer {
            Some(balancer) => balancer.clone(),
            None => env::current_exe().context("this program's path is unknown")?.with_file_name("balancer"),
        };
        ensure!(balancer.is_file(), "{} does not exist: --balancer names the program", balancer.display());
        Ok(balancer)
    }
}

/// Runs the lab with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A log may quote the error, so it stands in one line.
            let said = format!("{error:#}");
            eprintln!("balancer-lab: {}", said.lines().map(str::trim).collect::<Vec<_>>().join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Causes the requested events, and prints the results. If a program is missing, the error says how to install it.
fn run(options: &Options) -> Result<()> {
    let rows = options.rows();
    let events: Vec<(Row, Event)> = rows
        .iter()
        .flat_map(|&row| row.events().filter(|&event| options.wants(event)).map(move |event| (row, event)))
        .collect();
    if options.list {
        for (row, event) in events {
            writeln!(io::stdout(), "{} {}", row.id(), event.id())?;
        }
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "the lab needs root, for network namespaces and XDP: run it with sudo");
    // The lab handles the signals before it starts threads or child processes, so that the signals end none of them.
    interrupt::take_over()?;
    let results = Results::open(&options.output, options.fresh)?;
    let open: Vec<(Row, Event)> =
        events.iter().copied().filter(|&(row, event)| results.find(row, event).is_none()).collect();
    let outside =
        Outside { balancer: options.balancer()?, node_modules: options.node_modules.clone(), keep: options.keep };
    let of = |row| -> Vec<Event> { open.iter().filter(|&&(other, _)| other == row).map(|&(_, event)| event).collect() };
    for &row in &rows {
        let events = of(row);
        if !events.is_empty() {
            software::ensure_parts(row, &events, options.node_modules.as_deref())?;
        }
    }
    let (begin, mut done) = (Instant::now(), 0);
    for &row in &rows {
        let events = of(row);
        if events.is_empty() {
            continue;
        }
        play(options, row, &events, &results, &outside, &mut |line| {
            done += 1;
            eprintln!("[{done}/{} {:>4} s] {line}", open.len(), begin.elapsed().as_secs());
        })?;
    }
    conclude(options, &rows, &results)
}

fn play(
    options: &Options,
    row: Row,
    events: &[Event],
    results: &Results,
    outside: &Outside,
    say: &mut dyn FnMut(String),
) -> Result<()> {
    let pause = Duration::from_millis(options.pause);
    let mut scene = Scene::start(row, options.clients, pause, outside.clone()).with_context(|| row.title())?;
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
        writeln!(io::stdout(), "{json}")?;
    } else {
        writeln!(io::stdout(), "{}", table::text(&cells))?;
    }
    let all = results.cells(&Row::all());
    let raw = results.write("results.json", &serde_json::to_string_pretty(&all)?)?;
    let page = results.write("index.html", &page::html(&all))?;
    eprintln!("{} results in {}, as a page in {}", all.len(), raw.display(), page.display());
    Ok(())
}
