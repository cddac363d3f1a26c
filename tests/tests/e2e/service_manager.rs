//! Tests of the balancer under a service manager: with only the capabilities of the unit, with notifications, and with
//! machine-readable logs.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    site::{PATIENCE, QUICK_CHECK, Settings, Site, start_controller},
    topology::{Family, Shape, Topology},
};
use nix::{
    sys::{
        signal::Signal,
        socket::{Shutdown, shutdown},
    },
    time::{ClockId, clock_gettime},
};
use serde_json::Value;

use crate::support::{runs, wait};

const FAMILY: Family = Family::V4;

const UNIT: &str = include_str!("../../../packaging/balancer.service");
const EXEC_CHECKS: &str = include_str!("../../../contrib/systemd/exec-checks.conf");

/// Returns the capabilities that a unit or a drop-in file grants.
fn capabilities(unit: &str) -> Vec<&str> {
    let [bounding, ambient]: [Vec<&str>; 2] = ["CapabilityBoundingSet=", "AmbientCapabilities="]
        .map(|key| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap().split(' ').collect());
    assert_eq!(bounding, ambient);
    bounding
}

/// Returns an argument for `setpriv`, such as `-all,+bpf,…`.
fn bounding_set(capabilities: &[&str]) -> String {
    let names = capabilities.iter().map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()));
    format!("-all{}", names.collect::<String>())
}

/// Returns the capabilities of the unit in the format of `/proc`.
fn mask() -> String {
    let bit = |name| match name {
        "CAP_NET_ADMIN" => 1u64 << 12,
        "CAP_NET_RAW" => 1 << 13,
        "CAP_PERFMON" => 1 << 38,
        "CAP_BPF" => 1 << 39,
        other => panic!("is {other} needed?"),
    };
    format!("{:016x}", capabilities(UNIT).into_iter().map(bit).sum::<u64>())
}

/// Creates a wrapper script that runs the balancer as the unit does, but as root. In the script, the balancer has the
/// unit's capabilities, separate mounts and processes, and the additional options `options` of `run`.
pub(crate) fn as_in_the_unit(directory: &Path, variables: &str, options: &str) -> PathBuf {
    with_capabilities(&capabilities(UNIT), directory, variables, options)
}

fn with_capabilities(capabilities: &[&str], directory: &Path, variables: &str, options: &str) -> PathBuf {
    let script = directory.join("balancer");
    let binary = binaries::balancer().unwrap();
    let text = format!(
        "#!/bin/sh\n{variables}\n[ \"$1\" != run ] || set -- \"$@\" {options}\n\
         exec unshare --mount sh -c 'mount -t proc -o hidepid=invisible proc /proc && exec \"$@\"' sh \
         setpriv --bounding-set={} --no-new-privs {} \"$@\"\n",
        bounding_set(capabilities),
        binary.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn when_the_balancer_has_the_units_capabilities_then_they_are_enough() {
    let directory = tempfile::tempdir().unwrap();
    for (forwarding, mode) in [(Forwarding::Nat, "native"), (Forwarding::Dsr, "generic")] {
        let mut site = Site::start(Shape::OneLegged, forwarding, 2, |settings, topology| {
            settings.binary = Some(as_in_the_unit(directory.path(), "", ""));
            settings.service_lines = "assign_vip = true".to_owned();
            topology.balancer().ip(&format!("addr del {}/32 dev lo", topology.vip(FAMILY)))?;
            settings.on_exit = "keep";
            settings.remember = "60s";
            settings.xdp_mode = mode;
            if forwarding == Forwarding::Dsr {
                settings.check =
                    r#"{ type = "tcp", via = "service", interval = "300ms", timeout = "300ms" }"#.to_owned();
                settings.service_lines = "start_down = true".to_owned();
            }
            Ok(())
        })
        .unwrap();
        (1..=2).for_each(|number| site.wait_state(number, &["up"]).unwrap());
        let pid = site.controller().process().pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert!(status.contains(&format!("{set}:\t{}\n", mask())), "{status}");
        }
        let homes = site.homes(FAMILY, 1..=40).unwrap();
        let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
        let assigned = forwarding == Forwarding::Nat;
        assert!(log.contains("added to eth0") == assigned && !log.contains("cannot announce"), "{log}");
        site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
        site.restart(|_| {}).unwrap();
        assert_eq!(site.homes(FAMILY, 1..=40).unwrap(), homes, "{forwarding:?}: known clients stay over a restart");
        site.controller().process().stop().unwrap();
        assert!(site.detach().unwrap().status.success());
    }
}

/// Returns whether the test's process has CAP_SYS_RESOURCE.
fn may_raise_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    u64::from_str_radix(effective, 16).unwrap() & 1 << 24 != 0
}

/// Returns the nice value of each thread of a process, by thread name.
fn nice_values(pid: u32) -> BTreeMap<String, i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let value = |thread: PathBuf| {
        let stat = fs::read_to_string(thread.join("stat")).ok()?;
        // The name of a thread may contain spaces. `after` begins with the third field of the line.
        let (before, after) = stat.rsplit_once(") ")?;
        let name = before.split_once('(')?.1.to_owned();
        Some((name, after.split(' ').nth(16)?.parse().unwrap()))
    };
    threads.filter_map(value).collect()
}

/// If the limits permit this, the threads that react to a failed check have priority over other programs. The child
/// processes of these threads have the usual priority.
#[test]
fn when_a_check_fails_on_a_busy_machine_then_its_threads_come_before_other_programs() {
    let directory = tempfile::tempdir().unwrap();
    let limit = UNIT.lines().find_map(|line| line.strip_prefix("LimitNICE=")).unwrap();
    // The kernel's limit for the nice value is 20 minus the value.
    let limit = format!("prlimit --pid $$ --nice={}", 20 - limit.parse::<i32>().unwrap());
    // The first case runs the balancer as root. In all later cases, the balancer runs as in the unit, with the given
    // variables.
    let mut cases = vec![(None, true), (Some(""), false)];
    if may_raise_limits() {
        cases.push((Some(limit.as_str()), true));
    } else {
        println!("without CAP_SYS_RESOURCE nobody here can have LimitNICE=: that case is left out");
    }
    for (variables, takes) in cases {
        let as_root = variables.is_none();
        let binary = variables.map(|variables| as_in_the_unit(directory.path(), variables, ""));
        let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 1, |settings, _| {
            settings.binary = binary;
            if as_root {
                settings.check = r#"{ type = "exec", command = ["sh", "-c", "test $(nice) = 0"], interval = "400ms",
                    timeout = "400ms", fall = 1, rise = 1 }"#
                    .replace('\n', " ");
                settings.service_lines = "start_down = true".to_owned();
            }
            Ok(())
        })
        .unwrap();
        site.wait_state(1, &["up"]).unwrap();
        let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
        let mut all = nice_values(site.controller().process().pid());
        let wanted = Some(if takes { -10 } else { 0 });
        assert_eq!(["balancer", "health-checks"].map(|name| all.remove(name)), [wanted; 2], "{all:?}, {log}");
        assert!(all.len() > 1 && all.values().all(|&nice| nice == 0), "{all:?}");
        assert_eq!(log.contains("cannot raise this process's priority"), !takes, "{log}");
    }
}

/// Check programs run without the capabilities of the unit and of the unit's drop-in file, but the balancer can still
/// end check programs.
#[test]
fn when_checks_run_programs_then_these_run_without_privileges() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let begun = directory.path().join("pids");
    // The check program for web2 never ends by itself.
    let script = format!(
        "set -e; test $(id -u) = $(id -u nobody); test \"$(id -G)\" = \"$(id -g nobody)\"; \
         test $(grep -c '^Cap[IPEA][a-z]*:.0*$' /proc/self/status) = 4; \
         test $BALANCER_BACKEND = web1 || {{ echo $$ >> {}; sleep 600; }}",
        begun.display()
    );
    let check = format!(
        r#"{{ type = "exec", command = ["sh", "-c", {script:?}], interval = "400ms", timeout = "400ms", fall = 2, rise = 1 }}"#
    );
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, |settings, _| {
        let capabilities = [capabilities(UNIT), capabilities(EXEC_CHECKS)].concat();
        settings.binary = Some(with_capabilities(&capabilities, directory.path(), "", ""));
        settings.check = check;
        Ok(())
    })
    .unwrap();
    site.wait_state(1, &["up"]).unwrap();
    site.wait_state(2, &["down"]).unwrap();
    let status = site.status().unwrap();
    assert_eq!(status.services[0].backends[1].reason, "exec: timeout after 400ms");
    site.controller().process().stop().unwrap();
    let pids = fs::read_to_string(&begun).unwrap();
    assert!(pids.lines().count() >= 2, "{pids}");
    wait("programs of checks go on", || !pids.lines().any(runs));
}

/// Without the drop-in file, a check with a program reports the missing capabilities. In this case, the health of the
/// backends stays unknown, and the balancer serves clients.
#[test]
fn when_the_unit_has_no_drop_in_file_then_checks_run_no_programs() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start(Shape::OneLegged, Forwarding::Dsr, 1, |settings, _| {
        settings.binary = Some(as_in_the_unit(directory.path(), "", ""));
        settings.check = r#"{ type = "exec", command = ["true"], interval = "400ms", timeout = "400ms" }"#.to_owned();
        Ok(())
    })
    .unwrap();
    let log = site.files().join("balancer.log");
    let wanted = "cannot run a program as user \"nobody\" without CAP_KILL, CAP_SETGID, CAP_SETUID (for the packaged unit: \
                  contrib/systemd/exec-checks.conf)";
    wait("no warning", || fs::read_to_string(&log).is_ok_and(|log| log.contains(wanted)));
    site.homes(FAMILY, 1..=4).unwrap();
}

/// Returns the next notification that the balancer sends to the service manager.
pub(crate) fn told(notify: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = notify.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// Returns the balancer's next notification that begins with `start`.
pub(crate) fn told_next(notify: &UnixDatagram, start: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let words = told(notify);
        if words.starts_with(start) {
            return words;
        }
        assert!(Instant::now() < deadline, "{words} instead of {start}");
    }
}

/// Creates a socket that receives notifications for the service manager, and the shell line that names the socket.
pub(crate) fn notify_socket(directory: &Path) -> (UnixDatagram, String) {
    let path = directory.join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    (notify, format!("export NOTIFY_SOCKET={}", path.display()))
}

#[test]
fn when_the_balancer_starts_and_stops_then_it_notifies_the_service_manager() {
    let directory = tempfile::tempdir().unwrap();
    let (notify, variable) = notify_socket(directory.path());

    let topology = Topology::new(Shape::OneLegged, Forwarding::Nat, 1).unwrap();
    let mut settings = Settings::new(&topology, Forwarding::Nat, 1);
    let variables = format!("{variable} WATCHDOG_USEC=200000");
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

/// A stopping balancer that still steers for a while asks the service manager for more time, and continues to notify
/// the watchdog.
#[test]
fn when_stopping_takes_longer_then_the_service_manager_knows() {
    let directory = tempfile::tempdir().unwrap();
    let (notify, variable) = notify_socket(directory.path());
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 1, |settings, topology| {
        let variables = format!("{variable} WATCHDOG_USEC=200000");
        settings.binary = Some(as_in_the_unit(directory.path(), &variables, ""));
        settings.service_lines = "assign_vip = \"lo\"".to_owned();
        topology.balancer().ip(&format!("addr del {}/32 dev lo", topology.vip(FAMILY)))?;
        Ok(())
    })
    .unwrap();
    site.controller().process().signal(Signal::SIGTERM).unwrap();
    let words = told_next(&notify, "STOPPING=1\n");
    let limit = UNIT.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s')).unwrap();
    let (limit, linger): (u64, u64) = (limit.parse().unwrap(), 3);
    let asked = words.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).unwrap();
    assert!(asked.parse::<u64>().unwrap() >= (linger + limit) * 1_000_000, "{words}");
    for _ in 0..5 {
        assert_eq!(told(&notify), "WATCHDOG=1\n");
    }
    told_next(&notify, "STOPPING=1\n");
}

#[test]
fn when_the_balancer_reloads_then_it_notifies_the_service_manager() {
    let directory = tempfile::tempdir().unwrap();
    let (notify, variable) = notify_socket(directory.path());
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 1, |settings, _| {
        settings.binary = Some(as_in_the_unit(directory.path(), &variable, ""));
        Ok(())
    })
    .unwrap();
    assert!(told(&notify).contains("READY=1\n"));
    let file = site.config();
    let text = fs::read_to_string(&file).unwrap();
    let second = text[text.find("[[service]]").unwrap()..]
        .replace(":8080\"", ":8081\"")
        .replace("\"web\"", "\"other\"")
        .replace(":80\"", ":81\"");
    let refused = "STATUS=the last reload changed nothing: ";
    for (text, status) in [
        (text.clone(), "STATUS=serving 1 service\n".to_owned()),
        (text.replace("remember", "rememebr"), format!("{refused}{}:", file.display())),
        (text.replace("state.json", "other.json"), format!("{refused}state_file cannot change")),
        (format!("{text}{second}"), "STATUS=serving 2 services\n".to_owned()),
    ] {
        fs::write(&file, text).unwrap();
        let before = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
        site.controller().process().signal(Signal::SIGHUP).unwrap();
        let words = told_next(&notify, "RELOADING=1\n");
        let begun = words.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.trim().parse().ok());
        // systemd ignores a `READY` notification for an earlier reload.
        let begun: i128 = begun.expect("microseconds");
        assert!(begun >= i128::from(before.tv_sec()) * 1_000_000 + i128::from(before.tv_nsec()) / 1000, "{words}");
        let words = told_next(&notify, "READY=1\n");
        assert!(words.contains(&status), "{words} instead of {status}");
    }
    // For the service manager, a change by the command line is not a reload.
    fs::write(&file, text).unwrap();
    site.cli(&["apply", file.to_str().unwrap()]).unwrap();
    told_next(&notify, "STATUS=serving 1 service\n");
}

#[test]
fn when_the_balancer_cannot_start_then_the_service_manager_gets_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (notify, variable) = notify_socket(directory.path());
    let script = as_in_the_unit(directory.path(), &variable, "");
    let file = directory.path().join("balancer.toml");
    let run = || Command::new(&script).args(["run", "--config"]).arg(&file).output().unwrap();
    fs::write(&file, "interface = [\"lo\"]\nremember = 3\n").unwrap();
    assert_eq!(run().status.code(), Some(1));
    let words = told(&notify);
    assert!(words.starts_with(&format!("STATUS={}:1: ", file.display())), "{words}");
    assert_eq!(words.lines().count(), 1, "{words}");

    // The balancer refuses an interface that exists but is unusable, and would wait for a missing interface.
    let text =
        "interfaces = [\"lo\"]\n[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\nforwarding = \"nat\"\n";
    fs::write(&file, text).unwrap();
    assert_eq!(run().status.code(), Some(1));
    let words = told(&notify);
    assert!(words.starts_with("STATUS=") && words.contains("interface lo is the loopback"), "{words}");
}

/// A shell command that makes standard error look like the stream of the systemd journal.
const JOURNAL: &str = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)";

#[test]
fn when_the_log_goes_to_the_journal_then_lines_have_priorities() {
    let directory = tempfile::tempdir().unwrap();
    for (options, warning, plain) in
        [("", "<4> WARN backend web/web2 down", "<6> INFO attached to eth0"), ("--log-format json", "<4>{", "<6>{")]
    {
        let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
            settings.binary = Some(as_in_the_unit(directory.path(), JOURNAL, options));
            settings.check = QUICK_CHECK.to_owned();
            Ok(())
        })
        .unwrap();
        site.kill_backend(2).unwrap();
        site.wait_state(2, &["down"]).unwrap();
        site.controller().process().stop().unwrap();
        let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
        for start in [warning, plain] {
            assert!(log.lines().any(|line| line.starts_with(start)), "no {start} in {log}");
        }
        assert!(log.lines().all(|line| line.starts_with("<4>") || line.starts_with("<6>")), "{log}");
    }
}

#[test]
fn when_the_start_fails_under_the_journal_then_the_error_has_its_priority() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("balancer.toml");
    fs::write(&file, "interface = [\"lo\"]\nremember = 3\n").unwrap();
    for (variables, prefix) in [(JOURNAL, "<3>"), ("export JOURNAL_STREAM=1:2", "")] {
        let script = as_in_the_unit(directory.path(), variables, "");
        let output = Command::new(script).args(["run", "--config"]).arg(&file).output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(words.lines().count() > 1, "{words}");
        let start = format!("{prefix}{}:", file.display());
        assert!(words.lines().all(|line| line.starts_with(&start)), "{words}");
    }
}

#[test]
fn when_the_log_is_json_then_every_line_is_an_object() {
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.binary = Some(as_in_the_unit(directory.path(), "", "--log-format json"));
        settings.check = QUICK_CHECK.to_owned();
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
    // The log also contains an earlier line about each backend, because each backend has come up.
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

/// Copies the socket with the given inode from another process into the process of the test.
fn take(pid: u32, inode: u64) -> OwnedFd {
    let name = format!("socket:[{inode}]");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap);
    let mut those = descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.to_str() == Some(&name)));
    let number: i32 = those.next().unwrap().file_name().to_str().unwrap().parse().unwrap();
    // SAFETY: the calls use no memory of this process, and return new descriptors that no other code uses.
    let open = |call, one: i64, two: i64| unsafe {
        let descriptor = libc::syscall(call, one, two, 0);
        assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(descriptor as i32)
    };
    let process = open(libc::SYS_pidfd_open, i64::from(pid), 0);
    open(libc::SYS_pidfd_getfd, process.as_raw_fd().into(), number.into())
}

/// Returns the inode of the socket in the `wanted` line of a table below `/proc/PID/net`.
fn inode(pid: u32, table: &str, field: usize, wanted: impl Fn(&str) -> bool) -> u64 {
    let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
    let line = table.lines().find(|line| wanted(line)).unwrap();
    line.split_ascii_whitespace().nth(field).unwrap().parse().unwrap()
}

/// The test breaks the listener of the metrics, so that a task of the balancer ends.
#[test]
fn when_a_task_of_the_process_ends_then_the_process_ends_and_traffic_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (notify, variable) = notify_socket(directory.path());
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.binary = Some(as_in_the_unit(directory.path(), &variable, ""));
        settings.on_exit = "keep";
        settings.remember = "60s";
        Ok(())
    })
    .unwrap();
    let homes = site.homes(FAMILY, 1..=40).unwrap();
    let pid = site.controller().process().pid();
    let inode = inode(pid, "tcp", 9, |line| line.contains("0100007F:25BC 00000000:0000 0A"));
    shutdown(take(pid, inode).as_raw_fd(), Shutdown::Both).unwrap();
    let what = "the metrics listener";
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = site.controller().process().exited().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it goes on without {what}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(1), "{what}");
    let reason = format!("{what} ended: no connection can be accepted any more: Invalid argument (os error 22)");
    assert_eq!(site.controller().process().tail(1).unwrap(), format!("balancer: {reason}"));
    told_next(&notify, "STOPPING=1\n");
    assert_eq!(told_next(&notify, "STATUS="), format!("STATUS={reason}\n"));
    assert_eq!(site.homes(FAMILY, 1..=40).unwrap(), homes, "without a controller");
    site.start_again().unwrap();
    assert_eq!(site.homes(FAMILY, 1..=40).unwrap(), homes, "with the next one");
}
