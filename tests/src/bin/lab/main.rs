//! A balancer, three backends and a few hundred clients on one machine, to look at and to play with.

mod guide;
mod hints;
mod hosts;
mod interrupt;
mod ip_hash;
mod keys;
mod load;
mod screen;
mod tour;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use balancer_common::map_types::Forwarding;
use clap::{Parser, ValueEnum};

use crate::{guide::Guide, hosts::Hosts, interrupt::Interrupt, load::Load, screen::Screen};

/// How long the balancer may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Shows the balancer at work between network namespaces of its own; needs root. Ctrl-C ends it and leaves nothing.
#[derive(Parser)]
struct Options {
    /// How packets reach the backends.
    #[arg(long, value_enum, default_value_t = Mode::Nat)]
    forwarding: Mode,
    /// Ends by itself after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// How many client addresses send requests.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=i64::from(load::MAX_CLIENTS)))]
    clients: u16,
    /// How long the balancer remembers a client; "0s": not at all, the table alone decides.
    #[arg(long, default_value = "3h")]
    remember: String,
    /// Only the table: nothing happens by itself.
    #[arg(long)]
    no_tour: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Dsr,
    Nat,
}

impl From<Mode> for Forwarding {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Dsr => Self::Dsr,
            Mode::Nat => Self::Nat,
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    // Before any thread or child is there, so that none of them is ended by a signal meant for this one.
    let interrupt = Interrupt::new()?;
    let started = Instant::now();
    let mut hosts = Hosts::start(options.forwarding.into(), &options.remember)?;
    let Some(status) = hosts.running.wait_ready(START_LIMIT, &interrupt)? else { return Ok(()) };
    hints::print(&mut hosts, &status)?;

    let load = Load::new(&hosts.topology, options.clients);
    let client = hosts.topology.client().entrance();
    let mut screen = Screen::new();
    let mut guide = if options.no_tour { Guide::absent(&load) } else { Guide::begin()? };
    load.run(&client, || {
        loop {
            if interrupt.wait(screen.interval())? {
                return Ok(());
            }
            guide.advance(&mut hosts, &load)?;
            let seen = load.seen();
            let beside = guide.text(&seen);
            screen.show(&hosts.running.status()?, &seen, &beside)?;
            if options.seconds.is_some_and(|limit| started.elapsed() >= Duration::from_secs(limit)) {
                return Ok(());
            }
        }
    })
}
