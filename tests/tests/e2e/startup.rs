//! Tests of the balancer's start, of refusals to start, and of the balancer's end: with clear messages, and without
//! remains on the host.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    controller::Controller,
    process::Process,
    site::{PATIENCE, Settings, Site, start_controller, write_config},
    topology::{Family, Shape, Topology},
    xdp::{Hook, Passer},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{restart::own_pins, support::wait};

const FAMILY: Family = Family::V4;

/// Returns everything that a balancer could leave on its host: programs and addresses of interfaces, kernel settings,
/// and pinned objects.
fn traces(topology: &Topology) -> BTreeSet<String> {
    let host = topology.balancer();
    let interfaces = [host.ip("-details link show").unwrap(), host.ip("addr show").unwrap()].concat();
    // The output lines about bridges contain timers, which change by themselves, so the test ignores these lines.
    let lines = interfaces.lines().filter(|line| !line.trim_start().starts_with("bridge"));
    let mut traces: BTreeSet<String> = lines.map(str::to_owned).collect();
    let switches = host.run_in_thread(|| {
        let mut switches = Vec::new();
        for (family, switch) in [("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv6", "accept_ra")] {
            for interface in fs::read_dir(format!("/proc/sys/net/{family}/conf")).unwrap() {
                let path = interface.unwrap().path().join(switch);
                switches.push(format!("{} {}", path.display(), fs::read_to_string(&path).unwrap()));
            }
        }
        switches
    });
    traces.extend(switches.unwrap());
    if let Ok(pinned) = fs::read_dir("/sys/fs/bpf") {
        let pinned = pinned.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("balancer"));
        traces.extend(pinned.chain(own_pins(host)).map(|path| path.display().to_string()));
    }
    traces
}

/// Returns the traces before the first balancer starts. A namespace that is gone may have had the same number as the
/// balancer's namespace; the pins of that earlier namespace are no traces, because a start removes them.
fn traces_before(topology: &Topology) -> BTreeSet<String> {
    let mut traces = traces(topology);
    for pin in own_pins(topology.balancer()) {
        traces.remove(&pin.display().to_string());
    }
    traces
}

fn has_program(topology: &Topology, interface: &str) -> bool {
    topology.balancer().ip(&format!("-details link show dev {interface}")).unwrap().contains("prog/xdp")
}

/// Waits for the end of a process, and returns its exit status.
fn end(process: &mut Process) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.exited().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it goes on running: {}", process.tail(20).unwrap());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a balancer that must refuse to start, and returns the last line of the output, which must contain the reason.
/// The function also checks that the exit code is 1 and that nothing of the balancer remains.
fn refused(topology: &Topology, settings: &Settings, files: &Path) -> String {
    let before = traces(topology);
    let mut controller = start_controller(topology, settings, files).unwrap();
    let status = end(controller.process());
    let words = controller.process().tail(1).unwrap();
    assert_eq!(status.code(), Some(1), "{words}");
    assert_eq!(traces(topology), before, "{words}");
    assert!(words.starts_with("balancer: "), "{words}");
    println!("{words}");
    words
}

fn one_leg() -> (Topology, Settings, TempDir) {
    let topology = Topology::new(Shape::OneLegged, Forwarding::Nat, 1).unwrap();
    let settings = Settings::new(&topology, Forwarding::Nat, 1);
    (topology, settings, tempfile::tempdir().unwrap())
}

fn one_line(output: &Output) -> String {
    let words = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(words.lines().count(), 1, "{words}");
    println!("{}", words.trim_end());
    words
}

#[test]
fn when_there_is_no_controller_then_the_command_line_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (missing, stale) = (directory.path().join("missing.sock"), directory.path().join("stale.sock"));
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [&missing, &stale] {
        for verb in [
            "status --json",
            "service list",
            "service show web",
            "backend list",
            "backend add web/web1 192.0.2.1",
            "backend drain web/web1",
            "client where 192.0.2.1",
        ] {
            let mut command = Command::new(binaries::balancer().unwrap());
            let output = command.args(verb.split(' ')).env("BALANCER_SOCKET", socket).output().unwrap();
            assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0), "{verb}");
            let words = one_line(&output);
            assert!(words.contains(socket.to_str().unwrap()) && words.contains("balancer run"), "{words}");
        }
    }
}

#[test]
fn when_privileges_are_missing_then_they_are_named() {
    let (topology, settings, files) = one_leg();
    let config = write_config(&topology, &settings, files.path()).unwrap();
    // Any user can read and start this copy of the balancer.
    let program = files.path().join("balancer");
    fs::copy(binaries::balancer().unwrap(), &program).unwrap();
    for path in [files.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let before = traces_before(&topology);
    for (privileges, missing) in [
        ("--reuid=65534 --regid=65534 --clear-groups", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"),
        ("--bounding-set=-net_admin", "CAP_NET_ADMIN"),
        ("--bounding-set=-bpf,-sys_admin", "CAP_BPF"),
        ("--bounding-set=-all", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"),
    ] {
        let mut command = topology.balancer().command("setpriv");
        command.args(privileges.split(' ')).arg(&program).arg("run").arg("--config").arg(&config);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let words = one_line(&output);
        assert!(words.starts_with(&format!("balancer: missing capability {missing}: ")), "{words}");
        assert_eq!(traces(&topology), before);
    }
}

#[test]
fn when_too_few_files_may_be_open_then_the_start_is_refused_with_the_number_that_it_needs() {
    let (topology, settings, files) = one_leg();
    let config = write_config(&topology, &settings, files.path()).unwrap();
    let before = traces_before(&topology);
    let mut command = topology.balancer().command("prlimit");
    command.arg("--nofile=128").arg(binaries::balancer().unwrap()).arg("run").arg("--config").arg(&config);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = one_line(&output);
    assert!(words.starts_with("balancer: the limit of open files is 128, and the balancer needs "), "{words}");
    assert_eq!(traces(&topology), before);
}

#[test]
fn when_an_interface_is_missing_then_the_start_is_refused_with_the_nearest_name() {
    let (topology, mut settings, files) = one_leg();
    settings.interfaces = vec!["eht0".to_owned()];
    let words = refused(&topology, &settings, files.path());
    assert!(words.contains("interface eht0 does not exist: did you mean eth0?"), "{words}");
    settings.interfaces = vec!["lo".to_owned()];
    assert!(refused(&topology, &settings, files.path()).contains("loopback"));
}

#[test]
fn when_one_of_several_interfaces_is_missing_at_a_restart_then_it_steers_on_the_others_and_waits() {
    for on_exit in ["detach", "keep"] {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let more = |topology: &Topology| topology.balancer().ip("link add more0 type veth peer name more1").map(drop);
        let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |settings, topology| {
            settings.on_exit = on_exit;
            settings.interfaces = names(&["more0", "eth0", "eth1"]);
            more(topology)
        })
        .unwrap();
        let homes = site.homes(FAMILY, 1..=20).unwrap();
        let ready = |site: &Site| site.cli(&["ready"]).unwrap();
        assert!(ready(&site).starts_with("ready"));
        for kill in [true, false] {
            site.topology().balancer().ip("link del more0").unwrap();
            if kill {
                site.kill_and_restart(|_| {}).unwrap();
            } else {
                site.restart(|_| {}).unwrap();
            }
            assert!(ready(&site).contains("degraded: the program is not on more0"), "{}", ready(&site));
            assert_eq!(site.homes(FAMILY, 1..=20).unwrap(), homes, "{on_exit}");
            more(site.topology()).unwrap();
            wait("more0 is not attached to", || has_program(site.topology(), "more0"));
            wait("it stays degraded", || ready(&site).starts_with("ready"));
        }
        // The balancer also starts if the interface for an assigned VIP is missing.
        site.topology().balancer().ip("link add dummy0 type veth peer name dummy1").unwrap();
        site.apply(|settings| settings.service_lines = "assign_vip = \"dummy0\"".to_owned()).unwrap();
        site.topology().balancer().ip("link del dummy0").unwrap();
        site.kill_and_restart(|_| {}).unwrap();
        assert!(ready(&site).contains("degraded: assign_vip: interface dummy0 does not exist"), "{}", ready(&site));
    }
}

#[test]
fn when_no_interface_is_there_then_the_start_fails() {
    let (topology, mut settings, files) = one_leg();
    settings.interfaces = vec!["more0".to_owned(), "more1".to_owned()];
    let words = refused(&topology, &settings, files.path());
    assert!(words.contains("interface more0 does not exist"), "{words}");
}

#[test]
fn when_a_second_balancer_starts_then_it_is_refused_and_the_first_goes_on() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 1, |_, _| Ok(())).unwrap();
    let homes = site.homes(FAMILY, 1..=20).unwrap();
    let mut second = Settings::new(site.topology(), Forwarding::Nat, 1);
    second.lines = "[metrics]\nlisten = \"127.0.0.1:9661\"".to_owned();
    let files = tempfile::tempdir().unwrap();
    for mode in ["auto", "native", "generic"] {
        second.xdp_mode = mode;
        let words = refused(site.topology(), &second, files.path());
        assert!(words.contains("interface eth0 already has an XDP program"), "{words}");
        assert_eq!(site.homes(FAMILY, 1..=20).unwrap(), homes);
    }
    assert_eq!(site.status().unwrap().interfaces[0].xdp_mode, "native");
}

#[test]
fn when_a_foreign_program_is_attached_then_it_stays() {
    let (topology, mut settings, files) = one_leg();
    for hook in [Hook::Native, Hook::Generic] {
        let foreign = Passer::attach(topology.balancer(), "eth0", hook).unwrap();
        for mode in ["auto", "native", "generic"] {
            settings.xdp_mode = mode;
            let words = refused(&topology, &settings, files.path());
            assert!(words.contains("interface eth0 already has an XDP program"), "{hook:?} {mode}: {words}");
        }
        drop(foreign);
    }
    assert!(!has_program(&topology, "eth0"));
}

/// Puts the balancer's interface into a bridge, whose driver has no native XDP, and moves the interface's IPv4
/// configuration to the bridge.
fn onto_a_bridge(topology: &Topology) {
    for command in [
        "link add br0 type bridge mcast_snooping 0",
        "link set eth0 master br0",
        "link set br0 up",
        "addr flush dev eth0",
        "addr add 10.0.0.1/16 dev br0",
        "route add 10.1.0.0/16 via 10.0.0.2",
    ] {
        topology.balancer().ip(command).unwrap();
    }
}

#[test]
fn when_native_mode_is_not_available_then_native_is_refused() {
    let (topology, mut settings, files) = one_leg();
    onto_a_bridge(&topology);
    settings.interfaces = vec!["br0".to_owned()];
    let words = refused(&topology, &settings, files.path());
    assert!(words.contains("interface br0 takes no native XDP"), "{words}");
}

#[test]
fn when_native_mode_is_not_available_then_auto_falls_back_and_says_so() {
    for forwarding in [Forwarding::Dsr, Forwarding::Nat] {
        let mut site = Site::start(Shape::OneLegged, forwarding, 2, |settings, topology| {
            onto_a_bridge(topology);
            settings.interfaces = vec!["br0".to_owned()];
            settings.xdp_mode = "auto";
            Ok(())
        })
        .unwrap();
        let status = site.status().unwrap();
        assert_eq!((status.interfaces[0].name.as_str(), status.interfaces[0].xdp_mode.as_str()), ("br0", "generic"));
        let log = site.controller().process().tail(20).unwrap();
        assert!(!log.contains('\u{1b}'), "colours in a file: {log:?}");
        let warning = log.lines().find(|line| line.contains("WARN") && line.contains("generic mode")).unwrap();
        assert!(warning.contains("interface br0 takes no native XDP"), "{warning}");
        println!("{warning}");

        let homes = site.homes(FAMILY, 1..=100).unwrap();
        assert_eq!(site.homes(FAMILY, 1..=100).unwrap(), homes);
        assert!(["web1", "web2"].iter().all(|name| homes.values().any(|home| home == name)), "{homes:?}");
        let seen = site.status().unwrap().interfaces[0].packets_seen;
        assert!(seen.tx >= 1_000, "{seen:?}");
    }
}

#[test]
fn when_the_program_is_in_generic_mode_then_packets_are_not_merged() {
    let (topology, mut settings, files) = one_leg();
    settings.xdp_mode = "generic";
    let merges = || {
        let output = topology.balancer().command("ethtool").args(["-k", "eth0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("generic-receive-offload: on")
    };
    // The topology has switched off the merging of packets (GRO) on the balancer's interface.
    let on = topology.balancer().command("ethtool").args(["-K", "eth0", "gro", "on"]).status().unwrap();
    assert!(on.success() && merges());
    let mut controller = started(&topology, &settings, files.path());
    assert!(!merges());
    controller.process().signal(Signal::SIGTERM).unwrap();
    assert_eq!(end(controller.process()).code(), Some(0));
    assert!(merges());
}

/// Starts a balancer, and waits until it serves clients and its program is attached.
fn started(topology: &Topology, settings: &Settings, files: &Path) -> Controller {
    let mut controller = start_controller(topology, settings, files).unwrap();
    controller.wait_ready(PATIENCE).unwrap();
    assert!(has_program(topology, "eth0"));
    controller
}

/// Counts all arenas of malloc except the first arena. Each counted arena is an aligned range of 64 MiB, whose unused
/// rest is inaccessible.
fn arenas_of_threads(maps: &str) -> usize {
    const ARENA: u64 = 64 << 20;
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let mappings: Vec<(u64, u64, &str)> = maps
        .lines()
        .map(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (begin, end) = range.split_once('-').unwrap();
            (number(begin), number(end), &rest[..4])
        })
        .collect();
    let is_arena = |pair: &&[(u64, u64, &str)]| {
        let &[(begin, end, used), (rest, last, unused)] = *pair else { return false };
        (used, unused, end) == ("rw-p", "---p", rest) && begin % ARENA == 0 && last == begin + ARENA
    };
    mappings.windows(2).filter(is_arena).count()
}

#[test]
fn when_the_balancer_has_threads_then_they_share_one_arena() {
    let (topology, settings, files) = one_leg();
    let mut controller = started(&topology, &settings, files.path());
    for _ in 0..10 {
        controller.status().unwrap();
    }
    let pid = controller.process().pid();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    assert!(threads > 2, "it has {threads} threads");
    assert_eq!(arenas_of_threads(&fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()), 0);
}

#[test]
fn when_a_signal_comes_then_the_balancer_ends_cleanly() {
    let topology = Topology::new(Shape::TwoLegged, Forwarding::Nat, 1).unwrap();
    let mut settings = Settings::new(&topology, Forwarding::Nat, 1);
    settings.families = Family::BOTH.to_vec();
    let files = tempfile::tempdir().unwrap();
    let before = traces_before(&topology);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut controller = started(&topology, &settings, files.path());
        assert!(has_program(&topology, "eth1"));
        controller.process().signal(Signal::SIGHUP).unwrap();
        assert!(controller.status().is_ok(), "a hang-up ends nothing");
        assert_ne!(traces(&topology), before);
        assert!(files.path().join("balancer.sock").exists());
        controller.process().signal(signal).unwrap();
        let status = end(controller.process());
        assert_eq!(status.code(), Some(0), "{}", controller.process().tail(5).unwrap());
        assert_eq!(traces(&topology), before, "{signal}");
        assert!(!files.path().join("balancer.sock").exists());
    }
}

/// Sends a signal in each of the given twentieths of the time that the balancer takes to start.
fn nothing_is_left_by_starts_that_end(parts: impl IntoIterator<Item = u32>) {
    let (topology, settings, files) = one_leg();
    let before = traces_before(&topology);
    let begun = Instant::now();
    let mut controller = started(&topology, &settings, files.path());
    let whole = begun.elapsed();
    controller.process().signal(Signal::SIGTERM).unwrap();
    let _ = end(controller.process());
    let (mut silent, mut starting) = (0, 0);
    let socket = files.path().join("balancer.sock");
    for part in parts {
        fs::remove_file(files.path().join("balancer.log")).unwrap();
        let mut controller = start_controller(&topology, &settings, files.path()).unwrap();
        thread::sleep(whole * part / 20);
        let serves = controller.process().tail(usize::MAX).unwrap().contains(" serving ");
        controller.process().signal(Signal::SIGTERM).unwrap();
        let _ = end(controller.process());
        let log = controller.process().tail(usize::MAX).unwrap();
        assert_eq!(traces(&topology), before, "after {part}/20 of a start: {log}");
        assert!(!socket.exists(), "after {part}/20 of a start");
        silent += u32::from(log.is_empty());
        starting += u32::from(!log.is_empty() && !serves);
    }
    println!("{whole:?} to start: told before the first word {silent} times, before it served {starting} times");
}

#[test]
fn when_a_signal_comes_during_the_start_then_nothing_is_left() {
    nothing_is_left_by_starts_that_end([0, 3, 7, 11, 15, 19]);
}

#[test]
fn when_a_balancer_has_crashed_then_the_next_one_starts() {
    let (topology, settings, files) = one_leg();
    let mut controller = started(&topology, &settings, files.path());
    controller.process().kill().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while has_program(&topology, "eth0") {
        assert!(Instant::now() < deadline, "the program has outlived its controller");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(files.path().join("balancer.sock").exists());
    started(&topology, &settings, files.path());
}

#[test]
fn when_another_program_has_the_address_of_the_metrics_then_it_steers_and_serves_them_once_they_are_free() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |_, _| Ok(())).unwrap();
    let homes = site.homes(FAMILY, 1..=10).unwrap();
    let taken = site.topology().balancer().run_in_thread(|| TcpListener::bind("127.0.0.2:9660")).unwrap().unwrap();
    let elsewhere = |settings: &mut Settings| settings.lines = "[metrics]\nlisten = \"127.0.0.2:9660\"\n".to_owned();
    site.restart(elsewhere).unwrap();
    let ready = |site: &Site| site.cli(&["ready"]).unwrap();
    assert!(
        ready(&site).contains("degraded: metrics on 127.0.0.2:9660: another program listens there"),
        "{}",
        ready(&site)
    );
    assert_eq!(site.homes(FAMILY, 1..=10).unwrap(), homes);
    assert_eq!(
        site.apply(|_| {}).unwrap().lines().last(),
        Some("configuration applied: nothing changed"),
        "it stands in the way of no change"
    );
    drop(taken);
    wait("it stays degraded", || ready(&site).starts_with("ready"));
}

#[test]
fn when_a_start_fails_then_nothing_is_left() {
    let topology = Topology::new(Shape::TwoLegged, Forwarding::Nat, 1).unwrap();
    let settings = Settings::new(&topology, Forwarding::Nat, 1);
    let files = tempfile::tempdir().unwrap();
    let socket = files.path().join("balancer.sock");
    let says = |what: &str| {
        let words = refused(&topology, &settings, files.path());
        assert!(words.contains(what), "{words}");
    };

    let busy = Passer::attach(topology.balancer(), "eth1", Hook::Native).unwrap();
    says("interface eth1 already has an XDP program");
    assert!(!has_program(&topology, "eth0") && !socket.exists());
    drop(busy);

    let served = UnixListener::bind(&socket).unwrap();
    says("another controller serves");
    assert!(socket.exists(), "the other's socket is the other's");
    drop(served);
    fs::remove_file(&socket).unwrap();

    fs::write(&socket, "something else").unwrap();
    says("is not a socket");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "something else");
    fs::remove_file(&socket).unwrap();

    // After all failed starts, the balancer still starts.
    started(&topology, &settings, files.path());
}

#[test]
fn when_the_group_does_not_exist_then_the_start_is_refused() {
    let (topology, settings, files) = one_leg();
    let config = write_config(&topology, &settings, files.path()).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[control]\n", "[control]\ngroup = \"no-such-group\"\n")).unwrap();
    let before = traces_before(&topology);
    let mut command = topology.balancer().command(binaries::balancer().unwrap());
    let output = command.arg("run").arg("--config").arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = one_line(&output);
    assert!(words.contains("there is no group \"no-such-group\" for the control socket; make it (groupadd"), "{words}");
    assert_eq!(traces(&topology), before);
}

#[test]
fn when_the_configuration_is_broken_then_the_start_is_refused() {
    let (topology, settings, files) = one_leg();
    let config = write_config(&topology, &settings, files.path()).unwrap();
    let good = fs::read_to_string(&config).unwrap();
    let before = traces_before(&topology);
    for (bad, what) in [
        (good.replace("table_size", "table_sizes").replace("forwarding =", "forwardng ="), "did you mean"),
        (good.replace("\"0s\"", "\"90ms\""), "whole seconds"),
        (good.replace("weight = 100", "weight = 65536"), "65535"),
        ("[[service]\n".to_owned(), ":1"),
    ] {
        assert_ne!(bad, good);
        fs::write(&config, &bad).unwrap();
        let mut command = topology.balancer().command(binaries::balancer().unwrap());
        let output = command.arg("run").arg("--config").arg(&config).output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}");
        let place = format!("{}:", config.display());
        assert!(words.lines().all(|line| line.starts_with(&place)) && words.contains(what), "{words}");
        assert_eq!(traces(&topology), before, "{words}");
    }
}

/// The service uses every port of an address that programs of the machine itself use.
#[test]
fn when_a_service_takes_every_port_of_the_machines_own_address_then_it_is_warned_of_once() {
    let (topology, settings, _) = one_leg();
    let warned = |controller: &mut Controller| {
        controller.process().tail(100).unwrap().matches("10.0.0.1 is this machine's own address on eth0").count()
    };
    for (address, expected) in [("10.0.0.1:0", 1), ("10.0.0.1:8080", 0)] {
        let lines = format!(
            "[[service]]\nname = \"own\"\naddress = \"{address}\"\nforwarding = \"nat\"\ncheck = {{ type = \"none\" }}\n\
             [[service.backend]]\nname = \"own1\"\naddress = \"10.0.0.99\"\n"
        );
        let settings = Settings { lines, ..settings.clone() };
        // Because of the separate directory, each balancer has its own log.
        let files = tempfile::tempdir().unwrap();
        let mut controller = started(&topology, &settings, files.path());
        // Changing the MTU makes the balancer repeat its checks of the machine.
        topology.balancer().ip("link set eth0 mtu 1400").unwrap();
        topology.balancer().ip("link set eth0 mtu 1500").unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(warned(&mut controller), expected, "{address}");
        controller.process().signal(Signal::SIGTERM).unwrap();
        assert_eq!(end(controller.process()).code(), Some(0));
    }
}

#[test]
fn when_the_balancer_is_in_a_user_namespace_then_it_says_that_it_must_be_outside() {
    let (topology, settings, files) = one_leg();
    let config = write_config(&topology, &settings, files.path()).unwrap();
    let mut command = topology.balancer().command("unshare");
    command
        .args(["--user", "--map-root-user"])
        .arg(binaries::balancer().unwrap())
        .arg("run")
        .arg("--config")
        .arg(&config);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.lines().last().unwrap().contains("this process is in a user namespace"), "{words}");
}

#[test]
fn when_switches_cannot_be_written_then_all_of_them_are_named_at_once() {
    let topology = Topology::new(Shape::TwoLegged, Forwarding::Nat, 1).unwrap();
    let mut settings = Settings::new(&topology, Forwarding::Nat, 1);
    settings.families = Family::BOTH.to_vec();
    let files = tempfile::tempdir().unwrap();
    let config = write_config(&topology, &settings, files.path()).unwrap();
    let program = binaries::balancer().unwrap();
    let script = format!(
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec {} run --config {}",
        program.display(),
        config.display()
    );
    let output = topology.balancer().command("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    for interface in ["eth0", "eth1"] {
        for switch in ["ipv4.conf.NAME.forwarding=1", "ipv6.conf.NAME.accept_ra=2", "ipv6.conf.NAME.forwarding=1"] {
            let switch = switch.replace("NAME", interface);
            assert!(words.contains(&format!(" net.{switch}")), "{switch}: {words}");
        }
    }
}
