//! Simulates a day of clients without packets; most users are behind a few gateways. The benchmark measures by how much
//! the fullest server exceeds its share, and how many clients move. It compares bounded load, no bounded load, and the
//! rules of `HAProxy`.

mod clients;
mod ours;
mod real;
mod theirs;

use std::process::ExitCode;

use anyhow::Result;
use balancer_bench::report::{
    document::{Document, Series},
    number::shown,
};
use balancer_testkit::outcome::outcome;
use clap::Parser;

use self::{clients::Population, ours::Balancer, theirs::Haproxy};

/// The number of servers that share the clients evenly.
const SERVERS: usize = 10;
const DAY: usize = 24 * 60;

/// Simulates a day of uneven clients.
#[derive(Parser)]
struct Options {
    /// The seed of all random values.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The load above which a server is overloaded, as a multiple of its share.
    #[arg(long, default_value_t = 1.25)]
    factor: f64,
    /// Compare the model of HAProxy with the real HAProxy instead.
    #[arg(long)]
    haproxy: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// The results of one rule for choosing servers.
#[derive(Default)]
struct Day {
    /// The load of the fullest server in each minute, relative to an equal share.
    largest: Vec<f64>,
    /// The load of a server with only the largest gateway, relative to an equal share. No rule can reach a lower
    /// maximum without splitting the users of the largest gateway.
    alone: Vec<f64>,
    /// The number of addresses that moved from their assigned server to another server.
    moved: usize,
    /// The largest number of table changes in an hour.
    changes: usize,
}

/// A rule by which clients are assigned to servers.
trait Rule {
    /// Simulates one minute of the day. Returns the number of users of each server.
    fn minute(&mut self, minute: usize, population: &Population) -> [f64; SERVERS];
    /// Resets the counters of moves and table changes, and starts to count again.
    fn count(&mut self);
    /// Returns the number of addresses that moved since [`Self::count`], and the largest number of table changes in an
    /// hour.
    fn counted(&self) -> (usize, usize);
}

fn main() -> ExitCode {
    outcome(simulate(&Options::parse()))
}

fn simulate(options: &Options) -> Result<()> {
    if options.haproxy {
        return compare(options.seed);
    }
    let rules: [(&str, bool, Box<dyn Rule>); 4] = [
        ("HAProxy, hash-type consistent", false, Box::new(Haproxy::new(None))),
        ("HAProxy, hash-balance-factor 125", false, Box::new(Haproxy::new(Some(125)))),
        ("balancer", true, Box::new(Balancer::new(None))),
        ("balancer, bounded_load", true, Box::new(Balancer::new(Some(options.factor)))),
    ];
    let days = rules.map(|(name, ours, rule)| (name, ours, play(options.seed, rule)));
    if options.json {
        document(&days).print()?
    } else {
        print!("{}", table(&days))
    }
    Ok(())
}

fn compare(seed: u64) -> Result<()> {
    for (name, factor) in [("hash-type consistent", None), ("hash-balance-factor 125", Some(125))] {
        let real::Agreement { connections, agreed, elsewhere } = real::compare(factor, seed)?;
        println!(
            "HAProxy, {name}: {agreed} of {connections} connections as the model says, {elsewhere} of them elsewhere"
        );
    }
    Ok(())
}

/// Simulates two consecutive days. The first day starts without clients, so the function ignores the results of that
/// day.
fn play(seed: u64, mut rule: Box<dyn Rule>) -> Day {
    let mut population = Population::new(seed);
    let (mut largest, mut alone) = (Vec::new(), Vec::new());
    for minute in 0..2 * DAY {
        if minute == DAY {
            rule.count();
        }
        population.minute(minute);
        let loads = rule.minute(minute, &population);
        if minute >= DAY {
            let expected = loads.iter().sum::<f64>() / SERVERS as f64;
            largest.push(loads.iter().copied().fold(0.0, f64::max) / expected);
            alone.push(population.largest() / expected);
        }
    }
    let (moved, changes) = rule.counted();
    Day { largest, alone, moved, changes }
}

fn table(days: &[(&str, bool, Day)]) -> String {
    let mut text =
        "| rule | largest over expected load: median | highest | addresses moved | most changes in an hour |\n\
                    |---|---|---|---|---|\n"
            .to_owned();
    for (name, _, day) in days {
        let (median, highest) = spread(&day.largest);
        text += &format!("| {name} | {median:.2} | {highest:.2} | {} | {} |\n", shown(day.moved as f64), day.changes);
    }
    let (median, highest) = days.last().map(|(.., day)| spread(&day.alone)).unwrap_or_default();
    text + &format!("| the largest gateway alone | {median:.2} | {highest:.2} | | |\n")
}

/// Returns the median and the maximum of a day's figures.
fn spread(figures: &[f64]) -> (f64, f64) {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let of = |figure: Option<&f64>| figure.copied().unwrap_or_default();
    (of(sorted.get(DAY / 2)), of(sorted.last()))
}

fn document(days: &[(&str, bool, Day)]) -> Document {
    let mut series = Vec::new();
    let of = |name: &str, ours: bool, what: &str, unit: &str, samples| {
        let new = if ours { Series::ours } else { Series::others };
        new(name, what, unit, samples).under(what)
    };
    for (name, ours, day) in days {
        series.push(of(name, *ours, "largest over expected load", "×", day.largest.clone()));
    }
    if let Some((.., day)) = days.last() {
        series.push(of("the largest gateway alone", false, "largest over expected load", "×", day.alone.clone()));
    }
    for (name, ours, day) in days {
        series.push(of(name, *ours, "addresses moved in a day", "addresses", vec![day.moved as f64]));
    }
    for (name, ours, day) in days.iter().filter(|(_, ours, _)| *ours) {
        series.push(of(name, *ours, "most changes of the table in an hour", "changes", vec![day.changes as f64]));
    }
    Document {
        benchmark: "even".to_owned(),
        title: "A simulated day of uneven clients".to_owned(),
        about: clients::ABOUT.to_owned(),
        series,
        left_out: Vec::new(),
    }
}
