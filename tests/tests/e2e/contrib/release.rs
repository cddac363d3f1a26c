//! Tests with the real Prometheus.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use balancer_testkit::{process::Process, site::PATIENCE};
use serde_json::Value;

use super::{contrib, get, site};

#[test]
fn when_a_real_prometheus_scrapes_the_balancer_then_it_has_samples() {
    let site = site();
    let files = tempfile::tempdir().unwrap();
    let config = "global: { scrape_interval: 1s, evaluation_interval: 1s }\nrule_files: [alerts.yml]\n\
                  scrape_configs: [{ job_name: balancer, static_configs: [{ targets: [\"127.0.0.1:9660\"] }] }]\n";
    fs::write(files.path().join("prometheus.yml"), config).unwrap();
    fs::copy(contrib("prometheus/alerts.yml"), files.path().join("alerts.yml")).unwrap();
    let mut command = site.topology().balancer().command("prometheus");
    command
        .arg(format!("--config.file={}", files.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", files.path().join("data").display()))
        .arg("--web.listen-address=127.0.0.1:9090");
    let mut prometheus = Process::spawn("prometheus", &mut command, &files.path().join("log"))
        .expect("prometheus is needed: cargo xtask setup, or apt-get install prometheus");
    let query = |what: &str| -> Option<f64> {
        let answer: Value = serde_json::from_str(&get(&site, 9090, &format!("/api/v1/query?query={what}"))).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    let deadline = Instant::now() + PATIENCE * 2;
    while query("sum(balancer_connections_total)") != Some(20.0) {
        assert!(prometheus.exited().unwrap().is_none(), "{}", prometheus.tail(20).unwrap());
        assert!(Instant::now() < deadline, "{}", prometheus.tail(20).unwrap());
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(query("up"), Some(1.0));
    assert!(get(&site, 9090, "/api/v1/rules").contains("BalancerBackendDown"));
}
