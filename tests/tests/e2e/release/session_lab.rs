//! Tests of the session lab: some rows of the lab's table with real servers, and messages about missing programs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use balancer_lab::{cell::Cell, event::Event, strategy::Strategy};
use balancer_testkit::binaries;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::support::wait;

/// The number of clients with separate addresses, and the number of clients behind one address.
const CLIENTS: [u64; 2] = [150, 100];

fn lab(output: &Path, strategy: &str, events: &str) -> Command {
    let mut command = Command::new(binaries::lab().unwrap());
    command.arg("--balancer").arg(binaries::balancer().unwrap());
    command.args(["--strategy", strategy, "--front", "sticky", "--event", events, "--json", "--pause", "500"]);
    command.args(["--clients", &CLIENTS[0].to_string(), "--output"]).arg(output).stdin(Stdio::null());
    command
}

/// Runs the lab until it ends, and checks that no namespace and no file of the lab remains.
fn finish(command: &mut Command, temporary: &TempDir) -> Output {
    let child = command.env("TMPDIR", temporary.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    end(child, temporary)
}

/// Waits until a running lab ends, and checks that no namespace and no file of the lab remains.
fn end(child: Child, temporary: &TempDir) -> Output {
    let prefix = format!("bal-{}-", child.id());
    let output = child.wait_with_output().unwrap();
    let names = fs::read_dir("/run/netns").into_iter().flatten().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_str().unwrap().starts_with(&prefix)).collect();
    assert!(left.is_empty(), "{left:?}");
    let files: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
    assert!(files.is_empty(), "{files:?}");
    output
}

fn play(strategy: &str) -> Vec<Cell> {
    let (output, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let done = finish(&mut lab(output.path(), strategy, "nothing,add,drain,kill,restart"), &temporary);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let cells: Vec<Cell> = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(cells.len(), 5);
    for cell in &cells {
        assert_eq!([cell.own.total, cell.nat.total], CLIENTS, "{cell:?}");
        assert_eq!(cell.moves_agree(), Some(true), "{cell:?}");
        assert!(cell.requests > cell.failed, "{cell:?}");
    }
    cells
}

#[test]
fn when_sessions_are_in_a_servers_memory_then_only_that_servers_sessions_are_lost() {
    for cell in play("node-memory") {
        assert_eq!(cell.row.strategy, Strategy::NodeMemory);
        let (all, elsewhere) = (cell.sessions(), cell.elsewhere);
        assert_eq!(elsewhere.survived, elsewhere.total, "{cell:?}");
        if cell.event == Event::Kill {
            assert!(elsewhere.total < all.total, "nobody was at the server that was killed");
            assert_eq!(all.survived, elsewhere.survived, "{cell:?}");
            assert!(cell.moved_seen > 0, "{cell:?}");
        } else {
            assert_eq!((all.survived, cell.moved_seen), (all.total, 0), "{cell:?}");
        }
    }
}

/// Checks that no session is lost, not even a session on a killed server, whose clients move.
fn nothing_is_lost(strategy: &str) {
    for cell in play(strategy) {
        let all = cell.sessions();
        assert_eq!(all.survived, all.total, "{cell:?}");
        assert_eq!(cell.moved_seen > 0, cell.event == Event::Kill, "{cell:?}");
    }
}

#[test]
fn when_sessions_are_in_a_shared_store_then_none_is_lost() {
    nothing_is_lost("node-redis");
}

#[test]
fn when_sessions_are_in_cookies_then_none_is_lost() {
    nothing_is_lost("node-cookie");
}

#[test]
fn when_the_lab_is_interrupted_then_it_leaves_nothing_and_goes_on_later() {
    let (output, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = output.path().join("cells/node-cookie.nothing.json");
    let mut command = lab(output.path(), "node-cookie", "nothing,weight");
    let child = command.env("TMPDIR", temporary.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait("the first result is not there", || first.exists());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let ended = end(child, &temporary);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && said.contains("interrupted"), "{said}");

    let played = fs::metadata(&first).unwrap().modified().unwrap();
    let again = finish(&mut lab(output.path(), "node-cookie", "nothing,weight"), &temporary);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(serde_json::from_slice::<Vec<Cell>>(&again.stdout).unwrap().len(), 2);
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), played, "it was played again");
    assert!(fs::read_to_string(output.path().join("index.html")).unwrap().contains("signed cookie"));
}

/// Creates a directory for `PATH` with the given programs and the programs that the lab itself needs.
fn path_with(directory: &Path, programs: &[(&str, &str)]) -> PathBuf {
    let path = directory.join("bin");
    fs::create_dir(&path).unwrap();
    for tool in ["ip", "sh"] {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|at| Path::new(at).join(tool));
        symlink(found.iter().find(|file| file.exists()).unwrap(), path.join(tool)).unwrap();
    }
    for (name, script) in programs {
        let program = path.join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    path
}

fn complaint(strategy: &str, programs: &[(&str, &str)]) -> String {
    let (output, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = path_with(output.path(), programs);
    let done = finish(lab(&output.path().join("results"), strategy, "nothing").env("PATH", path), &temporary);
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn when_a_part_is_missing_then_the_lab_names_it_and_how_to_get_it() {
    let said = complaint("node-redis", &[("node", "exit 1")]);
    assert_eq!(
        said,
        "balancer-lab: redis-server is missing: `cargo xtask lab sessions` installs it, or `apt-get install redis-server`\n"
    );
}

#[test]
fn when_a_server_does_not_start_then_the_lab_ends() {
    let said = complaint("node-memory", &[("node", "echo listen EADDRINUSE: port 80 is taken >&2; exit 3")]);
    assert!(said.contains("web1-node does not run (exit status: 3)"), "{said}");
    assert!(said.contains("EADDRINUSE: port 80 is taken"), "{said}");
}
