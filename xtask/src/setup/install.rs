//! Saying what is installed, and installing it.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};

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

fn announce(what: &str, command: &Command) {
    println!("Installing {what}: {}", shown(command));
}

fn apt_get() -> Command {
    let mut command = program("apt-get");
    command.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
