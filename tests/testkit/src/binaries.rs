//! Finds the programs that were built together with the running one.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// The balancer: `BALANCER_BINARY` from the environment, or the one built together with the running program.
///
/// # Errors
/// If there is none.
pub fn balancer() -> Result<PathBuf> {
    match env::var_os("BALANCER_BINARY") {
        Some(path) => existing(PathBuf::from(path)),
        None => existing(beside("balancer")?),
    }
}

/// The controller for Kubernetes that was built together with the running program.
///
/// # Errors
/// If there is none.
pub fn kubernetes() -> Result<PathBuf> {
    existing(beside("balancer-kubernetes")?)
}

/// Test programs are one directory below the others.
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
