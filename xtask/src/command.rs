//! Runs other programs in the project's root directory.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Directories of system tools that a user's `PATH` may not have.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The prefixes of the variables in which cargo describes a program's package.
const OWN_PACKAGE: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// The project's root directory.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The directory with cargo's outputs for `profile` (`debug` or `release`); this program is in such a directory.
pub(crate) fn built(profile: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("the running program's path is unknown")?;
    let target =
        own.parent().and_then(Path::parent).context("the running program lies outside of a target directory")?;
    Ok(target.join(profile))
}

/// The cargo that started this program.
pub(crate) fn cargo() -> Command {
    let mut command = program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_own_package(&mut command);
    command
}

/// Returns a command for the cargo of a rustup toolchain.
pub(crate) fn cargo_of(toolchain: &str) -> Command {
    let mut command = program("rustup");
    command.args(["run", toolchain, "cargo"]);
    forget_own_package(&mut command);
    command
}

/// Removes the variables in which cargo describes this program's package. Some build scripts (ring's) read these
/// variables, and cargo would rebuild the crates of these scripts and all dependent crates. `cargo machete` would
/// mistake a package name for a directory.
fn forget_own_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| OWN_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
}

/// Returns a command that runs in the root directory, without input.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs a command and waits for its end; the command writes to this program's output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", shown(command));
    Ok(())
}

/// Works like [`run`], but kills the command after `limit`.
pub(crate) fn run_within(limit: Duration, command: &mut Command) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "`{}` failed ({status})", shown(command));
            return Ok(());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("`{}` took longer than {} s", shown(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the output of a command, or `None` if the command fails or does not exist.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Formats a command as a user would type it.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
    });
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy().into_owned());
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

pub(crate) fn installed(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let executable = |file: PathBuf| fs::metadata(file).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
    env::split_paths(&path).chain(SYSTEM.map(PathBuf::from)).any(|directory| executable(directory.join(name)))
}

/// Returns an error if the process is not root.
pub(crate) fn ensure_root(what: &str, chore: &str) -> Result<()> {
    ensure!(
        is_root(),
        "{what} needs root, for network namespaces and XDP: try `sudo -E env \"PATH=$PATH\" cargo xtask {chore}`"
    );
    Ok(())
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::{cargo, cargo_of};

    /// This test guards against a fault that has occurred: a build replaced the programs of running tests.
    #[test]
    fn when_any_cargo_is_started_then_its_environment_is_the_same() {
        for command in [cargo(), cargo_of("nightly")] {
            for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION_PATCH"] {
                assert!(std::env::var_os(name).is_some(), "the test's own {name}");
                assert!(command.get_envs().any(|(removed, value)| removed == name && value.is_none()), "{name}");
            }
        }
    }
}
