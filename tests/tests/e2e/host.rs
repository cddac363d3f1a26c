//! Tests that a running balancer adapts the machine's settings to a new configuration.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{QUICK_CHECK, Settings, Site},
    topology::{Family, Shape},
};

use crate::support::wait;

const PATIENCE: Duration = Duration::from_secs(20);

fn switch(site: &Site, key: &str) -> String {
    let output = site.topology().balancer().command("sysctl").args(["-n", key]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Returns three settings of the last interface: IPv4 forwarding, IPv6 forwarding, and acceptance of router
/// advertisements.
fn switches(site: &Site) -> [String; 3] {
    let interface = site.topology().interfaces().last().unwrap();
    ["ipv4/NAME/forwarding", "ipv6/NAME/forwarding", "ipv6/NAME/accept_ra"].map(|key| {
        switch(site, &format!("net.{}", key.replace("NAME", &format!("conf/{interface}")).replace('/', ".")))
    })
}

#[test]
fn when_apply_brings_the_first_nat_service_of_a_family_then_it_works_at_once() {
    for shape in [Shape::OneLegged, Shape::TwoLegged] {
        let mut site = Site::start(shape, Forwarding::Nat, 2, |settings, _| {
            settings.on_exit = "keep";
            settings.check = QUICK_CHECK.to_owned();
            Ok(())
        })
        .unwrap();
        site.wait_state(1, &["up"]).unwrap();
        assert_eq!(switches(&site), ["1", "0", "1"]);
        site.apply(|settings| settings.families = vec![Family::V6]).unwrap();
        assert_eq!(switches(&site)[1..], ["1", "2"]);
        let up = |status: &balancer_api::model::StatusView| {
            status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
        };
        site.controller().wait_for(PATIENCE, "health checks over IPv6", up).unwrap();
        assert_eq!(site.homes(Family::V6, 1..=10).unwrap().len(), 10);
        // From this point, no service uses IPv4.
        wait("net.ipv4 stays switched on", || switches(&site) == ["0", "1", "2"]);

        site.apply(|settings| settings.families = vec![Family::V4, Family::V6]).unwrap();
        for family in Family::BOTH {
            assert_eq!(site.homes(family, 1..=10).unwrap().len(), 10, "{family:?}");
        }
        // Another program switches forwarding off. The balancer soon switches forwarding on again, and the next
        // controller still knows which setting to restore.
        site.topology().forward(false).unwrap();
        wait("net.ipv4 stays switched off", || switches(&site) == ["1", "1", "2"]);
        site.kill_and_restart(|_| {}).unwrap();
        site.apply(|settings| settings.families = vec![Family::V4]).unwrap();
        wait("net.ipv6 stays switched on", || switches(&site) == ["1", "0", "1"]);
        site.controller().process().kill().unwrap();
        assert!(site.detach().unwrap().status.success());
        assert_eq!(switches(&site), ["0", "0", "1"]);
    }
}

/// Applies a file that the balancer must refuse, and returns the balancer's answer.
fn refused(site: &mut Site, adapt: impl FnOnce(&mut Settings)) -> String {
    let error = site.apply(adapt).unwrap_err().to_string();
    assert!(error.contains("exit status: 1"), "{error}");
    error
}

fn attached(site: &Site, interface: &str) -> String {
    let output = site.topology().balancer().ip(&format!("-details link show dev {interface}")).unwrap();
    let mode = if output.contains("xdpgeneric") { "generic" } else { "native" };
    if output.contains("prog/xdp") { mode.to_owned() } else { String::new() }
}

fn interfaces(site: &Site) -> Vec<(String, String)> {
    let status = site.status().unwrap();
    status.interfaces.into_iter().map(|interface| (interface.name, interface.xdp_mode)).collect()
}

fn names(interfaces: &[&str]) -> Vec<String> {
    interfaces.iter().map(|&name| name.to_owned()).collect()
}

/// Returns whether a process listens on a port in the balancer's network namespace.
fn listens(site: &Site, port: u16) -> bool {
    let output =
        site.topology().balancer().command("ss").args(["-Hltn", &format!("sport = :{port}")]).output().unwrap();
    !output.stdout.is_empty()
}

#[test]
fn when_interfaces_and_mode_change_then_the_running_balancer_follows() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.on_exit = "keep";
        settings.xdp_mode = "auto";
        settings.service_lines = "assign_vip = true".to_owned();
        settings.interfaces = names(&["eth0", "eth1"]);
        topology.balancer().ip(&format!("addr del {}/32 dev lo", topology.vip(Family::V4)))?;
        topology.balancer().ip("link add more0 type veth peer name more1")?;
        topology.balancer().ip("link set more0 up")?;
        topology.balancer().ip("link set more1 up")?;
        Ok(())
    })
    .unwrap();
    let on = |site: &Site, interface: &str| {
        let addresses = site.topology().balancer().ip(&format!("addr show dev {interface}")).unwrap();
        addresses.contains(&format!(" {}/", site.topology().vip(Family::V4)))
    };
    let before = site.status().unwrap();

    // The balancer refuses an impossible change completely, and a dry run reports the refusal as well.
    for (interface, reason) in [("eht9", "interface eht9 does not exist"), ("lo", "interface lo is the loopback")] {
        let error = refused(&mut site, |settings| settings.interfaces = names(&["eth0", "eth1", interface]));
        assert!(error.contains(reason) && error.contains("nothing was changed"), "{error}");
        let config = site.config();
        let error = site.cli(&["apply", &config.to_string_lossy(), "--dry-run"]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(site.status().unwrap().generation, before.generation);
    assert_eq!(interfaces(&site).len(), 2);

    // The new file contains an additional interface, which comes first and gets the VIP.
    let answer = site.apply(|settings| settings.interfaces = names(&["more0", "eth0", "eth1"])).unwrap();
    assert!(answer.contains("configuration applied, interfaces changed"), "{answer}");
    wait("three interfaces", || interfaces(&site).len() == 3);
    assert_eq!(attached(&site, "more0"), "native");
    wait("the VIP is left behind", || on(&site, "more0") && !on(&site, "eth0"));
    assert_eq!(switch(&site, "net.ipv4.conf.more0.forwarding"), "1");

    // The new file lacks an interface: the balancer restores that interface's settings.
    site.apply(|settings| settings.interfaces = names(&["eth0", "eth1"])).unwrap();
    wait("more0 stays attached", || attached(&site, "more0").is_empty());
    wait("the VIP is left behind", || on(&site, "eth0") && !on(&site, "more0"));
    wait("more0 forwards", || switch(&site, "net.ipv4.conf.more0.forwarding") == "0");
    assert_eq!(site.homes(Family::V4, 1..=10).unwrap().len(), 10);

    // The XDP mode changes to generic and back. If one interface refuses an XDP mode, the mode of no interface changes.
    site.apply(|settings| settings.xdp_mode = "generic").unwrap();
    wait("eth0 is not generic", || attached(&site, "eth0") == "generic" && attached(&site, "eth1") == "generic");
    site.kill_and_restart(|_| {}).unwrap();
    assert_eq!(attached(&site, "eth0"), "generic");
    site.apply(|settings| settings.xdp_mode = "auto").unwrap();
    wait("eth0 is not native", || attached(&site, "eth0") == "native" && attached(&site, "eth1") == "native");
    site.topology().balancer().ip("link add br9 type bridge").unwrap();
    let error = refused(&mut site, |settings| {
        settings.xdp_mode = "native";
        settings.interfaces.push("br9".to_owned());
    });
    assert!(error.contains("br9") && error.contains("native"), "{error}");
    assert_eq!(interfaces(&site).len(), 2);
    assert_eq!(site.homes(Family::V4, 1..=10).unwrap().len(), 10);
    site.controller().process().kill().unwrap();
    assert!(site.detach().unwrap().status.success());
    assert!(!on(&site, "eth0") && attached(&site, "eth0").is_empty());
}

#[test]
fn when_listener_group_and_statistics_change_then_the_running_balancer_follows() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 1, |settings, _| {
        settings.lines = "[metrics]\nlisten = \"127.0.0.1:9660\"\n".to_owned();
        Ok(())
    })
    .unwrap();
    let group = |site: &Site| fs::metadata(site.files().join("balancer.sock")).unwrap().gid();
    assert!(listens(&site, 9660) && group(&site) == 0);
    let lines = |listen: &str, rest: &str| format!("[metrics]\nlisten = \"{listen}\"\n{rest}");

    let _taken = site.topology().balancer().run_in_thread(|| TcpListener::bind("127.0.0.1:9662").unwrap()).unwrap();
    let error = refused(&mut site, |settings| {
        settings.lines = lines("127.0.0.1:9662", "[statistics]\nsample_interval = 7\n");
    });
    assert!(error.contains("nothing was changed") && error.contains("another program listens there"), "{error}");
    assert!(listens(&site, 9660));

    let answer = site
        .apply(|settings| {
            settings.lines = lines("0.0.0.0:9660", "page = false\n[statistics]\nsample_interval = 7\n");
        })
        .unwrap();
    assert!(answer.contains("metrics.listen, metrics.page, statistics.sample_interval changed"), "{answer}");
    wait("the metrics do not move", || {
        let output = site.topology().balancer().command("ss").args(["-Hltn", "sport = :9660"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("0.0.0.0:9660")
    });
    // From this point, the program samples one of `sample_interval` packets.
    let sampled = |site: &Site| site.metrics().unwrap().sum("samples_total", &[]).unwrap();
    let before = sampled(&site);
    site.apply(|settings| settings.lines = lines("127.0.0.1:9660", "[statistics]\nsample_interval = 1\n")).unwrap();
    wait("the metrics do not move", || site.metrics().is_ok());
    site.homes(Family::V4, 1..=10).unwrap();
    assert!(sampled(&site) >= before + 30.0, "{before} {}", sampled(&site));
    site.apply(|settings| settings.lines = lines("off", "")).unwrap();
    wait("the metrics are not off", || !listens(&site, 9660));

    let config = fs::read_to_string(site.config()).unwrap();
    let with = |group: &str| config.replace("[control]\n", &format!("[control]\ngroup = \"{group}\"\n"));
    fs::write(site.config(), with("no-such-group")).unwrap();
    let path = site.config();
    let error = site.cli(&["apply", &path.to_string_lossy()]).unwrap_err().to_string();
    assert!(error.contains("there is no group \"no-such-group\""), "{error}");
    fs::write(&path, with("daemon")).unwrap();
    let answer = site.cli(&["apply", &path.to_string_lossy()]).unwrap();
    assert!(answer.contains("control.group changed"), "{answer}");
    assert_ne!(group(&site), 0);
    fs::write(&path, config).unwrap();
    site.cli(&["apply", &path.to_string_lossy()]).unwrap();
    assert_eq!(group(&site), 0);
}

#[test]
fn when_settings_that_outlive_the_balancer_change_then_it_follows() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "1h";
        Ok(())
    })
    .unwrap();
    let before = site.homes(Family::V4, 1..=20).unwrap();
    let answer = site.apply(|settings| settings.on_exit = "keep").unwrap();
    assert!(answer.contains("on_exit changed"), "{answer}");
    site.controller().process().kill().unwrap();
    assert_eq!(attached(&site, "eth0"), "native");
    assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), before, "nobody steers");
    site.start_again().unwrap();
    let known = |site: &Site| -> u64 {
        let status = site.status().unwrap();
        status.services.iter().flat_map(|service| &service.backends).map(|backend| backend.known_clients).sum()
    };
    wait("the clients are not known any more", || known(&site) == 20);

    // The setting changes back: the program and the maps then disappear with the process, even if the process is
    // killed.
    site.apply(|settings| settings.on_exit = "detach").unwrap();
    assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), before);
    site.controller().process().kill().unwrap();
    wait("the program stays attached", || attached(&site, "eth0").is_empty());
    assert!(String::from_utf8_lossy(&site.detach().unwrap().stdout).contains("nothing to detach"));
}

/// Backends send their answers to checks to the balancer's machine itself, so the answers arrive even if forwarding is
/// off.
#[test]
fn when_another_program_keeps_forwarding_off_then_answers_to_checks_still_arrive() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        settings.check = QUICK_CHECK.to_owned();
        Ok(())
    })
    .unwrap();
    site.wait_state(2, &["up"]).unwrap();
    let dropped = |site: &Site| site.metrics().unwrap().sum("drops_total", &["reason=\"no_route\""]).unwrap();
    let checks = |site: &Site, result: &str| {
        let result = format!("result=\"{result}\"");
        site.metrics().unwrap().sum("health_checks_total", &[&result]).unwrap()
    };
    let before = checks(&site, "passed");
    wait("no checks are made", || {
        for _ in 0..20 {
            site.topology().forward(false).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        checks(&site, "passed") > before + 40.0
    });
    assert_eq!([dropped(&site), checks(&site, "soft"), checks(&site, "hard")], [0.0; 3]);
}

#[test]
fn when_another_program_switches_forwarding_off_then_it_is_on_again_long_before_the_next_look_at_everything() {
    let site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        Ok(())
    })
    .unwrap();
    for round in 1..=5 {
        site.topology().forward(false).unwrap();
        let begin = Instant::now();
        while switches(&site) != ["1", "1", "2"] {
            assert!(begin.elapsed() < PATIENCE / 5, "forwarding stays off");
            thread::sleep(Duration::from_millis(2));
        }
        println!("round {round}: forwarding was off for {:?}", begin.elapsed());
    }
}

#[test]
fn when_an_interface_is_renamed_then_it_is_steered_whatever_takes_its_name() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 2, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        Ok(())
    })
    .unwrap();
    let before = site.homes(Family::V4, 1..=20).unwrap();
    // Addresses and routes belong to the interface itself, not to the interface's name.
    let balancer = site.topology().balancer();
    if balancer.ip("link set eth0 name lan0").is_err() {
        println!("before Linux 6.2 an interface that is up keeps its name");
        return;
    }
    let ready = |site: &Site| site.cli(&["ready"]).unwrap();
    wait("it does not say the new name", || ready(&site).contains("interface eth0 was renamed lan0"));
    balancer.ip("link add eth0 type veth peer name eth9").unwrap();
    balancer.ip("link set eth0 up").unwrap();
    balancer.ip("link set eth9 up").unwrap();
    for round in 1..=3 {
        assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), before, "round {round}");
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!((attached(&site, "lan0"), attached(&site, "eth0")), ("native".to_owned(), String::new()));
    assert_eq!(switch(&site, "net.ipv4.conf.lan0.forwarding"), "1");
    // The new configuration uses the new name of the interface.
    site.apply(|settings| settings.interfaces = names(&["lan0", "eth1"])).unwrap();
    wait("it says the old name", || ready(&site).starts_with("ready"));
    assert_eq!(interfaces(&site)[0].0, "lan0");
    assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), before);
    assert!(site.controller().process().stop().unwrap().success());
    for key in ["net.ipv4.conf.lan0.forwarding", "net.ipv6.conf.lan0.forwarding"] {
        assert_eq!(switch(&site, key), "0", "{key}");
    }
}
