//! Asks a controller core in the test's process about a configuration, and computes the backends' shares of the
//! clients.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use balancer_config::file;
use balancer_control::{
    controller::Controller as Core,
    io::{Change, Command, Event, NextHop},
};

/// Creates a controller core with a configuration file.
///
/// # Errors
/// Fails if the file is not valid, or has no hash key.
pub fn core(config: &Path) -> Result<Core> {
    let (config, _) = file::load(config).map_err(|errors| anyhow!("{errors}"))?;
    let key = config.hash_key.context("the configuration has no hash key")?;
    let mut core = Core::new(config, key);
    core.start(Instant::now());
    Ok(core)
}

/// Makes a change in a core as the controller would, and finds the next hops that the core watches afterwards.
///
/// # Errors
/// Fails if the core refuses the change.
pub fn change(core: &mut Core, change: Change) -> Result<()> {
    let (_, commands) = core.change(change, Instant::now())?;
    for command in commands {
        if let Command::WatchNextHop(address) = command {
            let next_hop = NextHop {
                ifindex: 1,
                source_mac: [2; 6],
                destination_mac: [4; 6],
                mtu: 1500,
                // The core needs a source address of the matching family, but accepts any such address.
                source: Some(address),
                gateway: None,
                local: false,
            };
            core.handle(Event::NextHop { address, next_hop: Ok(next_hop) }, Instant::now());
        }
    }
    Ok(())
}

/// Returns the backend of `client` in the first service of the client's family, or `None` if the core drops the
/// client's packets.
///
/// # Errors
/// Fails if the family has no service.
pub fn home(core: &Core, client: IpAddr) -> Result<Option<String>> {
    Ok(core.locate(client, None)?.into_iter().next().context("no service")?.backend)
}

/// Counts the clients at each backend.
pub fn counts<'a>(homes: impl IntoIterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for home in homes {
        *counts.entry(home.clone()).or_default() += 1;
    }
    counts
}

/// The largest deviation of a backend's count from the mean, relative to the mean.
#[must_use]
pub fn deviation(counts: &BTreeMap<String, usize>, backends: usize) -> f64 {
    let mean = counts.values().sum::<usize>() as f64 / backends as f64;
    let missing = if counts.len() < backends { 1.0 } else { 0.0 };
    counts.values().map(|&count| (count as f64 / mean - 1.0).abs()).fold(missing, f64::max)
}
