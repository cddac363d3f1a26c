//! Tests of agents that are shell scripts run by socat. The agents report wrong states, alternate between states, do
//! not answer, or answer HTTPS checks.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    namespace::Namespace,
    process::Process,
    site::Site,
    topology::{Family, Shape},
};
use rcgen::{CertificateParams, KeyPair};

use crate::{
    agents::{self, says, wait_until},
    support::wait,
};

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=40;
const CHECKS: u16 = 9778;

/// A shell script that socat runs for each connection. At each connection, the script adds a line to the file `asked`.
struct Script {
    directory: tempfile::TempDir,
    _socat: Process,
}

impl Script {
    /// Starts an agent on the port that the book uses in its examples. The script finds its files in the working
    /// directory.
    fn agent(namespace: &Namespace, script: &str) -> Self {
        Self::listen(namespace, "TCP6-LISTEN:9777,fork,reuseaddr,ipv6only=0", script)
    }

    /// Starts a server of HTTPS checks. The file `words` contains the value for the header `X-Load` of the answer;
    /// without the file, the server does not answer.
    fn https(namespace: &Namespace) -> Self {
        let listen = format!("OPENSSL-LISTEN:{CHECKS},pf=ip6,fork,reuseaddr,ipv6only=0,cert=server.pem,verify=0");
        let script = r#"while read -r line && [ "${#line}" -gt 1 ]; do :; done
            [ -e words ] || exit
            printf 'HTTP/1.1 200 OK\r\nX-Load: %s\r\nContent-Length: 0\r\n\r\n' "$(cat words)""#;
        Self::listen(namespace, &listen, script)
    }

    fn listen(namespace: &Namespace, listen: &str, script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["server.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(file("server.pem"), key.serialize_pem() + &certificate.pem()).unwrap();
        fs::write(file("script.sh"), format!("echo >> asked\n{script}\n")).unwrap();
        let mut command = namespace.command("socat");
        command.args([listen, "SYSTEM:sh script.sh"]).current_dir(directory.path());
        let socat = Process::spawn("socat", &mut command, &file("socat.log")).unwrap();
        Self { directory, _socat: socat }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces the answer of the script atomically.
    fn say(&self, words: &str) {
        fs::write(self.file("next"), format!("{words}\n")).unwrap();
        fs::rename(self.file("next"), self.file("words")).unwrap();
    }

    /// Returns how often the balancer has asked the agent.
    fn asked(&self) -> usize {
        fs::read(self.file("asked")).map_or(0, |lines| lines.len())
    }

    fn wait_for(&self, more: usize) {
        let before = self.asked();
        wait("it is not asked", || self.asked() >= before + more);
    }
}

fn site() -> Site {
    let mut site = agents::site();
    (1..=2).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    site
}

/// Returns the number of known clients that moved, and the number of times that the agent's answer changed a lookup
/// table.
fn moves_and_changes(site: &Site) -> (f64, usize) {
    let moves = site.metrics().unwrap().sum("moves_total", &[]).unwrap_or_default();
    let events = site.cli(&["events"]).unwrap();
    (moves, events.lines().filter(|line| line.contains("has an agent that says")).count())
}

#[test]
fn when_an_agent_is_a_shell_script_on_socat_then_its_words_count_and_while_it_hangs_nothing_changes() {
    let site = site();
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    // Without the file `words`, the script waits until the balancer closes the connection.
    let agent = Script::agent(&site.topology().backends()[0], "cat words || read -r never");
    agent.say("75%");
    let backend = wait_until(&site, "75%", |backend| says(backend) == "75%");
    assert_eq!((backend.weight, backend.agent.unwrap().weight_percent), (100, 75));
    agent.say("drain 50%");
    wait_until(&site, "drained", |backend| backend.state == "draining" && says(backend) == "50%, drain");
    assert_eq!(site.homes(Family::V4, CLIENTS).unwrap(), homes);

    fs::remove_file(agent.file("words")).unwrap();
    let silent =
        wait_until(&site, "silent", |backend| backend.reason.contains("its agent is silent: no answer within"));
    assert_eq!((says(&silent), &*silent.state), ("50%, drain", "draining"));
    assert_eq!(site.homes(Family::V4, CLIENTS).unwrap(), homes);
    agent.say("up, ready, 100%");
    wait_until(&site, "back", |backend| backend.state == "up" && says(backend) == "100%");
    assert_eq!((site.homes(Family::V4, CLIENTS).unwrap(), moves_and_changes(&site).0), (homes, 0.0));
}

#[test]
fn when_an_agent_says_that_all_is_well_then_checks_and_operators_decide_all_the_same() {
    let mut site = site();
    let agent = Script::agent(&site.topology().backends()[0], "echo up ready 100%");
    wait_until(&site, "heard", |backend| says(backend) == "100%" && backend.state == "up");
    let is_heard = |site: &Site, state: &str| {
        // When the balancer asks for the fourth time, it has already applied the third answer.
        agent.wait_for(4);
        let backend = wait_until(site, state, |backend| says(backend) == "100%");
        assert_eq!(backend.state, state, "{backend:?}");
        backend
    };
    site.kill_backend(1).unwrap();
    site.wait_state(1, &["down"]).unwrap();
    let backend = is_heard(&site, "down");
    assert_eq!(backend.slots, 0, "{backend:?}");
    assert!(site.homes(Family::V4, CLIENTS).unwrap().values().all(|home| home == "web2"));

    // A state that the operator sets also overrides the agent's answer, and the status shows the answer next to the
    // operator's state.
    site.start_backend(1).unwrap();
    site.wait_state(1, &["up"]).unwrap();
    for (verb, states) in [("maint", ["maint", "maint"]), ("drain", ["draining", "drained"])] {
        site.cli(&["backend", verb, "web/web1"]).unwrap();
        site.wait_state(1, &states).unwrap();
        agent.wait_for(4);
        let backend = wait_until(&site, verb, |backend| says(backend) == "100%");
        assert!(states.contains(&&*backend.state) && backend.slots == 0, "{backend:?}");
        site.cli(&["backend", "ready", "web/web1"]).unwrap();
        site.wait_state(1, &["up"]).unwrap();
    }
    site.cli(&["backend", "weight", "web/web1", "0"]).unwrap();
    let backend = is_heard(&site, "up");
    assert_eq!((backend.weight, backend.slots), (0, 0));
}

#[test]
fn when_an_agent_flaps_then_the_table_changes_once_an_answer_at_most_and_clients_move_once_at_most() {
    let site = site();
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    let theirs = homes.values().filter(|home| *home == "web1").count();
    assert!(theirs > 0);
    // The script alternates between the first and the second line of the file `words`.
    let script = "[ $(($(wc -l < asked) % 2)) = 0 ] && sed -n 1p words || sed -n 2p words";
    let agent = Script::agent(&site.topology().backends()[0], script);
    let flaps = |words: &str| {
        agent.say(words);
        let (before, asked) = (moves_and_changes(&site).1, agent.asked());
        agent.wait_for(4);
        // The test must read the changes before the questions, so that each change in the count results from an answer
        // in the count.
        let changes = moves_and_changes(&site).1 - before;
        (changes, agent.asked() - asked)
    };
    for words in ["100%\n40%", "ready 100%\ndrain"] {
        let (changes, answers) = flaps(words);
        assert!((1..=answers + 1).contains(&changes), "{words:?}: {changes} changes, {answers} answers");
        assert_eq!(site.homes(Family::V4, CLIENTS).unwrap(), homes, "{words:?}");
        assert_eq!(moves_and_changes(&site).0, 0.0, "{words:?}");
    }

    // The balancer ignores differences of less than five points.
    agent.say("ready 60%\nready 60%");
    wait_until(&site, "60%", |backend| says(backend) == "60%" && backend.state == "up");
    let (changes, answers) = flaps("62%\n58%");
    assert!(changes == 0 && answers >= 4, "{changes} changes, {answers} answers");

    // When the agent answers "down", the backend's clients move; when the agent then answers "up", these clients do not
    // return.
    let (changes, answers) = flaps("up\ndown #again");
    assert!((1..=answers + 1).contains(&changes), "{changes} changes, {answers} answers");
    // A request fails if the agent answers "down" during the request, but the client of the request still moves.
    let _ = site.ask(Family::V4, CLIENTS, Duration::from_secs(5)).unwrap();
    agent.say("down\ndown");
    wait_until(&site, "down", |backend| backend.state == "down");
    let after = site.homes(Family::V4, CLIENTS).unwrap();
    assert!(after.values().all(|home| home == "web2"), "{after:?}");
    let _ = flaps("up\ndown");
    assert_eq!(site.homes(Family::V4, CLIENTS).unwrap(), after);
    assert_eq!(moves_and_changes(&site).0, theirs as f64);
}

#[test]
fn when_answers_to_https_checks_have_words_of_agents_then_these_count() {
    let mut scripts = Vec::new();
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.remember = "10m";
        settings.families = Family::BOTH.to_vec();
        let quick = r#"interval = "500ms", timeout = "500ms", fast_interval = "200ms", fall = 5"#;
        settings.check = format!(r#"{{ type = "https", port = {CHECKS}, {quick} }}"#);
        scripts.extend(topology.backends().iter().map(Script::https));
        scripts.iter().for_each(|script: &Script| script.say("ready 100%"));
        Ok(())
    });
    let site = site.unwrap();
    wait("both are up in both families", || {
        let services = site.status().unwrap().services;
        services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
    });
    let homes = Family::BOTH.map(|family| site.homes(family, CLIENTS).unwrap());
    let of_both = |what: &str, is_so: &dyn Fn(&balancer_api::model::BackendView) -> bool| {
        wait(what, || site.status().unwrap().services.iter().all(|service| is_so(&service.backends[0])));
    };
    let whole = site.status().unwrap().services[0].backends[0].slots;
    scripts[0].say("75%");
    of_both("75%", &|backend| says(backend) == "75%" && backend.slots < whole && backend.slots > 0);
    assert!(site.cli(&["status"]).unwrap().contains("100 × 75%"));
    scripts[0].say("drain");
    of_both("drained", &|backend| says(backend) == "75%, drain" && backend.state == "draining");
    assert_eq!(Family::BOTH.map(|family| site.homes(family, CLIENTS).unwrap()), homes);
    // A failed check does not end the effect of the last answer, and the answer to the next successful check takes
    // effect.
    fs::remove_file(scripts[0].file("words")).unwrap();
    of_both("down", &|backend| backend.state == "down" && says(backend) == "75%, drain");
    scripts[0].say("ready 100%");
    of_both("back", &|backend| backend.state == "up" && backend.slots == whole);
}
