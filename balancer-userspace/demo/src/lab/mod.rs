//! The lab: several balancers of one fleet on one machine, behind a router or as an active and a standby balancer. The
//! lab also runs etcd, web servers and clients, prints commands that cause failures, and shows a table of the clients'
//! observations.

mod commands;
mod member;
mod patience;
mod script;
mod site;
mod view;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::{
    patience::{Interrupted, Patience},
    site::Lab,
    view::View,
};
use crate::{
    interrupt::Interrupt,
    load::Load,
    needs,
    screen::{self, Screen},
};

/// The time between two lines of JSON.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// The time that clients wait for an answer. A router notices in less time that a balancer's machine has failed, so a
/// client's second or third SYN reaches another balancer.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(5);

/// The maximum number of balancers in the lab.
pub const MAX_MEMBERS: u16 = 8;

#[derive(Clone, Debug)]
pub struct Options {
    /// The method that spreads clients over the balancers, and the number of balancers.
    pub kind: Kind,
    /// The number of client addresses that send requests, 1 to [`crate::MAX_CLIENTS`].
    pub clients: u16,
    /// The service's setting `remember`.
    pub remember: Duration,
    /// The time after which the lab ends; `None` if the lab runs until a signal arrives.
    pub limit: Option<Duration>,
    /// Whether to print a line of JSON each second instead of the table.
    pub json: bool,
    /// The path of this program, `balancer`.
    pub program: PathBuf,
    /// The path of the balancer program that the lab runs.
    pub balancer: PathBuf,
}

/// The method that spreads clients over the balancers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A router spreads clients by ECMP over this number of balancers, 2 to [`MAX_MEMBERS`].
    Spread(u16),
    /// One of two balancers has the VIP, and the other is on standby.
    Standby,
}

impl Kind {
    const fn balancers(self) -> u16 {
        match self {
            Self::Spread(balancers) => balancers,
            Self::Standby => 2,
        }
    }

    const fn programs(self) -> [&'static str; 2] {
        match self {
            Self::Spread(_) => ["etcd", "bird"],
            Self::Standby => ["etcd", "keepalived"],
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Spread(_) => "balancers behind a router",
            Self::Standby => "balancers of which one stands by",
        }
    }
}

/// Runs the lab with its fleet. After Ctrl-C, `SIGTERM` or `SIGHUP`, the lab ends and cleans up.
///
/// # Errors
/// Fails if the process is not root, if a program is missing, if a component does not start, or if standard output is
/// closed.
pub fn run(options: &Options) -> Result<()> {
    needs::of_the_demo()?;
    needs::programs(&options.kind.programs())?;
    // The lab blocks the signals before it starts threads or child processes, so that the signals end none of them.
    let interrupt = Interrupt::new()?;
    if !options.json {
        let kind = options.kind;
        screen::line(&format!("Starting {} {}, three etcds, four web servers", kind.balancers(), kind.words()))?;
    }
    let mut lab = match Lab::start(options, &Patience::new(&interrupt)) {
        Err(error) if error.is::<Interrupted>() => return Ok(()),
        started => started?,
    };
    if options.json {
        screen::line(&commands::json(&lab)?)?
    } else {
        screen::line(&commands::text(&lab))?
    }
    let load = Load::new(&lab.topology, options.clients).with_timeout(CLIENTS_PATIENCE);
    load.admit_newcomers();
    let client = lab.topology.client().entrance();
    load.run(&client, || show(&mut lab, options, &load, &interrupt))
}

fn show(lab: &mut Lab, options: &Options, load: &Load, interrupt: &Interrupt) -> Result<()> {
    let started = Instant::now();
    let mut screen = Screen::new();
    let interval = if options.json { JSON_INTERVAL } else { screen.interval() };
    let over = || options.limit.is_some_and(|limit| started.elapsed() >= limit);
    while !interrupt.wait(interval)? && !over() {
        let view = View::of(lab, load.seen());
        if options.json { screen::line(&serde_json::to_string(&view.json())?)? } else { screen.show(&view.text())? }
    }
    Ok(())
}
