//! What a service manager (systemd, `Type=notify`) is told: ready, alive, ending. Without one, nothing is.

use std::{future::pending, time::Duration};

use sd_notify::{NotifyState, notify, watchdog_enabled};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

/// The service manager that started this process, if one did.
#[derive(Debug)]
pub struct ServiceManager {
    keep_alive: Option<Interval>,
}

impl ServiceManager {
    /// From `NOTIFY_SOCKET` and `WATCHDOG_USEC`. Must be called on a tokio runtime.
    #[must_use]
    pub fn from_environment() -> Self {
        let keep_alive = watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| {
            // Twice as often as must be, so that one that is late does no harm.
            let mut keep_alive = interval((limit / 2).max(Duration::from_millis(1)));
            keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
            keep_alive
        });
        Self { keep_alive }
    }

    /// The program is attached and requests are answered; `status` is for people.
    pub fn ready(&self, status: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The end has begun.
    pub fn stopping(&self, status: &str) {
        tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// When to say that all is well; never where nobody asks.
    pub async fn keep_alive_due(&mut self) {
        match &mut self.keep_alive {
            Some(keep_alive) => {
                keep_alive.tick().await;
            }
            None => pending().await,
        }
    }

    /// All is well.
    pub fn keep_alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = notify(state) {
        warn!("cannot tell the service manager (NOTIFY_SOCKET): {error}");
    }
}
