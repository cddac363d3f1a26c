//! Under a service manager: the capabilities of the unit and no more, what is told when, and logs for machines.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use balancer_common::map_types::Forwarding;
use balancer_tests::{
    binaries,
    site::{PATIENCE, Settings, Site, start_controller},
    topology::{Family, Shape, Topology},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const FAMILY: Family = Family::V4;

/// What the unit gives, as `setpriv` wants it: `-all,+bpf,…`.
fn bounding_set() -> String {
    let unit = include_str!("../../packaging/balancer.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let names = line.split(' ').map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()));
    format!("-all{}", names.collect::<String>())
}

/// A program that is the balancer as the unit starts it, with more `options` of `run`.
fn as_in_the_unit(directory: &Path, variables: &str, options: &str) -> PathBuf {
    let script = directory.join("balancer");
    let binary = binaries::balancer().unwrap();
    let text = format!(
        "#!/bin/sh\n{variables}\n[ \"$1\" != run ] || set -- \"$@\" {options}\nexec setpriv --bounding-set={} --no-new-privs {} \"$@\"\n",
        bounding_set(),
        binary.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn three_capabilities_are_enough() {
    let directory = tempfile::tempdir().unwrap();
    for (forwarding, mode) in [(Forwarding::Nat, "native"), (Forwarding::Dsr, "generic")] {
        let mut site = Site::start(Shape::OneLegged, forwarding, 2, |settings, _| {
            settings.binary = Some(as_in_the_unit(directory.path(), "", ""));
            settings.on_exit = "keep";
            settings.remember = "60s";
            settings.xdp_mode = mode;
            Ok(())
        })
        .unwrap();
        let pid = site.controller().process().pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        // Bits 12, 38 and 39.
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert!(status.contains(&format!("{set}:\t000000c000001000\n")), "{status}");
        }
        let homes = site.homes(FAMILY, 1..=40).unwrap();
        site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
        site.restart(|_| {}).unwrap();
        assert_eq!(site.homes(FAMILY, 1..=40).unwrap(), homes, "{forwarding:?}: known clients stay over a restart");
        site.controller().process().stop().unwrap();
        assert!(site.detach().unwrap().status.success());
    }
}

/// The next datagram for the service manager.
fn told(notify: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = notify.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn the_service_manager_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();

    let topology = Topology::new(Shape::OneLegged, Forwarding::Nat, 1).unwrap();
    let mut settings = Settings::new(&topology, Forwarding::Nat, 1);
    let variables = format!("export NOTIFY_SOCKET={} WATCHDOG_USEC=200000", path.display());
    settings.binary = Some(as_in_the_unit(directory.path(), &variables, ""));
    let files = tempfile::tempdir().unwrap();
    let mut controller = start_controller(&topology, &settings, files.path()).unwrap();

    let first = told(&notify);
    assert!(first.contains("READY=1\n") && first.contains("STATUS=serving 1 service\n"), "{first}");
    let interface = topology.balancer().ip("-details link show dev eth0").unwrap();
    assert!(interface.contains("prog/xdp"), "ready before it is attached: {interface}");
    assert!(controller.status().is_ok(), "ready before it answers");
    for _ in 0..5 {
        assert_eq!(told(&notify), "WATCHDOG=1\n");
    }
    controller.process().signal(Signal::SIGTERM).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let words = told(&notify);
        if words.contains("STOPPING=1\n") {
            break;
        }
        assert!(words == "WATCHDOG=1\n" && Instant::now() < deadline, "{words}");
    }
}

#[test]
fn every_line_of_a_json_log_is_an_object() {
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.binary = Some(as_in_the_unit(directory.path(), "", "--log-format json"));
        settings.check = r#"{ type = "tcp", interval = "200ms", timeout = "200ms", fall = 2, rise = 1 }"#.to_owned();
        Ok(())
    })
    .unwrap();
    site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
    site.kill_backend(2).unwrap();
    site.wait_state(2, &["down"]).unwrap();
    site.controller().process().stop().unwrap();

    let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        for field in ["timestamp", "level", "message"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {line}");
        }
    }
    // Each has come up before, sooner or later.
    let about = |backend: &str, what: &str| {
        let mut lines = lines.iter().filter(|line| line["backend"] == backend);
        lines.find(|line| line["message"].as_str().unwrap().contains(what)).unwrap()
    };
    let change = about("web1", "weight 100 → 50");
    assert_eq!((&change["service"], &change["level"]), (&"web".into(), &"INFO".into()), "{change}");
    assert_eq!(change["uid"], fs::metadata("/proc/self").unwrap().uid(), "{change}");
    let state = about("web2", "down");
    assert_eq!((&state["service"], &state["level"]), (&"web".into(), &"WARN".into()), "{state}");
    assert!(state["message"].as_str().unwrap().starts_with("backend web/web2 down (connect: "), "{state}");
    assert_eq!(state.get("uid"), None);
}
