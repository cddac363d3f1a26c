//! Notifications to a service manager (systemd, `Type=notify` or `notify-reload`): the balancer reports that it is
//! ready, alive, reloading or ending, or why it did not start. Without a service manager, the balancer sends no
//! notifications.

use std::{env, future::pending, time::Duration};

use balancer_config::words::counted;
use sd_notify::{NotifyState, notify, watchdog_enabled};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

/// The maximum time for the shutdown, equal to `TimeoutStopSec` in the unit file.
const AT_THE_END: Duration = Duration::from_secs(20);

/// The service manager that started this process, if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    keep_alive: Option<Interval>,
    services: usize,
}

impl ServiceManager {
    /// Reads `NOTIFY_SOCKET` and `WATCHDOG_USEC`, and reports that the program is attached and that the balancer
    /// answers requests for this number of `services`. Callers must call this function on a tokio runtime.
    #[must_use]
    pub fn ready(services: usize) -> Self {
        tell(&[NotifyState::Ready, NotifyState::Status(&serving(services))]);
        let keep_alive = watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| {
            // The interval is half of the watchdog's limit, so that a late notification does no harm.
            let mut keep_alive = interval((limit / 2).max(Duration::from_millis(1)));
            keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
            keep_alive
        });
        Self { keep_alive, services }
    }

    /// Reports the current number of services.
    pub fn serves(&mut self, services: usize) {
        if self.services != services {
            self.services = services;
            tell(&[NotifyState::Status(&serving(services))]);
        }
    }

    /// Reports that the graceful end has begun, and the time until the balancer shuts down.
    pub fn lingers(&self, time: Duration) {
        let more = u32::try_from((time + AT_THE_END).as_micros()).unwrap_or(u32::MAX);
        let status = NotifyState::Status("ending: the balancer steers its last clients");
        tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(more), status]);
    }

    /// Reports that the shutdown has begun.
    pub fn stopping(&self, status: &str) {
        tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// Waits until the next report that the process is alive is due; waits forever if the service manager expects no
    /// such reports.
    pub async fn keep_alive_due(&mut self) {
        match &mut self.keep_alive {
            Some(keep_alive) => {
                keep_alive.tick().await;
            }
            None => pending().await,
        }
    }

    /// Reports that the process is alive.
    pub fn keep_alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }
}

/// Reports that the controller is reloading its configuration.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!("cannot tell the service manager of a reload: {error}"),
    }
}

/// Reports the end of a reload after a SIGHUP: the number of `services`, or the reason why the reload failed.
pub fn reloaded(done: Result<usize, &str>) {
    tell(&[NotifyState::Ready, NotifyState::Status(&status(done))]);
}

fn status(done: Result<usize, &str>) -> String {
    match done {
        Ok(services) => serving(services),
        Err(reason) => format!("the last reload changed nothing: {}", first_line(reason)),
    }
}

/// Reports the result of a reload that no SIGHUP requested.
pub fn reread(done: Result<usize, &str>) {
    tell(&[NotifyState::Status(&status(done))]);
}

/// Whether a service manager waits for the balancer to become ready.
#[must_use]
pub fn is_there() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// Reports that the start takes longer by up to the time `longer`; `status` contains the reason for the wait.
pub fn waits(longer: Duration, status: Option<&str>) {
    let longer = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    let mut state = vec![NotifyState::ExtendTimeoutUsec(longer)];
    state.extend(status.map(|status| NotifyState::Status(first_line(status))));
    tell(&state);
}

/// Reports that the start has failed.
pub fn failed(reason: &str) {
    tell(&[NotifyState::Status(first_line(reason))]);
}

fn serving(services: usize) -> String {
    format!("serving {}", counted(services, "service"))
}

/// Returns only the first line of a text, because the service manager would read a second line as a separate message.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = notify(state) {
        warn!("cannot tell the service manager (NOTIFY_SOCKET): {error}");
    }
}
