//! `balancer run`: start-up, the loop of the one task that owns the controller, and a clean end. Each is a type that the
//! next is made of; what a step has set up belongs to a value that undoes it when it is dropped.

mod calls;
mod leaving;
mod preparation;
mod running;
mod shutdown;
mod startup;

use std::{path::PathBuf, time::Duration};

use balancer_dataplane::privileges;
use balancer_model::config::Config;
use tracing::info;

use self::{shutdown::Shutdown, startup::Startup};
use crate::{configuration::Configurations, precedence};

/// How long somebody waits for the first answers about next hops: start-up, so that the first packet finds its way, and
/// who adds a backend.
const FIRST_NEXT_HOPS: Duration = Duration::from_millis(1500);

/// The arguments of `balancer run`.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The configuration, with what the command line said instead.
    pub config: Config,
    /// The configuration as it is in the file.
    pub as_written: Config,
    /// The interfaces that the command line names; none if it leaves that to the configuration.
    pub named: Vec<String>,
    /// The file, to be read again.
    pub file: PathBuf,
    /// The parser that read it.
    pub configurations: Configurations,
}

/// Attaches and serves until SIGTERM or SIGINT, or the second of them where clients can be sent elsewhere first. Whatever it set up is gone when it returns, also on an error.
///
/// # Errors
/// One line that says what stands in the way.
pub async fn run(launch: Launch) -> anyhow::Result<()> {
    privileges::check()?;
    let mut running = Startup::new(launch).await?.finish().await?;
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
