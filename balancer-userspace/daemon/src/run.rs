//! The command `balancer run`: startup, the loop of the task that owns the controller, and a graceful end. Each phase
//! is a type that is built from the type of the previous phase. Each resource belongs to a value that releases the
//! resource when the value is dropped.

mod calls;
mod inbox;
mod leaving;
mod preparation;
mod running;
mod shutdown;
mod startup;
mod waiting;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use balancer_config::config::Config;
use balancer_dataplane::privileges;
use balancer_listeners::configuration::Configurations;
use balancer_runtime::precedence;
use nix::sys::resource::{Resource, getrlimit};
use tracing::info;

use self::{shutdown::Shutdown, startup::Startup};

/// The maximum time to wait for next hops: at startup, so that the first packet finds its path, and after a backend was
/// added.
const FIRST_NEXT_HOPS: Duration = Duration::from_millis(1500);

/// The fewest files that the process must be allowed to open: a start needs about 250 descriptors.
const FEWEST_DESCRIPTORS: u64 = 512;

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
    check_descriptors()?;
    let Some(startup) = Startup::new(launch).await? else { return Ok(()) };
    let mut running = startup.finish().await?;
    if let Err(error) = precedence::take() {
        info!(
            "cannot raise this process's priority ({error}): on busy processors, the balancer reacts to failures \
             later; give it CAP_SYS_NICE, or LimitNICE=-{} in the unit",
            precedence::STEPS
        );
    }
    let end = running.serve().await;
    Shutdown::new(running, end).finish().await
}

/// Checks that the process may open as many files as the kernel program alone needs for its maps.
fn check_descriptors() -> anyhow::Result<()> {
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit on open files")?;
    ensure!(
        most >= FEWEST_DESCRIPTORS,
        "the limit of open files is {most}, and the balancer needs {FEWEST_DESCRIPTORS}: raise it with LimitNOFILE= \
         in the unit, or with ulimit -n"
    );
    Ok(())
}
