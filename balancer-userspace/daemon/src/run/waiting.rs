//! Waits for an interface for the program, if none of the configured interfaces exists and a service manager expects
//! the balancer to become ready. Without a service manager, the start fails instead, because a user, who may have
//! mistyped an interface's name, waits for the result.

use std::{iter, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use balancer_config::config::Config;
use balancer_listeners::configuration::Configurations;
use balancer_netlink::{
    interfaces::{Search, search},
    machine::news::News,
};
use balancer_runtime::{service_manager, shutdown::Signals};
use tokio::{select, time::sleep};
use tracing::{info, warn};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The maximum duration of the start after an interface has appeared.
const REST_OF_START: Duration = Duration::from_mins(1);

/// A configuration as it was read, and the path of its file.
pub(super) struct AsRead<'a> {
    pub(super) config: &'a Config,
    pub(super) file: &'a PathBuf,
    pub(super) configurations: &'a Configurations,
}

/// Waits until at least one of the interfaces `names` exists; returns the indices of the existing interfaces and of
/// their members; `None` if a signal arrives first.
///
/// # Errors
/// Fails if the program cannot be attached to an existing interface, or, without a service manager, if no interface
/// exists. The function also fails if the configuration file changes during the wait, because the service manager will
/// start the balancer again with the new file.
pub(super) async fn interfaces(
    names: &[String],
    as_read: AsRead<'_>,
    signals: &mut Signals,
) -> anyhow::Result<Option<Vec<u32>>> {
    // The socket subscribes to notifications before the first search, so that this process misses no notification.
    let mut news = News::open().context("opening a netlink socket")?;
    let mut pauses = pauses();
    let mut told = String::new();
    loop {
        let absence = match search(names).await? {
            Search::Found(found) => return Ok(Some(found)),
            Search::Absent(absence) => absence,
        };
        if !service_manager::is_there() {
            return Err(absence);
        }
        as_read.ensure_unchanged().await?;
        let first = told.is_empty();
        let words = waiting(&absence, names);
        if first {
            warn!("{words}");
        }
        let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
        service_manager::waits(pause + REST_OF_START, (words != told).then_some(words.as_str()));
        told = words;
        select! {
            signal = signals.next() => {
                info!("{signal}: ending; there was no interface to attach to");
                return Ok(None);
            }
            () = news.next() => {}
            () = sleep(pause) => {}
        }
    }
}

fn waiting(absence: &anyhow::Error, names: &[String]) -> String {
    match names {
        [_] => format!("{absence}; waiting for it"),
        names => format!("{absence}; waiting for one of {}", names.join(", ")),
    }
}

/// The times after which the balancer searches for interfaces even without a notification, because a notification may
/// be lost.
fn pauses() -> impl Iterator<Item = Duration> {
    iter::successors(Some(FIRST_PAUSE), |pause| Some((*pause * 2).min(LONGEST_PAUSE)))
}

impl AsRead<'_> {
    async fn ensure_unchanged(&self) -> anyhow::Result<()> {
        let (parsed, _) = self.configurations.load(self.file.clone()).await.context("reading the configuration")?;
        let (now, _) = parsed?;
        ensure!(now == *self.config, "{} has changed while the balancer waited for an interface", self.file.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_no_interface_comes_then_the_pauses_grow_up_to_a_limit() {
        let seconds: Vec<u64> = pauses().take(8).map(|pause| pause.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn when_several_names_are_waited_for_then_each_is_named() {
        let absence = anyhow::anyhow!("interface eth8 does not exist: there are: eth0");
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(waiting(&absence, &names(&["eth8"])), format!("{absence}; waiting for it"));
        let words = waiting(&absence, &names(&["eth8", "eth9"]));
        assert_eq!(words, format!("{absence}; waiting for one of eth8, eth9"));
    }
}
