//! Checks `docs/openapi.json` against the server: the document describes every route, and the server answers each route
//! as described.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::BTreeSet, path::Path};

use balancer_config::names::BackendName;
use balancer_control::io::Moved;
use balancer_listeners::api_server::routes;
use serde_json::{Value, json};
use support::Fake;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

fn description() -> Value {
    serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap()
}

/// Returns the method, the path and the description of every operation.
fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let mut operations = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    operations
}

async fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (String, Value) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("content-type: application/json"), "{method} {path}: {head}");
    (head.split(' ').nth(1).unwrap().to_owned(), serde_json::from_str(body).unwrap())
}

/// Asserts that `value` matches `schema` in the description.
fn assert_valid(description: &Value, schema: &Value, value: &Value, what: &str) {
    // The references in the schema are relative to the whole document.
    let mut document = schema.clone();
    document["components"] = description["components"].clone();
    let validator = jsonschema::options().with_draft(jsonschema::Draft::Draft202012).build(&document).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(
        errors.is_empty(),
        "{what} is not as docs/openapi.json describes it; change the schema there: {errors:#?}\n{value:#}"
    );
}

#[test]
fn when_the_server_has_a_route_then_it_is_described() {
    let described: BTreeSet<_> =
        operations(&description()).into_iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    let served: BTreeSet<_> = routes().into_iter().map(|(method, path)| format!("{method} {path}")).collect();
    let missing: Vec<_> = served.difference(&described).collect();
    assert!(missing.is_empty(), "add to \"paths\" in docs/openapi.json: {missing:?}");
    let gone: Vec<_> = described.difference(&served).collect();
    assert!(
        gone.is_empty(),
        "docs/openapi.json describes what listeners/src/api_server/routes.rs does not serve: {gone:?}"
    );
}

#[tokio::test]
async fn when_a_described_route_is_called_then_it_answers_as_described() {
    let description = description();
    for (method, path, operation) in operations(&description) {
        let fake = Fake::start().await;
        // The test adds an event that has all possible fields.
        let about = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
        let moves = Moved { slots: 1, needless: 0, known_clients: Some(1) };
        fake.events.change(Some(&about), "backend web/web1 in maintenance", Some(0), Some(moves));
        let path = path.replace("{service}", "web").replace("{backend}", "web2").replace("{ip}", "192.0.2.7");
        let path = path.replace("{address}", "10.1.2.0").replace("{length}", "24");
        let path = path.replace("{drop_in}", "web");
        let path = path.replace("{protocol}", "udp").replace("{ports}", "443").replace("{trace}", "7");
        assert!(!path.contains('{'), "{path}: give the new placeholder a value in this test");
        let content = &operation["requestBody"]["content"]["application/json"];
        let body = if let Some(example) = content.get("example") {
            assert_valid(&description, &content["schema"], example, &format!("the example of {method} {path}"));
            example.to_string()
        } else {
            String::new()
        };
        let (status, answer) = ask(&fake.socket(), &method, &path, &body).await;
        assert_eq!(status, "200", "{method} {path}: {answer}");
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        assert_valid(&description, schema, &answer, &format!("the answer to {method} {path}"));

        // These requests leave the configuration unchanged: plans change nothing, and known clients are not in the
        // configuration.
        let harmless =
            method == "GET" || path.ends_with("/plan") || path.contains("/clients") || path.contains("/trace");
        let harmless = harmless || content["example"]["dry_run"] == true;
        assert_eq!(fake.change_requests().is_empty(), harmless, "{method} {path}: {:?}", fake.changes());

        // The server refuses fields that are not described, as the description says.
        let wrong = if body.is_empty() { None } else { Some(json!({"nonsense": true}).to_string()) };
        let (wrong_path, wrong_body) = match wrong {
            Some(body) => (path.clone(), body),
            None if operation["responses"].get("400").is_some() => (format!("{path}?nonsense=1"), String::new()),
            None if operation["responses"].get("404").is_some() => (path.replace("/web", "/nosuch"), String::new()),
            None => continue,
        };
        let (status, answer) = ask(&fake.socket(), &method, &wrong_path, &wrong_body).await;
        assert_ne!(status, "200", "{method} {wrong_path} was accepted");
        let refusal = operation["responses"].get(&status);
        let refusal =
            refusal.unwrap_or_else(|| panic!("{method} {wrong_path} answers {status}, which is not described"));
        let schema = &refusal["content"]["application/json"]["schema"];
        assert_valid(&description, schema, &answer, &format!("the refusal of {method} {wrong_path}"));
    }
}

#[tokio::test]
async fn when_a_client_asks_for_the_description_then_it_is_served() {
    let fake = Fake::start().await;
    assert_eq!(ask(&fake.socket(), "GET", "/v1/openapi.json", "").await.1, description());
    fake.stop().await;
}

#[test]
fn when_an_operation_is_described_then_it_has_an_id_and_a_summary() {
    for (method, path, operation) in operations(&description()) {
        for word in ["operationId", "summary"] {
            assert!(operation[word].as_str().is_some_and(|text| !text.is_empty()), "{method} {path} has no {word}");
        }
        let names: BTreeSet<_> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| format!("{{{}}}", parameter["name"].as_str().unwrap()))
            .collect();
        assert!(names.iter().all(|name| path.contains(name)) && names.len() == path.matches('{').count(), "{path}");
    }
}

/// Users of the read-only socket may only make requests that read.
#[tokio::test]
async fn when_a_reader_asks_then_what_changes_something_or_has_a_key_is_refused() {
    let fake = Fake::start().await;
    let readers = fake.socket().with_file_name("readers.sock");
    let (mut refused, mut open) = (Vec::new(), 0);
    for (method, path) in routes() {
        let asked = path.replace("{service}", "web").replace("{backend}", "web1").replace("{ip}", "203.0.113.7");
        let (status, answer) = ask(&readers, method, &asked, "{}").await;
        if status == "403" {
            let why = answer["error"].as_str().unwrap();
            assert!(why.contains("only reads: ask as root or as a member of the group "), "{why}");
            refused.push((method, path));
        } else {
            open += 1;
        }
    }
    assert_eq!(fake.change_requests(), []);
    for (method, path) in &refused {
        let is_read = *method == "GET" && !["trace", "quic", "{drop_in}"].iter().any(|part| path.contains(part));
        assert!(!is_read && *path != "/v1/plan", "{method} {path}");
    }
    assert!(refused.contains(&("GET", "/v1/services/{service}/quic/{backend}")), "it has a key");
    assert_eq!(refused.len() + open, routes().len());
    let reads = routes().iter().filter(|(method, _)| *method == "GET").count();
    // Users of the read-only socket may not read traces, keys and the texts of drop-ins, but may request plans.
    assert_eq!(open, reads - 3 + 1);
}
