//! Runs commands that observe packets of a site, and reads the output of the commands.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use aya::programs::loaded_programs;
use balancer_testkit::{binaries, process::Process, site::Site};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::wait;

/// A running `balancer trace` or `balancer capture`.
pub(crate) struct Watch {
    process: Process,
    log: PathBuf,
}

/// Starts a command, and waits until the command observes packets.
pub(crate) fn start(site: &Site, name: &str, arguments: &[&str]) -> Watch {
    let log = site.files().join(format!("{name}.log"));
    let mut command = site.topology().balancer().command(binaries::balancer().unwrap());
    command.arg("--socket").arg(site.files().join("balancer.sock")).args(arguments);
    let mut process = Process::spawn(name, &mut command, &log).unwrap();
    wait("it does not begin", || {
        let said = fs::read_to_string(&log).unwrap();
        assert!(process.exited().unwrap().is_none(), "{arguments:?} has ended: {said}");
        said.contains("Ctrl-C ends it")
    });
    Watch { process, log }
}

impl Watch {
    /// Returns the command's output up to this time.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Returns the packets in the command's JSON output.
    pub(crate) fn packets(&self) -> Vec<Value> {
        let said = self.said();
        let whole = said.lines().filter(|line| line.starts_with('{') && line.ends_with('}'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the command has ended by itself.
    pub(crate) fn end(&mut self) {
        wait("it does not end", || self.process.exited().unwrap().is_some());
        let status = self.process.exited().unwrap().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
    }

    /// Interrupts the command, as Ctrl-C does.
    pub(crate) fn interrupt(&mut self) {
        self.process.signal(Signal::SIGINT).unwrap();
        self.end();
    }

    /// Kills the command with the signal SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
    }
}

/// Returns the names of the programs on a site's interfaces.
pub(crate) fn attached(site: &Site) -> BTreeSet<String> {
    let output = site.topology().balancer().command("ip").args(["-d", "-j", "link", "show"]).output().unwrap();
    let links: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let ids: BTreeSet<u64> = links.iter().filter_map(|link| link["xdp"]["prog"]["id"].as_u64()).collect();
    let programs = loaded_programs().filter_map(Result::ok);
    let ours = programs.filter(|program| ids.contains(&u64::from(program.id())));
    ours.map(|program| program.name_as_str().unwrap().to_owned()).collect()
}
