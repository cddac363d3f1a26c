//! Tests that `docs/openapi.json` describes the answers and refusals of a running controller.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use serde_json::{Value, json};

use crate::api::{exchange, request};

/// The number of a client that has already connected.
const CLIENT: u16 = 1;

/// Returns the method, path and description of every operation, in an order in which operations that add objects
/// precede operations that remove objects.
fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let paths = description["paths"].as_object().unwrap().iter();
    let mut operations: Vec<_> = paths
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().iter();
            methods.map(move |(method, of)| (method.to_uppercase(), path.clone(), of.clone()))
        })
        .collect();
    let order = ["POST", "PUT", "GET", "DELETE"];
    operations.sort_by_key(|(method, path, _)| {
        (order.iter().position(|other| other == method), method == "DELETE" && path.ends_with("/{backend}"))
    });
    operations
}

fn assert_valid(description: &Value, schema: &Value, value: &Value, what: &str) {
    // References in a schema are relative to the whole document.
    let mut document = schema.clone();
    document["components"] = description["components"].clone();
    let validator = jsonschema::options().with_draft(jsonschema::Draft::Draft202012).build(&document).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what} is not as docs/openapi.json describes it: {errors:#?}\n{value:#}");
}

/// Sends a request, checks that the document describes the answer, and returns the status code.
fn ask(site: &Site, description: &Value, method: &str, path: &str, operation: &Value, body: &str) -> u16 {
    let (status, answer) = exchange(site, &request(method, path, body.as_bytes()));
    println!("{method} {path} {body} -> {status}");
    let described = operation["responses"].get(status.to_string());
    let described =
        described.with_context(|| format!("{method} {path} answers {status}, not described: {answer}")).unwrap();
    let schema = &described["content"]["application/json"]["schema"];
    assert_valid(description, schema, &serde_json::from_str(&answer).unwrap(), &format!("{status} to {method} {path}"));
    status
}

/// Starts a new trace and returns its number; a trace without readers ends within seconds.
fn new_trace(site: &Site) -> String {
    let start = Instant::now();
    loop {
        let (status, answer) = exchange(site, &request("POST", "/v1/trace", br#"{"snaplen": 64}"#));
        if status == 200 {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            return answer["trace"].to_string();
        }
        // The balancer accepts a new trace only after the previous one has ended.
        assert!(status == 409 && start.elapsed() < PATIENCE, "{status}: {answer}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Applies a drop-in, and returns its name.
fn new_drop_in(site: &Site) -> String {
    let file = site.files().join("drop-in.toml");
    fs::write(&file, "[[service]]\nname = \"other\"\naddress = \"198.51.100.20:81\"\nforwarding = \"nat\"\n").unwrap();
    site.cli(&["drop-in", "apply", "web", &file.display().to_string()]).unwrap();
    "web".to_owned()
}

#[test]
fn when_a_running_controller_answers_or_refuses_then_it_is_as_described() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, _| {
        settings.remember = "1h";
        Ok(())
    })
    .unwrap();
    site.homes(Family::V4, CLIENT..=20).unwrap();
    let description: Value = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
    let generation = || site.status().unwrap().generation;
    let (vip, client) = (site.topology().vip(Family::V4), site.topology().client_address(Family::V4, CLIENT));
    for (method, described, operation) in operations(&description) {
        let address = if described.contains("/listeners/") { vip.to_string() } else { "10.1.2.0".to_owned() };
        let path = described.replace("{service}", "web").replace("{backend}", "web2");
        let path = path.replace("{ip}", &client.to_string()).replace("{address}", &address).replace("{length}", "24");
        let path = path.replace("{protocol}", "udp").replace("{ports}", "443");
        let path = if path.contains("{trace}") { path.replace("{trace}", &new_trace(&site)) } else { path };
        let path = if path.contains("{drop_in}") { path.replace("{drop_in}", &new_drop_in(&site)) } else { path };
        assert!(!path.contains('{'), "{path}: give the new placeholder a value in this test");
        let mut example = operation["requestBody"]["content"]["application/json"]["example"].clone();
        if let Some(text) = example.get_mut("text").filter(|_| described == "/v1/configuration") {
            *text = fs::read_to_string(site.config()).unwrap().into();
        }
        let body = if example.is_null() { String::new() } else { example.to_string() };
        let before = generation();
        let status = ask(&site, &description, &method, &path, &operation, &body);
        // The balancer in this test belongs to no fleet, and its service does not use QUIC.
        let expected = match described.as_str() {
            "/v1/fleet" | "/v1/services/{service}/quic/{backend}" => 404,
            "/v1/services/{service}/quic/key" => 409,
            _ => 200,
        };
        assert_eq!(status, expected, "{method} {path}");
        let harmless = method == "GET" || expected != 200 || example["dry_run"] == true;
        let harmless = harmless
            || ["/plan", "/clients", "/{ip}", "/withdrawn", "/trace", "/{trace}"]
                .iter()
                .any(|end| described.ends_with(end));
        assert_eq!(generation() == before, harmless, "{method} {path}");

        let responses = &operation["responses"];
        let (path, body) = if !body.is_empty() {
            (path, json!({ "nonsense": true }).to_string())
        } else if responses.get("400").is_some() {
            (format!("{path}?nonsense=1"), String::new())
        } else if responses.get("404").is_some() {
            (path.replace("/web", "/nosuch"), String::new())
        } else {
            continue;
        };
        let before = generation();
        let status = ask(&site, &description, &method, &path, &operation, &body);
        assert!(status >= 400 && generation() == before, "{method} {path} {body} was answered {status}");
    }
}
