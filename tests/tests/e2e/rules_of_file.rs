//! Tests of rules and of lists of denied prefixes in the configuration file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use balancer_api::model::ServiceView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(1);

fn address(site: &Site, client: u16) -> String {
    site.topology().client_address(Family::V4, client).to_string()
}

fn is_served(site: &Site, client: u16) -> bool {
    site.ask(Family::V4, [client], SOON).unwrap().iter().all(Result::is_ok)
}

fn home(site: &Site, client: u16) -> String {
    site.homes(Family::V4, client..=client).unwrap().remove(&client).unwrap()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn rules(site: &Site) -> Vec<(String, bool)> {
    let list: Value = serde_json::from_str(&site.cli(&["rule", "list", "--json"]).unwrap()).unwrap();
    let rule = |rule: &Value| (rule["action"].as_str().unwrap().to_owned(), rule["in_file"].as_bool().unwrap());
    list.as_array().unwrap().iter().map(rule).collect()
}

fn owned(rules: &[(&str, bool)]) -> Vec<(String, bool)> {
    rules.iter().map(|(action, in_file)| ((*action).to_owned(), *in_file)).collect()
}

#[test]
fn when_the_file_has_rules_then_they_hold_and_what_was_changed_at_run_time_outlives_apply_and_restart() {
    let rule = |client: &str, more: &str| format!("{{ prefix = \"{client}\", {more} }}");
    let deny = "action = \"deny\"";
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, topology| {
        settings.on_exit = "keep";
        let of = |client| topology.client_address(Family::V4, client).to_string();
        settings.service_lines =
            format!("rule = [{}, {}]", rule(&of(1), deny), rule(&of(2), "action = \"pin\", backend = \"web2\""));
        Ok(())
    })
    .unwrap();
    let (one, two) = (address(&site, 1), address(&site, 2));
    assert!(!is_served(&site, 1));
    assert_eq!(home(&site, 2), "web2");
    assert_eq!(rules(&site), owned(&[("deny", true), ("pin", true)]));

    site.cli(&["rule", "remove", "web", &one]).unwrap();
    site.cli(&["rule", "add", "web", &two, "pin", "web3"]).unwrap();
    assert!(is_served(&site, 1));
    assert_eq!(site.apply(|_| {}).unwrap().lines().last(), Some("configuration applied: nothing changed"));
    site.restart(|_| {}).unwrap();
    assert!(is_served(&site, 1), "what was removed at run time stays removed");
    assert_eq!((home(&site, 2), rules(&site)), ("web3".to_owned(), owned(&[("pin", false)])));

    let changed = rule(&one, "action = \"deny\", ttl = \"1h\"");
    let same = rule(&two, "action = \"pin\", backend = \"web2\"");
    let told = site.apply(|settings| settings.service_lines = format!("rule = [{changed}, {same}]")).unwrap();
    assert!(told.contains("configuration applied, 1 rule added: 0 of"), "{told}");
    assert!(!is_served(&site, 1), "the file has changed it since");
    assert_eq!(home(&site, 2), "web3", "the file says what it said before");
    let told = site.apply(|settings| settings.service_lines.clear()).unwrap();
    assert!(told.contains("2 rules removed"), "{told}");
    assert!(is_served(&site, 1));
    assert_eq!(rules(&site), []);
}

/// Replaces a file atomically.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}

fn web(site: &Site) -> ServiceView {
    site.status().unwrap().services.into_iter().find(|service| service.name == "web").unwrap()
}

fn reasons(site: &Site) -> String {
    site.status().unwrap().ready.reasons.join("; ")
}

#[test]
fn when_a_list_of_denied_prefixes_changes_then_it_is_followed_and_a_wrong_one_is_not() {
    let lists = tempfile::tempdir().unwrap();
    let file: PathBuf = lists.path().join("deny.txt");
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        settings.on_exit = "keep";
        fs::write(&file, format!("# clients\n{}\n", topology.client_address(Family::V4, 1)))?;
        settings.service_lines = format!("deny = {{ file = \"{}\" }}", file.display());
        Ok(())
    })
    .unwrap();
    let (one, three) = (address(&site, 1), address(&site, 3));
    assert!(!is_served(&site, 1), "from the first packet on");
    assert!(is_served(&site, 3));
    let deny = web(&site).deny.unwrap();
    assert_eq!((deny.prefixes, deny.error), (1, None));
    assert!(deny.packets > 0);
    let shown = site.cli(&["client", "where", &one]).unwrap();
    assert!(shown.contains("(dropped)") && shown.contains("/32 deny"), "{shown}");

    // A rule takes precedence over a list of denied prefixes that contains the same prefix. After the removal of the
    // rule, the list of denied prefixes applies again.
    site.cli(&["rule", "add", "web", &one, "spread"]).unwrap();
    assert!(is_served(&site, 1));
    site.cli(&["rule", "remove", "web", &one]).unwrap();
    assert!(!is_served(&site, 1));

    replace(&file, &format!("{three} # another\n"));
    wait_until("the new list is in force", || !is_served(&site, 3));
    wait_until("the old list is not", || is_served(&site, 1));

    replace(&file, &format!("{three}\n198.51.100.300\n"));
    wait_until("it is degraded", || reasons(&site).contains("deny.txt:2: this is no prefix"));
    assert!(!is_served(&site, 3), "the previous list stays in force");
    let config = site.config();
    for arguments in [["check", &config.to_string_lossy()], ["apply", &config.to_string_lossy()]] {
        let output = site.output(&arguments).unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("deny.txt:2: this is no prefix"), "{told}");
    }
    site.restart(|_| {}).unwrap();
    assert!(!is_served(&site, 3), "what an earlier controller left stays");
    assert!(reasons(&site).contains("deny.txt:2"), "{}", reasons(&site));

    let mut many = format!("{three}\n");
    (0..100_000u32)
        .for_each(|number| writeln!(many, "{}", std::net::Ipv4Addr::from(0x0b00_0000 + 2 * number)).unwrap());
    let start = Instant::now();
    replace(&file, &many);
    wait_until("100,001 prefixes", || web(&site).deny.unwrap().prefixes == 100_001);
    println!("100,001 prefixes in force {:?} after the file was replaced", start.elapsed());
    assert_eq!(reasons(&site), "");
    assert!(!is_served(&site, 3) && is_served(&site, 1));
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("denied_prefixes", &["service=\"web\""]).unwrap(), 100_001.0);
    site.restart(|_| {}).unwrap();
    assert_eq!(web(&site).deny.unwrap().prefixes, 100_001);
    assert!(!is_served(&site, 3));

    site.apply(|settings| settings.service_lines.clear()).unwrap();
    wait_until("nobody is denied", || is_served(&site, 3));
    assert_eq!(web(&site).deny, None);
}
