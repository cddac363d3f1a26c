//! Tests of a start under a service manager while the interfaces in the configuration do not exist yet.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    controller::Controller,
    site::{PATIENCE, Settings, Site, start_controller, write_config},
    topology::{Family, Shape, Topology},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    service_manager::{as_in_the_unit, notify_socket, told, told_next},
    support::wait,
};

/// Waits for a notification of the balancer, and returns by how much the notification extends the start, and the status
/// text, if any.
fn waits(notify: &UnixDatagram) -> (Duration, Option<String>) {
    let words = told_next(notify, "EXTEND_TIMEOUT_USEC=");
    let value = |key| words.lines().find_map(|line: &str| line.strip_prefix(key));
    let longer = Duration::from_micros(value("EXTEND_TIMEOUT_USEC=").unwrap().parse().unwrap());
    (longer, value("STATUS=").map(str::to_owned))
}

/// A balancer under a service manager, which waits for a missing interface.
struct Waiting {
    controller: Controller,
    notify: UnixDatagram,
    settings: Settings,
    files: TempDir,
    topology: Topology,
}

impl Waiting {
    fn start(interfaces: &[&str]) -> Self {
        let topology = Topology::new(Shape::OneLegged, Forwarding::Nat, 1).unwrap();
        let mut settings = Settings::new(&topology, Forwarding::Nat, 1);
        let files = tempfile::tempdir().unwrap();
        let (notify, variable) = notify_socket(files.path());
        settings.binary = Some(as_in_the_unit(files.path(), &variable, ""));
        settings.interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
        let controller = start_controller(&topology, &settings, files.path()).unwrap();
        Self { controller, notify, settings, files, topology }
    }

    fn ip(&self, arguments: &str) {
        self.topology.balancer().ip(arguments).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.files.path().join("balancer.log")).unwrap()
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.controller.process().exited().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the balancer ends with an error, and returns the reason, which the service manager also receives.
    fn fails(&mut self) -> String {
        assert_eq!(self.end().code(), Some(1), "{}", self.log());
        let words = self.controller.process().tail(1).unwrap();
        let reason = words.strip_prefix("balancer: ").unwrap().to_owned();
        assert_eq!(told_next(&self.notify, "STATUS="), format!("STATUS={reason}\n"));
        reason
    }
}

#[test]
fn when_no_interface_is_there_then_the_start_waits_for_the_first_one() {
    let mut waiting = Waiting::start(&["late0", "late1"]);
    let (longer, status) = waits(&waiting.notify);
    assert!(longer > Duration::from_secs(30), "{longer:?}");
    let status = status.unwrap();
    assert!(
        status.starts_with("interface late0 does not exist") && status.contains("; waiting for one of late0, late1"),
        "{status}"
    );
    // Without a notification from the kernel, the balancer looks for the interfaces at growing intervals, and repeats
    // its status text only after a change.
    let pauses: Vec<(Duration, Option<String>)> = (0..2).map(|_| waits(&waiting.notify)).collect();
    assert!(pauses.is_sorted() && pauses.iter().all(|(more, status)| *more > longer && status.is_none()), "{pauses:?}");
    // An interface with another name does not end the balancer's wait, but the status text lists that interface.
    waiting.ip("link add other0 type veth peer name other1");
    let named = |(_, status): (Duration, Option<String>)| status.is_some_and(|status| status.contains("other0"));
    wait("it does not name the new interface", || named(waits(&waiting.notify)));
    assert_eq!(waiting.log().matches("; waiting for one of").count(), 1, "{}", waiting.log());

    waiting.ip("link add late1 type veth peer name late2");
    let words = told_next(&waiting.notify, "READY=1\n");
    assert!(words.contains("STATUS=serving 1 service\n"), "{words}");
    assert!(waiting.topology.balancer().ip("-details link show dev late1").unwrap().contains("prog/xdp"));
    let ready = waiting.controller.cli(&["ready"]).unwrap();
    let ready = String::from_utf8(ready.stdout).unwrap();
    assert!(ready.contains("degraded: the program is not on late0"), "{ready}");
    assert!(waiting.controller.process().stop().unwrap().success());
}

#[test]
fn when_a_signal_comes_while_no_interface_is_there_then_the_start_ends_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut waiting = Waiting::start(&["late0"]);
        let (_, status) = waits(&waiting.notify);
        assert!(status.unwrap().starts_with("interface late0 does not exist"));
        waiting.controller.process().signal(signal).unwrap();
        assert!(waiting.end().success(), "{}", waiting.log());
        assert!(waiting.log().contains(&format!("{signal}: ending; there was no interface")), "{}", waiting.log());
        assert!(!waiting.files.path().join("balancer.sock").exists(), "a socket is left");
    }
}

#[test]
fn when_the_interface_that_comes_cannot_be_used_then_the_start_fails() {
    let mut waiting = Waiting::start(&["late0"]);
    waits(&waiting.notify);
    waiting.ip("tuntap add dev late0 mode tun");
    let reason = waiting.fails();
    assert!(reason.contains("interface late0 carries no Ethernet frames"), "{reason}");
}

/// The waiting balancer ends when the configuration file changes. The service manager then starts the balancer again,
/// and the new process reads the new file.
#[test]
fn when_the_file_is_mended_while_no_interface_is_there_then_the_next_start_uses_it() {
    let mut waiting = Waiting::start(&["eht0"]);
    let (_, status) = waits(&waiting.notify);
    assert!(status.unwrap().contains("interface eht0 does not exist: did you mean eth0?"));
    waiting.settings.interfaces = vec!["eth0".to_owned()];
    write_config(&waiting.topology, &waiting.settings, waiting.files.path()).unwrap();
    let reason = waiting.fails();
    assert!(reason.ends_with("balancer.toml has changed while the balancer waited for an interface"), "{reason}");
    waiting.controller = start_controller(&waiting.topology, &waiting.settings, waiting.files.path()).unwrap();
    told_next(&waiting.notify, "READY=1\n");

    // If the changed file is invalid, the balancer's reason describes the error in the file.
    let mut waiting = Waiting::start(&["eht0"]);
    waits(&waiting.notify);
    let file = waiting.files.path().join("balancer.toml");
    fs::write(&file, "interface = [\"eth0\"]\n").unwrap();
    let reason = waiting.fails();
    assert!(reason.starts_with(&format!("{}:1: ", file.display())), "{reason}");
}

/// The next balancer takes over the known clients and, with `on_exit = "keep"`, also the programs that continue to
/// steer.
#[test]
fn when_the_interface_comes_back_after_a_restart_without_it_then_known_clients_stay() {
    for on_exit in ["detach", "keep"] {
        let directory = tempfile::tempdir().unwrap();
        let (notify, variable) = notify_socket(directory.path());
        let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
            settings.binary = Some(as_in_the_unit(directory.path(), &variable, ""));
            settings.families = Family::BOTH.to_vec();
            settings.remember = "60s";
            settings.on_exit = on_exit;
            Ok(())
        })
        .unwrap();
        let homes = |site: &Site| Family::BOTH.map(|family| site.homes(family, 1..=20).unwrap());
        let before = homes(&site);
        site.controller().process().stop().unwrap();
        let balancer = site.topology().balancer().name().to_owned();
        let rename = |from: &str, to: &str| rename(&balancer, from, to);
        if !rename("eth0", "away0") {
            println!("this kernel renames no interface that is up: left out");
            return;
        }
        while !told(&notify).contains("STOPPING=1\n") {}
        thread::scope(|scope| {
            let back = scope.spawn(|| {
                let (_, status) = waits(&notify);
                assert!(status.unwrap().contains("interface eth0 does not exist"));
                assert!(rename("away0", "eth0"));
            });
            site.start_again().unwrap();
            back.join().unwrap();
        });
        assert_eq!(homes(&site), before, "{on_exit}");
    }
}

fn rename(namespace: &str, from: &str, to: &str) -> bool {
    let mut command = std::process::Command::new("ip");
    command.args(["-netns", namespace, "link", "set", from, "name", to]);
    command.output().unwrap().status.success()
}
