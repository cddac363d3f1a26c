//! The controller's process.

use crate::config::model::Config;

/// Attaches to the interfaces of `config` and serves until told to stop.
///
/// # Errors
/// Always: the data path is not part of this build.
pub async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the data path is not part of this build")
}
