//! Tests the permissions of the control sockets with three kinds of real users: users who may make changes, users who
//! may only read, and all other users.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    site::Site,
    topology::{Family, Shape},
};

use crate::support::wait;

/// Group numbers to which no existing user belongs.
const CHANGERS: u32 = 47_110;
const READERS: u32 = 47_111;
const STRANGERS: u32 = 47_112;

/// Copies the balancer to a directory from which every user can start the copy.
fn program(site: &Site) -> PathBuf {
    let program = site.files().join("balancer-of-users");
    fs::copy(binaries::balancer().unwrap(), &program).unwrap();
    for path in [site.files(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    program
}

/// Runs a command as a user whose only additional group is `group`.
fn as_member(group: u32, program: &Path, site: &Site, words: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", &format!("--groups={group}")]).arg(program);
    command.arg("--socket").arg(site.files().join("balancer.sock"));
    command.args(words.split(' ')).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Writes the site's configuration file with additional lines in `[control]`, and returns the path of the new file.
fn control(site: &Site, original: &str, lines: &str) -> String {
    let text = original.replace("[control]\n", &format!("[control]\n{lines}"));
    fs::write(site.config(), &text).unwrap();
    site.config().display().to_string()
}

#[test]
fn when_a_user_is_of_a_group_then_he_changes_or_reads_or_is_kept_out() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap();
    let program = program(&site);
    let original = fs::read_to_string(site.config()).unwrap();
    let readers_socket = site.files().join("balancer-readers.sock");
    let client = site.topology().client_address(Family::V4, 1).to_string();
    let client_where = format!("client where {client}");
    let reads = ["status", "stats", "events", "health show", "rule list", "plan backend drain web/web1", &client_where];
    let changes = ["backend weight web/web1 50", "backend drain web/web1", "health force web/web1 down"];

    // The running balancer creates the socket for readers when the configuration file names a group of readers.
    assert!(!readers_socket.exists());
    let groups = format!("group = \"{CHANGERS}\"\nreaders = \"{READERS}\"\n");
    let path = control(&site, &original, &groups);
    let answer = site.cli(&["apply", &path]).unwrap();
    assert!(answer.contains("control.group, control.readers changed"), "{answer}");
    for restarted in [false, true] {
        if restarted {
            site.kill_and_restart_with_the_file_as_it_is().unwrap();
        }
        wait("there is no socket for readers", || readers_socket.exists());
        let of = |path: &Path| fs::metadata(path).map(|file| (file.gid(), file.permissions().mode() & 0o777)).unwrap();
        assert_eq!(of(&readers_socket), (READERS, 0o660));
        assert_eq!(of(&site.files().join("balancer.sock")), (CHANGERS, 0o660));
        for words in reads {
            for (group, code) in [(CHANGERS, 0), (READERS, 0), (STRANGERS, 3)] {
                let output = as_member(group, &program, &site, words);
                assert_eq!(output.status.code(), Some(code), "{group} {words}: {}", error(&output));
            }
        }
        let before = site.status().unwrap();
        for words in changes {
            let refused = as_member(READERS, &program, &site, words);
            let why = error(&refused);
            assert_eq!(refused.status.code(), Some(1), "{words}: {why}");
            assert!(why.contains(&format!("only reads: ask as root or as a member of the group {CHANGERS}")), "{why}");
            assert_eq!(as_member(STRANGERS, &program, &site, words).status.code(), Some(3));
        }
        let why = error(&as_member(READERS, &program, &site, &format!("apply {}", site.config().display())));
        assert!(why.contains("only reads"), "{why}");
        assert_eq!(site.status().unwrap().generation, before.generation, "a reader has changed something");
        let changed = as_member(CHANGERS, &program, &site, "backend weight web/web1 50");
        assert!(changed.status.success(), "{}", error(&changed));
        site.cli(&["backend", "weight", "web/web1", "100"]).unwrap();
    }

    // A member of the group must not be able to give other users access.
    let other = site.files().join("other.toml");
    fs::write(&other, original.replace("[control]\n", &format!("[control]\nreaders = \"{STRANGERS}\"\n"))).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = as_member(CHANGERS, &program, &site, &format!("apply {}", other.display()));
    let why = error(&refused);
    assert!(!refused.status.success() && why.contains("[control] is another one, which comes only from"), "{why}");
    assert!(why.contains("--reread"), "{why}");

    // The test applies three files: the first with another group of readers, the second with a missing group, and the
    // third without groups.
    site.cli(&["apply", &control(&site, &original, &groups.replace(&READERS.to_string(), &STRANGERS.to_string()))])
        .unwrap();
    assert_eq!(as_member(READERS, &program, &site, "status").status.code(), Some(3));
    assert_eq!(as_member(STRANGERS, &program, &site, "status").status.code(), Some(0));
    let path = control(&site, &original, &groups.replace(&READERS.to_string(), "no-such-group"));
    let why = site.cli(&["apply", &path]).unwrap_err().to_string();
    assert!(why.contains("there is no group \"no-such-group\" for the socket for readers; make it (groupadd"), "{why}");
    assert_eq!(as_member(STRANGERS, &program, &site, "status").status.code(), Some(0));
    site.cli(&["apply", &control(&site, &original, "")]).unwrap();
    wait("the socket for readers stays", || !readers_socket.exists());
    assert_eq!(as_member(STRANGERS, &program, &site, "status").status.code(), Some(3));
}
