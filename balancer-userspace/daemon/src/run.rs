//! The command `balancer run`: startup, the loop of the task that owns the controller, and a clean end. Each phase is a
//! type that is built from the previous one. Everything that a step sets up belongs to a value that undoes it when
//! dropped.

mod calls;
mod leaving;
mod preparation;
mod running;
mod shutdown;
mod startup;
mod waiting;

use std::{path::PathBuf, time::Duration};

use balancer_config::config::Config;
use balancer_dataplane::privileges;
use tracing::info;

use self::{shutdown::Shutdown, startup::Startup};
use crate::{configuration::Configurations, precedence};

/// The maximum time to wait for next hops: at startup, so that the first packet finds its path, and after adding a
/// backend.
const FIRST_NEXT_HOPS: Duration = Duration::from_millis(1500);

/// The arguments of `balancer run`.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The configuration, with overrides from the command line.
    pub config: Config,
    /// The configuration as it is in the file.
    pub as_written: Config,
    /// The interfaces named on the command line; empty if the configuration decides.
    pub named: Vec<String>,
    /// The path of the file, for reading it again.
    pub file: PathBuf,
    /// The parser that has read the file.
    pub configurations: Configurations,
}

/// Attaches the program and serves until SIGTERM or SIGINT, or until the second signal if clients can be sent elsewhere
/// first. When the function returns, everything that it set up is gone, even after an error.
///
/// # Errors
/// One line that says what prevents serving.
pub async fn run(launch: Launch) -> anyhow::Result<()> {
    privileges::check()?;
    let Some(startup) = Startup::new(launch).await? else { return Ok(()) };
    let mut running = startup.finish().await?;
    if let Err(error) = precedence::take() {
        info!(
            "no precedence over other programs ({error}): failures are acted on later where processors are busy; CAP_SYS_NICE gives \
             it, or LimitNICE=-{} in the unit",
            precedence::STEPS
        );
    }
    let end = running.serve().await;
    Shutdown::new(running, end).finish().await
}
