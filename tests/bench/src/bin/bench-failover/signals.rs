//! Measures the time from the death of backends to the last client packet that these backends receive. Because no check
//! is due, only clients' handshakes show the failure.

use std::{
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::failover::load::Load;
use balancer_testkit::frame::{ACK, SYN};

use super::{
    CHECK, CLIENTS, LEAD, Options, PATIENCE, PAUSES, SILENCE, Site,
    figures::{Figures, spread},
    load,
};

const NO_CHECK: &str = "interval = \"1h\", fast_interval = \"1h\"";
/// How long the benchmark observes the checks of the surviving backends before the deaths, and how long after the
/// deaths.
const WATCHED: Duration = Duration::from_secs(5);

/// The event by which a backend dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Only the server process dies; the server's machine refuses connections.
    OfTheServer,
    /// The whole machine of the server dies, so nothing answers.
    OfTheMachine,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    println!("from death to the last packet there and the next elsewhere, by signals alone, in ms: min / median / max");
    for backends in [8, 1000].into_iter().filter(|backends| options.backends.is_none_or(|only| only == *backends)) {
        for (death, name) in [(Death::OfTheServer, "servers"), (Death::OfTheMachine, "machines")] {
            // Signals alone do not make a silent machine down: the time-outs of their checks count once in an interval.
            for checked in [false, true].into_iter().filter(|checked| *checked || death == Death::OfTheServer) {
                let at_once = 10.min(backends / 4);
                let checks = if checked { ", checks" } else { "" };
                let what = format!("{backends} backends, {at_once} {name} die{checks}{}", options.mode());
                let (mut figures, mut pauses) = (Figures::default(), checked.then(Pauses::default));
                let rounds = (options.rounds / 4).min(backends / at_once / 2).max(1);
                for _ in 0..rounds {
                    round((backends, &options.forwarding), at_once, death, (&mut figures, pauses.as_mut()))
                        .with_context(|| what.clone())?;
                }
                figures.print(&what, rounds, at_once);
                pauses.iter().for_each(Pauses::print);
            }
        }
    }
    Ok(())
}

/// The longest time without a check of each surviving backend, in ms; normally, the balancer checks each backend every
/// second.
#[derive(Default)]
struct Pauses {
    before: Vec<f64>,
    after: Vec<f64>,
}

impl Pauses {
    fn print(&self) {
        let [before, after] = [&self.before, &self.after].map(|pauses| spread(pauses));
        println!("    longest time without a check of each other backend: {before} before, {after} after");
    }
}

/// Runs one round with new hosts and a new balancer, because dead backends do not return.
fn round(
    (backends, forwarding): (u16, &str),
    at_once: u16,
    death: Death,
    (figures, mut pauses): (&mut Figures, Option<&mut Pauses>),
) -> Result<()> {
    let mut site = Site::new(backends, forwarding, "3h", if pauses.is_some() { CHECK } else { NO_CHECK })?;
    let watched = if pauses.is_some() { WATCHED } else { 10 * LEAD };
    for flags in [SYN, ACK] {
        load::once(&site.hosts.clients, 1..=CLIENTS, flags)?;
    }
    // After this pause, the balancer no longer considers handshakes that began before the backends' first answers.
    thread::sleep(10 * LEAD);
    let dying = site.choose(at_once)?;
    let groups: Vec<Vec<u16>> = {
        let mut seen = site.wire.seen()?;
        seen.watch(&dying);
        let of = |backend| seen.home.iter().filter(move |(_, home)| **home == backend).map(|(&client, _)| client);
        dying.iter().map(|&backend| of(backend).collect()).collect()
    };
    let tables = site.tables()?;
    let load = Load::start(site.hosts.clients.entrance(), &groups, &[SYN, ACK], PAUSES[1], PATIENCE);
    site.wire.seen()?.forget_pauses();
    thread::sleep(watched);
    if let Some(pauses) = &mut pauses {
        let mut seen = site.wire.seen()?;
        pauses.before.extend(seen.pauses().iter().map(millis));
        seen.forget_pauses();
    }
    // The kernel stamps packets with wall-clock time, so the benchmark also reads the wall clock.
    let died = UNIX_EPOCH.elapsed()?;
    for &number in &dying {
        match death {
            Death::OfTheServer => site.servers.close(number),
            Death::OfTheMachine => site.hosts.silence(number)?,
        }
    }
    load.leave_unanswered();
    await_silence(&mut site, &dying)?;
    if let Some(pauses) = &mut pauses {
        thread::sleep((died + WATCHED).saturating_sub(UNIX_EPOCH.elapsed()?));
        pauses.after.extend(site.wire.seen()?.pauses().iter().map(millis));
    }
    load.stop()?;
    figures.tables += site.tables()? - tables;
    figures.builds.push(site.metrics()?.sum("table_build_seconds", &[])? * 1e3);
    for (number, watched) in &site.wire.seen()?.watched {
        let since = |at: Option<Duration>| -> Result<f64> {
            let at = at.with_context(|| format!("backend {number}: {watched:?}"))?;
            Ok((at.as_secs_f64() - died.as_secs_f64()) * 1e3)
        };
        figures.last.push(since(watched.last)?);
        figures.elsewhere.push(since(watched.elsewhere)?);
    }
    Ok(())
}

fn millis(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Waits until none of the dying backends has received a packet for a while.
fn await_silence(site: &mut Site, dying: &[u16]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        thread::sleep(Duration::from_millis(20));
        site.controller.ensure_running()?;
        let seen = site.wire.seen()?;
        let is_over = |number| {
            let watched = seen.watched.get(number);
            watched.is_some_and(|watched| {
                watched.elsewhere.is_some() && watched.last.is_some_and(|last| seen.now.saturating_sub(last) > SILENCE)
            })
        };
        if dying.iter().all(is_over) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "clients still go to a dead backend: {:?}", seen.watched);
    }
}
