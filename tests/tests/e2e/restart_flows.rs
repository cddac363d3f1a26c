//! Tests that connections of `snat` services survive restarts with `on_exit = "keep"` and with a changed `[flow_table]
//! capacity`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, net::TcpStream, thread, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    site::{PATIENCE, Settings, Site},
    topology::{Family, Shape},
};

use super::restart::{CLIENTS, nobody_notices, pins};
use crate::{
    snat::{ask, connect},
    support::wait_for,
};

fn capacity(of: u32) -> String {
    format!("[flow_table]\ncapacity = {of}\n")
}

fn site(flows: u32) -> Site {
    Site::start(Shape::TwoLegged, Forwarding::Snat, 3, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        settings.on_exit = "keep";
        settings.remember = "60s";
        settings.lines = capacity(flows);
        Ok(())
    })
    .unwrap()
}

/// Opens a connection of each of ten clients of each family.
fn connect_some(site: &Site) -> Vec<TcpStream> {
    let clients = Family::BOTH.into_iter().flat_map(|family| (1..=10).map(move |client| (family, client)));
    clients.map(|(family, client)| connect(site, family, client)).collect()
}

fn all_answer(open: &mut [TcpStream], when: &str) {
    open.iter_mut().for_each(|stream| assert!(ask(stream).expect(when).starts_with("HTTP/1.1 200"), "{when}"));
}

fn kept_flow_maps(site: &Site) -> BTreeSet<String> {
    let pins = fs::read_dir(pins(site)).unwrap().map(|pin| pin.unwrap().file_name().into_string().unwrap());
    pins.filter(|name| name.contains("FLOW")).collect()
}

#[test]
fn when_the_capacity_of_the_flow_table_changes_over_restarts_then_no_connection_is_lost() {
    let mut site = site(10_000);
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    let mut open = connect_some(&site);
    all_answer(&mut open, "before");
    let begun = connect(&site, Family::V4, 100);
    let done = nobody_notices(&mut site, &homes, |site| {
        // The smallest table has room for the ports of all connections that the clients have ended.
        for (flows, orderly) in [(200_000, true), (1_000_000, false), (80_000, true)] {
            let change = |settings: &mut Settings| settings.lines = capacity(flows);
            if orderly {
                site.restart(change).unwrap();
            } else {
                site.kill_and_restart(change).unwrap();
            }
            all_answer(&mut open, &format!("capacity {flows}"));
            let metrics = site.metrics().unwrap();
            assert_eq!(metrics.sum("flow_table_capacity", &[]).unwrap(), f64::from(flows));
            let unknown = metrics.sum("drops_total", &["reason=\"flow_unknown\""]).unwrap();
            assert_eq!(unknown, 0.0, "capacity {flows}");
            let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
            assert!(log.contains("connections are carried over") && !log.contains("no room"), "{log}");
            thread::sleep(Duration::from_millis(300));
        }
    });
    println!("{done} requests during 3 restarts");
    assert!(done > 300, "no load: {done}");
    let mut begun = begun;
    assert!(ask(&mut begun).unwrap().starts_with("HTTP/1.1 200"), "a connection without data before");
    let listed = || -> Vec<balancer_api::model::FlowView> {
        serde_json::from_str(&site.cli(&["flow", "list", "web", "--json"]).unwrap()).unwrap()
    };
    wait_for(PATIENCE, "other connections have not ended", || {
        listed().iter().filter(|flow| flow.state == "established").count() == 11
    });
    // The balancer does not keep flow tables that it has replaced.
    assert_eq!(kept_flow_maps(&site), ["FLOWS", "FLOW_LINES", "FLOW_RETURNS"].map(String::from).into());
}

#[test]
fn when_starts_with_other_capacities_of_the_flow_table_are_killed_at_any_moment_then_no_connection_is_lost() {
    let mut site = site(100_000);
    let mut open = connect_some(&site);
    site.controller().process().stop().unwrap();
    let text = fs::read_to_string(site.config()).unwrap();
    let with = |flows: u32| text.replace("capacity = 100000", &format!("capacity = {flows}"));
    for number in 1..=16 {
        fs::write(site.config(), with(if number % 2 == 0 { 20_000 } else { 1_000_000 })).unwrap();
        let mut command = site.topology().balancer().command(binaries::balancer().unwrap());
        let mut start = command.arg("run").arg("--config").arg(site.config()).spawn().unwrap();
        thread::sleep(Duration::from_millis(70) * number);
        start.kill().unwrap();
        start.wait().unwrap();
        all_answer(&mut open, &format!("after the {number}th start"));
    }
    fs::write(site.config(), with(50_000)).unwrap();
    site.restart_with_the_file_as_it_is().unwrap();
    all_answer(&mut open, "at the end");
    // New connections can use the rows that a killed start of the balancer had blocked.
    open.extend(connect_some(&site));
    all_answer(&mut open, "connections that came later");
    assert_eq!(kept_flow_maps(&site).len(), 3);
}

#[test]
fn when_the_last_snat_service_goes_and_another_comes_then_restarts_make_the_table_that_they_need() {
    let mut site = site(10_000);
    let mut open = connect_some(&site);
    all_answer(&mut open, "before");
    // The first start after the change still needs the flow table, because the service used `snat` before the change.
    site.restart(|settings| settings.forwarding = Forwarding::Nat).unwrap();
    site.restart(|_| ()).unwrap();
    assert!(site.metrics().unwrap().sum("flow_table_capacity", &[]).is_err());
    site.restart(|settings| (settings.forwarding, settings.lines) = (Forwarding::Snat, capacity(20_000))).unwrap();
    all_answer(&mut connect_some(&site), "connections that came later");
    assert_eq!(kept_flow_maps(&site).len(), 3);
}
