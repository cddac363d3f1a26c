//! The `exec` check, which runs a program and judges its exit code.

use std::{
    ffi::OsString,
    io,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use balancer_config::{config::ExecCheck, names::BackendName};
use balancer_control::io::CheckOutcome;
use caps::{CapSet, Capability};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, killpg},
    },
    unistd::{Gid, Pid, Uid, User, getegid, geteuid, setgroups, setresgid, setresuid},
};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe::Receiver,
    process::Command,
    time::{Instant, timeout_at},
};

use super::fault::{TOLD, timed_out, told};

/// The search path for programs, if the environment of this process has none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that checks one backend.
pub(super) struct Program {
    command: Vec<String>,
    account: ProgramUser,
    environment: [(&'static str, OsString); 5],
}

impl Program {
    /// Prepares the program that checks the backend `name` at `target`.
    ///
    /// # Errors
    /// Fails if the program cannot run as its configured user.
    pub(super) async fn new(name: &BackendName, target: SocketAddr, exec: &ExecCheck) -> io::Result<Self> {
        let user = exec.user.clone();
        // The lookup may block, because the user database may be on another machine.
        let account = tokio::task::spawn_blocking(move || ProgramUser::of(&user)).await.map_err(io::Error::other)??;
        Ok(Self::run_as(account, name, target, exec))
    }

    pub(super) fn run_as(account: ProgramUser, name: &BackendName, target: SocketAddr, exec: &ExecCheck) -> Self {
        let environment = [
            ("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into())),
            ("BALANCER_SERVICE", name.service.clone().into()),
            ("BALANCER_BACKEND", name.backend.clone().into()),
            ("BALANCER_ADDRESS", target.ip().to_string().into()),
            ("BALANCER_PORT", target.port().to_string().into()),
        ];
        Self { command: exec.command.clone(), account, environment }
    }

    /// Runs the program until it ends, or until `deadline`. When the program ends, the function kills all its remaining
    /// descendants.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub(super) async fn run(&self, deadline: Instant, timeout: Duration) -> io::Result<CheckOutcome> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(io::Error::other("no program"));
        };
        let (output, input) = io::pipe()?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        command.process_group(0).kill_on_drop(true);
        let account = self.account;
        // SAFETY: between fork and exec, the closure makes only system calls on its own values.
        unsafe { command.pre_exec(move || account.assume()) };
        let cannot_start = |error| io::Error::other(format!("cannot start {program:?}: {error}"));
        let mut child = command.spawn().map_err(cannot_start)?;
        // Dropping the command closes this process's copies of the pipe's file descriptors.
        drop(command);
        // The group is declared after the child, so Rust drops the group first, while the child's id is still valid.
        let _group = Group::of(child.id());
        let mut output = Receiver::from_owned_fd(output.into())?;
        let mut line = FirstLine::default();
        let mut buffer = [0; 4096];
        let ended = timeout_at(deadline, async {
            let mut open = true;
            loop {
                tokio::select! {
                    status = child.wait() => break status,
                    read = output.read(&mut buffer), if open => match read {
                        Ok(length @ 1..) => line.take(&buffer[..length]),
                        Ok(0) | Err(_) => open = false,
                    },
                }
            }
        });
        let Ok(status) = ended.await else { return Ok(timed_out("exec", timeout)) };
        while !line.ended
            && let Ok(length @ 1..) = output.try_read(&mut buffer)
        {
            line.take(&buffer[..length]);
        }
        Ok(judge(status?, &line.told()))
    }
}

/// The user under which a program runs.
#[derive(Clone, Copy)]
pub(super) struct ProgramUser {
    uid: Uid,
    gid: Gid,
    /// Whether this process may drop the supplementary groups.
    sheds_groups: bool,
}

impl ProgramUser {
    /// Looks up the account of `user`.
    ///
    /// # Errors
    /// Fails if the user does not exist, or if the user is root, the balancer's own user or another user that could
    /// change the balancer. The function also fails if this process is unable to run and to end a program of another
    /// user.
    fn of(user: &str) -> io::Result<Self> {
        let found = User::from_name(user)?.ok_or_else(|| io::Error::other(format!("there is no user {user:?}")))?;
        if let Some(whose) = powerful(found.uid, found.gid, geteuid(), getegid()) {
            return Err(io::Error::other(format!(
                "user {user:?} may not run check programs, because it is {whose}; give another user"
            )));
        }
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
        let needed = [Capability::CAP_KILL, Capability::CAP_SETGID, Capability::CAP_SETUID];
        let missing: Vec<String> =
            needed.into_iter().filter(|&needed| !has(needed)).map(|missing| missing.to_string()).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(io::Error::other(format!(
                "cannot run a program as user {user:?} without {missing} (for the packaged unit: contrib/systemd/exec-checks.conf)"
            )));
        }
        Ok(Self::from(&found))
    }

    /// Makes the calling process run as this user, without its previous privileges and without any means to gain
    /// privileges.
    fn assume(self) -> io::Result<()> {
        for capability in 0..64 {
            // SAFETY: the call takes only numbers, and the kernel refuses capabilities that are unknown or that this
            // process may not drop.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        if self.sheds_groups {
            setgroups(&[])?;
            setresgid(self.gid, self.gid, self.gid)?;
        }
        if self.uid != geteuid() {
            setresuid(self.uid, self.uid, self.uid)?;
        }
        let refused = |_| io::Error::from(Errno::EPERM);
        for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Permitted] {
            caps::clear(None, set).map_err(refused)?;
        }
        // Even if this process cannot reduce the bounding set, this setting prevents the program from gaining
        // capabilities from files or from root.
        Ok(prctl::set_no_new_privs()?)
    }
}

impl From<&User> for ProgramUser {
    fn from(user: &User) -> Self {
        let sheds_groups = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETGID).unwrap_or(false);
        Self { uid: user.uid, gid: user.gid, sheds_groups }
    }
}

/// Returns a name for the account if the user or the group could change the balancer or read the balancer's files.
/// `own_user` and `own_group` are the balancer's user and group.
fn powerful(user: Uid, group: Gid, own_user: Uid, own_group: Gid) -> Option<&'static str> {
    match () {
        () if user.is_root() => Some("root"),
        () if user == own_user => Some("the balancer's own user"),
        () if group.as_raw() == 0 => Some("a user of the group root"),
        () if group == own_group => Some("a user of the balancer's own group"),
        () => None,
    }
}

fn judge(status: ExitStatus, line: &str) -> CheckOutcome {
    let what = match (status.code(), status.signal()) {
        (Some(0), _) => return CheckOutcome::Passed,
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    };
    CheckOutcome::Soft(if line.is_empty() { what } else { format!("{what}: {line}") })
}

/// The first line of the program's output, up to the length that reports quote.
#[derive(Default)]
struct FirstLine {
    bytes: Vec<u8>,
    ended: bool,
}

impl FirstLine {
    /// The maximum number of bytes that [`TOLD`] characters take.
    const BYTES: usize = 4 * TOLD;

    fn take(&mut self, written: &[u8]) {
        if self.ended {
            return;
        }
        let end = written.iter().position(|&byte| byte == b'\n');
        let room = Self::BYTES - self.bytes.len();
        let of_line = &written[..end.unwrap_or(written.len())];
        self.bytes.extend_from_slice(&of_line[..of_line.len().min(room)]);
        self.ended = end.is_some() || self.bytes.len() == Self::BYTES;
    }

    fn told(&self) -> String {
        told(&self.bytes)
    }
}

/// A process group. Dropping the value kills the group even if its leader has ended: the kernel assigns process ids in
/// sequence, so no other process can have this id yet.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        Self(leader.and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that no process is left in the group.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_user_could_change_the_balancer_or_read_its_secrets_then_no_program_runs_as_him() {
        for (user, group, whose) in [
            (0, 0, Some("root")),
            (0, 1000, Some("root")),
            (997, 997, Some("the balancer's own user")),
            (1000, 0, Some("a user of the group root")),
            (1000, 996, Some("a user of the balancer's own group")),
            (1000, 1000, None),
            (65534, 65534, None),
        ] {
            let powerful = powerful(user.into(), group.into(), 997.into(), 996.into());
            assert_eq!(powerful, whose, "{user}:{group}");
        }
    }
}
