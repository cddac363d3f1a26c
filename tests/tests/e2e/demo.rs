//! Tests of `balancer demo`: the output of the tour, obstacles to a start, and the complete removal of files and
//! namespaces.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod release;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use balancer_testkit::binaries;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Starts a demo that runs another balancer program.
fn of(balancer: &Path) -> Child {
    spawn(Command::new(binaries::balancer().unwrap()).arg("demo").arg("--balancer").arg(balancer))
}

fn spawn(demo: &mut Command) -> Child {
    demo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the demo ends, and checks that no files or namespaces of the demo remain.
fn finish(demo: Child) -> Output {
    let pid = demo.id();
    let output = demo.wait_with_output().unwrap();
    assert_eq!(left_by(pid), Vec::<PathBuf>::new());
    output
}

fn files_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/run/balancer-demo-{pid}"))
}

/// Returns the files and namespaces that belong to the demo with the given process ID.
fn left_by(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("bal-{pid}-");
    let names = fs::read_dir("/run/netns").into_iter().flatten().map(|entry| entry.unwrap().path());
    let names = names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix));
    let files = [files_of(pid), PathBuf::from(format!("/var/tmp/balancer-demo-{pid}"))];
    names.chain(files.into_iter().filter(|files| files.exists())).collect()
}

/// Creates a program that runs forever and reports no status.
fn mute_balancer(directory: &TempDir) -> PathBuf {
    program(directory, "[ \"$1\" = run ] || exit 3\necho started\nexec sleep 1000\n")
}

fn program(directory: &TempDir, script: &str) -> PathBuf {
    let path = directory.path().join("balancer");
    fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Waits until the demo has started its balancer.
fn wait_started(demo: &Child) {
    let log = files_of(demo.id()).join("balancer.log");
    while !fs::read_to_string(&log).is_ok_and(|log| !log.is_empty()) {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(left_by(demo.id()).len(), 8, "client, balancer, switch, four servers, files");
}

#[test]
fn when_the_balancer_ends_then_the_demo_reports_its_last_words() {
    let programs = TempDir::new().unwrap();
    let output = finish(of(&program(&programs, "echo no such luck\nexit 1\n")));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the balancer has ended (exit status: 1)") && error.contains("no such luck"), "{error}");
}

#[test]
fn when_the_balancer_does_not_exist_then_the_demo_says_so() {
    let output = finish(of(Path::new("/nowhere/balancer")));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("cannot start balancer (/nowhere/balancer)"), "{error}");
}

#[test]
fn when_a_signal_ends_the_demo_then_it_cleans_up() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let programs = TempDir::new().unwrap();
        let demo = of(&mute_balancer(&programs));
        wait_started(&demo);
        kill(Pid::from_raw(demo.id().cast_signed()), signal).unwrap();
        let output = finish(demo);
        assert!(output.status.success(), "{signal}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn when_a_demo_was_killed_then_the_next_one_removes_its_remains() {
    let programs = TempDir::new().unwrap();
    let mut first = of(&mute_balancer(&programs));
    wait_started(&first);
    first.kill().unwrap();
    first.wait().unwrap();
    finish(of(Path::new("/nowhere/balancer")));
    assert_eq!(left_by(first.id()), Vec::<PathBuf>::new());
}

#[test]
fn when_a_requirement_is_missing_then_the_demo_names_it() {
    let balancer = binaries::balancer().unwrap();
    let output = finish(spawn(Command::new(&balancer).arg("demo").env("PATH", "/nowhere")));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the program `ip`") && error.contains("iproute2"), "{error}");

    // The copy is in a directory that all users can reach.
    let programs = TempDir::new().unwrap();
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = programs.path().join("balancer");
    fs::copy(balancer, &copy).unwrap();
    let output = finish(spawn(Command::new(copy).arg("demo").uid(65_534).gid(65_534)));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("needs root") && error.contains("sudo balancer demo"), "{error}");
}

/// The numbers in a line of the tour.
#[derive(Debug)]
struct Step {
    moved: u64,
    clients: u64,
    /// The numbers in the line between the number of clients and the number of `ip_hash`.
    details: Vec<u64>,
    ip_hash: u64,
}

/// Parses the line `SENTENCE. Moved: N of CLIENTS…; nginx ip_hash: K ¹` that begins with `sentence`.
fn step(text: &str, sentence: &str) -> Step {
    let line = text.lines().find(|line| line.starts_with(sentence)).unwrap_or_else(|| panic!("{sentence}: {text}"));
    let (_, line) = line.split_once("Moved: ").unwrap();
    let (line, ip_hash) = line.split_once("nginx ip_hash: ").unwrap();
    let numbers = line.replace("web1", "").replace("web2", "");
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
    Step {
        moved: numbers.next().unwrap(),
        clients: numbers.next().unwrap(),
        details: numbers.collect(),
        ip_hash: ip_hash.trim_end_matches(" ¹").parse().unwrap(),
    }
}

fn tour(arguments: &[&str]) -> String {
    let demo = spawn(Command::new(binaries::balancer().unwrap()).arg("demo").args(arguments));
    let output = finish(demo);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{text}");
    text
}

#[test]
fn when_the_tour_kills_a_server_then_only_its_clients_move() {
    let text = tour(&[]);
    for sentence in ["web4 is added", "web2 is drained", "web2 is taken back", "web1 is back"] {
        let Step { moved, ip_hash, .. } = step(&text, sentence);
        assert_eq!(moved, 0, "{sentence}");
        assert!(ip_hash > 0, "{sentence}");
    }
    let drained = step(&text, "web2 is drained");
    assert_eq!(drained.details, [0, 300 - drained.clients], "no newcomer goes to a server that is drained");
    assert!(drained.clients < 300, "some come later");
    let killed = step(&text, "web1 is killed");
    let [own, of, others] = killed.details[..] else { panic!("{killed:?}") };
    assert_eq!((killed.moved, killed.clients, own, others), (of, 300, of, 0), "{killed:?}");
    assert!(own > 0 && killed.ip_hash > 0, "{killed:?}");
    assert!(text.contains("computed"), "it says where nginx's numbers come from");
}

#[test]
fn when_the_tour_runs_without_memory_then_the_table_decides() {
    let text = tour(&["--once", "--forwarding", "dsr", "--remember", "0s", "--clients", "60"]);
    assert!(step(&text, "web4 is added").moved > 0, "{text}");
    let drained = step(&text, "web2 is drained");
    assert!(drained.moved > 0, "{drained:?}");
}
