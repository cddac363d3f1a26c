//! Tests that clients do not notice restarts with `on_exit = "keep"`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use balancer_common::{
    kept::NotesRow,
    map_types::{Forwarding, LAYOUT_VERSION},
};
use balancer_testkit::{
    http_client::Request,
    namespace::{Entrance, Namespace},
    site::{PATIENCE, Settings, Site},
    stop::StopOnDrop,
    topology::{Family, Shape, Topology},
    xdp::{Hook, Passer},
};

use crate::support::never_backwards;

pub(crate) const CLIENTS: RangeInclusive<u16> = 1..=120;
const WORKERS: usize = 4;
const FAMILY: Family = Family::V4;

fn keep(settings: &mut Settings, _: &Topology) -> anyhow::Result<()> {
    settings.on_exit = "keep";
    settings.remember = "60s";
    Ok(())
}

/// Sends requests of all clients repeatedly until `stop` is true. Returns the number of successful requests, and a
/// message for each failed request.
fn load(clients: &Entrance, requests: &[(Request, String)], stop: &AtomicBool) -> (usize, Vec<String>) {
    clients.enter().unwrap();
    let (mut done, mut wrong) = (0, Vec::new());
    for (request, home) in requests.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match request.send() {
            Ok(reply) if reply.backend == *home => done += 1,
            Ok(reply) => wrong.push(format!("{request:?} of {home} was answered by {}", reply.backend)),
            Err(error) => wrong.push(format!("{request:?}: {error}")),
        }
    }
    (done, wrong)
}

/// Runs `changes` while every client keeps connecting, and checks that no client notices a change.
pub(crate) fn nobody_notices(site: &mut Site, homes: &BTreeMap<u16, String>, changes: impl FnOnce(&mut Site)) -> usize {
    let requests: Vec<(Request, String)> = homes
        .iter()
        .map(|(&client, home)| (Request { timeout: PATIENCE, ..site.request(FAMILY, client) }, home.clone()))
        .collect();
    let stop = AtomicBool::new(false);
    let clients = site.topology().client().entrance();
    let (done, wrong) = thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        let clients = &clients;
        let workers: Vec<_> = requests
            .chunks(requests.len().div_ceil(WORKERS))
            .map(|part| scope.spawn(move || load(clients, part, stop)))
            .collect();
        changes(site);
        stop.store(true, Ordering::Relaxed);
        let results = workers.into_iter().map(|worker| worker.join().unwrap());
        results.fold((0, Vec::new()), |(all, mut wrongs), (done, wrong)| {
            wrongs.extend(wrong);
            (all + done, wrongs)
        })
    });
    assert!(wrong.is_empty(), "{} of {} requests went wrong: {:#?}", wrong.len(), done + wrong.len(), &wrong[..1]);
    done
}

/// Kills `kills` controllers, then ends and starts `ends` controllers, each from another program file. No client may
/// notice any of these restarts.
fn restarts(forwarding: Forwarding, kills: usize, ends: usize) {
    let mut site = Site::start(Shape::OneLegged, forwarding, 3, keep).unwrap();
    let homes = site.homes(FAMILY, CLIENTS).unwrap();
    // Like the file of a new version, the copy is a file with another inode.
    let upgrade = site.files().join("balancer-upgrade");
    std::fs::copy(balancer_testkit::binaries::balancer().unwrap(), &upgrade).unwrap();

    let done = nobody_notices(&mut site, &homes, |site| {
        for _ in 0..kills {
            let before = site.metrics().unwrap();
            site.kill_and_restart(|_| {}).unwrap();
            never_backwards(&before, &site.metrics().unwrap(), |_| true);
            // During the pause, the sweep completes a pass over the client table, so that the gate closes and opens.
            thread::sleep(Duration::from_millis(200));
        }
        for number in 0..ends {
            let before = site.metrics().unwrap();
            site.restart(|settings| settings.binary = (number % 2 == 0).then(|| upgrade.clone())).unwrap();
            never_backwards(&before, &site.metrics().unwrap(), |_| true);
        }
    });
    println!("{forwarding:?}: {done} requests during {} restarts", kills + ends);
    assert!(done > 60 * (kills + ends), "no load: {done}");
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("moves_total", &["service=\"web\""]).unwrap(), 0.0);
    let connections = metrics.sum("connections_total", &["service=\"web\""]).unwrap();
    assert!(connections >= (done + homes.len()) as f64, "{connections} connections were counted");

    let output = site.detach().unwrap();
    assert!(!output.status.success(), "detached below a running controller");
    let refusal = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(refusal.contains("is running"), "{refusal}");
}

#[test]
fn when_controllers_restart_with_nat_then_no_client_notices() {
    restarts(Forwarding::Nat, 3, 2);
}

#[test]
fn when_no_controller_runs_then_traffic_goes_on_until_the_program_is_detached() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 3, keep).unwrap();
    let homes = site.homes(FAMILY, CLIENTS).unwrap();
    let done = nobody_notices(&mut site, &homes, |site| {
        let status = site.controller().process().stop().unwrap();
        assert!(status.success(), "{status}");
        thread::sleep(Duration::from_millis(500));
    });
    assert!(done > 50, "no load: {done}");

    let output = site.detach().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("detached from 1 interface"), "{said}");
    let replies = site.ask(FAMILY, 1..=3, Duration::from_millis(300)).unwrap();
    assert!(replies.iter().all(Result::is_err), "steered after detaching");
    let output = site.detach().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("nothing to detach"));

    // A balancer that starts afresh knows no client, so the lookup table chooses the same backends as before.
    site.restart(|_| {}).unwrap();
    assert_eq!(site.homes(FAMILY, CLIENTS).unwrap(), homes);
}

/// Runs `work` while all processors are busy, because a busy kernel delays work that is not urgent.
fn with_busy_processors<T>(work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        for _ in 0..2 * thread::available_parallelism().unwrap().get() {
            scope.spawn(move || while !stop.load(Ordering::Relaxed) {});
        }
        work()
    })
}

#[test]
fn when_a_kept_program_is_detached_then_another_program_takes_the_interface() {
    for (mode, hook) in [("native", Hook::Native), ("generic", Hook::Generic)] {
        let adapt = |settings: &mut Settings, topology: &Topology| {
            settings.xdp_mode = mode;
            keep(settings, topology)
        };
        let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 1, adapt).unwrap();
        for _ in 0..2 {
            assert!(site.controller().process().stop().unwrap().success());
            with_busy_processors(|| {
                assert!(site.detach().unwrap().status.success());
                let other = Passer::attach(site.topology().balancer(), "eth0", hook);
                assert!(other.is_ok(), "{mode}: {:#}", other.unwrap_err());
            });
            site.start_again().unwrap();
        }
    }
}

#[test]
fn when_a_restart_has_another_mode_then_a_kept_program_changes_it() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 3, keep).unwrap();
    let homes = site.homes(FAMILY, CLIENTS).unwrap();
    for mode in ["generic", "native"] {
        with_busy_processors(|| site.restart(|settings| settings.xdp_mode = mode)).unwrap();
        assert_eq!(site.status().unwrap().interfaces[0].xdp_mode, mode);
        assert_eq!(site.homes(FAMILY, CLIENTS).unwrap(), homes, "{mode}");
    }
}

/// `ip netns exec` runs its command in a separate mount namespace, which ends with the command.
#[test]
fn when_the_mount_namespace_ends_then_pins_stay() {
    let wrapper = tempfile::tempdir().unwrap();
    let script = wrapper.path().join("balancer");
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, |settings, topology| {
        let binary = balancer_testkit::binaries::balancer()?;
        let text =
            format!("#!/bin/sh\nexec ip netns exec {} {} \"$@\"\n", topology.balancer().name(), binary.display());
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        settings.binary = Some(script.clone());
        keep(settings, topology)
    })
    .unwrap();
    let homes = site.homes(FAMILY, CLIENTS).unwrap();
    nobody_notices(&mut site, &homes, |site| site.kill_and_restart(|_| {}).unwrap());
    let log = std::fs::read_to_string(site.files().join("balancer.log")).unwrap();
    assert!(log.contains("took over the maps"), "{log}");
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("decisions_total", &["result=\"new\""]).unwrap(), homes.len() as f64, "they were known");
}

#[test]
fn when_a_later_controller_has_detach_then_it_removes_everything_at_its_end() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, keep).unwrap();
    let homes = site.homes(FAMILY, CLIENTS).unwrap();
    site.restart(|settings| settings.on_exit = "detach").unwrap();
    assert_eq!(site.homes(FAMILY, CLIENTS).unwrap(), homes);
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("decisions_total", &["result=\"new\""]).unwrap(), homes.len() as f64, "they were known");
    site.controller().process().stop().unwrap();
    assert!(String::from_utf8_lossy(&site.detach().unwrap().stdout).contains("nothing to detach"));
}

/// Returns the directories of pinned maps that balancers in the network namespace of `host` have left. The parent
/// directory also contains directories of other tests.
pub(super) fn own_pins(host: &Namespace) -> Vec<std::path::PathBuf> {
    let namespace = host.run_in_thread(|| std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()).unwrap();
    let prefix = format!("{namespace}-");
    let entries = std::fs::read_dir("/sys/fs/bpf/balancer").into_iter().flatten().map(|entry| entry.unwrap());
    let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    own.map(|entry| entry.path()).collect()
}

/// Returns the directory of a site's pinned maps.
pub(super) fn pins(site: &Site) -> std::path::PathBuf {
    own_pins(site.topology().balancer()).into_iter().next().expect("no pins")
}

pub(super) fn rewrite_notes(site: &Site, from: &str, to: &str) {
    let map = MapData::from_pin(pins(site).join("NOTES")).unwrap();
    let mut notes: Array<_, NotesRow> = Map::Array(map).try_into().unwrap();
    let mut row = notes.get(&0, 0).unwrap();
    let text = String::from_utf8(row.text.as_flattened().to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    let text = text.replacen(from, to, 1);
    for (place, byte) in row.text.as_flattened_mut().iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    notes.set(0, row, 0).unwrap();
}

/// Starts the balancer, which must refuse; returns its message.
pub(super) fn refusal(site: &Site) -> String {
    let mut command = site.topology().balancer().command(balancer_testkit::binaries::balancer().unwrap());
    let output = command.arg("run").arg("--config").arg(site.config()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn when_maps_are_of_another_version_then_the_start_is_refused_with_the_way_out() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, keep).unwrap();
    let homes = site.homes(FAMILY, CLIENTS).unwrap();
    site.controller().process().stop().unwrap();
    let version = format!("\"layout_version\":{LAYOUT_VERSION}");
    let other = LAYOUT_VERSION + 1;
    let other_version = format!("\"layout_version\":{other}");
    rewrite_notes(&site, &version, &other_version);
    let words = refusal(&site);
    assert!(words.contains(&format!("layout {other}")) && words.contains("`balancer detach`"), "{words}");
    // The refused start has changed nothing: the traffic continues, and a controller of the right version can take over
    // the pinned maps.
    assert_eq!(site.homes(FAMILY, CLIENTS).unwrap(), homes);
    rewrite_notes(&site, &other_version, &version);
    site.restart(|_| {}).unwrap();

    site.controller().process().stop().unwrap();
    rewrite_notes(&site, "{\"layout_version", "[\"layout_version");
    let words = refusal(&site);
    assert!(words.contains("another version") && words.contains("`balancer detach`"), "{words}");
    let output = site.detach().unwrap();
    assert!(output.status.success(), "{output:?}");
    site.restart(|_| {}).unwrap();
}

#[test]
fn when_a_second_controller_starts_then_it_is_refused() {
    let site = Site::start(Shape::OneLegged, Forwarding::Dsr, 2, keep).unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    let other = site.files().join("other.toml");
    let config = config.replace("balancer.sock", "other.sock").replace("[hash]", "[metrics]\nlisten = \"off\"\n[hash]");
    std::fs::write(&other, config).unwrap();
    let mut command = site.topology().balancer().command(balancer_testkit::binaries::balancer().unwrap());
    let output = command.arg("run").arg("--config").arg(&other).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("running"), "{words}");
    site.homes(FAMILY, CLIENTS).unwrap();
}
