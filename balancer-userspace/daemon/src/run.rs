//! The command `balancer run`: startup, the loop of the task that owns the controller, and a graceful end. Each phase
//! is a type that is built from the type of the previous phase. Each resource belongs to a value that releases the
//! resource when the value is dropped.

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

/// The maximum time to wait for next hops: at startup, so that the first packet finds its path, and after a backend was
/// added.
const FIRST_NEXT_HOPS: Duration = Duration::from_millis(1500);

/// The arguments of `balancer run`.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The configuration, with overrides from the command line.
    pub config: Config,
    /// The configuration in the file, without overrides from the command line.
    pub as_written: Config,
    /// The interfaces named on the command line; if empty, the configuration names the interfaces.
    pub named: Vec<String>,
    /// The path of the configuration file, for rereading it.
    pub file: PathBuf,
    /// The parser that has read the configuration file.
    pub configurations: Configurations,
}

/// Attaches the program, and serves until SIGTERM or SIGINT. If routers can send clients to another balancer, serving
/// continues for some time, or until a second signal. Before the function returns, it removes everything that it has
/// set up, even in case of an error.
///
/// # Errors
/// Fails with one line that gives the reason why the balancer cannot serve.
pub async fn run(launch: Launch) -> anyhow::Result<()> {
    privileges::check_to_steer()?;
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
