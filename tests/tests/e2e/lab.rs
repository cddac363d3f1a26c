//! The lab, when something is in its way: it says what, and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Starts the lab with another program in the balancer's place, and with its files in `files`.
fn start(balancer: &Path, files: &TempDir) -> Child {
    spawn(Command::new(env!("CARGO_BIN_EXE_lab")).env("BALANCER_BINARY", balancer), files)
}

fn spawn(lab: &mut Command, files: &TempDir) -> Child {
    lab.env("TMPDIR", files.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the lab's end and checks that nothing of it is left.
fn finish(lab: Child, files: &TempDir) -> Output {
    let prefix = namespaces_of(&lab);
    let output = lab.wait_with_output().unwrap();
    assert_eq!(namespaces(&prefix), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(files.path()).unwrap().count(), 0, "temporary files");
    assert!(!Path::new("/run/balancer/balancer.sock").exists());
    output
}

fn namespaces_of(lab: &Child) -> String {
    format!("bal-{}-", lab.id())
}

fn namespaces(prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect()
}

/// A program that runs for ever and never has a status.
fn mute_balancer(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("balancer");
    fs::write(&path, "#!/bin/sh\n[ \"$1\" = run ] || exit 3\necho started\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_balancer_that_ends_is_reported_with_its_last_words() {
    let (programs, files) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let balancer = mute_balancer(&programs);
    fs::write(&balancer, "#!/bin/sh\necho no such luck\nexit 1\n").unwrap();
    let output = finish(start(&balancer, &files), &files);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the balancer has ended (exit status: 1)") && error.contains("no such luck"), "{error}");
}

#[test]
fn a_balancer_that_is_not_there_is_reported() {
    let files = TempDir::new().unwrap();
    let output = finish(start(Path::new("/nowhere/balancer"), &files), &files);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("/nowhere/balancer does not exist"), "{error}");
}

#[test]
fn every_way_to_ask_for_an_end_cleans_up() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (programs, files) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let lab = start(&mute_balancer(&programs), &files);
        while !fs::read_dir(files.path()).unwrap().any(|entry| {
            fs::read_to_string(entry.unwrap().path().join("balancer.log")).is_ok_and(|log| !log.is_empty())
        }) {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(namespaces(&namespaces_of(&lab)).len(), 7, "client, balancer, switch, four backends");
        kill(Pid::from_raw(lab.id().cast_signed()), signal).unwrap();
        let output = finish(lab, &files);
        assert!(output.status.success(), "{signal}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The numbers of a line `SENTENCE Moved: N of CLIENTS[ (of M on SERVER)]; nginx ip_hash: K`.
fn numbers(line: &str) -> Vec<u64> {
    let (_, moved) = line.split_once("Moved: ").unwrap();
    moved.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn the_tour_moves_nobody_but_the_clients_of_a_server_that_is_killed() {
    let files = TempDir::new().unwrap();
    let lab = spawn(Command::new(env!("CARGO_BIN_EXE_lab")).args(["--seconds", "66"]), &files);
    let output = finish(lab, &files);
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, end) = text.rsplit_once("Clients log in").unwrap_or_else(|| panic!("{text}"));
    let line = |sentence: &str| numbers(end.lines().find(|line| line.contains(sentence)).unwrap());
    for sentence in ["web4 is added", "web2 is drained", "web2 is taken back", "web1 is back"] {
        assert_eq!(line(sentence)[0], 0, "{end}");
    }
    let [moved, clients, there, _on_web, ip_hash] = line("web1 is killed")[..] else { panic!("{end}") };
    assert_eq!((moved, clients), (there, 300), "{end}");
    assert!(there > 0 && ip_hash > 0 && end.contains("The tour is over"), "{end}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
