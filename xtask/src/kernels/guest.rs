//! Boots a kernel once in an emulated machine, the guest.

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
/// The guest has two CPUs of 64 possible CPUs, as many virtual machines do: the balancer must not size maps for absent
/// CPUs.
const CPUS: &str = "2,maxcpus=64";
/// The time limit of a guest.
const LIMIT: &str = "7200";

/// Boots `kernel` with the archive `tests`, and waits until the guest shuts down. Returns the results of the guest's
/// test suites.
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
        // The firmware may have written to the beginning of this line.
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

/// The two ends of each cable; a cable joins two network cards of a guest.
const CABLES: [[&str; 2]; 2] = [["near0", "far0"], ["near1", "far1"]];

/// Kernel parameters that switch off watchdogs of few seconds: on a busy host, the emulator itself stands still for
/// longer.
const PATIENCE: &str = "rcupdate.rcu_cpu_stall_suppress=1 nowatchdog workqueue.watchdog_thresh=0 \
                        sysctl.kernel.hung_task_timeout_secs=600";

/// The emulator command for a machine with a serial line and network cards joined by cables.
fn emulator(arch: Arch) -> Command {
    let mut qemu = program("timeout");
    qemu.args([LIMIT, arch.emulator(), "-accel", "tcg,thread=multi", "-smp", CPUS, "-m", MEMORY]);
    qemu.args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    let (cpu, line) = match arch {
        Arch::X86_64 => ("max", "ttyS0"),
        // A cheaper algorithm for pointer authentication: Arm's own algorithm would take most of the emulator's time.
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
    qemu.args(["-cpu", cpu, "-append", &format!("console={line} quiet panic=-1 no_timer_check {PATIENCE}")]);
    qemu
}
