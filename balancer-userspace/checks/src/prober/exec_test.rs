//! Tests of `exec` checks, with programs that succeed, that fail, and that do not end.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use balancer_config::{config::ExecCheck, names::BackendName};
use balancer_control::io::CheckOutcome;
use nix::unistd::{User, geteuid};
use tokio::time::Instant;

use super::exec::{Program, ProgramUser};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

/// Returns a user other than the current user, if possible.
fn user() -> User {
    if geteuid().is_root() { User::from_name("nobody") } else { User::from_uid(geteuid()) }.unwrap().unwrap()
}

async fn run(command: &[&str], timeout: Duration) -> CheckOutcome {
    run_as(&user(), command, timeout).await
}

/// Runs a program without checking whether `exec` checks allow the user, because a test may be unable to change its
/// user.
async fn run_as(user: &User, command: &[&str], timeout: Duration) -> CheckOutcome {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    let exec = ExecCheck { port: None, command, user: user.name.clone() };
    let name = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
    let program = Program::run_as(ProgramUser::from(user), &name, "[2001:db8::9]:8080".parse().unwrap(), &exec);
    program.run(Instant::now() + timeout, timeout).await.unwrap()
}

async fn sh(script: &str, timeout: Duration) -> CheckOutcome {
    run(&["sh", "-c", script], timeout).await
}

fn soft(reason: &str) -> CheckOutcome {
    CheckOutcome::Soft(reason.to_owned())
}

#[tokio::test]
async fn when_a_program_ends_then_its_exit_code_decides_and_its_first_line_is_the_reason() {
    assert_eq!(run(&["true"], LONG).await, CheckOutcome::Passed);
    assert_eq!(run(&["false"], LONG).await, soft("exit code 1"));
    assert_eq!(sh("echo fine; exit 0", LONG).await, CheckOutcome::Passed);
    assert_eq!(sh("echo ' no disk '; echo more; exit 2", LONG).await, soft("exit code 2: no disk"));
    assert_eq!(sh("echo broken >&2; exit 255", LONG).await, soft("exit code 255: broken"));
    assert_eq!(sh("printf 'a\\tb'; exit 3", LONG).await, soft("exit code 3: a\u{fffd}b"));
    assert_eq!(sh("kill -SEGV $$", LONG).await, soft("killed by SIGSEGV"));
}

#[tokio::test]
async fn when_arguments_look_like_shell_words_then_they_are_passed_as_they_are() {
    assert_eq!(run(&["sh", "-c", "echo \"$1\"; exit 1", "sh", "$HOME; *"], LONG).await, soft("exit code 1: $HOME; *"));
}

#[tokio::test]
async fn when_a_program_runs_then_its_environment_names_the_backend_and_nothing_else() {
    let said = "test -n \"$PATH\" || exit 9; echo $BALANCER_SERVICE $BALANCER_BACKEND $BALANCER_ADDRESS $BALANCER_PORT; exit 1";
    assert_eq!(sh(said, LONG).await, soft("exit code 1: web web1 2001:db8::9 8080"));
    let CheckOutcome::Soft(all) = run(&["sh", "-c", "env | cut -d= -f1 | sort | tr '\\n' ' '; exit 1"], LONG).await
    else {
        panic!("it passed")
    };
    let names: Vec<&str> = all.trim_start_matches("exit code 1: ").split(' ').collect();
    // Shells set these variables in their own environment.
    let names: Vec<&str> = names.into_iter().filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name)).collect();
    assert_eq!(names, ["BALANCER_ADDRESS", "BALANCER_BACKEND", "BALANCER_PORT", "BALANCER_SERVICE", "PATH"]);
}

#[tokio::test]
async fn when_output_never_ends_then_it_is_cut() {
    let CheckOutcome::Soft(reason) = sh("head -c 1000000 /dev/zero | tr '\\0' é; exit 1", LONG).await else {
        panic!("it passed")
    };
    assert_eq!(reason.chars().count(), "exit code 1: ".len() + 200);
    assert_eq!(sh("yes", SHORT).await, CheckOutcome::Late("exec: timeout after 300ms".to_owned()));
}

/// Runs a script, and returns the first line that the script prints.
async fn said(script: &str) -> String {
    let CheckOutcome::Soft(said) = sh(&format!("{script}; exit 1"), LONG).await else { panic!("it passed") };
    said.trim_start_matches("exit code 1: ").to_owned()
}

#[tokio::test]
async fn when_a_program_runs_then_it_has_its_user_without_groups_and_capabilities() {
    let User { uid, gid, .. } = user();
    assert_eq!(said("echo $(grep ^Uid: /proc/self/status)").await, format!("Uid: {uid} {uid} {uid} {uid}"));
    assert_eq!(said("echo $(grep ^Gid: /proc/self/status)").await, format!("Gid: {gid} {gid} {gid} {gid}"));
    assert_eq!(said("echo $(grep ^NoNewPrivs: /proc/self/status)").await, "NoNewPrivs: 1");
    let sets = if geteuid().is_root() { "InhPrmEffBndAmb" } else { "InhPrmEffAmb" };
    let none: Vec<&str> = vec!["0000000000000000"; sets.len() / 3];
    let script = format!("echo $(grep '^Cap[{sets}]*:' /proc/self/status | cut -f2)");
    assert_eq!(said(&script).await.split(' ').collect::<Vec<_>>(), none);
    if geteuid().is_root() {
        assert_eq!(said("echo $(grep ^Groups: /proc/self/status)").await, "Groups:");
    }
}

/// The case matters for a balancer that runs as root, because a program started by root would regain all capabilities.
#[tokio::test]
async fn when_the_user_is_root_then_the_program_has_no_capabilities_either() {
    let user = User::from_uid(geteuid()).unwrap().unwrap();
    assert_eq!(
        run_as(&user, &["sh", "-c", "grep -q '^CapEff:.0*$' /proc/self/status"], LONG).await,
        CheckOutcome::Passed
    );
}

#[tokio::test]
async fn when_a_user_could_change_the_balancer_then_no_program_runs_as_it() {
    let own = User::from_uid(geteuid()).unwrap().unwrap().name;
    for user in ["root", &own] {
        let exec = ExecCheck { port: None, command: vec!["true".to_owned()], user: user.to_owned() };
        let name = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
        let refused = Program::new(&name, "192.0.2.1:80".parse().unwrap(), &exec).await.err().unwrap().to_string();
        assert!(refused.contains("may not run check programs, because it is "), "{user}: {refused}");
    }
}

fn is_there(pid: &str) -> bool {
    // A zombie that waits for its parent counts as ended.
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    status.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

async fn gone(pids: &str) {
    let all: Vec<&str> = pids.split_whitespace().collect();
    assert_eq!(all.len(), 2, "{pids}");
    tokio::time::timeout(LONG, async {
        while all.iter().any(|pid| is_there(pid)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("they go on");
}

#[tokio::test]
async fn when_a_program_ends_then_its_descendants_end_with_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let file = directory.path().join("pids");
    let started = |then: &str| format!("sleep 600 & echo $$ $! > {}; {then}", file.display());
    assert_eq!(sh(&started("wait"), SHORT).await, CheckOutcome::Late("exec: timeout after 300ms".to_owned()));
    gone(&fs::read_to_string(&file).unwrap()).await;
    assert_eq!(sh(&started("exit 1"), LONG).await, soft("exit code 1"));
    gone(&fs::read_to_string(&file).unwrap()).await;

    // The test cancels the next check while it runs.
    fs::remove_file(&file).unwrap();
    let script = started("wait");
    let check = tokio::spawn(async move { sh(&script, LONG).await });
    tokio::time::timeout(LONG, async {
        while !fs::read_to_string(&file).is_ok_and(|pids| pids.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it starts");
    check.abort();
    gone(&fs::read_to_string(&file).unwrap()).await;
}
