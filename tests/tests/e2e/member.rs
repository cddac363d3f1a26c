//! Tests of a balancer in a group of balancers: readiness, `withdraw` and `announce`, VIPs for routing daemons, and an
//! end that clients do not notice.
//!
//! | event | VIP on an interface | after `withdraw` | after `announce` |
//! | --- | --- | --- | --- |
//! | restart | disappears and returns with `detach` | stays withdrawn | VIP returns |
//! | SIGKILL | stays with `keep`; disappears and returns with `detach` | stays withdrawn | VIP returns |
//! | reload | stays | stays withdrawn | – |
//! | `apply` of `assign_vip` | moves, disappears or appears | stays withdrawn | – |
//! | no backend up | disappears with `drop`, stays with `open` | stays withdrawn | VIP returns with the first backend |
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::SocketAddr,
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::{Reply, Request},
    site::{PATIENCE, QUICK_CHECK, Site},
    topology::{Family, Shape},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{runs, wait};

const ON_LO: &str = "assign_vip = \"lo\"\nwhen_all_down = \"drop\"";

/// Starts a site with two backends, whose balancer has only the VIPs that `lines` assign.
fn site(on_exit: &'static str, lines: &str) -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.families = vec![Family::V4, Family::V6];
        settings.on_exit = on_exit;
        settings.check = QUICK_CHECK.to_owned();
        settings.service_lines = lines.to_owned();
        for family in Family::BOTH {
            let length = if family == Family::V4 { 32 } else { 128 };
            topology.balancer().ip(&format!("addr del {}/{length} dev lo", topology.vip(family)))?;
        }
        Ok(())
    })
    .unwrap()
}

/// Returns whether the kernel has assigned the VIP to an interface.
fn has(site: &Site, family: Family, interface: &str) -> bool {
    let output = site.topology().balancer().command("ip").args(["addr", "show", "dev", interface]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().contains(&format!(" {}/", site.topology().vip(family)))
}

/// Returns the interfaces that have the VIP, and checks that these interfaces are the same for both families.
fn places(site: &Site) -> Vec<&'static str> {
    let of = |family| ["lo", "eth0"].into_iter().filter(|on| has(site, family, on)).collect::<Vec<_>>();
    let (v4, v6) = (of(Family::V4), of(Family::V6));
    assert_eq!(v4, v6);
    v4
}

#[track_caller]
fn wait_places(site: &Site, expected: &[&str]) {
    let as_expected = |on: &&str| Family::BOTH.iter().all(|&family| has(site, family, on) == expected.contains(on));
    wait(&format!("VIPs are not on {expected:?}"), || ["lo", "eth0"].iter().all(as_expected));
}

fn said(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8(output.stdout.clone()).unwrap())
}

fn ready(site: &Site) -> (i32, String) {
    said(&site.output(&["ready"]).unwrap())
}

/// Returns the status code and body of `/ready`.
fn http_ready(site: &Site) -> Option<(u16, String)> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let request = Request::new(any, SocketAddr::from(([127, 0, 0, 1], 9660))).path("/ready");
    let reply: std::io::Result<Reply> = site.topology().balancer().run_in_thread(|| request.send()).unwrap();
    reply.ok().map(|reply| (reply.status, String::from_utf8(reply.body).unwrap()))
}

/// Sends SIGTERM to the balancer, and does not wait for its end.
fn terminate(site: &mut Site) {
    site.controller().process().signal(Signal::SIGTERM).unwrap();
}

fn exited(site: &mut Site) -> bool {
    site.controller().process().exited().unwrap().is_some()
}

#[test]
fn when_a_balancer_runs_then_it_is_ready_from_its_start_to_its_end() {
    let mut site = site("detach", "");
    assert_eq!(ready(&site), (0, "ready\n".to_owned()));
    assert_eq!(http_ready(&site), Some((200, "ready\n".to_owned())));
    assert_eq!(site.metrics().unwrap().sample("balancer_ready"), Some(1.0));

    // The only interface of the balancer disappears and returns.
    site.topology_mut().unplug_balancer().unwrap();
    let reason = "the program is on no interface";
    wait("it is still ready", || ready(&site) == (1, format!("not ready: {reason}\n")));
    assert_eq!(http_ready(&site), Some((503, format!("not_ready\n{reason}\n"))));
    assert_eq!(site.metrics().unwrap().sample("balancer_ready"), Some(0.0));
    site.topology_mut().plug_balancer().unwrap();
    wait("it is not ready again", || ready(&site).0 == 0);
    let events = site.cli(&["events"]).unwrap();
    let last = events.lines().rfind(|line| line.contains("ready")).unwrap();
    assert!(events.contains(&format!("not ready: {reason}")) && last.ends_with(" ready"), "{events}");

    site.controller().process().stop().unwrap();
    let (code, line) = ready(&site);
    assert_eq!(code, 1);
    assert!(line.starts_with("not ready: no controller reachable at "), "{line}");
    assert_eq!(http_ready(&site), None);
}

#[test]
fn when_one_interface_of_two_is_missing_then_the_balancer_is_degraded() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 1, |_, _| Ok(())).unwrap();
    assert_eq!(ready(&site).0, 0);
    site.topology_mut().balancer().ip("link del eth0").unwrap();
    wait("it is not degraded", || ready(&site) == (0, "degraded: the program is not on eth0\n".to_owned()));
    assert_eq!(site.output(&["ready", "--strict"]).unwrap().status.code(), Some(1));
    assert_eq!(http_ready(&site), Some((200, "degraded\nthe program is not on eth0\n".to_owned())));
    let json: serde_json::Value = serde_json::from_slice(&site.output(&["ready", "--json"]).unwrap().stdout).unwrap();
    assert_eq!(json, serde_json::json!({"state": "degraded", "reasons": ["the program is not on eth0"]}));
}

#[test]
fn when_this_machine_cannot_check_backends_then_it_is_degraded_until_it_can() {
    let missing = r#"{ type = "exec", command = ["/nonexistent/sh"], interval = "300ms" }"#.to_owned();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.check = missing;
        Ok(())
    })
    .unwrap();
    let why = "cannot start \"/nonexistent/sh\"";
    wait("it is not degraded", || {
        ready(&site).1.starts_with(&format!("degraded: this machine cannot check backend web/web1: {why}"))
    });
    let hindered = |site: &Site| site.metrics().unwrap().sum("checks_hindered", &[]).unwrap();
    wait("not all are hindered", || hindered(&site) == 2.0);
    let status = site.cli(&["status"]).unwrap();
    assert!(status.contains(&format!("cannot be checked here: {why}")), "{status}");
    site.apply(|settings| settings.check = QUICK_CHECK.to_owned()).unwrap();
    wait("still degraded", || ready(&site) == (0, "ready\n".to_owned()));
    assert_eq!(hindered(&site), 0.0);
}

#[test]
fn when_there_is_no_backend_to_steer_to_then_the_vip_leaves_its_interface() {
    let mut site = site("detach", ON_LO);
    wait_places(&site, &["lo"]);
    site.homes(Family::V4, 1..=5).unwrap();
    site.homes(Family::V6, 1..=5).unwrap();
    site.kill_backend(1).unwrap();
    site.wait_state(1, &["down"]).unwrap();
    assert_eq!(places(&site), ["lo"]);
    site.kill_backend(2).unwrap();
    wait_places(&site, &[]);
    // The balancer stays ready even if its backends are down.
    assert_eq!(ready(&site).0, 0);
    // The kernel removes the VIPs before the controller logs the removal. The log contains one line about both VIPs, or
    // one line about each VIP.
    let vip = site.topology().vip(Family::V4).to_string();
    let told = |line: &str| line.contains(&vip) && line.ends_with("removed from lo (assign_vip)");
    wait("its removal is not told", || site.cli(&["events"]).unwrap().lines().any(told));
    site.start_backend(2).unwrap();
    wait_places(&site, &["lo"]);

    // With `"open"`, the VIP stays assigned even if no backend is up.
    site.apply(|settings| settings.service_lines = "assign_vip = \"lo\"\nwhen_all_down = \"open\"".to_owned()).unwrap();
    site.kill_backend(2).unwrap();
    site.wait_state(2, &["down"]).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(places(&site), ["lo"]);
    site.apply(|settings| settings.service_lines = ON_LO.to_owned()).unwrap();
    wait_places(&site, &[]);
    // If a user withdraws the balancer while no backend is up, the VIP does not return when a backend is up again.
    site.cli(&["withdraw", "--wait"]).unwrap();
    site.start_backend(1).unwrap();
    site.wait_state(1, &["up"]).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(places(&site).is_empty());
    site.cli(&["announce"]).unwrap();
    wait_places(&site, &["lo"]);
    site.controller().process().stop().unwrap();
    assert!(places(&site).is_empty());
}

#[test]
fn when_assign_vip_changes_then_a_running_balancer_follows() {
    let mut site = site("detach", "assign_vip = true");
    assert_eq!(places(&site), ["eth0"]);
    let apply = |site: &mut Site, line: &str| site.apply(|settings| settings.service_lines = line.to_owned());
    for (line, on) in [
        ("assign_vip = \"lo\"", &["lo"][..]),
        ("assign_vip = true", &["eth0"]),
        ("assign_vip = false", &[]),
        ("assign_vip = \"eth0\"", &["eth0"]),
        ("assign_vip = \"lo\"", &["lo"]),
        ("", &[]),
        ("assign_vip = true", &["eth0"]),
    ] {
        apply(&mut site, line).unwrap();
        wait_places(&site, on);
    }
    let error = apply(&mut site, "assign_vip = \"br7\"").unwrap_err().to_string();
    assert!(error.contains("assign_vip: interface br7 does not exist: there are lo, eth0"), "{error}");
    assert_eq!(places(&site), ["eth0"]);
    site.topology().balancer().ip("link add br7 type bridge").unwrap();
    apply(&mut site, "assign_vip = \"br7\"").unwrap();
    wait("not on br7", || Family::BOTH.iter().all(|&family| has(&site, family, "br7")));
    wait_places(&site, &[]);
    // The balancer keeps running when an interface is removed, and notices the removal.
    site.topology().balancer().ip("link del br7").unwrap();
    wait("it does not notice", || ready(&site).1.starts_with("degraded: assign_vip: interface br7 does not exist"));
    site.topology().balancer().ip("link add br7 type bridge").unwrap();
    wait("not on the new br7", || Family::BOTH.iter().all(|&family| has(&site, family, "br7")));
    wait("still degraded", || ready(&site) == (0, "ready\n".to_owned()));

    // While the balancer is withdrawn, `apply` does not assign the VIP again.
    site.cli(&["withdraw", "--wait"]).unwrap();
    for line in ["assign_vip = true", "assign_vip = \"lo\"", "assign_vip = false", "assign_vip = \"lo\""] {
        apply(&mut site, line).unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(places(&site).is_empty(), "{line}");
    }
    site.cli(&["announce"]).unwrap();
    wait_places(&site, &["lo"]);
}

#[test]
fn when_a_balancer_is_withdrawn_then_it_stays_so_until_it_is_announced() {
    for lines in ["assign_vip = true", ON_LO] {
        let on: &[&str] = if lines == ON_LO { &["lo"] } else { &["eth0"] };
        let mut site = site("keep", lines);
        wait_places(&site, on);
        let out = site.cli(&["withdraw", "--wait"]).unwrap();
        assert_eq!(out, "withdrawn: its VIPs are removed, and steering continues\nno VIP is left\n");
        assert!(places(&site).is_empty(), "{lines}");
        assert_eq!(ready(&site).0, 0);
        let status = site.status().unwrap();
        assert!(status.withdrawn && status.vips.is_empty());
        assert_eq!(site.metrics().unwrap().sample("balancer_withdrawn"), Some(1.0));
        assert_eq!(site.cli(&["withdraw"]).unwrap(), "withdrawn already: nothing changed\n");
        // If a route still sends clients to a withdrawn balancer, the balancer steers these clients.
        site.homes(Family::V4, 1..=5).unwrap();

        let stays = |site: &Site, after: &str| {
            thread::sleep(Duration::from_millis(300));
            assert!(places(site).is_empty(), "{lines}, {after}");
            assert!(site.status().unwrap().withdrawn, "{lines}, {after}");
        };
        site.restart(|_| {}).unwrap();
        stays(&site, "a restart");
        site.kill_and_restart(|_| {}).unwrap();
        stays(&site, "a kill");
        site.apply(|settings| settings.prefix_v4 = 24).unwrap();
        stays(&site, "apply");
        site.controller().process().signal(Signal::SIGHUP).unwrap();
        stays(&site, "a reload");

        assert_eq!(site.cli(&["announce"]).unwrap(), "announced: its VIPs are assigned again\n");
        wait_places(&site, on);
        assert_eq!(site.cli(&["announce"]).unwrap(), "not withdrawn: nothing changed\n");
        let listed = Family::BOTH.map(|family| (site.topology().vip(family), on[0].to_owned()));
        wait("status does not show them", || {
            let vips = site.status().unwrap().vips;
            vips.into_iter().map(|vip| (vip.address, vip.interface)).eq(listed.iter().cloned())
        });
        site.kill_and_restart(|_| {}).unwrap();
        wait_places(&site, on);
        let events = site.cli(&["events"]).unwrap();
        assert!(
            events.contains("withdrawn: its VIPs are removed")
                && events.contains("announced: its VIPs are assigned again")
        );
    }
}

/// With `on_exit = "keep"`, the kernel program continues to steer, so VIPs stay assigned at all times.
#[test]
fn when_on_exit_is_keep_then_vips_do_not_flap() {
    let mut site = site("keep", ON_LO);
    wait_places(&site, &["lo"]);
    let log = site.files().join("monitor.log");
    let mut monitor = site.topology().balancer().command("ip");
    monitor.args(["monitor", "address", "dev", "lo"]);
    let mut monitor = balancer_testkit::process::Process::spawn("ip monitor", &mut monitor, &log).unwrap();
    thread::sleep(Duration::from_millis(300));
    site.restart(|_| {}).unwrap();
    site.kill_and_restart(|_| {}).unwrap();
    site.homes(Family::V4, 1..=5).unwrap();
    thread::sleep(Duration::from_millis(300));
    monitor.kill().unwrap();
    let seen = fs::read_to_string(&log).unwrap();
    assert!(!seen.contains("Deleted"), "{seen}");
    assert_eq!(places(&site), ["lo"]);
}

#[test]
fn when_a_balancer_ends_cleanly_then_vips_go_first_and_steering_continues() {
    let mut site = site("detach", ON_LO);
    wait_places(&site, &["lo"]);
    let before = site.homes(Family::V4, 1..=50).unwrap();
    let stop = AtomicBool::new(false);
    let (asked, failed) = thread::scope(|scope| {
        let (requests, stop, client) = (
            (1..=50)
                .map(|client| Request { timeout: PATIENCE, ..site.request(Family::V4, client) })
                .collect::<Vec<_>>(),
            &stop,
            site.topology().client().entrance(),
        );
        let clients = scope.spawn(move || {
            client.enter().unwrap();
            let (mut asked, mut failed) = (0u32, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                for request in &requests {
                    asked += 1;
                    failed.extend(request.send().and_then(|reply| reply.answer()).err());
                }
            }
            (asked, failed)
        });
        thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        terminate(&mut site);
        wait_places(&site, &[]);
        let (code, line) = ready(&site);
        assert_eq!((code, line.as_str()), (1, "not ready: it is ending\n"));
        assert_eq!(http_ready(&site).unwrap().0, 503);
        // The balancer continues to steer after the signal. In this test, the clients stop a second before the balancer
        // ends.
        while begin.elapsed() < Duration::from_secs(2) {
            assert!(!exited(&mut site), "it ended after {:?}", begin.elapsed());
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        let done = clients.join().unwrap();
        wait("it does not end", || exited(&mut site));
        assert!(begin.elapsed() > Duration::from_millis(2_900), "{:?}", begin.elapsed());
        done
    });
    assert!(failed.is_empty() && asked > 100, "{} of {asked} failed: {:?}", failed.len(), failed.first());
    site.start_again().unwrap();
    wait_places(&site, &["lo"]);
    assert_eq!(site.homes(Family::V4, 1..=50).unwrap(), before);
}

#[test]
fn when_a_second_signal_comes_then_the_balancer_ends_at_once() {
    let mut site = unjoined("60s");
    terminate(&mut site);
    wait("the balancer is not leaving", || ready(&site).1.contains("it is ending"));
    terminate(&mut site);
    wait("it does not end", || exited(&mut site));
    let status = site.controller().process().stop().unwrap();
    assert!(status.success(), "{status}");
}

/// A single balancer need not wait for clients to leave.
#[test]
fn when_a_single_balancer_ends_then_it_does_not_linger() {
    for (on_exit, lines, on) in
        [("detach", "assign_vip = true", &[][..]), ("keep", "assign_vip = true", &["eth0"]), ("keep", ON_LO, &["lo"])]
    {
        let mut site = site(on_exit, lines);
        assert!(site.controller().process().stop().unwrap().success());
        let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
        assert!(!log.contains("steering goes on"), "{lines}: {log}");
        assert_eq!(places(&site), on, "{on_exit} {lines}");
    }
}

const FLEET: &str = "[fleet]\nname = \"test\"\nendpoints = [\"https://192.0.2.1:2379\"]\nlinger = ";

/// Starts a member of a fleet whose etcd cannot be reached.
fn unjoined(linger: &str) -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 1, |settings, topology| {
        settings.service_lines = "assign_vip = true".to_owned();
        settings.lines = format!("{FLEET}\"{linger}\"");
        topology.balancer().ip(&format!("addr del {}/32 dev lo", topology.vip(Family::V4)))?;
        Ok(())
    })
    .unwrap()
}

/// A balancer that has not joined its fleet is not ready and assigns no VIPs, whatever the setting `assign_vip` says.
#[test]
fn when_a_member_has_not_joined_then_it_is_not_ready() {
    let mut site = unjoined("500ms");
    let (code, why) = ready(&site);
    let wanted = "not ready: it has not joined the fleet yet: etcd is out of reach (https://192.0.2.1:2379: ";
    assert!(code == 1 && why.starts_with(wanted), "{code}: {why}");
    assert_eq!(http_ready(&site).unwrap().0, 503);
    assert!(!has(&site, Family::V4, "eth0"));
    assert!(site.cli(&["events"]).unwrap().contains("not ready: it has not joined the fleet yet"));
    let error = site.apply(|settings| settings.lines = format!("{FLEET}\"1s\"")).unwrap_err().to_string();
    assert!(error.contains("fleet.linger cannot change while the balancer runs"), "{error}");
    let begin = Instant::now();
    assert!(site.controller().process().stop().unwrap().success());
    assert!(begin.elapsed() > Duration::from_millis(400), "{:?}", begin.elapsed());
}

/// No client should reach a balancer whose program steers nothing.
#[test]
fn when_the_program_is_on_no_interface_then_vips_leave_theirs() {
    let mut site = site("detach", ON_LO);
    wait_places(&site, &["lo"]);
    site.topology_mut().unplug_balancer().unwrap();
    wait("VIPs stay", || Family::BOTH.iter().all(|&family| !has(&site, family, "lo")));
    site.topology_mut().plug_balancer().unwrap();
    wait_places(&site, &["lo"]);
}

/// The data path ends with the balancer's process, so clients should not reach this balancer any more, even after a
/// kill.
#[test]
fn when_a_balancer_is_killed_then_its_vips_are_removed() {
    let mut site = site("detach", ON_LO);
    wait_places(&site, &["lo"]);
    site.controller().process().kill().unwrap();
    wait_places(&site, &[]);
    site.start_again().unwrap();
    wait_places(&site, &["lo"]);
    // The guard process ends when the balancer ends. If the guard process is killed, the balancer starts another one.
    let guard = |site: &mut Site| -> Option<i32> {
        let pid = site.controller().process().pid();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let mut pids = children.flat_map(|pids| pids.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        pids.find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("guard-vips"))
        })
        .map(|pid| pid.parse().unwrap())
    };
    let first = guard(&mut site).unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait("there is no other", || guard(&mut site).is_some_and(|other| other != first));
    let other = guard(&mut site).unwrap();
    // The guard process ignores signals that are meant for the balancer, but ends when the balancer ends cleanly.
    kill(Pid::from_raw(other), Signal::SIGTERM).unwrap();
    site.controller().process().kill().unwrap();
    wait_places(&site, &[]);
    site.start_again().unwrap();
    let last = guard(&mut site).unwrap();
    site.controller().process().signal(Signal::SIGTERM).unwrap();
    wait("it does not end", || exited(&mut site));
    wait("the guard goes on", || !runs(last));
    // With `on_exit = "keep"`, the kernel program continues to steer, so the balancer needs no guard process.
    site.restart(|settings| settings.on_exit = "keep").unwrap();
    wait_places(&site, &["lo"]);
    assert_eq!(guard(&mut site), None);
    site.apply(|settings| settings.on_exit = "detach").unwrap();
    wait("nobody guards them", || guard(&mut site).is_some());
    site.apply(|settings| settings.on_exit = "keep").unwrap();
    wait("somebody guards them", || guard(&mut site).is_none());
    site.controller().process().kill().unwrap();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(places(&site), ["lo"]);
    site.start_again().unwrap();
}
