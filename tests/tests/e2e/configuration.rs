//! Tests of the clients that a configuration change moves, and of the packets of these clients.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_config::names::BackendName;
use balancer_control::io::Change;
use balancer_testkit::{
    http_client::Reply,
    site::{QUICK_HTTP_CHECK, Settings, Site, counts},
    topology::{Family, Shape, Topology},
};

const CLIENTS: RangeInclusive<u16> = 1..=300;
const FAMILY: Family = Family::V4;
const TABLE_SIZE: u32 = 65_537;
/// The time limit of connections that must fail.
const SHORT: Duration = Duration::from_millis(300);

type Homes = BTreeMap<u16, String>;

fn site(hosts: u16, adapt: impl FnOnce(&mut Settings, &Topology) -> anyhow::Result<()>) -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, hosts, adapt).unwrap()
}

/// Returns the number of slots of each backend, from `balancer status --json`.
fn slots(site: &Site) -> BTreeMap<String, u32> {
    let status = site.status().unwrap();
    let slots: BTreeMap<_, _> =
        status.services[0].backends.iter().map(|backend| (backend.name.clone(), backend.slots)).collect();
    assert_eq!(status.services[0].table_size, TABLE_SIZE);
    slots
}

/// Returns the number of slots moved since the start: first the required moves, then the unnecessary moves.
fn moved(site: &Site) -> (u32, u32) {
    let metrics = site.metrics().unwrap();
    let of = |kind: &str| metrics.sum("table_slots_moved_total", &["service=\"web\"", kind]).unwrap() as u32;
    (of("kind=\"required\""), of("kind=\"needless\""))
}

/// Returns the old and new backend of each client that moved.
fn moves<'a>(before: &'a Homes, after: &'a Homes) -> Vec<(&'a str, &'a str)> {
    let pairs = before.iter().map(|(client, from)| (from.as_str(), after[client].as_str()));
    pairs.filter(|(from, to)| from != to).collect()
}

fn homes(site: &Site) -> Homes {
    site.homes(FAMILY, CLIENTS).unwrap()
}

/// Checks that some clients get no connection, and that the program drops the packets of these clients for `reason`.
fn dropped(site: &Site, reason: &str) {
    let label = format!("reason=\"{reason}\"");
    let drops = || site.metrics().unwrap().sum("drops_total", &[&label]).unwrap();
    let before = drops();
    let replies = site.ask(FAMILY, 1..=8, SHORT).unwrap();
    let served: Vec<&Reply> = replies.iter().flatten().collect();
    assert!(served.is_empty(), "{served:?}");
    assert!(drops() >= before + 8.0, "{reason}: {before} before, {} after", drops());
}

#[test]
fn when_the_order_of_backends_changes_then_no_client_moves() {
    let mut site = site(4, |_, _| Ok(()));
    let before = homes(&site);
    site.restart(|settings| settings.backends = vec![(4, 100), (2, 100), (1, 100), (3, 100)]).unwrap();
    let names: Vec<String> =
        site.status().unwrap().services.remove(0).backends.into_iter().map(|backend| backend.name).collect();
    assert_eq!(names, ["web4", "web2", "web1", "web3"]);
    assert_eq!(moves(&before, &homes(&site)), []);
}

#[test]
fn when_a_fifth_backend_is_added_then_it_takes_a_fifth() {
    let site = site(5, |settings, _| {
        settings.backends.pop();
        Ok(())
    });
    let (before, slots_before) = (homes(&site), slots(&site));
    assert_eq!(moved(&site), (0, 0));
    let address = site.backend_address(FAMILY, 5);
    println!("{}", site.cli(&["backend", "add", "web/web5", &address.to_string()]).unwrap());

    let (required, needless) = moved(&site);
    let share = |slots: u32| f64::from(slots) / f64::from(TABLE_SIZE);
    println!("{required} slots moved to the new backend, {needless} needlessly: {:.2}%", 100.0 * share(needless));
    assert!((share(required + needless) - 0.2).abs() <= 0.03);
    assert!(share(needless) <= 0.006);
    let slots_after = slots(&site);
    assert_eq!(slots_after["web5"], required);
    assert_eq!(slots_after.values().sum::<u32>(), TABLE_SIZE);
    assert_eq!(slots_before.values().sum::<u32>(), TABLE_SIZE);
    assert!(slots_after.values().all(|slots| slots.abs_diff(TABLE_SIZE / 5) <= 1), "{slots_after:?}");

    // The core in the test's process must make the same change, slot by slot.
    let mut core = site.core().unwrap();
    let old = core.services()[0].live_table().to_vec();
    let name = BackendName { service: "web".to_owned(), backend: "web5".to_owned() };
    let change = Change::Add {
        name: name.clone(),
        address: address.ip(),
        address6: None,
        port: Some(address.port()),
        weight: None,
        backup: false,
        limits: Default::default(),
    };
    balancer_testkit::site::change(&mut core, change).unwrap();
    let newcomer = core.backend(&name).unwrap().id().0;
    let changed: Vec<u16> =
        old.iter().zip(core.services()[0].live_table()).filter(|(old, new)| old != new).map(|(_, &new)| new).collect();
    let elsewhere = changed.iter().filter(|&&new| new != newcomer).count();
    assert_eq!((changed.len(), elsewhere), ((required + needless) as usize, needless as usize));

    // The moves of clients must match the moves of slots.
    let after = homes(&site);
    let moves = moves(&before, &after);
    println!("{} of {} clients moved: {:?}", moves.len(), before.len(), counts(after.values()));
    let newcomers = after.values().filter(|home| *home == "web5").count();
    assert!(newcomers > 0 && moves.len() - newcomers <= 6, "{moves:?}");
}

#[test]
fn when_backends_have_weights_then_these_divide_the_table() {
    let site = site(2, |settings, _| {
        settings.backends = vec![(1, 1), (2, 2)];
        Ok(())
    });
    let near = |slots: BTreeMap<String, u32>, wanted: [u32; 2]| {
        assert_eq!(slots.values().sum::<u32>(), TABLE_SIZE);
        assert!(slots.values().zip(wanted).all(|(slots, wanted)| slots.abs_diff(wanted) <= 1), "{slots:?}");
    };
    near(slots(&site), [21_846, 43_691]);
    let shares = counts(homes(&site).values());
    println!("1:2 is {:?}, {shares:?}", slots(&site));
    assert!((70..=130).contains(&shares["web1"]), "{shares:?}");

    for name in ["web/web1", "web/web2"] {
        site.cli(&["backend", "weight", name, "10000"]).unwrap();
    }
    near(slots(&site), [32_768, 32_769]);
    let shares = counts(homes(&site).values());
    println!("10000:10000 is {:?}, {shares:?}", slots(&site));
    assert!((120..=180).contains(&shares["web1"]), "{shares:?}");
}

/// Runs each command, checks the effect on clients, and undoes the command.
#[test]
fn when_a_user_runs_backend_commands_then_packets_follow() {
    let site = site(4, |_, _| Ok(()));
    let before = homes(&site);
    for (out, back) in [
        (vec!["backend", "drain", "web/web2", "--wait", "--wait-timeout", "10s"], vec!["backend", "ready", "web/web2"]),
        (vec!["backend", "maint", "web/web2"], vec!["backend", "ready", "web/web2"]),
        (vec!["backend", "weight", "web/web2", "0"], vec!["backend", "weight", "web/web2", "100"]),
    ] {
        site.cli(&out).unwrap();
        let away = homes(&site);
        let moves = moves(&before, &away);
        assert!(!moves.is_empty() && !away.values().any(|home| home == "web2"), "{out:?}");
        if !out.contains(&"weight") {
            assert!(moves.iter().all(|(from, _)| *from == "web2"), "{out:?}: {moves:?}");
        }
        site.cli(&back).unwrap();
        assert_eq!(homes(&site), before, "{back:?}");
    }
    site.cli(&["backend", "remove", "web/web2", "--force"]).unwrap();
    let after = homes(&site);
    assert!(!after.values().any(|home| home == "web2"));
    let needless = moves(&before, &after).iter().filter(|(from, _)| *from != "web2").count();
    println!("{needless} clients of other backends moved when web2 was removed");
    assert!(needless <= 6);
}

#[test]
fn when_there_are_no_backends_then_nothing_is_forwarded() {
    let site = site(2, |_, _| Ok(()));
    homes(&site);
    site.cli(&["backend", "remove", "web/web1"]).unwrap();
    assert_eq!(counts(homes(&site).values()), [("web2".to_owned(), 300)].into());
    site.cli(&["backend", "remove", "web/web2"]).unwrap();
    dropped(&site, "no_backend");
    // After the removal of a backend, the name of that backend is free again.
    site.cli(&["backend", "add", "web/web1", &site.backend_address(FAMILY, 1).to_string()]).unwrap();
    assert_eq!(counts(homes(&site).values()), [("web1".to_owned(), 300)].into());
}

#[test]
fn when_all_backends_are_down_then_the_services_setting_decides() {
    let check = QUICK_HTTP_CHECK;
    for word in ["open", "drop"] {
        let mut site = site(2, |settings, _| {
            settings.check = check.to_owned();
            settings.service_lines = format!("when_all_down = \"{word}\"");
            Ok(())
        });
        let before = homes(&site);
        for number in [1, 2] {
            site.fail_backend(number, "503").unwrap();
            site.wait_state(number, &["down"]).unwrap();
        }
        if word == "open" {
            assert_eq!(homes(&site), before);
            // The state `maint`, which the operator has set, stays in effect.
            site.cli(&["backend", "maint", "web/web1"]).unwrap();
            assert_eq!(counts(homes(&site).values()), [("web2".to_owned(), 300)].into());
        } else {
            dropped(&site, "all_down");
        }
        site.cli(&["backend", "ready", "web/web1"]).unwrap();
        for number in [1, 2] {
            site.fail_backend(number, "ok").unwrap();
            site.wait_state(number, &["up"]).unwrap();
        }
        assert_eq!(homes(&site), before);
    }
}

#[test]
fn when_the_number_of_backends_grows_then_the_table_grows() {
    let mut site = site(2, |settings, topology| {
        settings.on_exit = "keep";
        settings.remember = "60s";
        let (vip, host) = (topology.vip(FAMILY), topology.backend_address(FAMILY, 0));
        settings.lines = format!(
            "[[service]]\nname = \"auto\"\naddress = \"{vip}:99\"\nforwarding = \"nat\"\ntable_size = \"auto\"\n\
             check = {{ type = \"none\" }}\n"
        );
        for number in 1..=40 {
            let backend = format!("name = \"b{number}\"\naddress = \"{host}:{}\"\n", 9000 + number);
            settings.lines += &format!("[[service.backend]]\n{backend}");
        }
        Ok(())
    });
    let size = |site: &Site| site.status().unwrap().services.iter().find(|of| of.name == "auto").unwrap().table_size;
    assert_eq!(size(&site), 4099);
    let address = format!("{}:9041", site.topology().backend_address(FAMILY, 0));
    let planned = site.cli(&["plan", "backend", "add", "auto/b41", &address]).unwrap();
    assert!(planned.contains("the table would grow from 4,099 to 16,411 slots"), "{planned}");
    assert_eq!(size(&site), 4099);
    let added = site.cli(&["backend", "add", "auto/b41", &address]).unwrap();
    assert!(added.contains("the table grows from 4,099 to 16,411 slots"), "{added}");
    assert_eq!(size(&site), 16_411);
    site.restart(|_| {}).unwrap();
    assert_eq!(size(&site), 16_411, "it was added at run time and stays");
    let removed = site.cli(&["backend", "remove", "auto/b41", "--force"]).unwrap();
    assert!(removed.contains("the table shrinks from 16,411 to 4,099 slots"), "{removed}");
    assert_eq!(size(&site), 4099);
}
