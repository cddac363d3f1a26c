//! Measures what many known clients cost the controller: how long counting the clients and changing `remember` take,
//! and how long requests wait during these operations.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, MapInfo};
use balancer_api::{
    client::Client,
    model::{ApplyConfiguration, ClientQuery},
};
use balancer_bench::report::document::Series;
use balancer_common::client_table::{BUCKET_ENTRIES, Entry};

use super::{PATIENCE, Site, machine::map_ids, timed, times};

/// The two values of `remember`, whose ticks have different lengths.
pub(super) const REMEMBER: [&str; 2] = ["3h", "30d"];

/// Makes `clients` clients of the backends 1 to `backends` known, and changes `remember` of all services `rounds`
/// times.
pub(super) fn clients(
    site: &mut Site,
    clients: u32,
    backends: u32,
    rounds: u16,
    table: &mut Vec<Series>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    site.start()?;
    let controller = site.controller.as_mut().context("no balancer runs")?;
    fill(client_table(controller.process().pid())?, clients, u16::try_from(backends)?)?;
    let begin = Instant::now();
    controller.wait_for(PATIENCE, "all clients being counted", |status| {
        let known = status.services.iter().flat_map(|service| &service.backends).map(|backend| backend.known_clients);
        known.sum::<u64>() == u64::from(clients)
    })?;
    table.push(Series::ours(
        "controller",
        "until all known clients are counted",
        "s",
        vec![begin.elapsed().as_secs_f64()],
    ));

    let api = site.api();
    let [mut changes, mut waits, mut quiet] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        let remember = format!("remember = \"{}\"", REMEMBER[(usize::from(round) + 1) % 2]);
        let text = site.text.replace(&format!("remember = \"{}\"", REMEMBER[0]), &remember);
        let configuration = ApplyConfiguration {
            file: "balancer.toml".to_owned(),
            text,
            dry_run: false,
            age_seconds: None,
            force: false,
            reset: false,
            path: None,
        };
        let (took, waited) = meanwhile(&api, || timed(|| runtime.block_on(api.apply(&configuration))))?;
        changes.push(took);
        waits.push(waited);
        let nothing = || {
            thread::sleep(took);
            Ok(())
        };
        quiet.push(meanwhile(&api, nothing)?.1);
    }
    table.push(times("`remember` of all services changed", changes));
    table.push(times("the longest of others' questions meanwhile", waits));
    table.push(times("the same for as long without a change", quiet));
    Ok(())
}

/// Calls `what` while another thread sends requests to the owner task. Returns the result of `what`, and the longest
/// time that a request waited.
fn meanwhile<T>(api: &Client, what: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<Duration> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let query = ClientQuery { address: [10, 1, 2, 3].into(), service: None };
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                longest = longest.max(timed(|| runtime.block_on(api.client(&query)))?);
            }
            Ok(longest)
        });
        let result = what();
        done.store(true, Ordering::Relaxed);
        let longest = asking.join().map_err(|_panicked| anyhow::anyhow!("whoever asked has panicked"))??;
        Ok((result?, longest))
    })
}

fn client_table(pid: u32) -> Result<Array<MapData, [u64; BUCKET_ENTRIES]>> {
    for id in map_ids(pid)? {
        if MapInfo::from_id(id)?.name_as_str() == Some("KNOWN_CLIENTS") {
            return Ok(Map::Array(MapData::from_id(id)?).try_into()?);
        }
    }
    anyhow::bail!("process {pid} has no client table")
}

/// Fills the client table as if `clients` clients had just sent their first packets, with the same number of clients in
/// each bucket.
fn fill(mut table: Array<MapData, [u64; BUCKET_ENTRIES]>, clients: u32, backends: u16) -> Result<()> {
    let (buckets, mut left) = (table.len(), clients);
    let mut random = fastrand::Rng::with_seed(1);
    for index in 0..buckets {
        let mut bucket = [0; BUCKET_ENTRIES];
        let here = left.div_ceil(buckets - index);
        for place in bucket.iter_mut().take(here as usize) {
            *place = Entry::new(random.u32(1..), random.u16(1..=backends), 0).0;
        }
        left -= here;
        table.set(index, bucket, 0)?;
    }
    Ok(())
}
