//! One boot of a kernel.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    path::Path,
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{debian::Kernel, outcome::Outcome};
use crate::command::program;

const MEMORY: &str = "4G";
/// A guest that hangs is given up.
const LIMIT: &str = "7200";

/// Boots `kernel` with the archive `tests`, until it switches itself off. Says what each of its suites came to.
pub(super) fn boot(kernel: &Kernel, tests: &Path) -> Result<Outcome> {
    let start = Instant::now();
    let disk = kernel.image().with_file_name("initrd");
    let mut archives = File::create(&disk).with_context(|| disk.display().to_string())?;
    for archive in [tests, &kernel.modules()] {
        io::copy(&mut File::open(archive)?, &mut archives)?;
    }
    let mut qemu = program("timeout");
    qemu.args([LIMIT, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY]);
    qemu.args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(&disk);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
    let mut guest = qemu.stdout(Stdio::piped()).spawn().context("starting qemu")?;
    let mut log = File::create(kernel.log())?;
    let mut outcome = Outcome::new(&kernel.version);
    for line in BufReader::new(guest.stdout.take().context("qemu has no output")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        writeln!(log, "{line}")?;
        // The firmware writes to the same line before.
        if let Some((_, said)) = line.split_once("@@ ") {
            outcome.hear(said);
            if said != "end" {
                println!("    {said}");
            }
        }
    }
    guest.wait()?;
    std::fs::remove_file(disk)?;
    outcome.end(start.elapsed());
    Ok(outcome)
}
