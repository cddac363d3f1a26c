//! The controller core's answers about a configuration, computed in this process, and the shares of clients.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use balancer_config::file;
use balancer_control::{
    controller::Controller as Core,
    io::{Change, Command, Event, NextHop},
};

/// The controller's core with a configuration file.
///
/// # Errors
/// If the file is not valid, or has no hash key.
pub fn core(config: &Path) -> Result<Core> {
    let (config, _) = file::load(config).map_err(|errors| anyhow!("{errors}"))?;
    let key = config.hash_key.context("the configuration has no hash key")?;
    let mut core = Core::new(config, key);
    core.start(Instant::now());
    Ok(core)
}

/// Makes a change in a core like the controller, completely: it also finds next hops that are watched from then on.
///
/// # Errors
/// If the change is refused.
pub fn change(core: &mut Core, change: Change) -> Result<()> {
    let (_, commands) = core.change(change, Instant::now())?;
    for command in commands {
        if let Command::WatchNextHop(address) = command {
            let next_hop = NextHop {
                ifindex: 1,
                source_mac: [2; 6],
                destination_mac: [4; 6],
                mtu: 1500,
                // Any address of the family.
                source: Some(address),
                gateway: None,
                local: false,
            };
            core.handle(Event::NextHop { address, next_hop: Ok(next_hop) }, Instant::now());
        }
    }
    Ok(())
}

/// The backend of `client` in the first service of its family; `None` if the client's packets are dropped.
///
/// # Errors
/// If there is no such service.
pub fn home(core: &Core, client: IpAddr) -> Result<Option<String>> {
    Ok(core.locate(client, None)?.into_iter().next().context("no service")?.backend)
}

/// The number of clients of each backend.
pub fn counts<'a>(homes: impl IntoIterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for home in homes {
        *counts.entry(home.clone()).or_default() += 1;
    }
    counts
}

/// The largest deviation of a backend's count from equal shares, as a part of the mean.
#[must_use]
pub fn deviation(counts: &BTreeMap<String, usize>, backends: usize) -> f64 {
    let mean = counts.values().sum::<usize>() as f64 / backends as f64;
    let missing = if counts.len() < backends { 1.0 } else { 0.0 };
    counts.values().map(|&count| (count as f64 / mean - 1.0).abs()).fold(missing, f64::max)
}
