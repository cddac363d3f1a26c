//! The commands of `docs/src/operations.md`, in their order, at a site with clients.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path, process::Output, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_tests::{
    binaries,
    site::{Settings, Site},
    topology::{Family, Shape, Topology},
};
use tempfile::TempDir;

const FAMILY: Family = Family::V4;
const CLIENTS: RangeInclusive<u16> = 1..=60;

/// The lines after `$ ` in the console blocks of the chapter.
fn commands() -> Vec<String> {
    let chapter = include_str!("../../docs/src/operations.md");
    let blocks = chapter.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(|line| line.strip_prefix("$ ").unwrap().to_owned()).collect()
}

struct Operator {
    site: Site,
    /// Where the shell finds `balancer`.
    programs: TempDir,
    said: Vec<String>,
}

impl Operator {
    fn new() -> Self {
        let adapt = |settings: &mut Settings, _: &Topology| {
            settings.backends.pop();
            settings.on_exit = "keep";
            settings.remember = "60s";
            settings.check =
                r#"{ type = "http", path = "/healthz", interval = "200ms", timeout = "200ms", fall = 2, rise = 2 }"#
                    .to_owned();
            settings.service_lines = r#"drain = { timeout = "5s" }"#.to_owned();
            Ok(())
        };
        let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, adapt).unwrap();
        // What was needed to know the addresses; the operator starts it.
        site.controller().process().stop().unwrap();
        assert!(site.detach().unwrap().status.success());
        let programs = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(binaries::balancer().unwrap(), programs.path().join("balancer")).unwrap();
        Self { site, programs, said: Vec::new() }
    }

    /// Types a command, as far as it is the balancer's own.
    fn types(&mut self, command: &str) {
        println!("$ {command}");
        match command {
            // The machine's own, or another server's.
            "cargo xtask package"
            | "editor /etc/balancer/balancer.toml"
            | "ssh web1 deploy"
            | "apt remove balancer" => {}
            "apt install ./target/debian/balancer_0.1.0-1_amd64.deb" => {}
            "apt install ./balancer_0.2.0-1_amd64.deb" => {
                // Another file with another inode, as a new version is.
                let (next, installed) = (self.programs.path().join("next"), self.programs.path().join("balancer"));
                std::fs::copy(binaries::balancer().unwrap(), &next).unwrap();
                std::fs::rename(next, &installed).unwrap();
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
                let Some(arguments) = command.strip_prefix("balancer ") else {
                    panic!("say in this test what becomes of `{command}`")
                };
                let output = self.balancer(arguments);
                let words = String::from_utf8(output.stdout).unwrap();
                print!("{words}");
                assert!(output.status.success(), "`{command}`: {}", String::from_utf8_lossy(&output.stderr));
                self.said.push(words);
            }
        }
    }

    fn balancer(&self, arguments: &str) -> Output {
        let replace = [
            ("/etc/balancer/balancer.toml", self.site.config().display().to_string()),
            ("10.0.0.13:8080", self.site.backend_address(FAMILY, 3).to_string()),
            ("203.0.113.7", self.site.topology().client_address(FAMILY, 1).to_string()),
            ("--timeout 10m --wait", "--timeout 2s --wait".to_owned()),
        ];
        let text = replace.iter().fold(arguments.to_owned(), |text, (from, to)| text.replace(from, to));
        let mut shell = self.site.topology().balancer().command("sh");
        shell.arg("-c").arg(format!("balancer {text}"));
        shell.env("PATH", path(self.programs.path())).env("BALANCER_SOCKET", self.site.files().join("balancer.sock"));
        shell.output().unwrap()
    }

    fn last(&self) -> &str {
        self.said.last().unwrap()
    }

    fn homes(&self) -> BTreeMap<u16, String> {
        self.site.homes(FAMILY, CLIENTS).unwrap()
    }
}

fn path(first: &Path) -> String {
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", first.display())
}

/// Clients of other backends than `gone` are where they were.
#[track_caller]
fn assert_others_stayed(before: &BTreeMap<u16, String>, after: &BTreeMap<u16, String>, gone: &str) {
    let moved: Vec<_> = before.iter().filter(|(client, home)| *home != gone && after[*client] != **home).collect();
    assert!(moved.is_empty(), "moved without need: {moved:?}");
    assert!(after.values().all(|home| home != gone), "{gone} has clients");
}

#[test]
fn an_hour_of_operations() {
    let mut operator = Operator::new();
    let mut homes = BTreeMap::new();
    let mut done = Vec::new();
    for command in commands() {
        // What happens before the operator looks.
        match command.as_str() {
            "balancer wait web/web2 down --timeout 1m" => operator.site.kill_backend(2).unwrap(),
            "balancer wait web/web2 up --timeout 1m" => operator.site.start_backend(2).unwrap(),
            _ => {}
        }
        operator.types(&command);
        // What the clients see after it.
        match command.as_str() {
            "balancer status" if homes.is_empty() => {
                assert!(operator.last().contains("web1") && operator.last().contains("native"));
                operator.site.wait_state(1, &["up"]).unwrap();
                operator.site.wait_state(2, &["up"]).unwrap();
                homes = operator.homes();
            }
            "balancer backend weight web/web3 50" => {
                assert_eq!(operator.homes(), homes, "known clients stay when a server is added");
            }
            "balancer backend list web" => assert!(operator.last().contains("web/web3"), "{}", operator.last()),
            "balancer client where 203.0.113.7" => {
                assert!(
                    operator.last().contains(&homes[&1]) && operator.last().contains("known"),
                    "{}",
                    operator.last()
                );
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
            "balancer events --since 10m" => {
                for words in [
                    "serving 1 service",
                    "backend web/web3 added: ",
                    "backend web/web3 weight 100 → 50: ",
                    "(by uid 0)",
                    "WARN backend web/web2 down (connect: refused), ",
                    " known clients and ",
                    " of 65,537 slots moved to 2 backends",
                ] {
                    assert!(operator.last().contains(words), "no {words:?} in {}", operator.last());
                }
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
        done.push(command);
    }
    assert!(done.len() > 20, "only {} commands: {done:?}", done.len());
}
