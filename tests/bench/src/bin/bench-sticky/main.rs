//! Counts the clients that a change of the servers moves. The same thousands of clients connect through nginx, HAProxy
//! and the balancer, before and after the benchmark deletes, drains or otherwise changes a server. The programs and
//! connections are real, and each answer contains the name of the answering server.

mod balanced;
mod classic;
mod clients;
mod contender;
mod report;
mod step;

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::classics::chosen;
use balancer_testkit::outcome::outcome;
use clap::Parser;

use self::{
    classic::Hosts,
    contender::{ALL, Contender},
    report::Seen,
    step::COURSES,
};

/// Counts the clients that a change of the servers moves, for proxies and for the balancer; needs root.
#[derive(Parser)]
struct Options {
    /// Measure only contenders whose names contain this text, such as HAProxy.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> ExitCode {
    outcome(compare(&Options::parse()))
}

fn compare(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes network namespaces");
    let chosen = chosen(ALL, &options.only, |contender| contender.title())?;
    let hosts = Hosts::new()?;
    let mut all = Vec::new();
    for contender in chosen {
        let title = contender.title();
        if let Err(error) = contender.ensure_installed() {
            eprintln!("{title} is left out: {error:#}");
            continue;
        }
        all.push(watch(contender, &hosts).with_context(|| title)?);
    }
    println!("{}", report::table(&all));
    Ok(())
}

fn watch(contender: Contender, hosts: &Hosts) -> Result<Seen> {
    let (mut moved, mut of_one_network) = (Vec::new(), 0);
    for course in COURSES {
        let mut front = contender.start(hosts)?;
        let start = clients::all(front.topology())?;
        of_one_network = clients::of_one_network(front.topology())?.into_iter().collect::<BTreeSet<_>>().len();
        let mut before = start.clone();
        for &step in course {
            front.perform(step).with_context(|| step.title())?;
            let after = clients::all(front.topology())?;
            moved.push(step.moved(&start, &before, &after)?);
            before = after;
        }
    }
    Ok(Seen { title: contender.title(), version: contender.version()?, moved, of_one_network })
}
