//! The balancer at work on one machine: clients, a balancer and web servers in network namespaces of their own, and a
//! tour of who moves when servers are added, drained and killed. Needs root, and the program `ip`.
//!
//! The hosts and what runs on them are what the privileged tests are made of, too.

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

/// How long the balancer may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Until the first table has something to show.
const FIRST_TABLE: Duration = Duration::from_millis(300);

/// Between two looks at a tour that takes no longer than it has to.
const GLANCE: Duration = Duration::from_millis(50);

/// The options of a demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// How packets reach the servers: `dsr` or `nat`.
    pub forwarding: Forwarding,
    /// Client addresses that send requests, 1 to [`MAX_CLIENTS`].
    pub clients: u16,
    /// `remember` of the service.
    pub remember: Duration,
    /// The course of the demo: events, and its end.
    pub course: Course,
    /// This program, `balancer`.
    pub program: PathBuf,
    /// The balancer that is shown.
    pub balancer: PathBuf,
}

/// The events of a demo, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// The tour, once, as fast as its steps take, with a line for each.
    Once,
    /// The table, live, until this time is over or a signal comes.
    Live {
        /// With the tour beside it, in a minute.
        tour: bool,
        /// From the start.
        limit: Option<Duration>,
    },
}

/// Shows the balancer at work. Ctrl-C, `SIGTERM` and `SIGHUP` end it; nothing is left afterwards.
///
/// # Errors
/// Without root or `ip`; when something does not start or a step of the tour has no effect; when standard output is
/// gone.
pub fn run(options: &Options) -> Result<()> {
    needs::of_the_demo()?;
    // Before any thread or child is there, so that none of them is ended by a signal meant for this one.
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
