//! Commands that observe, running beside a site, and what they said.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use aya::programs::loaded_programs;
use balancer_testkit::{binaries, process::Process, site::Site};
use nix::sys::{signal::Signal, utsname::uname};
use serde_json::Value;

use crate::support::wait;

/// A running command.
pub(super) struct Watch {
    process: Process,
    log: PathBuf,
}

/// Set where the kernel is known to be able to observe programs.
const MUST: &str = "BALANCER_MUST_OBSERVE";

/// Starts a command that observes, and waits until it does. `None`: this machine's kernel refuses that, and the command has
/// said so.
pub(super) fn start(site: &Site, name: &str, arguments: &[&str]) -> Option<Watch> {
    let log = site.files().join(format!("{name}.log"));
    let mut command = site.topology().balancer().command(binaries::balancer().unwrap());
    command.arg("--socket").arg(site.files().join("balancer.sock")).args(arguments);
    let mut process = Process::spawn(name, &mut command, &log).unwrap();
    let mut ended = None;
    wait("it does not begin", || {
        ended = process.exited().unwrap();
        ended.is_some() || fs::read_to_string(&log).unwrap().contains("Ctrl-C ends it")
    });
    let Some(status) = ended else { return Some(Watch { process, log }) };
    let said = fs::read_to_string(&log).unwrap();
    assert!(is_refusal(status.code(), &said), "{arguments:?} has ended ({status}): {said}");
    None
}

/// Whether a command has ended because this kernel refuses, which it says in words.
pub(super) fn is_refusal(code: Option<i32>, said: &str) -> bool {
    let kernel = uname().unwrap();
    let words = format!("Linux {} refuses to load what observes the XDP program: ", kernel.release().display());
    env::var_os(MUST).is_none() && code == Some(1) && said.contains(&words)
}

impl Watch {
    /// All that it said.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The packets that it said of, in JSON.
    pub(super) fn packets(&self) -> Vec<Value> {
        let said = self.said();
        let whole = said.lines().filter(|line| line.starts_with('{') && line.ends_with('}'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until it has ended by itself.
    pub(super) fn end(&mut self) {
        wait("it does not end", || self.process.exited().unwrap().is_some());
        let status = self.process.exited().unwrap().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
    }

    /// Ends it as Ctrl-C does.
    pub(super) fn interrupt(&mut self) {
        self.process.signal(Signal::SIGINT).unwrap();
        self.end();
    }

    /// Ends it so that it can do nothing any more.
    pub(super) fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The ids of the programs that observe, of all that the machine has.
pub(super) fn observing() -> BTreeSet<u32> {
    let programs = loaded_programs().filter_map(Result::ok);
    let ours = programs.filter(|program| matches!(program.name_as_str(), Some("entered" | "left")));
    ours.map(|program| program.id()).collect()
}
