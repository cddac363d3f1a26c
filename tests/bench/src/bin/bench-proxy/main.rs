//! Compares the cost of a connection through the balancer, through proxies, through the kernel's own address
//! translation, and through a plain router. Real HTTP requests from many addresses pass through network namespaces of
//! one machine; all processes share the processors of the machine.

mod contender;
mod load;
mod nft;
mod processor;
mod report;
mod server;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::{classics::chosen, figures::percentile};
use balancer_testkit::outcome::outcome;
use clap::Parser;

use self::{
    contender::{Contender, Kind, OTHERS},
    load::Pace,
    report::{Figures, Measured},
};

/// The longest duration of a load of requests.
const LIMIT: Duration = Duration::from_secs(10);
/// The duration of the steady load, in seconds.
const PACED: u32 = 2;

/// Measures the cost of a connection through the balancer, through proxies, and without any; needs root.
#[derive(Parser)]
struct Options {
    /// Number of rounds; each round measures all contenders in turn.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Number of connections at full speed in each round.
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(100..))]
    connections: u32,
    /// Connections per second for p50 and p99, which are measured for 2 s in each round.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Besides the direct connection, measure only contenders whose names contain this text, such as balancer.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> ExitCode {
    outcome(compare(&Options::parse()))
}

fn compare(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes network namespaces");
    let chosen = chosen(OTHERS, &options.only, |kind| kind.title())?;
    let mut contenders = vec![Contender::start(Kind::Direct)?];
    for kind in chosen {
        match start(kind) {
            Ok(contender) => contenders.push(contender),
            Err(error) if kind.may_be_missing() => eprintln!("{} is left out: {error:#}", kind.title()),
            Err(error) => return Err(error.context(kind.title())),
        }
    }
    let mut all: Vec<Measured> =
        contenders.iter().map(|contender| Measured { kind: contender.kind, rounds: Vec::new() }).collect();
    // The first round only resolves neighbours and fills caches, so the benchmark ignores the first results.
    for round in 0..=options.rounds {
        for (contender, measured) in contenders.iter_mut().zip(&mut all) {
            let figures = measure(contender, options).with_context(|| measured.kind.title())?;
            if round > 0 {
                measured.rounds.push(figures);
            }
        }
    }
    report::print(&all, options.rate);
    Ok(())
}

fn start(kind: Kind) -> Result<Contender> {
    kind.ensure_installed()?;
    Contender::start(kind)
}

fn measure(contender: &mut Contender, options: &Options) -> Result<Figures> {
    let [fast, steady] = [options.connections, options.rate * PACED].map(|count| contender.requests(count));
    let middle = contender.process()?;
    let clients = contender.topology.client();
    let before = processor::used(middle)?;
    let full = load::send(clients, &fast, Pace::Full, LIMIT)?;
    let used = processor::used(middle)?.saturating_sub(before);
    let paced = load::send(clients, &steady, Pace::Every(Duration::from_secs(1) / options.rate), LIMIT)?;
    let answered = full.latencies.len() as f64;
    Ok(Figures {
        rate: answered / full.took.as_secs_f64(),
        processor: used.as_secs_f64() * 1e6 / answered,
        p50: percentile(&paced.latencies, 0.5),
        p99: percentile(&paced.latencies, 0.99),
        failed: full.failed + paced.failed,
    })
}
