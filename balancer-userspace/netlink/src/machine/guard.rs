//! A helper process that removes the VIPs if the balancer ends without removing them.
//!
//! Without the helper, a remaining VIP would make routers continue to send clients to this machine after the data path
//! has ended with the process. When the process ends, the kernel detaches the program but does not remove addresses.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};

use super::changes::remove_vips;

/// The subcommand of the helper process.
pub const VERB: &str = "guard-vips";
/// The path of the running program, which stays valid even if the program's file is replaced.
const PROGRAM: &str = "/proc/self/exe";

/// The helper process, which exists while there are VIPs to guard.
#[derive(Debug, Default)]
pub(super) struct Guard {
    running: Option<(Child, ChildStdin)>,
    told: BTreeSet<u32>,
}

impl Guard {
    /// Makes the helper remove the VIPs that a balancer has added to the interfaces `on`, as soon as this process has
    /// ended.
    ///
    /// # Errors
    /// Fails if the helper process cannot be started, or does not receive the interfaces.
    pub(super) fn watch(&mut self, on: &BTreeSet<u32>) -> anyhow::Result<()> {
        if on.is_empty() {
            *self = Self::default();
            return Ok(());
        }
        if let Some((child, _)) = &mut self.running
            && child.try_wait().is_ok_and(|ended| ended.is_some())
        {
            self.running = None;
        }
        if self.running.is_none() {
            self.told.clear();
        }
        if self.told == *on {
            return Ok(());
        }
        let told = self.tell(on).context("the VIPs would stay assigned if the balancer were killed");
        if told.is_ok() {
            self.told.clone_from(on);
        }
        told
    }

    fn tell(&mut self, on: &BTreeSet<u32>) -> anyhow::Result<()> {
        let Some((_, input)) = &mut self.running else {
            self.running = Some(start(on)?);
            return Ok(());
        };
        let line = on.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        input.write_all(format!("{line}\n").as_bytes()).context("cannot write to the process that removes them")
    }
}

impl Drop for Guard {
    /// Tells the helper that this process ends gracefully: the balancer has already removed all VIPs that have to be
    /// removed.
    fn drop(&mut self) {
        let Some((mut child, mut input)) = self.running.take() else { return };
        // After a panic, the helper must remove the VIPs.
        let told = if thread::panicking() { Ok(()) } else { input.write_all(b"\n") };
        drop(input);
        if told.is_ok() {
            let _ = child.wait();
        }
    }
}

/// Starts the helper process, which gets its first list of interfaces as arguments.
fn start(on: &BTreeSet<u32>) -> anyhow::Result<(Child, ChildStdin)> {
    let mut command = Command::new(PROGRAM);
    command.arg(VERB).args(on.iter().map(u32::to_string)).stdin(Stdio::piped()).stdout(Stdio::null());
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    // SAFETY: between fork and exec, the child only makes a system call; the child neither allocates memory nor takes a
    // lock.
    unsafe {
        // Signals meant for the balancer must not end the helper.
        command.pre_exec(move || Ok(signals.thread_block()?));
    }
    let mut child = command.spawn().context("starting the process that would remove them")?;
    let input = child.stdin.take().context("its input")?;
    Ok((child, input))
}

/// Runs the helper process: the indices of the first interfaces are in `on`, and each line of input replaces these
/// indices. At the end of the input, the helper removes the VIPs from the last named interfaces.
pub fn guard_vips(mut on: BTreeSet<u32>) {
    // The input ends when the balancer's process ends, for whatever reason.
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        on = line.split_whitespace().filter_map(|index| index.parse().ok()).collect();
    }
    if !on.is_empty() {
        remove_vips(on);
        let _ = writeln!(io::stderr(), "the balancer ended unexpectedly; its VIPs are removed");
    }
}
