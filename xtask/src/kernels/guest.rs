//! Boots a kernel once.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{debian::Kernel, outcome::Outcome};
use crate::{arch::Arch, command::program};

const MEMORY: &str = "4G";
/// Two CPUs, with room for more, as in many virtual machines: the program must not size maps for CPUs that are absent.
const CPUS: &str = "2,maxcpus=64";
/// The time limit of a guest.
const LIMIT: &str = "7200";

/// Boots `kernel` with the archive `tests`, until it shuts down. Returns the results of its suites.
pub(super) fn boot(kernel: &Kernel, tests: &Path) -> Result<Outcome> {
    let start = Instant::now();
    let disk = kernel.image().with_file_name("initrd");
    let mut archives = File::create(&disk).with_context(|| disk.display().to_string())?;
    for archive in [tests, &kernel.modules()] {
        io::copy(&mut File::open(archive)?, &mut archives)?;
    }
    let mut qemu = emulator(kernel.arch);
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(&disk);
    let mut guest = qemu.stdout(Stdio::piped()).spawn().context("starting qemu")?;
    let mut log = File::create(kernel.log())?;
    let mut outcome = Outcome::new(kernel.label());
    for line in BufReader::new(guest.stdout.take().context("qemu has no output")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        writeln!(log, "{line}")?;
        // The firmware writes to the same line earlier.
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

/// The ends of each cable between two of a guest's network cards.
const CABLES: [[&str; 2]; 2] = [["near0", "far0"], ["near1", "far1"]];

/// The emulator command for a machine with a serial line and network cards joined by cables.
fn emulator(arch: Arch) -> Command {
    let mut qemu = program("timeout");
    qemu.args([LIMIT, arch.emulator(), "-accel", "tcg,thread=multi", "-smp", CPUS, "-m", MEMORY]);
    qemu.args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    let (cpu, line) = match arch {
        Arch::X86_64 => ("max", "ttyS0"),
        // The architected algorithm for pointer signatures would take most of the emulator's time.
        Arch::Arm64 => ("max,pauth-impdef=on", "ttyAMA0"),
    };
    for (cable, ends) in CABLES.iter().enumerate() {
        for (end, card) in ends.iter().enumerate() {
            qemu.args(["-netdev", &format!("hubport,id={card},hubid={cable}")]);
            // Cards of unknown speed cannot join an 802.3ad bond.
            let device = format!("mac=52:54:00:00:{cable:02x}:{end:02x},speed=10000,duplex=full");
            qemu.args(["-device", &format!("virtio-net-pci,netdev={card},{device}")]);
        }
    }
    if arch == Arch::Arm64 {
        qemu.args(["-machine", "virt"]);
    }
    qemu.args(["-cpu", cpu, "-append", &format!("console={line} quiet panic=-1 no_timer_check")]);
    qemu
}
