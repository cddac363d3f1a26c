//! Announces and installs packages and programs.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::packages::{Manager, Tool};
use crate::command::{cargo, installed, is_root, output, program, run, run_within, shown};

/// An installer of packages and programs, which announces each before it installs it.
#[derive(Debug)]
pub(super) struct Installer {
    manager: Option<Manager>,
    lists_are_fresh: bool,
}

impl Installer {
    pub(super) fn new() -> Self {
        Self { manager: Manager::of_this_system(), lists_are_fresh: false }
    }

    /// Installs the missing tools of a list.
    pub(super) fn tools(&mut self, tools: &[Tool]) -> Result<()> {
        match self.missing(tools)? {
            packages if packages.is_empty() => Ok(()),
            packages => self.packages(&packages),
        }
    }

    /// Installs the missing servers of a list. The servers start neither now nor when the system boots.
    pub(super) fn servers(&mut self, servers: &[Tool]) -> Result<()> {
        let packages = self.missing(servers)?;
        self.without_starting(&packages)
    }

    /// Installs the Debian packages whose files are missing. The installation starts no services.
    pub(super) fn files(&mut self, files: &[(&str, &'static str)]) -> Result<()> {
        let missing = files.iter().filter(|(path, _)| !Path::new(path).exists());
        let packages: Vec<&'static str> = missing.map(|&(_, package)| package).collect();
        if !packages.is_empty() {
            self.ensure_apt().with_context(|| format!("missing are Debian's {}", packages.join(", ")))?;
        }
        self.without_starting(&packages)
    }

    /// Works like [`Self::files`], for files that belong to an already installed package on systems other than Debian.
    pub(super) fn debian_files(&mut self, files: &[(&str, &'static str)]) -> Result<()> {
        if self.manager == Some(Manager::Apt) { self.files(files) } else { Ok(()) }
    }

    fn without_starting(&mut self, packages: &[&'static str]) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let policy = if self.manager == Some(Manager::Apt) { Some(Policy::refuse()?) } else { None };
        self.packages(packages)?;
        drop(policy);
        if self.manager != Some(Manager::Apt) || !Path::new("/run/systemd/system").exists() {
            return Ok(());
        }
        for unit in packages.iter().flat_map(|package| units(package)) {
            // Skip packages without a systemd unit, because many packages have none.
            if output(program("systemctl").args(["cat", "--quiet", &unit])).is_some() {
                run(program("systemctl").args(["disable", "--now", "--quiet", &unit]))?;
            }
        }
        Ok(())
    }

    fn missing(&self, tools: &[Tool]) -> Result<Vec<&'static str>> {
        let missing: Vec<&Tool> = tools.iter().filter(|tool| !installed(tool.program)).collect();
        let programs = || missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
        match self.manager {
            Some(manager) => Ok(missing.iter().map(|tool| tool.package(manager)).collect()),
            None if missing.is_empty() => Ok(Vec::new()),
            None => bail!("this system's packages are not known here: install by hand what brings {}", programs()),
        }
    }

    /// Installs packages by this system's package manager.
    pub(super) fn packages(&mut self, packages: &[&str]) -> Result<()> {
        let manager = self.manager.context("this system's packages are not known here")?;
        let by_hand = manager.by_hand(packages);
        ensure!(is_root(), "only root may install packages: {by_hand}");
        ensure!(installed(manager.program()), "{} is missing: {by_hand}", manager.program());
        self.refresh_lists()?;
        let mut command = program(manager.program());
        command.args(manager.install()).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
        announce(&packages.join(", "), &command);
        run(&mut command).with_context(|| format!("install by hand, as root: {by_hand}"))
    }

    /// Returns an error if this system does not use Debian packages.
    pub(super) fn ensure_apt(&self) -> Result<()> {
        ensure!(self.manager == Some(Manager::Apt), "this system has no packages of Debian");
        Ok(())
    }

    /// Whether the package manager can install a package of this name.
    pub(super) fn package_exists(&mut self, package: &str) -> Result<bool> {
        self.refresh_lists()?;
        Ok(output(program("apt-cache").args(["show", "--quiet=2", package])).is_some_and(|text| !text.is_empty()))
    }

    /// Installs a program from the crate registry: downloads the program if cargo-binstall is installed, otherwise
    /// compiles it.
    pub(super) fn cargo(
        &mut self,
        name: &str,
        version: &str,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Result<()> {
        if installed("cargo-binstall") {
            let mut command = cargo();
            command.args(["binstall", "--no-confirm", "--disable-strategies", "compile", &format!("{name}@{version}")]);
            if self.step(&format!("{name} {version}"), None, &mut command).is_ok() {
                return Ok(());
            }
        }
        let mut command = cargo();
        command.args(["install", "--locked", name, "--version", version]).args(arguments);
        command.envs(variables.iter().cloned());
        self.step(&format!("{name} {version}"), None, &mut command)
    }

    /// Announces and runs a command that installs `what`.
    pub(super) fn step(&mut self, what: &str, limit: Option<Duration>, command: &mut Command) -> Result<()> {
        announce(what, command);
        // Switch backtraces off, because they would only clutter the error messages of the installing programs.
        command.env_remove("RUST_BACKTRACE");
        match limit {
            Some(limit) => run_within(limit, command),
            None => run(command),
        }
    }

    fn refresh_lists(&mut self) -> Result<()> {
        if self.manager == Some(Manager::Apt) && !self.lists_are_fresh {
            ensure!(is_root(), "only root may fetch lists of packages");
            run(program("apt-get").args(["-qq", "-o", "DPkg::Lock::Timeout=120", "update"]))?;
            self.lists_are_fresh = true;
        }
        Ok(())
    }
}

/// A temporary policy: while this value exists, packages start no services, unless the system has its own policy.
struct Policy(Option<&'static Path>);

impl Policy {
    fn refuse() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        let policy = Self(Some(path));
        fs::write(path, "#!/bin/sh\nexit 101\n").with_context(|| path.display().to_string())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Some(path) = self.0
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("cannot remove {}: {error}", path.display());
        }
    }
}

/// Returns the possible names of a package's service: the package's name, or its first word.
fn units(package: &str) -> Vec<String> {
    // Use the unit's real name, because systemd does not disable a unit by an alias.
    if package == "bind9" {
        return vec!["named".to_owned()];
    }
    let first = package.split('-').next().unwrap_or(package);
    let mut units = vec![package.to_owned()];
    if first != package {
        units.push(first.to_owned());
    }
    units
}

fn announce(what: &str, command: &Command) {
    println!("Installing {what}: {}", shown(command));
}
