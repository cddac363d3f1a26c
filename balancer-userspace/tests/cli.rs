//! The command line as a process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use balancer::{
    api::{
        model::{BackendEntry, ClientView, ServiceView, StatusView},
        statistics::{StatsView, TopClient},
    },
    core::io::{Admin, BackendName, Change},
};
use support::{Fake, snapshot};

fn balancer(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_balancer")).args(args).env_remove("BALANCER_SOCKET").output().unwrap()
}

async fn at(socket: &Path, args: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_balancer"))
        .args(args)
        .env("BALANCER_SOCKET", socket)
        .output()
        .await
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    assert_eq!(stderr(output), "");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn without_a_controller_every_verb_exits_with_3_and_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("balancer.sock");
    let socket = socket.to_str().unwrap();
    for verb in [
        &["status"][..],
        &["status", "--watch", "--json"],
        &["service", "list"],
        &["service", "show", "web", "--json"],
        &["backend", "list"],
        &["backend", "add", "web/web4", "10.0.0.4"],
        &["backend", "remove", "web/web4", "--force"],
        &["backend", "drain", "web/web4", "--wait"],
        &["backend", "ready", "web/web4"],
        &["backend", "maint", "web/web4"],
        &["backend", "weight", "web/web4", "0"],
        &["client", "where", "192.0.2.1"],
        &["client", "top", "--backend", "web/web1", "-n", "3", "--by", "packets"],
        &["stats", "--json"],
        &["plan", "backend", "remove", "web/web4"],
    ] {
        let output = balancer(&[verb, &["--socket", socket]].concat());
        assert_eq!(output.status.code(), Some(3), "{verb:?}");
        assert_eq!(
            stderr(&output),
            format!(
                "balancer: no controller reachable at {socket}: the socket does not exist; start one with \"balancer run \
                 --config FILE\"\n"
            ),
            "{verb:?}"
        );
        assert!(output.stdout.is_empty(), "{verb:?}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_would_be_right() {
    for (args, hint) in [
        (&[][..], "Usage: balancer"),
        (&["sevrice"], "similar subcommand exists: 'service'"),
        (&["run"], "--config <FILE>"),
        (&["run", "--config", "x.toml", "--interface", "an-overlong-interface"], "more than the kernel's 15"),
        (&["run", "--config", "x.toml", "--log-format", "xml"], "[possible values: text, json]"),
        (&["service", "show"], "<SVC>"),
        (&["backend", "drain", "web1"], "write SERVICE/NAME, such as \"web/web1\""),
        (&["backend", "drain", "web/web1", "--timeout", "5"], "write a number and a unit"),
        (&["backend", "drain", "web/web1", "--wait-timeout", "5s"], "--wait"),
        (&["backend", "weight", "web/web1", "65536"], "65536 is not in 0..=65535"),
        (&["backend", "add", "web/we b", "10.0.0.4"], "use 1 to 63 of A-Z a-z 0-9 . _ -"),
        (&["backend", "add", "web/web4", "web4.example.com"], "host names are not looked up"),
        (&["client", "where", "localhost"], "<IP>"),
        (&["completions", "tcsh"], "[possible values: bash, zsh, fish]"),
    ] {
        let output = balancer(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(hint), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn run_refuses_what_it_cannot_start_with() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.toml");
    let path = file.to_str().unwrap();

    std::fs::write(&file, "interfaces = 1\n").unwrap();
    let output = balancer(&["run", "--config", path]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("{path}:1: interfaces is the number 1; give a list of names such as [\"eth0\"]\n");
    assert_eq!(stderr(&output), expected);

    std::fs::write(&file, "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\nforwarding = \"dsr\"\n")
        .unwrap();
    let output = balancer(&["run", "--config", path]);
    assert_eq!(output.status.code(), Some(1));
    let expected =
        format!("balancer: no interface to attach to; give --interface IF, or interfaces = [\"IF\"] in {path}\n");
    assert_eq!(stderr(&output), expected);
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&balancer(&["completions", shell]));
        for word in ["balancer", "backend", "drain", "wait-timeout"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[tokio::test]
async fn json_is_what_the_controller_shows() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let expected = StatusView::from(snapshot(Admin::Ready, "up"));

    let status: StatusView = serde_json::from_str(&stdout(&at(&socket, &["status", "--json"]).await)).unwrap();
    assert_eq!(status, expected);
    let services: Vec<ServiceView> =
        serde_json::from_str(&stdout(&at(&socket, &["service", "list", "--json"]).await)).unwrap();
    assert_eq!(services, expected.services);
    let service: ServiceView =
        serde_json::from_str(&stdout(&at(&socket, &["service", "show", "web", "--json"]).await)).unwrap();
    assert_eq!(service, expected.services[0]);
    let backends: Vec<BackendEntry> =
        serde_json::from_str(&stdout(&at(&socket, &["backend", "list", "web", "--json"]).await)).unwrap();
    assert_eq!(backends.into_iter().map(|entry| entry.backend).collect::<Vec<_>>(), expected.services[0].backends);

    let one = at(&socket, &["client", "where", "192.0.2.7", "--service", "web", "--json"]).await;
    let one: ClientView = serde_json::from_str(&stdout(&one)).unwrap();
    assert_eq!((one.service.as_str(), one.slot), ("web", 12_345));
    let several = at(&socket, &["client", "where", "192.0.2.7", "--json"]).await;
    let several: Vec<ClientView> = serde_json::from_str(&stdout(&several)).unwrap();
    assert_eq!(several[1].backend, None);
}

#[tokio::test]
async fn tables_are_aligned_and_without_borders() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let shown = stdout(&at(&socket, &["service", "show", "web"]).await);
    assert_eq!(
        shown,
        "service web  tcp 198.51.100.10:80  nat  65,537 slots, generation 7\n\
         NAME  ADDRESS         STATE  ADMIN  HEALTH  WEIGHT   SLOTS  SHARE  CONNECTIONS    PACKETS       BYTES  REASON\n\
         web1  10.0.0.11:8080  up     ready  up         100  32,769  50.0%        4,321  1,234,567  89,000,000\n\
         web2  10.0.0.11:8080  up     ready  up         100  32,768  50.0%        4,321  1,234,567  89,000,000\n"
    );
    let status = stdout(&at(&socket, &["status"]).await);
    assert!(status.contains("eth0           2  native"), "{status}");
    assert!(status.contains(&shown), "{status}");
    let listed = stdout(&at(&socket, &["service", "list"]).await);
    assert!(listed.contains("web   tcp       198.51.100.10:80  nat"), "{listed}");
    let backends = stdout(&at(&socket, &["backend", "list"]).await);
    assert!(backends.contains("\nweb/web2  10.0.0.11:8080"), "{backends}");
    let client = stdout(&at(&socket, &["client", "where", "192.0.2.7"]).await);
    assert!(client.contains("web      192.0.2.7/32  12,345  web1         table"), "{client}");
}

#[tokio::test]
async fn statistics_are_shown_and_a_live_view_needs_a_terminal() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let all: Vec<StatsView> = serde_json::from_str(&stdout(&at(&socket, &["stats", "--json"]).await)).unwrap();
    assert_eq!(all.iter().map(|stats| stats.service.as_str()).collect::<Vec<_>>(), ["web", "dns"]);
    assert_eq!(all[0].backends[0].expected_share, Some(0.5));
    assert_eq!(all[0].periods.iter().map(|period| period.period.as_str()).collect::<Vec<_>>(), ["start"]);
    let text = stdout(&at(&socket, &["stats", "web"]).await);
    assert!(text.starts_with("service web  stickiness -  imbalance 1.00  Gini of clients -\n"), "{text}");
    assert!(text.contains("table generation 7, 65,537 slots\n") && !text.contains("dns"), "{text}");

    let top: Vec<TopClient> = serde_json::from_str(&stdout(&at(&socket, &["client", "top", "--json"]).await)).unwrap();
    assert_eq!(top, []);
    assert!(stdout(&at(&socket, &["client", "top"]).await).contains("no client's packets were sampled"));

    for (args, code, words) in [
        (&["stats", "--watch"][..], 1, "needs a terminal"),
        (&["stats", "wbe"], 1, "did you mean"),
        (&["client", "top", "--backend", "web/web9"], 1, "there is no backend"),
        (&["client", "top", "--by", "weight"], 2, "possible values: bytes, packets"),
        (&["client", "top", "-n", "0"], 2, "1..=256"),
    ] {
        let output = at(&socket, args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn changes_are_sent_and_their_answer_is_printed() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    for args in [
        &["backend", "add", "web/web4", "10.0.0.4:8080", "--weight", "50", "--backup"][..],
        &["backend", "remove", "web/web2"],
        &["backend", "drain", "web/web1", "--timeout", "90s"],
        &["backend", "ready", "web/web1"],
        &["backend", "maint", "web/web1"],
        &["backend", "weight", "web/web1", "0"],
    ] {
        assert_eq!(stdout(&at(&socket, args).await), "done\n", "{args:?}");
    }
    let name = |backend: &str| BackendName { service: "web".to_owned(), backend: backend.to_owned() };
    let set = |admin, timeout| Change::SetAdmin { name: name("web1"), admin, timeout };
    assert_eq!(
        fake.changes(),
        [
            Change::Add {
                name: name("web4"),
                address: "10.0.0.4".parse().unwrap(),
                port: Some(8080),
                weight: Some(50),
                backup: true
            },
            Change::Remove { name: name("web2"), force: false },
            set(Admin::Drain, Some(Duration::from_secs(90))),
            set(Admin::Ready, None),
            set(Admin::Maint, None),
            Change::SetWeight { name: name("web1"), weight: 0 },
        ]
    );
}

#[tokio::test]
async fn a_refusal_exits_with_1_and_the_controllers_words() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    for (args, words) in [
        (&["backend", "weight", "web/web9", "1"][..], "there is no backend web/web9; did you mean \"web1\"?"),
        (&["backend", "add", "web/web1", "10.0.0.4"], "backend web/web1 exists already; remove it first"),
        (&["service", "show", "wbe"], "there is no service \"wbe\"; did you mean \"web\"?"),
        (&["client", "where", "192.0.2.1", "--service", "api", "--json"], "there is no service \"api\""),
        (
            &["client", "where", "2001:db8::1"],
            "no service takes clients with an address like 2001:db8::1; see \"balancer service list\"",
        ),
    ] {
        let output = at(&socket, args).await;
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(stderr(&output), format!("balancer: {words}\n"));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn a_controller_that_stopped_is_no_controller() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    stdout(&at(&socket, &["status"]).await);
    let _directory = fake.stop().await;
    assert_eq!(at(&socket, &["status"]).await.status.code(), Some(3));
}

#[tokio::test]
async fn drain_waits_until_drained_or_its_limit() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let output = at(&socket, &["backend", "drain", "web/web1", "--wait", "--wait-timeout", "1h"]).await;
    assert_eq!(stdout(&output), "done\nbackend web/web1 drained\n");

    // Too short for even one look.
    let output = at(&socket, &["backend", "drain", "web/web1", "--wait", "--wait-timeout", "0s"]).await;
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(stderr(&output), "balancer: backend web/web1 is not drained after 0s; it goes on draining\n");

    let output = at(&socket, &["backend", "drain", "web/web2", "--wait", "--wait-timeout", "1h"]).await;
    assert_eq!(output.status.code(), Some(1), "the fake leaves web2 ready");
    assert!(stderr(&output).contains("was made ready"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_plan_is_shown_and_nothing_is_changed() {
    let fake = Fake::start().await;
    let out = stdout(&at(&fake.socket(), &["plan", "backend", "remove", "web/web1", "--force"]).await);
    assert_eq!(
        out,
        "service web: 16,384 of 65,537 slots would move, 3 needless; 1,204 known clients would move\n\
         FROM         TO            SLOTS  CLIENTS\n\
         web1         web2         16,384    1,204\n\
         - (dropped)  - (dropped)       0        0\n"
    );
    let json = stdout(&at(&fake.socket(), &["plan", "backend", "remove", "web/web1", "--json"]).await);
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["known_clients_moved"], 1204);
    assert_eq!(plan["moves"][0]["from"], "web1");
    let refused = at(&fake.socket(), &["plan", "backend", "weight", "web/web1", "7"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("is refused"), "{}", stderr(&refused));
    assert_eq!(fake.changes(), []);
}
