//! Tests of the files for Ansible in `contrib/`, with Debian's Ansible and a real balancer.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    http_client::Request,
    site::Site,
    topology::{Family, Shape},
};
use serde_json::{Value, json};

use crate::support::under_load;

fn contrib(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/ansible").join(path)
}

fn site() -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, _| {
        settings.remember = "1h";
        Ok(())
    })
    .unwrap()
}

/// Returns a command that runs a program of Ansible on the balancer's host and prints JSON.
fn ansible(site: &Site, program: &str) -> Command {
    let mut command = site.topology().balancer().command(program);
    let programs = binaries::balancer().unwrap().parent().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    command
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("HOME", site.files())
        .env("ANSIBLE_HOME", site.files())
        .env("ANSIBLE_LOCAL_TEMP", site.files())
        .env("ANSIBLE_REMOTE_TEMP", site.files())
        .env("ANSIBLE_LIBRARY", contrib("library"))
        .env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3")
        .env("ANSIBLE_LOAD_CALLBACK_PLUGINS", "1")
        .env(
            "ANSIBLE_CALLBACK_PLUGINS",
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/release/ansible_callbacks"),
        )
        .env("ANSIBLE_STDOUT_CALLBACK", "collected")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ANSIBLE_DEPRECATION_WARNINGS", "0")
        .env("BALANCER_SOCKET", site.files().join("balancer.sock"))
        .args(["--connection", "local"]);
    command
}

fn run(command: &mut Command) -> (Value, Output) {
    let output = command.output().expect("Ansible is needed: cargo xtask setup, or apt-get install ansible-core");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let begin = text.find('{').expect("the program prints JSON");
    (serde_json::from_str(&text[begin..]).expect("the program prints JSON and nothing else"), output)
}

/// Returns the answer of the Ansible module for the given parameters.
fn module(site: &Site, parameters: &Value, options: &[&str]) -> Value {
    let mut command = ansible(site, "ansible");
    command.args(["--inventory", "localhost,", "--module-name", "balancer_backend", "--args", &parameters.to_string()]);
    let (answer, output) = run(command.args(options).arg("localhost"));
    let host = answer["plays"][0]["tasks"][0]["hosts"]["localhost"].clone();
    assert!(host.is_object(), "{answer} {output:?}");
    host
}

#[track_caller]
fn changes(site: &Site, parameters: &Value) -> Value {
    let answer = module(site, parameters, &[]);
    assert!(answer["changed"] == true && answer.get("failed").is_none(), "{parameters}: {answer}");
    // When the module runs a second time, it changes nothing.
    let again = module(site, parameters, &[]);
    assert!(again["changed"] == false && again.get("failed").is_none(), "{parameters}, again: {again}");
    answer
}

#[track_caller]
fn fails(site: &Site, parameters: &Value, words: &str) {
    let answer = module(site, parameters, &[]);
    assert_eq!(answer["failed"], true, "{parameters}: {answer}");
    assert!(answer["msg"].as_str().unwrap().contains(words), "{parameters}: {answer}");
}

#[test]
fn when_ansible_wants_a_state_then_the_backend_is_in_it_and_a_second_time_nothing_changes() {
    let mut site = site();
    site.homes(Family::V4, 1..=30).unwrap();

    let checked = module(&site, &json!({"backend": "web/web2", "state": "drained"}), &["--check"]);
    assert_eq!(checked["changed"], true, "{checked}");
    assert_eq!(site.status().unwrap().services[0].backends[1].admin, "ready", "a check has changed something");

    // The backend has known clients, so the drain lasts until its deadline. The Ansible module stops waiting before
    // that deadline.
    fails(
        &site,
        &json!({"backend": "web/web2", "state": "drained", "drain_timeout": "5s", "wait_timeout": "500ms"}),
        "web/web2 is not drained after 500ms, but draining",
    );
    let answer = module(&site, &json!({"backend": "web/web2", "state": "drained"}), &[]);
    assert_eq!(answer["changed"], false, "it has been told already: {answer}");
    assert_eq!(answer["backend"]["state"], "drained", "{answer}");

    let answer = changes(&site, &json!({"backend": "web/web2", "state": "ready", "weight": 50}));
    assert_eq!([&answer["backend"]["state"], &answer["backend"]["weight"]], [&json!("up"), &json!(50)], "{answer}");
    let answer = changes(&site, &json!({"backend": "web/web3", "state": "absent", "force": true}));
    assert_eq!(answer["backend"], json!({}));
    let address = site.backend_address(Family::V4, 3).to_string();
    let answer = changes(&site, &json!({"backend": "web/web3", "address": address, "weight": 7}));
    assert_eq!([&answer["backend"]["state"], &answer["backend"]["weight"]], [&json!("up"), &json!(7)], "{answer}");

    fails(&site, &json!({"backend": "web/web9", "state": "drained"}), "there is no backend web/web9");
    fails(&site, &json!({"backend": "web/web9"}), "say its address");
    fails(&site, &json!({"backend": "web9"}), "write it as service/name");
    fails(&site, &json!({"backend": "shop/web1"}), "shop");
    site.controller().process().kill().unwrap();
    fails(&site, &json!({"backend": "web/web1"}), "no controller reachable");
}

#[test]
fn when_servers_are_deployed_one_after_the_other_then_clients_are_answered_all_the_time() {
    let site = site();
    site.homes(Family::V4, 1..=30).unwrap();
    let playbook = fs::read_to_string(contrib("deploy.yml")).unwrap();
    for part in ["/usr/local/bin/deploy", "drain_timeout: 5m"] {
        assert!(playbook.contains(part), "{part} is not in the sample");
    }
    let playbook =
        playbook.replace("/usr/local/bin/deploy", "/bin/true").replace("drain_timeout: 5m", "drain_timeout: 1s");
    let (file, hosts) = (site.files().join("deploy.yml"), site.files().join("hosts"));
    fs::write(&file, playbook).unwrap();
    fs::write(&hosts, "lb1\n[web]\nweb1\nweb2\nweb3\n").unwrap();

    let requests: Vec<Request> = (1..=30).map(|client| site.request(Family::V4, client)).collect();
    let mut answer = Value::Null;
    let load = under_load(&site.topology().client().entrance(), &requests, || {
        let mut command = ansible(&site, "ansible-playbook");
        answer = run(command.arg("--inventory").arg(&hosts).arg(&file)).0;
    });
    // Two requests run at any time, and the end of each drain may interrupt these two requests.
    load.assert_answered_but(2 * 3, 1000);
    for web in ["web1", "web2", "web3"] {
        let stats = &answer["stats"][web];
        assert_eq!([&stats["failures"], &stats["unreachable"]], [&json!(0), &json!(0)], "{web}: {answer}");
        assert_eq!(stats["changed"], json!(3), "drained, deployed, ready: {answer}");
    }
    assert!(site.status().unwrap().services[0].backends.iter().all(|backend| backend.state == "up"));
}
