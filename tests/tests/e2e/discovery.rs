//! Tests of backends that the balancer takes from a list of targets in a file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dns;
mod etcd;
pub(crate) mod named;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use balancer_api::model::{BackendView, ServiceView};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use serde_json::{Value, json};

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=40;

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Replaces a file atomically.
pub(crate) fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}

fn web(site: &Site) -> ServiceView {
    site.status().unwrap().services.into_iter().find(|service| service.name == "web").unwrap()
}

fn backend(site: &Site, number: u16) -> Option<BackendView> {
    web(site).backends.into_iter().find(|backend| backend.name == format!("web{number}"))
}

fn admin(site: &Site, number: u16) -> String {
    backend(site, number).map(|backend| backend.admin).unwrap_or_default()
}

fn reasons(site: &Site) -> String {
    site.status().unwrap().ready.reasons.join("; ")
}

fn homes(site: &Site) -> BTreeMap<u16, String> {
    site.homes(Family::V4, CLIENTS).unwrap()
}

fn target(address: &str, number: u16) -> Value {
    json!({ "targets": [address], "labels": { "name": format!("web{number}"), "job": "web" } })
}

#[test]
fn when_a_list_is_yaml_then_its_targets_serve_and_a_wrong_entry_costs_nobody_a_backend() {
    let lists = tempfile::tempdir().unwrap();
    let file: PathBuf = lists.path().join("targets.yml");
    let mut list = String::new();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, topology| {
        settings.backends.clear();
        (settings.remember, settings.on_exit) = ("10m", "keep");
        settings.service_lines = format!("discover = [{{ file = \"{}\" }}]", file.display());
        for number in 1..=3 {
            let address = topology.backend_address(Family::V4, number - 1);
            list += &format!("- targets: [{address}:8080]\n  labels: {{name: web{number}, weight: {number}00}}\n");
        }
        fs::write(&file, &list)?;
        Ok(())
    })
    .unwrap();
    let first = homes(&site);
    let weights = |site: &Site| web(site).backends.iter().map(|backend| backend.weight).collect::<Vec<_>>();
    assert_eq!(weights(&site), [100, 200, 300]);
    replace(&file, &list.replace("name: web2", "name: web 2"));
    wait_until("the entry is told", || reasons(&site).contains("target 2: this label name is no name"));
    let list_of = |site: &Site| web(site).discover.remove(0);
    wait_until("web2 waits for its target", || list_of(&site).waiting == ["web2"]);
    assert_eq!((web(&site).backends.len(), homes(&site)), (3, first.clone()));
    let shown = site.cli(&["status"]).unwrap();
    assert!(
        shown.contains("; 1 backend may drain, the list lacks web2\nWARNING: a target is left out: target 2: "),
        "{shown}"
    );
    let left_out = site.metrics().unwrap().sum("discover_targets", &["state=\"left_out\""]).unwrap();
    assert_eq!(left_out, 1.0);
    replace(&file, &list.replace("weight: 300", "weight: 250"));
    wait_until("the weight is taken", || weights(&site) == [100, 200, 250]);
    site.restart(|_| {}).unwrap();
    assert_eq!((weights(&site), homes(&site)), (vec![100, 200, 250], first));
}

#[test]
fn when_a_list_of_targets_changes_then_backends_come_drain_and_come_back_and_a_wrong_list_changes_nothing() {
    let lists = tempfile::tempdir().unwrap();
    let file: PathBuf = lists.path().join("targets.json");
    let mut addresses = Vec::new();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, topology| {
        addresses.extend((0..3).map(|number| format!("{}:8080", topology.backend_address(Family::V4, number))));
        settings.backends.clear();
        settings.remember = "10m";
        settings.service_lines = format!("discover = [{{ file = \"{}\", keep = \"0s\" }}]", file.display());
        fs::write(&file, json!([target(&addresses[0], 1), target(&addresses[1], 2)]).to_string())?;
        Ok(())
    })
    .unwrap();
    let list = |numbers: &[u16]| {
        let target = |number: &u16| target(&addresses[usize::from(*number) - 1], *number);
        Value::from(numbers.iter().map(target).collect::<Vec<_>>()).to_string()
    };
    assert_eq!((web(&site).backends.len(), reasons(&site)), (2, String::new()), "from the first packet on");
    assert!(web(&site).backends.iter().all(|backend| backend.from.as_deref() == Some("discover")));
    let shown = site.cli(&["status"]).unwrap();
    assert!(shown.contains("discovers 2 targets by ") && shown.contains("(from: discover)"), "{shown}");
    assert_eq!(site.status().unwrap().changed_at_run_time.len(), 0);
    let first = homes(&site);
    assert!(first.values().any(|home| home == "web1") && first.values().any(|home| home == "web2"));

    // The new list has a different order and a third target: known clients stay at their backends.
    replace(&file, &list(&[3, 2, 1]));
    wait_until("web3 is there", || backend(&site, 3).is_some());
    assert_eq!(homes(&site), first);

    // The new list lacks one target: the target's clients stay, and the target gets no new clients.
    replace(&file, &list(&[3, 1]));
    wait_until("web2 drains", || admin(&site, 2) == "drain");
    assert_eq!(homes(&site), first);
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("backend web/web2 drains before it is removed, it is no longer a target of"), "{events}");
    replace(&file, &list(&[1, 2, 3]));
    wait_until("web2 is back", || admin(&site, 2) == "ready");
    assert_eq!(homes(&site), first);

    // A target has another name at the same address, and its former name again later: its clients stay at its server.
    let renamed = [target(&addresses[0], 1), target(&addresses[1], 9), target(&addresses[2], 3)];
    replace(&file, &json!(renamed).to_string());
    wait_until("web2 is called web9", || backend(&site, 9).is_some());
    assert_eq!((web(&site).backends.len(), homes(&site)), (3, first.clone()));
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("backend web/web2 renamed web9, because "), "{events}");
    replace(&file, &list(&[1, 2, 3]));
    wait_until("web9 is called web2", || backend(&site, 2).is_some());
    assert_eq!((web(&site).backends.len(), homes(&site)), (3, first.clone()));

    // Settings that a user has made stay in effect, and the user cannot remove a listed backend.
    site.cli(&["backend", "weight", "web/web3", "7"]).unwrap();
    let output = site.output(&["backend", "remove", "web/web3"]).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("backend web/web3 is a target of"), "{told}");

    // The balancer ignores an empty list and a malformed list.
    replace(&file, "[]");
    wait_until("the empty list is told", || reasons(&site).contains("has 0 targets, fewer than min = 1"));
    replace(&file, "[\n{\"targets\": [\"web1.internal:80\"]}]");
    wait_until("the entry is told", || reasons(&site).contains("targets.json lacks 1 of 1 target"));
    assert!(reasons(&site).contains("target 1: this target is no address"), "{}", reasons(&site));
    assert!(web(&site).discover[0].error.is_some());
    assert_eq!((web(&site).backends.len(), homes(&site)), (3, first.clone()));
    assert!(web(&site).backends.iter().all(|backend| backend.admin == "ready"));

    // The last valid list survives a restart, even if the file is missing.
    fs::remove_file(&file).unwrap();
    site.restart(|_| {}).unwrap();
    assert!(reasons(&site).contains("targets.json: cannot be read"), "{}", reasons(&site));
    let mut names: Vec<String> = web(&site).backends.into_iter().map(|backend| backend.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["web1", "web2", "web3"]);
    assert_eq!(backend(&site, 3).unwrap().weight, 7);
    assert_eq!(site.homes(Family::V4, CLIENTS).unwrap().len(), CLIENTS.count());

    // The balancer follows the file again. The drain of a backend ends at the drain's deadline.
    site.apply(|settings| settings.service_lines += "\ndrain = { timeout = \"2s\" }").unwrap();
    replace(&file, &list(&[1, 3]));
    wait_until("web2 is removed", || backend(&site, 2).is_none());
    assert_eq!(reasons(&site), "");
    assert!(homes(&site).values().all(|home| home != "web2"));

    // Without the configuration key, the listed backends drain, and the balancer removes them.
    site.apply(|settings| {
        settings.service_lines = "drain = { timeout = \"2s\" }".to_owned();
        settings.backends = vec![(2, 100)];
    })
    .unwrap();
    wait_until("the others are removed", || web(&site).backends.len() == 1);
    assert!(homes(&site).values().all(|home| home == "web2"));
}
