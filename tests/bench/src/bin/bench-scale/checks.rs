//! Measures the cost of health checks of all backends, and whether the balancer starts checks when they are due.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use balancer_bench::{processor_time, report::document::Series};

use super::{PATIENCE, Site};

/// The largest number of concurrent checks.
const AT_ONCE: u16 = 16_384;

/// Makes the balancer check all backends every `interval`, and measures for `periods` intervals after all backends are
/// up.
pub(super) fn checks(site: &mut Site, interval: Duration, periods: u16, table: &mut Vec<Series>) -> Result<()> {
    let _servers = site.hosts.listen_everywhere(AT_ONCE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    site.start()?;
    let controller = site.controller.as_mut().context("no balancer runs")?;
    controller.wait_for(PATIENCE, "every backend being up", |status| {
        status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
    })?;
    // The balancer starts all first checks at the same time.
    thread::sleep(2 * interval);
    let pid = controller.process().pid();
    let mut parts = Vec::new();
    for _ in 0..periods {
        let (used, since) = (processor_time::of(pid)?, Instant::now());
        thread::sleep(interval);
        parts.push((processor_time::of(pid)? - used).div_duration_f64(since.elapsed()) * 100.0);
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
