//! Finds the programs that were built together with the running program.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Returns the path of the balancer: `BALANCER_BINARY` from the environment, or the balancer that was built with the
/// running program.
///
/// # Errors
/// Fails if the file does not exist.
pub fn balancer() -> Result<PathBuf> {
    match env::var_os("BALANCER_BINARY") {
        Some(path) => existing(PathBuf::from(path)),
        None => existing(beside("balancer")?),
    }
}

/// Returns the path of the controller for Kubernetes that was built together with the running program.
///
/// # Errors
/// Fails if the file does not exist.
pub fn kubernetes() -> Result<PathBuf> {
    existing(beside("balancer-kubernetes")?)
}

/// Returns the path of the session lab that was built together with the running program.
///
/// # Errors
/// Fails if the file does not exist.
pub fn lab() -> Result<PathBuf> {
    existing(beside("balancer-lab")?)
}

/// Cargo puts test programs one directory below other programs.
fn beside(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("the running program's path is unknown")?;
    let directory = own.parent().unwrap_or(Path::new("/"));
    let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.join(name))
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.is_file(), "{} does not exist: `cargo xtask build` makes it", path.display());
    Ok(path)
}
