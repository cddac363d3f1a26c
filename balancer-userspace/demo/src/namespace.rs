//! Network namespaces that are removed with their owner, together with all processes in them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, geteuid},
};

use crate::offload::{self, Offload};

/// The directory in which `ip netns` keeps the names of namespaces.
const NAMES: &str = "/run/netns";

/// The prefix of every namespace name, which the owner's process id follows.
const PREFIX: &str = "bal";

/// A network namespace, known to `ip netns` as `bal-PID-N-ROLE`. Dropping the value kills the namespace's processes and
/// deletes the namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

/// A handle with which threads can enter a namespace.
#[derive(Clone, Debug)]
pub struct Entrance(Arc<File>);

impl Entrance {
    /// Moves the calling thread into the namespace, as [`Namespace::enter`] does.
    ///
    /// # Errors
    /// Fails if the thread cannot enter the namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")
    }
}

impl Namespace {
    /// Creates a namespace with an active loopback interface; duplicate address detection for IPv6 is off. The first
    /// call in a process also removes the namespaces of processes that have ended.
    ///
    /// # Errors
    /// Fails if the process is not root, if `ip` is missing, or if a system call fails.
    pub fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();

        ensure!(geteuid().is_root(), "network namespaces need root (CAP_SYS_ADMIN, CAP_NET_ADMIN): run this with sudo");
        SWEEP.call_once(remove_leftovers);
        let name = format!("{PREFIX}-{}-{}-{role}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(tool("ip").args(["netns", "add", &name]))?;
        let path = Path::new(NAMES).join(&name);
        let file = match File::open(&path) {
            Ok(file) => Arc::new(file),
            Err(error) => {
                delete(&name);
                return Err(error).with_context(|| path.display().to_string());
            }
        };
        let namespace = Self { name, file };
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_redirects"), "0")?;
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/accept_redirects"), "0")?;
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name of the namespace for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in this namespace; white space separates the `arguments`.
    ///
    /// # Errors
    /// Fails if `ip` fails; the error contains the output of `ip`.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(tool("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Sets a value under `/proc/sys` in this namespace.
    ///
    /// # Errors
    /// Fails if the value cannot be written.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run_in_thread(|| fs::write(&path, value))?
            .with_context(|| format!("{} in namespace {}", path.display(), self.name))
    }

    /// Switches offloads of an interface on or off.
    ///
    /// # Errors
    /// Fails if the interface does not exist, or if its driver refuses.
    pub fn offload(&self, interface: &str, switches: &[(Offload, bool)]) -> Result<()> {
        let switched = self
            .run_in_thread(|| switches.iter().try_for_each(|&(offload, on)| offload::switch(interface, offload, on)))?;
        switched.with_context(|| format!("offloads of {interface} in namespace {}", self.name))
    }

    /// Returns a command that will run in this namespace, in a process group of its own, and with no signal blocked.
    /// The kernel kills the process when the thread that spawned it ends. Unlike with `ip netns exec`, the process
    /// keeps the mounts of the calling process.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        command.process_group(0);
        // SAFETY: between fork and exec, the closure makes only system calls; it neither allocates memory nor takes a
        // lock.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                SigSet::empty().thread_set_mask()?;
                setns(&*file, CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        command
    }

    /// Returns a handle with which other threads can enter this namespace.
    #[must_use]
    pub fn entrance(&self) -> Entrance {
        Entrance(Arc::clone(&self.file))
    }

    /// Moves the calling thread into this namespace. Sockets that the thread creates afterwards belong to the
    /// namespace.
    ///
    /// # Errors
    /// Fails if the thread cannot enter the namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter namespace {}", self.name))
    }

    /// Runs `work` in a new thread inside this namespace, and waits until the thread ends.
    ///
    /// # Errors
    /// Fails if the thread cannot enter the namespace. If `work` panics, the panic continues in the caller.
    pub fn run_in_thread<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let outcome = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(work())
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        kill_inside(&self.file);
        delete(&self.name);
    }
}

/// Joins two namespaces by a veth pair. Each argument is `(namespace, interface name)`. The function sets both ends up,
/// with an MTU of 1,500.
///
/// Frames carry complete checksums, because XDP drops the mark of an unfinished checksum. The receiving end verifies
/// the checksums. With GRO, a veth end polls for frames; frames redirected to an interface are lost unless its peer
/// polls. An end that runs an XDP program polls without GRO, and the program should receive frames as the peer sent
/// them. Frames that the peer sends by native `XDP_TX` wake a veth end only if the end runs its own program, such as a
/// [`Passer`](crate::xdp::Passer).
///
/// # Errors
/// Fails if `ip` fails or an offload cannot be switched.
pub fn join(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
    run(tool("ip").args(["link", "add", a.1, "netns", a.0.name(), "type", "veth"]).args([
        "peer",
        "name",
        b.1,
        "netns",
        b.0.name(),
    ]))?;
    for (namespace, interface) in [a, b] {
        namespace.ip(&format!("link set {interface} up"))?;
    }
    // This loop must run last: the driver allows redirects to an interface only once its peer polls, and polling starts
    // when the peer is up.
    for (namespace, interface) in [a, b] {
        namespace
            .offload(interface, &[(Offload::Transmit, false), (Offload::Receive, false), (Offload::Merging, true)])?;
    }
    Ok(())
}

/// Runs a command until it ends, and returns its output.
///
/// # Errors
/// Fails if the command cannot be started or if it fails; the error contains the command and its error output.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    };
    let shown = shown();
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the command of a system tool in a separate process group, so that Ctrl-C in the terminal does not interrupt
/// the clean-up.
fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    command
}

/// Removes the namespaces of processes that have ended, and kills the processes in them.
pub fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(NAMES) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if owner(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            if let Ok(file) = File::open(entry.path()) {
                kill_inside(&file);
            }
            delete(name);
        }
    }
}

/// The process id in a namespace name that [`Namespace::new`] has made.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.splitn(4, '-');
    (parts.next()? == PREFIX).then_some(())?;
    let pid = parts.next()?.parse().ok()?;
    let _counter: u32 = parts.next()?.parse().ok()?;
    parts.next().map(|_role| pid)
}

fn delete(name: &str) {
    if let Err(error) = run(tool("ip").args(["netns", "delete", name])) {
        eprintln!("namespace {name} is left behind: {error:#}");
    }
}

/// Kills every process in the network namespace that this file refers to.
fn kill_inside(namespace: &File) {
    let Ok(wanted) = namespace.metadata() else { return };
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let inside = fs::metadata(PathBuf::from(format!("/proc/{pid}/ns/net")))
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()));
        if inside && pid.cast_unsigned() != process::id() {
            // If the process has already ended, the signal is not needed.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn when_a_namespace_has_another_name_then_it_has_no_owner() {
        assert_eq!(owner("bal-123-0-client"), Some(123));
        assert_eq!(owner("bal-123-7-two-words"), Some(123));
        for other in ["bal-123-0", "bal-x-0-client", "bal-1-x-client", "ball-1-0-client", "blue", "bal--1-0-a"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
