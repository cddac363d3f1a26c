//! Creates a fault on purpose, lets the doctor find the fault, and repairs it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    http_client::{Request, send_all},
    namespace::{Namespace, run},
    process::Process,
    site::{PATIENCE, QUICK_HTTP_CHECK, Site},
    topology::{Family, Shape},
};
use serde::Deserialize;

/// The output of `balancer doctor --json`.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    pub(super) controller: bool,
    pub(super) findings: Vec<Finding>,
    pub(super) looked_at: Vec<String>,
    #[serde(default)]
    pub(super) tried: Vec<Tried>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tried {
    pub(super) backend: String,
    pub(super) source: String,
    pub(super) answered_by: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Finding {
    pub(super) kind: String,
    pub(super) service: Option<String>,
    pub(super) backend: Option<String>,
    pub(super) backends: Vec<String>,
    pub(super) what: String,
    pub(super) cure: Cure,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Cure {
    pub(super) on: String,
    pub(super) commands: Vec<String>,
    pub(super) fix: Vec<serde_json::Value>,
}

/// Starts a site for creating faults, and waits until all backends are up.
pub(super) fn lab(shape: Shape, forwarding: Forwarding, families: &[Family]) -> Site {
    let mut site = Site::start(shape, forwarding, 2, |settings, _| {
        settings.check = QUICK_HTTP_CHECK.to_owned();
        settings.families = families.to_vec();
        // Without memory, the clients of a recovered backend return to that backend, so that each fault affects
        // clients.
        settings.remember = "0s";
        settings.lines = "[statistics]\nsample_interval = 1\n".to_owned();
        Ok(())
    })
    .unwrap();
    for number in 1..=2 {
        site.wait_state(number, &["up"]).unwrap();
    }
    site
}

/// Returns the exit code and the report of `balancer doctor --json`.
pub(super) fn examine(site: &Site, arguments: &[&str]) -> (i32, Report) {
    let output = site.output(&[&["doctor", "--json"], arguments].concat()).unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), report)
}

/// Servers and processes that faults and repairs start; dropping the value ends them.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) backend: Option<Backend>,
    pub(super) process: Option<Process>,
}

/// How the test carries out the repair that a finding proposes.
pub(super) enum Mend {
    /// The test runs `balancer doctor --fix`.
    Fix,
    /// The test runs the first commands of the repair on the machine that the repair names, and replaces some words in
    /// the commands.
    Commands(usize, &'static [(&'static str, &'static str)]),
    /// The test repairs the fault by code, because the proposed repair contains no commands.
    Person(fn(&mut Site, &mut Beside)),
}

pub(super) struct Fault {
    pub(super) kind: &'static str,
    /// The affected backend, if the fault affects a backend.
    pub(super) backend: Option<&'static str>,
    pub(super) modes: &'static [Forwarding],
    pub(super) seed: fn(&mut Site, &mut Beside),
    /// Whether the fault breaks requests of clients.
    pub(super) breaks: bool,
    pub(super) mend: Mend,
    /// Undoes the changes that remain after the repair.
    pub(super) after: fn(&mut Site),
}

pub(super) const ALL: &[Forwarding] =
    &[Forwarding::Dsr, Forwarding::Nat, Forwarding::Snat, Forwarding::Ipip, Forwarding::Gue];
pub(super) const DIRECT: &[Forwarding] = &[Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue];
pub(super) const TUNNELS: &[Forwarding] = &[Forwarding::Ipip, Forwarding::Gue];
pub(super) const NAT: &[Forwarding] = &[Forwarding::Nat];
pub(super) const TRANSLATED: &[Forwarding] = &[Forwarding::Nat, Forwarding::Snat];

/// The clients that send requests; each backend gets requests of some of these clients.
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=12;

impl Fault {
    /// Creates the fault, lets the doctor find the fault, repairs the fault, and checks that the site serves clients.
    pub(super) fn play(&self, site: &mut Site, beside: &mut Beside, forwarding: Forwarding) {
        let what = format!("{} with {forwarding:?}", self.kind);
        println!("{what}");
        (self.seed)(site, beside);
        if self.breaks {
            ask(site);
        }
        let finding = self.find(site, &what);
        println!("  the doctor's commands: {:?}", finding.cure.commands);
        match &self.mend {
            Mend::Fix => {
                assert!(!finding.cure.fix.is_empty(), "{what}: {finding:?}");
                let (code, after) = examine(site, &["--fix"]);
                assert_eq!(code, 0, "{what} after --fix: {after:?}");
            }
            Mend::Commands(count, words) => {
                for command in finding.cure.commands.iter().take(*count) {
                    carry_out(site, beside, &finding.cure.on, command, words);
                }
            }
            Mend::Person(mend) => mend(site, beside),
        }
        for number in 1..=2 {
            site.wait_state(number, &["up"]).unwrap();
        }
        let homes = site.homes(Family::V4, CLIENTS).unwrap_or_else(|error| panic!("{what}, mended: {error:#}"));
        assert_eq!(homes.len(), CLIENTS.count(), "{what}");
        assert!(settles(site), "{what}, mended: {:?}", examine(site, &[]).1.findings);
        (self.after)(site);
        for number in 1..=2 {
            site.wait_state(number, &["up"]).unwrap();
        }
    }

    /// Examines the service. That replies are lost shows only while clients try to connect.
    fn examine(&self, site: &Site) -> (i32, Report) {
        thread::scope(|scope| {
            if self.kind == "replies" {
                scope.spawn(|| ask(site));
            }
            examine(site, &["web"])
        })
    }

    /// Returns the single finding as soon as the balancer has noticed the fault.
    fn find(&self, site: &Site, what: &str) -> Finding {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (code, mut report) = self.examine(site);
            let is_it = |finding: &Finding| {
                finding.kind == self.kind && (self.backend.is_none() || finding.backend.as_deref() == self.backend)
            };
            if let [finding] = report.findings.as_slice()
                && is_it(finding)
            {
                assert_eq!(code, 1);
                return report.findings.remove(0);
            }
            // If the doctor reports a wrong finding, the test fails immediately. If a finding is missing, the load of
            // the machine may be the reason, so the test waits.
            let early = report.findings.is_empty() && Instant::now() < deadline;
            assert!(early, "{what}: {:#?}", report.findings);
            ask(site);
        }
    }
}

/// Sends requests from all clients at the same time, because each request may take as long as the time limit.
fn ask(site: &Site) {
    let timeout = Duration::from_secs(2);
    let requests: Vec<Request> =
        CLIENTS.map(|client| Request { timeout, ..site.request(Family::V4, client) }).collect();
    let replies = send_all(site.topology().client(), &requests, requests.len()).unwrap();
    println!("  {} of {} clients are served", replies.iter().filter(|reply| reply.is_ok()).count(), replies.len());
}

/// Returns whether the doctor stops reporting findings within a time limit.
fn settles(site: &Site) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if examine(site, &[]).1.findings.is_empty() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Runs a command of a repair on the machine that the repair names for the command.
fn carry_out(site: &Site, beside: &mut Beside, on: &str, command: &str, words: &[(&str, &str)]) {
    let command = words.iter().fold(command.to_owned(), |text, (from, to)| text.replace(from, to));
    if let Some(arguments) = command.strip_prefix("balancer ").filter(|rest| !rest.starts_with("decap")) {
        site.cli(&arguments.split(' ').collect::<Vec<_>>()).unwrap();
        return;
    }
    let machine = machine(site, on);
    if let Some(arguments) = command.strip_prefix("balancer decap ") {
        let mut process = machine.command(balancer_testkit::binaries::balancer().unwrap());
        process.arg("decap").args(arguments.split(' '));
        let log = site.files().join("mended.log");
        let mut process = Process::spawn("decap", &mut process, &log).unwrap();
        balancer_testkit::site::wait_log(&mut process, "that it strips", |line| {
            line.contains("stripping tunnel headers")
        })
        .unwrap();
        beside.process = Some(process);
        return;
    }
    let mut shell: Command = machine.command("sh");
    run(shell.args(["-c", &command])).unwrap();
}

/// Returns the host that corresponds to the machine in a repair.
fn machine<'a>(site: &'a Site, on: &str) -> &'a Namespace {
    let topology = site.topology();
    match on.split(' ').next().unwrap() {
        "this" => topology.balancer(),
        "web1" => &topology.backends()[0],
        "web2" => &topology.backends()[1],
        _ => topology.switch(),
    }
}
