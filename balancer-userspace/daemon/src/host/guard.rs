//! A helper process that removes VIPs when the balancer ends without doing so.
//!
//! If the data path ends with the process, a VIP that remains would make routers keep sending clients to this machine
//! in vain. The kernel detaches the program by itself, but does not remove addresses.

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
/// The path of the running program, which works even if the program's file has been replaced.
const PROGRAM: &str = "/proc/self/exe";

/// The helper process, while there are VIPs to guard.
#[derive(Debug, Default)]
pub(super) struct Guard {
    running: Option<(Child, ChildStdin)>,
    told: BTreeSet<u32>,
}

impl Guard {
    /// Makes the helper remove the VIPs that a balancer has added to the interfaces `on` if this process ends.
    ///
    /// # Errors
    /// If the helper cannot be started or informed.
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
        let told = self.tell(on).context("VIPs would stay if the balancer were killed");
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
        input.write_all(format!("{line}\n").as_bytes()).context("telling the process that guards them")
    }
}

impl Drop for Guard {
    /// Tells the helper that the end is orderly: the balancer has removed all VIPs that had to go.
    fn drop(&mut self) {
        let Some((mut child, mut input)) = self.running.take() else { return };
        // A panic is not an orderly end.
        let told = if thread::panicking() { Ok(()) } else { input.write_all(b"\n") };
        drop(input);
        if told.is_ok() {
            let _ = child.wait();
        }
    }
}

/// Starts the helper, which knows from the beginning what it has to guard.
fn start(on: &BTreeSet<u32>) -> anyhow::Result<(Child, ChildStdin)> {
    let mut command = Command::new(PROGRAM);
    command.arg(VERB).args(on.iter().map(u32::to_string)).stdin(Stdio::piped()).stdout(Stdio::null());
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    // SAFETY: between fork and exec the child makes only a system call; it allocates and locks nothing.
    unsafe {
        // Signals meant for the balancer must not end the helper.
        command.pre_exec(move || Ok(signals.thread_block()?));
    }
    let mut child = command.spawn().context("starting the process that guards them")?;
    let input = child.stdin.take().context("its input")?;
    Ok((child, input))
}

/// Runs the helper process: it starts with the indices of the interfaces `on`, and each line of its input replaces
/// these indices. At the end of its input it removes VIPs from the interfaces of the last line.
pub fn guard_vips(mut on: BTreeSet<u32>) {
    // The input ends when the balancer ends, for whatever reason.
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        on = line.split_whitespace().filter_map(|index| index.parse().ok()).collect();
    }
    if !on.is_empty() {
        remove_vips(on);
        let _ = writeln!(io::stderr(), "the balancer has ended without a farewell; its VIPs are taken away");
    }
}
