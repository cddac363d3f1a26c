//! A Linux system in a directory: a fresh Debian, or a copy of the current machine's system; systemd-nspawn boots the
//! system in a network namespace.

use std::{
    fs,
    io::ErrorKind,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

use crate::{
    namespace::{Namespace, run},
    process::Process,
};

/// The mirror of Debian's packages, unless the variable `DEBIAN_MIRROR` names another mirror.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The packages that the tests need in addition to the dependencies of the balancer's package.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,procps";
/// The time limit of a boot or a shutdown.
const LIMIT: Duration = Duration::from_secs(90);
/// The path of the shared files on a copy of the current machine.
pub const SHARED: &str = "/opt/shared";

/// A booted or stopped machine. Dropping the value shuts down and removes the machine.
#[derive(Debug)]
pub struct Machine {
    directory: PathBuf,
    /// The files that a copy of the current machine's system shares with the current machine. If the system is freshly
    /// installed, the value is `None`.
    shared: Option<PathBuf>,
    name: String,
    namespace: String,
    /// While the machine is up: the `systemd-nspawn` process, and the process id of the container's process 1.
    up: Option<(Process, u32)>,
    cgroup: Option<Cgroup>,
}

impl Machine {
    /// Installs the Debian release `suite` in `directory`. The machine uses the network of `namespace`.
    ///
    /// # Errors
    /// Fails if a step of the installation fails.
    pub fn install(suite: &str, directory: &Path, namespace: &Namespace) -> Result<Self> {
        remove(directory)?;
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let machine = Self {
            directory: directory.canonicalize()?,
            shared: None,
            name: format!("balancer-try-{}", process::id()),
            namespace: namespace.name().to_owned(),
            up: None,
            cgroup: None,
        };
        let mirror = std::env::var("DEBIAN_MIRROR").unwrap_or_else(|_| MIRROR.to_owned());
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include", PACKAGES, suite]).arg(machine.root()).arg(mirror);
        let Output { status, stdout, .. } = debootstrap.output().context("cannot start debootstrap")?;
        // debootstrap writes its error messages to standard output.
        let words = String::from_utf8_lossy(&stdout);
        let last = words.lines().rev().take(3).collect::<Vec<_>>().join("; ");
        ensure!(status.success(), "debootstrap failed ({status}), last line first: {last}");
        // systemd mounts the BPF file system only outside of containers, so the test adds a unit that mounts the BPF
        // file system.
        machine.write(
            "etc/systemd/system/bpffs.service",
            "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=mount -t bpf -o nosuid,nodev,noexec,mode=0700 bpf /sys/fs/bpf\n[Install]\nWantedBy=sysinit.target\n",
        )?;
        run(Command::new("systemctl").arg("--root").arg(machine.root()).args(["--quiet", "enable", "bpffs.service"]))?;
        Ok(machine)
    }

    /// Prepares a copy of the current machine's system for the network of `namespace`. The copy discards changes to its
    /// files, contains the files `shared` at [`SHARED`], and starts no services at boot.
    ///
    /// # Errors
    /// Fails if a directory cannot be created.
    pub fn copy(shared: &Path, namespace: &Namespace) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("balancer-machine-").tempdir()?.keep();
        fs::create_dir(directory.join("root"))?;
        Ok(Self {
            directory,
            shared: Some(shared.canonicalize()?),
            name: format!("balancer-copy-{}", process::id()),
            namespace: namespace.name().to_owned(),
            up: None,
            cgroup: None,
        })
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Writes a file of the machine; `path` is relative to the machine's root.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root().join(path);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// Copies a file into the machine's directory `/root`.
    ///
    /// # Errors
    /// Fails if the file cannot be copied.
    pub fn bring(&self, file: &Path, name: &str) -> Result<()> {
        fs::copy(file, self.root().join("root").join(name)).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// Whether the machine has a file; `path` is relative to the machine's root.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_ok()
    }

    /// Boots the machine, and waits until all units have started or failed.
    ///
    /// # Errors
    /// Fails if the machine does not boot within the time limit.
    pub fn boot(&mut self) -> Result<()> {
        let mut nspawn = self.nspawn();
        nspawn.arg("--directory").arg(self.root()).arg(format!("--machine={}", self.name));
        nspawn.arg(format!("--network-namespace-path=/run/netns/{}", self.namespace));
        nspawn.args(["--quiet", "--boot", "--register=no", "--console=pipe", "--link-journal=no"]);
        nspawn.args(["--resolv-conf=off", "--timezone=off", "--capability=all", "--system-call-filter=bpf"]);
        if let Some(shared) = &self.shared {
            nspawn.args(["--volatile=overlay", &format!("--bind={}:{SHARED}", shared.display())]);
        }
        nspawn.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
        nspawn.process_group(0);
        if !Path::new("/run/systemd/system").exists() {
            // If the current machine does not run systemd, no other program creates a control group for the container.
            let cgroup = Cgroup::new(&self.name)?;
            let procs = cgroup.0.join("cgroup.procs");
            self.cgroup = Some(cgroup);
            nspawn.arg("--keep-unit");
            // SAFETY: the closure opens and writes one file; the file's path was allocated before the fork.
            unsafe { nspawn.pre_exec(move || fs::write(&procs, "0")) };
        }
        if self.shared.is_some() {
            // The last argument is for systemd, so systemd-nspawn's options must precede the last argument.
            nspawn.arg("systemd.unit=basic.target");
        }
        // SAFETY: the closure makes one system call between fork and exec.
        unsafe { nspawn.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let mut manager = Process::spawn("the machine", &mut nspawn, &self.directory.join("console.log"))?;
        let deadline = Instant::now() + LIMIT;
        let first = loop {
            if let Some(first) = first_process(manager.pid()) {
                break first;
            }
            if let Some(status) = manager.exited()? {
                bail!("systemd-nspawn has ended ({status}): {}", manager.tail(10)?);
            }
            ensure!(Instant::now() < deadline, "the machine does not start: {}", manager.tail(10)?);
            thread::sleep(Duration::from_millis(50));
        };
        self.up = Some((manager, first));
        loop {
            let (state, _) = self.shell("systemctl is-system-running")?;
            if ["running", "degraded"].contains(&state.trim()) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the machine does not boot: {state}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn nspawn(&self) -> Command {
        if self.shared.is_none() {
            return Command::new("systemd-nspawn");
        }
        // systemd-nspawn refuses `/` as its directory, so the command bind-mounts `/` at another path in a separate
        // mount namespace.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", "mount --bind / \"$0\" && exec \"$@\""]);
        command.arg(self.root()).arg("systemd-nspawn");
        command
    }

    /// Shuts down a running machine as the machine's power button would.
    ///
    /// # Errors
    /// Fails if the machine does not halt within the time limit.
    pub fn halt(&mut self) -> Result<()> {
        let Some((mut manager, _)) = self.up.take() else { return Ok(()) };
        // The signal asks systemd-nspawn for a shutdown. If the shutdown fails, dropping the `Process` kills
        // systemd-nspawn.
        manager.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + LIMIT;
        while manager.exited()?.is_none() {
            ensure!(Instant::now() < deadline, "the machine does not halt");
            thread::sleep(Duration::from_millis(50));
        }
        drop(manager);
        self.cgroup = None;
        Ok(())
    }

    /// Returns a command that runs a program on the machine as root.
    ///
    /// # Errors
    /// Fails if the machine is not up.
    pub fn command(&self, program: &str) -> Result<Command> {
        let Some((_, first)) = &self.up else { bail!("the machine is not up") };
        let mut command = Command::new("nsenter");
        command.args(["--target", &first.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        command.args(["--", program]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8").env("HOME", "/root");
        Ok(command)
    }

    /// Runs a shell command on the machine as root. Returns the command's output and error messages, and whether the
    /// command succeeded.
    ///
    /// # Errors
    /// Fails if the command cannot be started.
    pub fn shell(&self, line: &str) -> Result<(String, bool)> {
        let mut command = self.command("/bin/sh")?;
        command.args(["-c", &format!("exec 2>&1; {line}")]);
        let Output { status, stdout, .. } = command.output().context("cannot start nsenter")?;
        Ok((String::from_utf8_lossy(&stdout).into_owned(), status.success()))
    }
}

impl Machine {
    fn remove(&self) -> Result<()> {
        if self.shared.is_none() {
            return remove(&self.directory);
        }
        let _ = fs::remove_file(self.directory.join("console.log"));
        // `remove_dir` leaves files that may still be mounted in the directory.
        fs::remove_dir(self.root()).and_then(|()| fs::remove_dir(&self.directory)).context("removing the directories")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.halt().and_then(|()| self.remove()) {
            eprintln!("{} is left behind: {error:#}", self.directory.display());
        }
    }
}

/// Returns process 1 of the container that the systemd-nspawn process `manager` has started.
fn first_process(manager: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{manager}/task/{manager}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "systemd")
    })
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(directory.display().to_string()),
        _ => Ok(()),
    }
}

/// A control group of the unified hierarchy. Dropping the value removes the group and its children.
#[derive(Debug)]
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = fields.find(|fields| fields.get(2) == Some(&"cgroup2")).context("no unified control groups")?;
        let path = Path::new(mount[1]).join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove_cgroup(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
