//! Tests of the files for Prometheus and Grafana in `contrib/`, with the real programs and a real balancer.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::Request,
    site::{PATIENCE, QUICK_HTTP_CHECK, Site},
    topology::{Family, Shape},
};
use serde_json::Value;

fn contrib(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(path)
}

/// This test needs Debian's package `prometheus`, but no root.
#[test]
fn when_promtool_checks_the_alerts_and_their_tests_then_it_accepts_them() {
    for (verb, file) in [
        (["check", "rules"], "alerts.yml"),
        (["check", "config"], "prometheus.yml"),
        (["test", "rules"], "alerts_test.yml"),
    ] {
        let output = Command::new("promtool")
            .args(verb)
            .arg(contrib("prometheus").join(file))
            .output()
            .expect("promtool is needed: cargo xtask setup, or apt-get install prometheus");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb:?} {file}: {said}");
    }
}

fn site() -> Site {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "3h";
        settings.check = QUICK_HTTP_CHECK.to_owned();
        Ok(())
    })
    .unwrap();
    site.homes(Family::V4, 1..=20).unwrap();
    site
}

fn get(site: &Site, port: u16, path: &str) -> String {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let request = Request::new(any, SocketAddr::from(([127, 0, 0, 1], port))).path(path);
    let request = Request { timeout: PATIENCE, ..request };
    let reply = site.topology().balancer().run_in_thread(|| request.send()).unwrap();
    reply.map(|reply| String::from_utf8(reply.body).unwrap()).unwrap_or_default()
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// Returns every metric `balancer_…` in an expression, with the labels in the metric's selector.
fn names(expression: &str) -> Vec<(String, Vec<String>)> {
    let places = expression.match_indices("balancer_").map(|(at, _)| at);
    places
        .map(|at| {
            let rest = &expression[at..];
            let (name, rest) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
            let selector =
                rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
            let labels = selector.split(", ").filter_map(|matcher| matcher.split(['=', '!']).next());
            (name.to_owned(), labels.filter(|label| !label.is_empty()).map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn when_dashboard_and_alerts_use_a_metric_then_it_exists() {
    let site = site();
    // Some metrics have series only during a drain.
    site.cli(&["backend", "drain", "web/web2"]).unwrap();
    let text = get(&site, 9660, "/metrics");
    let mut exposed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            exposed.entry(declared.split(' ').next().unwrap().to_owned()).or_default();
        } else if let Some((name, labels)) = line.split_once('{') {
            let labels = labels.split("\",").filter_map(|label| label.split('=').next()).map(str::to_owned);
            exposed.entry(name.to_owned()).or_default().extend(labels);
        }
    }
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(contrib("grafana/balancer.json")).unwrap()).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut expressions: Vec<String> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    expressions.push(fs::read_to_string(contrib("prometheus/alerts.yml")).unwrap());
    let mut asked = 0;
    let book = include_str!("../../../docs/src/metrics.md");
    for (name, labels) in expressions.iter().flat_map(|expression| names(expression)) {
        if let Some(of_fleet) = name.strip_prefix("balancer_").filter(|name| name.starts_with("fleet_")) {
            // The balancer in this test does not belong to a fleet, so it has no metrics of a fleet. Another test
            // checks the book's list of metrics.
            assert!(book.contains(&format!("| `{of_fleet}` |")), "{name} is not in the book");
            continue;
        }
        let has = exposed.get(&name).unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        for label in labels.iter().filter(|label| !["instance", "job"].contains(&label.as_str())) {
            // A metric without samples shows no labels. For example, the metric of heavy clients needs more traffic
            // than the test sends.
            assert!(has.is_empty() || has.contains(label), "{name} has {has:?}, not {label}");
        }
        asked += 1;
    }
    assert!(asked > 40, "{asked}");
}
