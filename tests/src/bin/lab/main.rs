//! A balancer, three backends and a few hundred clients on one machine, to look at and to play with.

mod hints;
mod hosts;
mod interrupt;
mod load;
mod screen;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use balancer_common::map_types::Forwarding;
use clap::{Parser, ValueEnum};

use crate::{hosts::Hosts, interrupt::Interrupt, load::Load, screen::Screen};

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
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    clients: u16,
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
    let mut hosts = Hosts::start(options.forwarding.into())?;
    let Some(status) = hosts.running.wait_ready(START_LIMIT, &interrupt)? else { return Ok(()) };
    hints::print(&mut hosts, &status)?;

    let Hosts { running, topology, .. } = &mut hosts;
    let load = Load::new(topology, options.clients);
    let mut screen = Screen::new();
    load.run(topology.client(), || {
        loop {
            if interrupt.wait(screen.interval())? {
                return Ok(());
            }
            screen.show(&running.status()?, &load.seen())?;
            if options.seconds.is_some_and(|limit| started.elapsed() >= Duration::from_secs(limit)) {
                return Ok(());
            }
        }
    })
}
