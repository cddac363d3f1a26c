//! A system in a directory, booted by systemd-nspawn in a network namespace: Debian, or a copy of this machine's.

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

/// The mirror for Debian's packages, unless `DEBIAN_MIRROR` names another one.
const MIRROR: &str = "http://deb.debian.org/debian";
/// Packages that the tool needs beyond the dependencies of the package.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,procps";
/// The time limit of a boot or a shutdown.
const LIMIT: Duration = Duration::from_secs(90);
/// The place of the shared files on a copy of this machine.
pub const SHARED: &str = "/opt/shared";

/// The machine. Dropping the value shuts it down and removes it.
#[derive(Debug)]
pub struct Machine {
    directory: PathBuf,
    /// The files that a copy of this machine's system shares with this machine; `None`: an installed system.
    shared: Option<PathBuf>,
    name: String,
    namespace: String,
    /// While the machine is up: the container's manager, and its process 1.
    up: Option<(Process, u32)>,
    cgroup: Option<Cgroup>,
}

impl Machine {
    /// Installs `suite` in `directory`, for the network of `namespace`.
    ///
    /// # Errors
    /// If a step of the installation fails.
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
        // The standard output has the error.
        let words = String::from_utf8_lossy(&stdout);
        let last = words.lines().rev().take(3).collect::<Vec<_>>().join("; ");
        ensure!(status.success(), "debootstrap failed ({status}), last line first: {last}");
        // Mount it like systemd does outside of a container.
        machine.write(
            "etc/systemd/system/bpffs.service",
            "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=mount -t bpf -o nosuid,nodev,noexec,mode=0700 bpf /sys/fs/bpf\n[Install]\nWantedBy=sysinit.target\n",
        )?;
        run(Command::new("systemctl").arg("--root").arg(machine.root()).args(["--quiet", "enable", "bpffs.service"]))?;
        Ok(machine)
    }

    /// A copy of this machine's system for the network of `namespace`. The files that it writes are lost. It has
    /// `shared` as [`SHARED`], and starts no services by itself.
    ///
    /// # Errors
    /// If a directory cannot be made.
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

    /// The root directory of the machine.
    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Writes a file of the machine; the path is relative.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root().join(path);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// Copies a file into `/root`.
    ///
    /// # Errors
    /// If the file cannot be copied.
    pub fn bring(&self, file: &Path, name: &str) -> Result<()> {
        fs::copy(file, self.root().join("root").join(name)).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// Whether the file exists; the path is relative.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_ok()
    }

    /// Boots the machine, and waits until all units have started or failed.
    ///
    /// # Errors
    /// If it does not boot within a time limit.
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
            // No other program creates a control group for the machine.
            let cgroup = Cgroup::new(&self.name)?;
            let procs = cgroup.0.join("cgroup.procs");
            self.cgroup = Some(cgroup);
            nspawn.arg("--keep-unit");
            // SAFETY: the closure opens and writes one file; its path was allocated before.
            unsafe { nspawn.pre_exec(move || fs::write(&procs, "0")) };
        }
        if self.shared.is_some() {
            // Options cannot follow this argument.
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
        // systemd-nspawn refuses the root directory itself. The mount is in a separate mount namespace.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", "mount --bind / \"$0\" && exec \"$@\""]);
        command.arg(self.root()).arg("systemd-nspawn");
        command
    }

    /// Shuts the machine down like its power button, if it is up.
    ///
    /// # Errors
    /// If it does not halt within a time limit.
    pub fn halt(&mut self) -> Result<()> {
        let Some((mut manager, _)) = self.up.take() else { return Ok(()) };
        // Asks systemd-nspawn for a shutdown. If that fails, dropping the process kills it.
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

    /// A program on the machine, as root.
    ///
    /// # Errors
    /// If the machine is not up.
    pub fn command(&self, program: &str) -> Result<Command> {
        let Some((_, first)) = &self.up else { bail!("the machine is not up") };
        let mut command = Command::new("nsenter");
        command.args(["--target", &first.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        command.args(["--", program]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8").env("HOME", "/root");
        Ok(command)
    }

    /// Runs a shell command on the machine as root. Returns its output with errors, and whether it succeeded.
    ///
    /// # Errors
    /// If the command cannot be started.
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
        // This does not remove files that may be mounted there.
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

/// Process 1 of the container that a systemd-nspawn has started.
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

/// A control group of the unified hierarchy, which is removed together with its children.
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
