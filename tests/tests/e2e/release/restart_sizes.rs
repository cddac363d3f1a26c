//! Tests of restarts with `on_exit = "keep"` with a file that has many more backends, and back to the small file. The
//! maps of backends change their sizes, while clients and counters continue.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Settings, Site},
    topology::{Family, Shape},
    users::Users,
};
use serde_json::Value;

use crate::{restart::pins, support::never_backwards};

/// 9,000 backends use more than half of the ids in the small maps, so the balancer needs larger maps.
const FEW: u32 = 9000;
const MANY: u32 = 16_500;

/// Returns the configuration of a second service with the given number of unreachable backends.
fn bulk(backends: u32) -> String {
    let mut text = "[[service]]\nname = \"crowd\"\naddress = \"10.1.99.1:99\"\nforwarding = \"dsr\"\n\
                    check = { type = \"none\" }\n"
        .to_owned();
    for number in 0..backends {
        let address = Ipv4Addr::from(0xac1f_0000 + number);
        write!(text, "[[service.backend]]\nname = \"b{number}\"\naddress = \"{address}\"\n").unwrap();
    }
    text
}

/// Returns the configuration of `count` unreachable services, which precede the service under test in the file.
fn services(count: u32) -> String {
    let mut text = String::new();
    for number in 0..count {
        let vip = Ipv4Addr::from(0x0a63_0000 + number);
        write!(
            text,
            "[[service]]\nname = \"s{number}\"\naddress = \"{vip}:99\"\nforwarding = \"dsr\"\ntable_size = 2\n\
             check = {{ type = \"none\" }}\n[[service.backend]]\nname = \"b\"\naddress = \"172.31.0.1\"\n"
        )
        .unwrap();
    }
    text
}

#[test]
fn when_a_service_has_an_id_beyond_4096_then_its_clients_are_known_after_a_restart() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, _| {
        settings.on_exit = "keep";
        settings.remember = "1h";
        settings.lines = services(4200);
        Ok(())
    })
    .unwrap();
    let up = |site: &Site| {
        (1..=4).for_each(|number| {
            site.cli(&["wait", &format!("web/web{number}"), "up", "--timeout", "60s"]).unwrap();
        })
    };
    up(&site);
    let homes = site.homes(Family::V4, 1..=100).unwrap();
    // Without the client memory, most clients would reach a different backend.
    site.cli(&["backend", "weight", "web/web1", "1"]).unwrap();
    for killed in [false, true] {
        if killed { site.kill_and_restart(|_| {}) } else { site.restart(|_| {}) }.unwrap();
        up(&site);
        assert_eq!(site.homes(Family::V4, 1..=100).unwrap(), homes, "killed: {killed}");
    }
}

/// Returns the number of rows in the pinned maps of backends, and in the map of per-CPU counters.
fn rows(site: &Site) -> [u32; 2] {
    let directory = pins(site);
    let left = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with("NEW-")).count(), 0, "what replaces a map stays");
    let entries = |name| MapData::from_pin(directory.join(name)).unwrap().info().unwrap().max_entries();
    // The map has rows for each CPU and a few additional rows; the number of additional rows encodes the number of rows
    // per CPU as an exponent.
    [1 << (entries("BACKEND_STATS") % 64), entries("BACKEND_HISTORY")]
}

fn restart(users: &mut Users, backends: u32, killed: bool) {
    let before = users.site.metrics().unwrap();
    let adapt = |settings: &mut Settings| {
        settings.lines = if backends == 0 { String::new() } else { bulk(backends) };
    };
    if killed { users.site.kill_and_restart(adapt) } else { users.site.restart(adapt) }.unwrap();
    never_backwards(&before, &users.site.metrics().unwrap(), |sample| !sample.contains("crowd"));
    users.nobody_moves(&format!("with {backends} backends more"));
}

/// Returns a backend's id from the saved state.
fn id(site: &Site, name: &str) -> Option<u64> {
    let path = site.files().join("state.json");
    let state: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let backends =
        state["body"]["services"].as_array().unwrap().iter().flat_map(|of| of["backends"].as_array().unwrap());
    backends.clone().find(|backend| backend["config"]["name"] == name).and_then(|backend| backend["id"].as_u64())
}

#[test]
fn when_the_file_has_more_or_fewer_backends_then_their_maps_follow() {
    let mut users = Users::new(Forwarding::Nat, |settings| settings.on_exit = "keep");
    users.visit(1..=300);
    assert_eq!(rows(&users.site), [4096, 16_384]);

    restart(&mut users, FEW, true);
    assert_eq!(rows(&users.site), [32_768; 2]);
    restart(&mut users, MANY, false);
    assert_eq!(rows(&users.site), [65_536; 2]);

    // Only the large maps have a row for the id of web5.
    let address = users.site.backend_address(Family::V4, 5).to_string();
    users.site.cli(&["backend", "add", "web/web5", &address]).unwrap();
    users.site.wait_state(5, &["up"]).unwrap();
    users.visit(301..=600);
    assert!(!users.clients_of("web5").is_empty());
    users.site.restart(|_| {}).unwrap();
    let web5 = id(&users.site, "web5").unwrap();
    assert!(web5 > u64::from(MANY), "web5 has id {web5}");
    users.nobody_moves("with a high id");

    // The maps need 32,768 rows while web5 has its high id.
    restart(&mut users, 0, true);
    shrinks_to(&mut users, [32_768; 2]);
    users.site.cli(&["backend", "remove", "web/web5", "--force"]).unwrap();
    users.only_its_clients_move("web5");
    shrinks_to(&mut users, [4096, 16_384]);
}

/// Restarts the balancer until the maps have shrunk to the sizes `wanted`. A removed backend keeps its row until three
/// passes over the client table have found no client of the backend.
fn shrinks_to(users: &mut Users, wanted: [u32; 2]) {
    let deadline = Instant::now() + 3 * PATIENCE;
    while rows(&users.site) != wanted {
        assert!(Instant::now() < deadline, "{:?} rows, not {wanted:?}", rows(&users.site));
        // A pass over the client table takes a second, and after each start the balancer counts the passes from zero.
        thread::sleep(Duration::from_secs(5));
        restart(users, 0, false);
    }
}
