//! Tests of `balancer demo --fleet` and `--standby`. No client loses its session when the printed commands stop
//! programs of the lab. The lab names missing requirements, and leaves nothing behind at its end.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use balancer_testkit::binaries;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use super::{finish, left_by, mute_balancer, program, spawn};

const CLIENTS: u64 = 60;

/// The time limit for the effect of a command.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running lab that prints JSON.
struct Lab {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    commands: Vec<(String, String)>,
}

impl Lab {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(binaries::balancer().unwrap());
        command.arg("demo").args(arguments).args(["--json", "--clients", &CLIENTS.to_string()]);
        // A user of the lab may have set `BALANCER_SOCKET`, which the lab must ignore.
        command.env("BALANCER_SOCKET", "/nowhere/balancer.sock");
        let mut child = spawn(&mut command);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let Some(first) = lines.next() else {
            let output = child.wait_with_output().unwrap();
            panic!("{}", String::from_utf8_lossy(&output.stderr))
        };
        let first: Value = serde_json::from_str(&first.unwrap()).unwrap();
        let word = |of: &Value, key: &str| of[key].as_str().unwrap().to_owned();
        let commands = first["commands"].as_array().unwrap();
        let commands = commands.iter().map(|command| (word(command, "what"), word(command, "command"))).collect();
        Self { child, lines, commands }
    }

    /// Runs the command `what` that follows the command `after` in the lab's output, like a user who copies the
    /// command.
    fn run(&self, after: &str, what: &str) {
        let commands = self.commands.iter().skip_while(|(name, _)| name != after);
        let (_, command) = commands.clone().find(|(name, _)| name == what).unwrap();
        let (_, first) = &self.commands[0];
        let shell = Command::new("sh")
            .arg("-c")
            .arg(format!("{first}\n{command}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(shell.success(), "{what}: {command}");
    }

    fn view(&mut self) -> Value {
        let line = self.lines.next().unwrap_or_else(|| panic!("it has ended: {:?}", self.child.wait()));
        serde_json::from_str(&line.unwrap()).unwrap()
    }

    /// Waits for the first report of the lab that `expected` accepts, and returns that report.
    #[track_caller]
    fn wait(&mut self, what: &str, expected: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.view();
            if expected(&view) {
                return view;
            }
            assert!(Instant::now() < deadline, "{what}: {view:#}");
        }
    }

    /// Ends the lab, and checks that no files, namespaces or processes of the lab remain.
    fn end(self) {
        let pid = self.child.id();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
        let output = finish(self.child);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(running_for(pid), Vec::<String>::new());
    }
}

/// Returns the command lines of processes that use files or namespaces of the lab with the given process ID.
fn running_for(pid: u32) -> Vec<String> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let lines = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines
        .filter(|line| [format!("balancer-demo-{pid}"), format!("bal-{pid}-")].iter().any(|of| line.contains(of)))
        .collect()
}

fn named<'a>(view: &'a Value, list: &str, name: &str) -> &'a Value {
    view[list].as_array().unwrap().iter().find(|item| item["name"] == name).unwrap_or(&Value::Null)
}

fn is_well(view: &Value, member: &str) -> bool {
    let member = named(view, "members", member);
    member["state"] == "ready" && member["known_clients"] == CLIENTS && member["epoch"] == view["epoch"]
}

fn in_use(view: &Value) -> Vec<&str> {
    let members = view["members"].as_array().unwrap().iter();
    members.filter(|member| member["in_use"] == true).map(|member| member["name"].as_str().unwrap()).collect()
}

/// Returns whether the last failed request is older than the longest time that a request may take.
fn is_calm(view: &Value) -> bool {
    view["seconds_since_failure"].as_f64().is_none_or(|seconds| seconds > 6.0)
}

fn state(view: &Value, backend: &str) -> String {
    named(view, "backends", backend)["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn when_parts_of_a_fleet_behind_a_router_fail_then_no_client_loses_its_session() {
    let mut lab = Lab::start(&["--fleet", "3"]);
    let all = |view: &Value| ["lb1", "lb2", "lb3"].iter().all(|member| is_well(view, member));
    let begun = lab.wait("not all have all clients", |view| all(view) && view["clients"] == CLIENTS);
    assert_eq!(in_use(&begun), ["lb1", "lb2", "lb3"]);
    assert!(begun["leader"].is_string() && begun["failed"] == 0, "{begun:#}");

    lab.run("first", "kill a balancer");
    let survived = lab.wait("the router does not turn away", |view| in_use(view) == ["lb2", "lb3"] && is_calm(view));
    assert_eq!(named(&survived, "members", "lb1")["state"], "gone");
    lab.run("first", "drain a backend");
    lab.wait("web2 is not drained", |view| state(view, "web2") == "draining");
    lab.run("kill a balancer", "start it again");
    lab.wait("lb1 does not come back", |view| all(view) && in_use(view).len() == 3);
    lab.run("first", "take it out");
    lab.wait("lb1 is not withdrawn", |view| in_use(view) == ["lb2", "lb3"]);
    lab.run("first", "take it in");
    lab.run("first", "kill an etcd");
    lab.wait("etcd1 lives", |view| view["etcd"]["etcd1"] == false);
    lab.run("first", "and take it back");
    lab.run("kill an etcd", "start it again");
    lab.run("first", "start one more");
    lab.run("first", "and put it to use");
    let after = lab.wait("they are not in step", |view| {
        let backends = ["web1", "web2", "web3", "web4", "web5"].iter().all(|backend| state(view, backend) == "up");
        backends && all(view) && in_use(view).len() == 3 && view["etcd"]["etcd1"] == true
    });
    assert_eq!(after["failed"], survived["failed"], "{after:#}");
    assert_eq!((&after["moved"], &after["sessions_lost"]), (&0.into(), &0.into()), "{after:#}");
    assert!(after["answered"].as_u64().unwrap() > survived["answered"].as_u64().unwrap());

    // If a backend fails, only the backend's own clients lose their sessions, each of them once.
    let own = named(&after, "backends", "web1")["clients"].clone();
    lab.run("first", "kill a backend");
    lab.wait("web1 is not down", |view| state(view, "web1") == "down");
    lab.run("kill a backend", "start it again");
    let last = lab.wait("web1 is not back", |view| state(view, "web1") == "up" && is_calm(view));
    assert!(own != 0 && last["moved"] == own && named(&last, "backends", "web1")["moved_out"] == own, "{last:#}");
    lab.end();
}

#[test]
fn when_parts_of_a_standby_pair_fail_then_no_client_loses_its_session() {
    let mut lab = Lab::start(&["--standby"]);
    let both = |view: &Value| ["lb1", "lb2"].iter().all(|member| is_well(view, member));
    let begun = lab.wait("not both know all clients", |view| both(view) && view["clients"] == CLIENTS);
    assert_eq!((in_use(&begun), &begun["failed"]), (vec!["lb1"], &0.into()), "{begun:#}");
    lab.run("first", "drain a backend");
    lab.wait("web2 is not drained", |view| state(view, "web2") == "draining");
    lab.run("first", "kill a balancer");
    let survived = lab.wait("lb2 does not take over", |view| in_use(view) == ["lb2"] && is_calm(view));
    lab.run("kill a balancer", "start it again");
    lab.wait("lb1 does not come back", both);
    lab.run("first", "and take it back");
    let last = lab.wait("web2 does not come back", |view| state(view, "web2") == "up");
    assert_eq!(in_use(&last), ["lb2"]);
    assert_eq!(last["failed"], survived["failed"], "{last:#}");
    assert_eq!((&last["moved"], &last["sessions_lost"]), (&0.into(), &0.into()), "{last:#}");
    lab.end();
}

#[test]
fn when_a_package_is_missing_then_the_lab_names_it() {
    let programs = TempDir::new().unwrap();
    let ip = ["/usr/sbin/ip", "/usr/bin/ip", "/sbin/ip"].iter().map(PathBuf::from).find(|path| path.exists()).unwrap();
    symlink(ip, programs.path().join("ip")).unwrap();
    for (arguments, said) in [
        (
            &["--fleet", "2"][..],
            "the lab needs etcd and bird: apt-get install --no-install-recommends etcd-server bird2\n",
        ),
        (
            &["--standby"],
            "the lab needs etcd and keepalived: apt-get install --no-install-recommends etcd-server keepalived\n",
        ),
    ] {
        let mut command = Command::new(binaries::balancer().unwrap());
        let output = finish(spawn(command.arg("demo").args(arguments).env("PATH", programs.path())));
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.ends_with(said) && error.lines().count() == 1, "{error}");
        assert_eq!(output.stdout, b"");
    }
}

#[test]
fn when_the_start_fails_then_the_lab_says_why_and_leaves_nothing() {
    let programs = TempDir::new().unwrap();
    let broken = program(&programs, "echo no such luck\nexit 1\n");
    let mut command = Command::new(binaries::balancer().unwrap());
    let child = spawn(command.args(["demo", "--fleet", "2", "--balancer"]).arg(broken));
    let pid = child.id();
    let output = finish(child);
    assert_eq!((output.status.code(), running_for(pid)), (Some(1), Vec::new()));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the balancer has ended (exit status: 1)") && error.contains("no such luck"), "{error}");
}

#[test]
fn when_the_start_is_interrupted_then_the_lab_ends() {
    let programs = TempDir::new().unwrap();
    let mut command = Command::new(binaries::balancer().unwrap());
    let child = spawn(command.args(["demo", "--standby", "--balancer"]).arg(mute_balancer(&programs)));
    let pid = child.id();
    let log = PathBuf::from(format!("/run/balancer-demo-{pid}/lb2/balancer.log"));
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log).is_ok_and(|log| !log.is_empty()) {
        assert!(Instant::now() < deadline, "{:?}", left_by(pid));
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    let output = finish(child);
    assert!(output.status.success() && running_for(pid).is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
