//! What health checks of all backends cost, and whether they come when they are due.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use balancer_tests::report::document::Series;
use tokio::runtime::Runtime;

use super::{PATIENCE, Site, machine::processor_time};

/// Checks that may be on their way at once.
const AT_ONCE: u16 = 16_384;

/// Checks all backends every `interval`, for so many periods once they are all up.
pub(super) fn checks(site: &mut Site, interval: Duration, periods: u16, table: &mut Vec<Series>) -> Result<()> {
    let _servers = site.hosts.listen_everywhere(AT_ONCE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begin = Instant::now();
    site.start()?;
    while !all_up(site, &runtime)? {
        ensure!(begin.elapsed() < PATIENCE, "not every backend is up");
        thread::sleep(Duration::from_millis(500));
    }
    // Those of the start come all at once.
    thread::sleep(2 * interval);
    let pid = site.controller.as_mut().context("no balancer runs")?.process().pid();
    let mut parts = Vec::new();
    for _ in 0..periods {
        let (used, since) = (processor_time(pid)?, Instant::now());
        thread::sleep(interval);
        parts.push((processor_time(pid)? - used).div_duration_f64(since.elapsed()) * 100.0);
    }
    let ages = runtime.block_on(site.api().health(None))?;
    let ages: Option<Vec<f64>> = ages.iter().map(|view| view.last_seconds_ago.map(|age| age * 1e3)).collect();
    let every = humantime::format_duration(interval);
    table.push(Series::ours("controller", format!("a check of each every {every}, of one core"), "%", parts));
    table.push(Series::ours(
        "controller",
        "since a backend's last check",
        "ms",
        ages.context("one was never checked")?,
    ));
    Ok(())
}

fn all_up(site: &Site, runtime: &Runtime) -> Result<bool> {
    let status = runtime.block_on(site.api().status())?;
    Ok(status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up"))
}
