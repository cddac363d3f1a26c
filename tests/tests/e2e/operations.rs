//! Runs the commands of `docs/src/operations.md` in order, on a site with clients.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    ops::RangeInclusive,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    site::{QUICK_HTTP_CHECK, Settings, Site},
    topology::{Family, Shape, Topology},
};
use tempfile::TempDir;

const FAMILY: Family = Family::V4;
const CLIENTS: RangeInclusive<u16> = 1..=60;

/// A command of the chapter with the expected output, in which `…` stands for any text.
struct Step {
    command: String,
    answer: String,
}

/// Returns the commands in the chapter's console blocks: each command follows `$ `, and the command's output follows
/// the command.
fn steps() -> Vec<Step> {
    let chapter = include_str!("../../../docs/src/operations.md");
    let blocks = chapter.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    let mut steps: Vec<Step> = Vec::new();
    for line in blocks.flat_map(str::lines) {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push(Step { command: command.to_owned(), answer: String::new() }),
            None => steps.last_mut().unwrap().answer += &format!("{line}\n"),
        }
    }
    steps
}

/// Returns whether `text` matches `pattern`, in which `…` stands for any text.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('…') else { return text == pattern };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts = rest.split('…').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return text.ends_with(part);
        }
        let Some(place) = text.find(part) else { return false };
        text = &text[place + part.len()..];
    }
    false
}

#[test]
fn when_a_pattern_has_dots_then_they_match_any_text() {
    for (text, pattern, alike) in [
        ("a\n", "a\n", true),
        ("a\n", "b\n", false),
        ("at 12:00 INFO up\n", "at … INFO up\n", true),
        ("at 12:00 INFO down\n", "at … INFO up\n", false),
        ("a\nb\nc\n", "a\n…c\n", true),
        ("1 of 2, 3\n", "… of …, 3\n", true),
        ("1 of 2, 4\n", "… of …, 3\n", false),
    ] {
        assert_eq!(is_like(text, pattern), alike, "{text:?} {pattern:?}");
    }
}

struct Operator {
    site: Site,
    /// The directory in which the shell finds `balancer`.
    programs: TempDir,
    /// The directory that the shell sees as `/etc`.
    etc: TempDir,
    said: String,
}

impl Operator {
    fn new() -> Self {
        let adapt = |settings: &mut Settings, _: &Topology| {
            settings.backends.pop();
            settings.on_exit = "keep";
            settings.remember = "3h";
            settings.check = QUICK_HTTP_CHECK.to_owned();
            settings.service_lines = r#"drain = { timeout = "5s" }"#.to_owned();
            Ok(())
        };
        let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, adapt).unwrap();
        // The first balancer only assigns the addresses. Later, a command of the operator starts the balancer again.
        site.controller().process().stop().unwrap();
        assert!(site.detach().unwrap().status.success());
        let programs = tempfile::tempdir().unwrap();
        symlink(binaries::balancer().unwrap(), programs.path().join("balancer")).unwrap();
        let etc = tempfile::tempdir().unwrap();
        symlink(site.files(), etc.path().join("balancer")).unwrap();
        Self { site, programs, etc, said: String::new() }
    }

    /// Runs a command of the chapter. For programs other than the balancer, the test simulates the effect of the
    /// command.
    fn types(&mut self, command: &str) {
        println!("$ {command}");
        self.said.clear();
        match command {
            "cargo xtask package"
            | "apt install ./target/debian/balancer_0.1.0-1_amd64.deb"
            | "editor /etc/balancer/balancer.toml"
            | "ssh web1 deploy"
            | "apt remove balancer" => {}
            "apt install ./balancer_0.2.0-1_amd64.deb" => {
                // Like the file of a new version, the next program file has another inode.
                let (next, installed) = (self.programs.path().join("next"), self.programs.path().join("balancer"));
                fs::copy(binaries::balancer().unwrap(), &next).unwrap();
                fs::rename(next, &installed).unwrap();
            }
            "systemctl enable --now balancer" | "systemctl restart balancer" => {
                let program = self.programs.path().join("balancer");
                self.site.restart(|settings| settings.binary = Some(program)).unwrap();
            }
            "systemctl stop balancer" => {
                let status = self.site.controller().process().stop().unwrap();
                assert!(status.success(), "{status}");
            }
            _ => {
                assert!(command.starts_with("balancer "), "say in this test what becomes of `{command}`");
                let child = self.shell(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
                if command.starts_with("balancer backend drain ") {
                    // The test makes the balancer forget the known clients, because the drain would otherwise last for
                    // hours.
                    self.site.wait_state(1, &["draining"]).unwrap();
                    let left = self.shell("balancer client forget --backend web/web1").output().unwrap();
                    assert!(left.status.success(), "{left:?}");
                }
                let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
                assert!(status.success(), "`{command}`: {}", String::from_utf8_lossy(&stderr));
                self.said = String::from_utf8(stdout).unwrap();
                print!("{}", self.said);
            }
        }
    }

    /// Returns an operator's shell that runs one line unchanged.
    fn shell(&self, line: &str) -> Command {
        let mut shell = self.site.topology().balancer().command("unshare");
        shell
            .args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc && exec sh -c \"$1\""])
            .arg(self.etc.path())
            .arg(line);
        shell.env("PATH", path(self.programs.path())).env("BALANCER_SOCKET", self.site.files().join("balancer.sock"));
        shell
    }

    fn homes(&self) -> BTreeMap<u16, String> {
        self.site.homes(FAMILY, CLIENTS).unwrap()
    }
}

fn path(first: &Path) -> String {
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", first.display())
}

/// Checks that the clients of all backends except `gone` have not moved.
#[track_caller]
fn assert_others_stayed(before: &BTreeMap<u16, String>, after: &BTreeMap<u16, String>, gone: &str) {
    let moved: Vec<_> = before.iter().filter(|(client, home)| *home != gone && after[*client] != **home).collect();
    assert!(moved.is_empty(), "moved without need: {moved:?}");
    assert!(after.values().all(|home| home != gone), "{gone} has clients");
}

#[test]
fn when_an_operator_runs_the_chapters_commands_then_output_and_clients_are_as_documented() {
    let mut operator = Operator::new();
    let mut homes = BTreeMap::new();
    let mut wrong = Vec::new();
    for Step { command, answer } in steps() {
        // Some commands of the chapter wait for an event, which the test causes first.
        match command.as_str() {
            "balancer wait web/web2 down --timeout 1m" => operator.site.kill_backend(2).unwrap(),
            "balancer wait web/web2 up --timeout 1m" => operator.site.start_backend(2).unwrap(),
            "balancer status" if homes.is_empty() => {
                operator.site.wait_state(1, &["up"]).unwrap();
                operator.site.wait_state(2, &["up"]).unwrap();
            }
            _ => {}
        }
        operator.types(&command);
        if !is_like(&operator.said, &answer) {
            wrong.push(format!("$ {command}\n{}-- but the chapter says\n{answer}", operator.said));
        }
        // The test checks how some commands affect the clients.
        match command.as_str() {
            "balancer status" if homes.is_empty() => homes = operator.homes(),
            "balancer backend weight web/web3 50" => {
                assert_eq!(operator.homes(), homes, "known clients stay when a server is added");
            }
            "balancer backend drain web/web1 --timeout 10m --wait" => {
                let after = operator.homes();
                assert_others_stayed(&homes, &after, "web1");
                homes = after;
            }
            "balancer wait web/web1 up --timeout 1m" => {
                assert_eq!(operator.homes(), homes, "nobody moves when it comes back");
            }
            "balancer wait web/web2 down --timeout 1m" => {
                let after = operator.homes();
                assert_others_stayed(&homes, &after, "web2");
                homes = after;
            }
            "balancer wait web/web2 up --timeout 1m" => {
                assert_eq!(operator.homes(), homes, "nobody moves when it comes back");
            }
            "balancer wait web/web3 drained --timeout 10m" => {
                let after = operator.homes();
                assert_others_stayed(&homes, &after, "web3");
                homes = after;
            }
            "systemctl restart balancer" => assert_eq!(operator.homes(), homes, "an upgrade is noticed by nobody"),
            "systemctl stop balancer" => {
                assert_eq!(operator.homes(), homes, "the kernel goes on without a controller");
            }
            "balancer detach" => {
                let replies = operator.site.ask(FAMILY, 1..=3, Duration::from_millis(300)).unwrap();
                assert!(replies.iter().all(Result::is_err), "steered after detaching");
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
