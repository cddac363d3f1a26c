//! Saying what is installed, and installing it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::command::{cargo, installed, is_root, output, program, run, run_within, shown};

/// Installs things, each announced before.
#[derive(Debug, Default)]
pub(super) struct Installer {
    lists_are_fresh: bool,
}

impl Installer {
    /// Installs Debian packages.
    pub(super) fn packages(&mut self, packages: &[&str]) -> Result<()> {
        self.refresh_lists()?;
        let mut command = apt_get();
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        announce(&packages.join(", "), &command);
        run(&mut command)
    }

    /// Installs Debian packages of servers, which are not started: not now, and not when the system starts.
    pub(super) fn servers(&mut self, packages: &[&str]) -> Result<()> {
        let policy = Policy::refuse()?;
        self.packages(packages)?;
        drop(policy);
        for package in packages {
            let unit = package.split('-').next().unwrap_or(package);
            if Path::new("/run/systemd/system").exists() {
                run(program("systemctl").args(["disable", "--now", "--quiet", unit]))?;
            }
        }
        Ok(())
    }

    /// Whether the system has such a package to install.
    pub(super) fn package_exists(&mut self, package: &str) -> Result<bool> {
        self.refresh_lists()?;
        Ok(output(program("apt-cache").args(["show", "--quiet=2", package])).is_some_and(|text| !text.is_empty()))
    }

    /// Compiles and installs a program from the crate registry.
    pub(super) fn cargo(
        &mut self,
        name: &str,
        version: &str,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Result<()> {
        let mut command = cargo();
        command.args(["install", "--locked", name, "--version", version]).args(arguments);
        command.envs(variables.iter().cloned());
        self.step(&format!("{name} {version}"), None, &mut command)
    }

    /// Runs a command that installs `what`.
    pub(super) fn step(&mut self, what: &str, limit: Option<Duration>, command: &mut Command) -> Result<()> {
        announce(what, command);
        // Of no use in what these programs say when they fail.
        command.env_remove("RUST_BACKTRACE");
        match limit {
            Some(limit) => run_within(limit, command),
            None => run(command),
        }
    }

    fn refresh_lists(&mut self) -> Result<()> {
        if !self.lists_are_fresh {
            ensure!(installed("apt-get"), "this system has no apt-get");
            ensure!(is_root(), "only root may install packages");
            run(apt_get().arg("update"))?;
            self.lists_are_fresh = true;
        }
        Ok(())
    }
}

/// While it lives, packages start no services, unless the system has a policy of its own.
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

fn announce(what: &str, command: &Command) {
    println!("Installing {what}: {}", shown(command));
}

fn apt_get() -> Command {
    let mut command = program("apt-get");
    command.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
