//! Tests of maps that are full and grow. A test adds services by the command that fills one map, far beyond the room that
//! the map has at the start, while known clients connect. Afterwards failovers, drains, changes of weights and restarts
//! must go on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod killed;
mod release;

use std::{collections::BTreeMap, fs, net::Ipv4Addr};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{QUICK_CHECK, Site},
    topology::{Family, Shape},
};

use crate::{
    changes_under_load::{CLIENTS, under_load},
    support::wait,
};

/// One map, with the commands that fill it.
struct Row {
    /// The number of commands.
    commands: u32,
    /// The number of services that a command adds.
    services: u32,
    forwarding: &'static str,
    slots: u32,
    /// The number of times that the maps grow at least.
    grows: usize,
}

/// The map has 1,048,576 slots and twice the longest table at the start.
const SLOTS: Row = Row { commands: 30, services: 1, forwarding: "nat", slots: 65_537, grows: 2 };
/// The map has 128 rows at the start.
const SERVICES: Row = Row { commands: 60, services: 5, forwarding: "dsr", slots: 11, grows: 2 };

fn name(n: u32) -> String {
    format!("more{n}")
}

fn service(n: u32, forwarding: &str, slots: u32) -> String {
    let address = Ipv4Addr::from(0xc612_0000 + n);
    format!(
        "[[service]]\nname = \"{}\"\naddress = \"{address}:80\"\nforwarding = {forwarding:?}\ntable_size = {slots}\n\
         remember = \"0s\"\ncheck = {{ type = \"none\" }}\n",
        name(n)
    )
}

impl Row {
    /// Runs the command number `n`, counted from 1.
    fn add(&self, site: &Site, n: u32) {
        let all = (n - 1) * self.services + 1..=n * self.services;
        let file = site.files().join("more.toml");
        fs::write(&file, all.map(|of| service(of, self.forwarding, self.slots)).collect::<String>()).unwrap();
        run(site, &["drop-in", "apply", &name(n), &file.display().to_string()]).unwrap();
    }
}

fn run(site: &Site, arguments: &[&str]) -> Result<(), String> {
    let output = site.output(arguments).unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

/// Waits for the state of a backend of the service `web`.
fn wait_for(site: &Site, backend: &str, state: &str) {
    wait(&format!("{backend} is not {state}"), || {
        let services = site.status().unwrap().services;
        services.iter().flat_map(|of| &of.backends).any(|of| of.name == backend && of.state == state)
    });
}

/// Fills the map while clients connect, and then uses everything that needs free rows for a moment.
fn fill(row: &Row) {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        settings.remember = "10m";
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap();
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    let attempts = under_load(&site, || (1..=row.commands).for_each(|n| row.add(&site, n)));
    for attempt in &attempts {
        assert_eq!(attempt.outcome.as_ref(), Ok(&homes[&attempt.client]), "client {}", attempt.client);
    }
    let log = fs::read_to_string(site.controller().process().log()).unwrap();
    let grown = log.matches("the kernel's maps have grown").count();
    println!("{} connections while the maps grew {grown} times", attempts.len());
    assert!(attempts.len() > 240 && grown >= row.grows, "{grown} times, {} connections", attempts.len());
    assert_eq!(site.status().unwrap().services.len(), 1 + (row.commands * row.services) as usize);
    go_on(&mut site, row, &homes);
}

/// Kills and drains backends and restarts the balancer: only the clients of dead backends may move.
fn go_on(site: &mut Site, row: &Row, homes: &BTreeMap<u16, String>) {
    let stay = |site: &Site, moved: &[&str]| {
        let now = site.homes(Family::V4, CLIENTS).unwrap();
        let same = |client: &u16| now[client] == homes[client] || moved.contains(&homes[client].as_str());
        assert!(now.keys().all(same) && !now.values().any(|home| home == "web1"), "{now:?}");
        now
    };
    site.apply(|settings| settings.check = QUICK_CHECK.to_owned()).unwrap();
    ["web1", "web2", "web3", "web4"].iter().for_each(|name| wait_for(site, name, "up"));
    assert_eq!(site.cli(&["ready"]).unwrap().trim(), "ready");

    site.kill_backend(1).unwrap();
    wait_for(site, "web1", "down");
    let after: BTreeMap<u16, String> = stay(site, &["web1"]);
    site.cli(&["backend", "weight", "web/web2", "50"]).unwrap();
    site.cli(&["backend", "drain", "web/web3"]).unwrap();
    assert_eq!(stay(site, &["web1"]), after);
    assert_eq!(site.cli(&["ready"]).unwrap().trim(), "ready");

    site.kill_and_restart_with_the_file_as_it_is().unwrap();
    assert_eq!(stay(site, &["web1"]), after);
    site.start_backend(1).unwrap();
    wait_for(site, "web1", "up");
    row.add(site, row.commands + 1);
    site.kill_backend(2).unwrap();
    wait_for(site, "web2", "down");
    let last = site.homes(Family::V4, CLIENTS).unwrap();
    assert!(last.iter().all(|(client, home)| *home == after[client] || after[client] == "web2"), "{last:?}");
    assert_eq!(site.cli(&["ready"]).unwrap().trim(), "ready");
}

#[test]
fn when_slots_are_full_then_the_map_grows_and_failover_goes_on() {
    fill(&SLOTS);
}

#[test]
fn when_rows_of_services_are_full_then_the_maps_grow_and_failover_goes_on() {
    fill(&SERVICES);
}
