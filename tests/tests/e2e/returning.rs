//! Tests of an interface with an attached program that disappears and returns with another index.

use std::{thread, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn when_an_interface_is_made_again_then_it_is_attached_with_its_vips_and_settings() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.families = vec![Family::V4, Family::V6];
        settings.on_exit = "keep";
        settings.service_lines = "assign_vip = true".to_owned();
        for family in Family::BOTH {
            let length = if family == Family::V4 { 32 } else { 128 };
            topology.balancer().ip(&format!("addr del {}/{length} dev lo", topology.vip(family)))?;
        }
        Ok(())
    })
    .unwrap();
    for family in Family::BOTH {
        site.homes(family, 1..=5).unwrap();
    }
    for round in 1..=2 {
        site.topology_mut().unplug_balancer().unwrap();
        site.controller().wait_for(PATIENCE, "no interface", |status| status.interfaces.is_empty()).unwrap();
        let events = site.cli(&["events"]).unwrap();
        assert_eq!(events.matches("interface eth0 is gone").count(), round, "{events}");

        site.topology_mut().plug_balancer().unwrap();
        let back = |status: &balancer_api::model::StatusView| {
            let attached = status.interfaces.iter().any(|at| at.name == "eth0" && at.xdp_mode == "native");
            attached && status.services.iter().flat_map(|service| &service.backends).all(|at| at.state == "up")
        };
        site.controller().wait_for(PATIENCE, "eth0 and the backends", back).unwrap();
        for family in Family::BOTH {
            assert_eq!(site.homes(family, 1..=5).unwrap().len(), 5);
        }
        let events = site.cli(&["events"]).unwrap();
        assert_eq!(events.matches("interface eth0 is back").count(), round, "{events}");
    }
    // The next controller finds the program and the maps of the killed controller on the new interface.
    site.kill_and_restart(|_| {}).unwrap();
    for family in Family::BOTH {
        site.homes(family, 1..=5).unwrap();
    }
    site.controller().process().kill().unwrap();
    thread::sleep(Duration::from_millis(100));
    let output = site.detach().unwrap();
    assert!(output.status.success(), "{output:?}");
    let left = site.topology().balancer().ip("addr show dev eth0").unwrap();
    for family in Family::BOTH {
        assert!(!left.contains(&format!(" {}/", site.topology().vip(family))), "{left}");
    }
    let switch = site.topology().balancer().command("sysctl").args(["-n", "net.ipv4.conf.eth0.forwarding"]).output();
    assert_eq!(String::from_utf8(switch.unwrap().stdout).unwrap().trim(), "0");
}
