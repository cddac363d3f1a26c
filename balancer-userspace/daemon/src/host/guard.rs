//! Takes VIPs away when the balancer has ended without doing so: a process beside it, which waits for its end.
//!
//! Where the data path ends with the process, a VIP that stays would have routers go on sending clients to nobody. The
//! kernel takes the program off by itself, but no addresses.

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

/// The subcommand that the process is started with.
pub const VERB: &str = "guard-vips";
/// The own program, also where its file has been replaced.
const PROGRAM: &str = "/proc/self/exe";

/// The process, while there is something to guard.
#[derive(Debug, Default)]
pub(super) struct Guard {
    running: Option<(Child, ChildStdin)>,
    told: BTreeSet<u32>,
}

impl Guard {
    /// From now on, if this process ends, VIPs that a balancer has added go from the interfaces `on`.
    ///
    /// # Errors
    /// When the process cannot be started, or told.
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
    /// An orderly end: what was to be taken away has been.
    fn drop(&mut self) {
        let Some((mut child, mut input)) = self.running.take() else { return };
        // A panic is none.
        let told = if thread::panicking() { Ok(()) } else { input.write_all(b"\n") };
        drop(input);
        if told.is_ok() {
            let _ = child.wait();
        }
    }
}

/// It knows what to guard from its first moment on.
fn start(on: &BTreeSet<u32>) -> anyhow::Result<(Child, ChildStdin)> {
    let mut command = Command::new(PROGRAM);
    command.arg(VERB).args(on.iter().map(u32::to_string)).stdin(Stdio::piped()).stdout(Stdio::null());
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    // SAFETY: between fork and exec only a system call is made; nothing is allocated or locked.
    unsafe {
        // Those that mean the balancer are the balancer's.
        command.pre_exec(move || Ok(signals.thread_block()?));
    }
    let mut child = command.spawn().context("starting the process that guards them")?;
    let input = child.stdin.take().context("its input")?;
    Ok((child, input))
}

/// The process: begins with the indices of interfaces `on`, and a line of its input has others; at the end VIPs go from
/// those of the last line.
pub fn guard_vips(mut on: BTreeSet<u32>) {
    // Whatever ends the input, it is the end.
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        on = line.split_whitespace().filter_map(|index| index.parse().ok()).collect();
    }
    if !on.is_empty() {
        remove_vips(on);
        let _ = writeln!(io::stderr(), "the balancer has ended without a farewell; its VIPs are taken away");
    }
}
