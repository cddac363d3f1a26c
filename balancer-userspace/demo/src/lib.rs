//! Demonstrates the balancer on one machine: clients, a balancer and web servers in their own network namespaces. A
//! tour shows which clients move when servers are added, drained or killed. The demo needs root and the program `ip`.
//!
//! The privileged tests use the same hosts and programs as the demo.
//!
//! Begin with `topology` (namespaces and links), `tour` (the steps and what they print) and `lab` (`--fleet`, `--standby`).

pub mod answer;
pub mod backend;
mod config;
pub mod controller;
pub mod etcd;
mod files;
mod guide;
mod hints;
mod hosts;
pub mod http_client;
mod interrupt;
mod ip_hash;
mod keys;
pub mod lab;
mod load;
pub mod metrics;
pub mod namespace;
pub mod needs;
pub mod offload;
pub mod process;
pub mod routing;
mod screen;
pub mod server;
pub mod topology;
mod tour;
pub mod xdp;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use balancer_api::model::StatusView;
use balancer_common::map_types::Forwarding;

use crate::{guide::Guide, hosts::Hosts, interrupt::Interrupt, load::Load, screen::Screen, tour::Tour};
pub use load::MAX_CLIENTS;

/// The maximum time for the balancer to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(15);

/// The time until the first table, which gives clients time for first results.
const FIRST_TABLE: Duration = Duration::from_millis(300);

/// The time between two checks of the state in a tour that runs as fast as possible.
const GLANCE: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub struct Options {
    /// The forwarding mode, which determines how packets reach the servers: `dsr` or `nat`.
    pub forwarding: Forwarding,
    /// The number of client addresses that send requests, 1 to [`MAX_CLIENTS`].
    pub clients: u16,
    /// The service's setting `remember`.
    pub remember: Duration,
    /// The events of the demo, and when the demo ends.
    pub course: Course,
    /// The path of this program, `balancer`.
    pub program: PathBuf,
    /// The path of the balancer program that the demo runs.
    pub balancer: PathBuf,
}

/// The events of a demo, and when the demo ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// The demo runs the tour once, as fast as possible, and prints a line for each step.
    Once,
    /// The demo shows the live table until the time limit or a signal.
    Live {
        /// Whether to show the one-minute tour beside the table.
        tour: bool,
        /// The time after which the demo ends.
        limit: Option<Duration>,
    },
}

/// Runs the demo. After Ctrl-C, `SIGTERM` or `SIGHUP`, the demo ends and cleans up.
///
/// # Errors
/// Fails if the process is not root, if `ip` is missing, if a component does not start, if a step of the tour has no
/// effect, or if standard output is closed.
pub fn run(options: &Options) -> Result<()> {
    needs::of_the_demo()?;
    // The demo blocks the signals before it starts threads or child processes, so that the signals end none of them.
    let interrupt = Interrupt::new()?;
    let started = Instant::now();
    let mut hosts = Hosts::start(options)?;
    let Some(status) = hosts.running.wait_ready(START_LIMIT, &interrupt)? else { return Ok(()) };
    let load = Load::new(&hosts.topology, options.clients);
    let client = hosts.topology.client().entrance();
    match options.course {
        Course::Once => load.run(&client, || once(&mut hosts, &load, &interrupt)),
        Course::Live { tour, limit } => {
            let over = || limit.is_some_and(|limit| started.elapsed() >= limit);
            load.run(&client, || live(&mut hosts, &load, &interrupt, &status, tour, over))
        }
    }
}

fn once(hosts: &mut Hosts, load: &Load, interrupt: &Interrupt) -> Result<()> {
    let mut tour = Tour::at_once();
    while !tour.is_over() {
        let status = hosts.running.status()?;
        for line in tour.advance(&status, hosts, load)? {
            screen::line(&line)?;
        }
        if interrupt.wait(GLANCE)? {
            return Ok(());
        }
    }
    screen::line(tour::FOOTNOTE)
}

fn live(
    hosts: &mut Hosts,
    load: &Load,
    interrupt: &Interrupt,
    status: &StatusView,
    tour: bool,
    over: impl Fn() -> bool,
) -> Result<()> {
    hints::print(hosts, status)?;
    let mut guide = if tour { Guide::begin()? } else { Guide::absent(load) };
    let mut screen = Screen::new();
    let mut pause = FIRST_TABLE;
    while !interrupt.wait(pause)? && !over() {
        pause = screen.interval();
        let status = hosts.running.status()?;
        guide.advance(&status, hosts, load)?;
        let seen = load.seen();
        screen.show(&(screen::render(&status, &seen) + &guide.text(&seen)))?;
    }
    Ok(())
}
