//! Tests that run the command line as a process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use balancer_api::{
    events::EventView,
    model::{BackendEntry, ClientView, HealthView, ServiceView, StatusView},
    statistics::{StatsView, TopClient},
};
use balancer_config::{
    names::BackendName,
    states::{Admin, BackendState, Forced},
};
use balancer_control::io::{Change, Moved};
use balancer_listeners::call::ChangeRequest;
use support::{Fake, snapshot};
use tokio::io::AsyncBufReadExt as _;

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
fn when_there_is_no_controller_then_every_command_exits_with_3_and_a_sentence() {
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
        &["health", "show"],
        &["health", "force", "web/web1", "down"],
        &["client", "forget", "192.0.2.1"],
        &["events"],
        &["events", "--follow", "--json"],
        &["wait", "web/web1", "up"],
        &["withdraw", "--wait"],
        &["announce"],
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
fn when_a_user_asks_for_help_then_it_lists_commands_and_topics() {
    let all = stdout(&balancer(&["help"]));
    for line in ["  service      Look at services", "  operations         install, add a server, deploy, "] {
        assert!(all.contains(&format!("\n{line}")), "{line:?} is not in {all}");
    }
    assert_eq!(all, stdout(&balancer(&["--help"])));

    assert_eq!(stdout(&balancer(&["help", "service"])), stdout(&balancer(&["service", "--help"])));
    assert_eq!(stdout(&balancer(&["help", "backend", "add"])), stdout(&balancer(&["backend", "help", "add"])));
    assert!(stdout(&balancer(&["help", "health"])).ends_with("\nSee also: balancer help health-checks\n"));

    let chapter = stdout(&balancer(&["help", "operations"]));
    assert!(chapter.starts_with("Operations\n==========\n\nThis chapter shows"), "{chapter}");
    assert!(chapter.contains("\n    $ balancer backend drain web/web1 --timeout 10m --wait\n"), "{chapter}");
}

#[test]
fn when_a_topic_is_unknown_then_the_error_names_the_topics() {
    for (word, first) in [
        ("operatoins", "balancer: no command or topic \"operatoins\": did you mean \"operations\"?"),
        ("servce", "balancer: no command or topic \"servce\": did you mean \"service\"?"),
        ("quantum", "balancer: no command or topic \"quantum\""),
    ] {
        let output = balancer(&["help", word]);
        assert_eq!(output.status.code(), Some(2), "{word}");
        let errors = stderr(&output);
        assert_eq!(errors.lines().next(), Some(first));
        for topic in balancer::book::CHAPTERS {
            assert!(errors.contains(&format!("\n  {} ", topic.name)), "{}: {errors}", topic.name);
        }
    }
}

#[test]
fn when_usage_is_wrong_then_the_exit_code_is_2_with_a_hint() {
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
        (&["health", "force", "web/web1", "dead"], "[possible values: up, down, auto]"),
        (&["client", "forget"], "<IP|--backend <SVC/NAME>>"),
        (&["client", "forget", "192.0.2.1", "--backend", "web/web1"], "cannot be used with"),
        (&["client", "forget", "--backend", "web1"], "write SERVICE/NAME, such as \"web/web1\""),
        (&["wait", "web/web1", "gone"], "[possible values: up, drained, down, maint]"),
        (&["wait", "web/web1"], "<STATE>"),
        (&["events", "--since", "yesterday"], "write a number and a unit"),
        (&["completions", "tcsh"], "[possible values: bash, zsh, fish]"),
    ] {
        let output = balancer(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(hint), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn when_run_cannot_start_with_its_configuration_then_it_refuses() {
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
fn when_completions_are_printed_then_they_have_the_commands_and_topics() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&balancer(&["completions", shell]));
        for word in ["balancer", "backend", "drain", "wait-timeout", "health-checks"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[tokio::test]
async fn when_json_is_asked_for_then_it_is_what_the_controller_shows() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let expected = StatusView::from(snapshot(Admin::Ready, BackendState::Up));

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
async fn when_a_user_forgets_clients_then_the_controller_forgets_them() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let one = at(&socket, &["client", "forget", "192.0.2.7"]).await;
    assert_eq!((one.status.code(), stdout(&one).as_str()), (Some(0), "1 forgotten\n"));
    let all = at(&socket, &["client", "forget", "--backend", "web/web1", "--json"]).await;
    let all: serde_json::Value = serde_json::from_str(&stdout(&all)).unwrap();
    assert_eq!((&all["forgotten"], &all["moved"]), (&1_234.into(), &56.into()));
    for (args, words) in [
        (&["client", "forget", "192.0.2.7", "--service", "dns"][..], "dns has no memory of clients"),
        (&["client", "forget", "--backend", "web/web9"], "there is no backend web/web9"),
    ] {
        let refused = at(&socket, args).await;
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
    }
}

#[tokio::test]
async fn when_tables_are_shown_then_they_are_aligned_and_without_borders() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let shown = stdout(&at(&socket, &["service", "show", "web"]).await);
    assert_eq!(
        shown,
        "service web  tcp 198.51.100.10:80  nat  65,537 slots, generation 7\n\
         \x20 denies 100,000 prefixes by /etc/balancer/deny.txt, 7 dropped\n\
         WARNING: the file is invalid, the previous list stays in force: /etc/balancer/deny.txt:2: wrong\n\
         NAME  ADDRESS         STATE  ADMIN  HEALTH  WEIGHT   SLOTS  SHARE  CLIENTS  SERVED  CONNECTIONS    PACKETS       BYTES  CONN/S  PACKETS/S  BYTES/S  REASON\n\
         web1  10.0.0.11:8080  up     ready  up         100  32,769  50.0%        0     75%        4,321  1,234,567  89,000,000       -          -        -\n\
         web2  10.0.0.12:8080  up     ready  up         100  32,768  50.0%        0     75%        4,321  1,234,567  89,000,000       -          -        -\n"
    );
    let status = stdout(&at(&socket, &["status"]).await);
    assert!(status.contains("eth0           2  native"), "{status}");
    assert!(status.contains(&shown), "{status}");
    let listed = stdout(&at(&socket, &["service", "list"]).await);
    assert!(listed.contains("web   tcp       198.51.100.10:80  nat"), "{listed}");
    let backends = stdout(&at(&socket, &["backend", "list"]).await);
    assert!(backends.contains("\nweb/web2  10.0.0.12:8080"), "{backends}");
    let client = stdout(&at(&socket, &["client", "where", "192.0.2.7"]).await);
    assert!(client.contains("web      192.0.2.7/32  12,345  web1         table"), "{client}");
}

#[tokio::test]
async fn when_statistics_are_asked_for_then_they_are_shown_and_a_live_view_needs_a_terminal() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let all: Vec<StatsView> = serde_json::from_str(&stdout(&at(&socket, &["stats", "--json"]).await)).unwrap();
    assert_eq!(all.iter().map(|stats| stats.service.as_str()).collect::<Vec<_>>(), ["web", "dns"]);
    assert_eq!(all[0].backends[0].expected_share, Some(0.5));
    assert_eq!(all[0].periods.iter().map(|period| period.period.as_str()).collect::<Vec<_>>(), ["start"]);
    let text = stdout(&at(&socket, &["stats", "web"]).await);
    let head =
        "fleet site1: this is lb1, epoch 7, 1 of 2 members ready\nfigures of this member alone; of all: --fleet\n\n";
    let text = text.strip_prefix(head).unwrap_or_else(|| panic!("{text}"));
    assert!(text.starts_with("service web  stickiness -  imbalance 1.00  Gini of clients -\n"), "{text}");
    assert!(text.contains("table generation 7, 65,537 slots\n") && !text.contains("dns"), "{text}");

    let text = stdout(&at(&socket, &["stats", "web", "--fleet"]).await);
    assert!(text.contains("figures of all members together\n"), "{text}");
    assert!(
        text.contains("WARNING: without lb3: it has published no statistics yet\n") && !text.contains("without lb2"),
        "{text}"
    );
    let sum: Vec<StatsView> =
        serde_json::from_str(&stdout(&at(&socket, &["stats", "--fleet", "--json"]).await)).unwrap();
    assert_eq!(sum[0].periods[0].connections, all[0].periods[0].connections + 1000);

    let top: Vec<TopClient> = serde_json::from_str(&stdout(&at(&socket, &["client", "top", "--json"]).await)).unwrap();
    assert_eq!(top, []);
    assert!(stdout(&at(&socket, &["client", "top"]).await).contains("no client's packets were sampled"));

    for (args, code, words) in [
        (&["stats", "wbe"][..], 1, "did you mean"),
        (&["stats", "wbe", "--fleet"], 1, "did you mean"),
        (&["stats", "--fleet", "--watch"], 2, "cannot be used with"),
        (
            &["client", "top", "--backend", "web/web9"],
            1,
            "there is no backend \"web/web9\"; see \"balancer backend list\"",
        ),
        (&["client", "top", "--by", "weight"], 2, "possible values: bytes, packets"),
        (&["client", "top", "-n", "0"], 2, "1..=256"),
    ] {
        let output = at(&socket, args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn when_a_user_changes_something_then_it_is_sent_and_the_answer_printed() {
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
                address6: None,
                port: Some(8080),
                weight: Some(50),
                backup: true,
                limits: Default::default(),
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
async fn when_the_controller_refuses_then_the_exit_code_is_1_with_its_words() {
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
async fn when_the_controller_has_stopped_then_the_exit_code_says_so() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    stdout(&at(&socket, &["status"]).await);
    let _directory = fake.stop().await;
    assert_eq!(at(&socket, &["status"]).await.status.code(), Some(3));
}

#[tokio::test]
async fn when_a_user_waits_for_a_drain_then_the_wait_ends_drained_or_at_its_limit() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let output = at(&socket, &["backend", "drain", "web/web1", "--wait", "--wait-timeout", "1h"]).await;
    assert_eq!(stdout(&output), "done\nbackend web/web1 drained\n");

    // The time limit is too short for a single poll.
    let output = at(&socket, &["backend", "drain", "web/web1", "--wait", "--wait-timeout", "0s"]).await;
    assert_eq!(output.status.code(), Some(4));
    let words = stderr(&output);
    assert!(words.starts_with("balancer: backend web/web1 is not drained after 0s; it is "), "{words}");
    assert!(words.ends_with(", and goes on draining\n"), "{words}");

    let output = at(&socket, &["backend", "drain", "web/web2", "--wait", "--wait-timeout", "1h"]).await;
    assert_eq!(output.status.code(), Some(1), "the fake leaves web2 ready");
    assert!(stderr(&output).contains("drain it with `balancer backend drain web/web2`"), "{}", stderr(&output));
}

#[tokio::test]
async fn when_a_backend_drains_then_the_clients_left_and_the_time_are_shown() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    stdout(&at(&socket, &["backend", "drain", "web/web1"]).await);
    let shown = stdout(&at(&socket, &["service", "show", "web"]).await);
    assert!(shown.contains("web1  10.0.0.11:8080  draining, 214 clients, 3m12s left  drain"), "{shown}");
}

#[tokio::test]
async fn when_the_controller_restarts_then_a_wait_goes_on() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let mut waiting = tokio::process::Command::new(env!("CARGO_BIN_EXE_balancer"))
        .args(["wait", "web/web1", "drained", "--timeout", "1h"])
        .env("BALANCER_SOCKET", &socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(waiting.stderr.take().unwrap()).lines();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let directory = fake.stop().await;
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "balancer: the controller has gone; waiting for it");
    assert!(waiting.try_wait().unwrap().is_none());
    let _fake = Fake::start_in(directory).await;
    stdout(&at(&socket, &["backend", "drain", "web/web1"]).await);
    let output = waiting.wait_with_output().await.unwrap();
    assert_eq!(stdout(&output), "backend web/web1 drained\n");
}

#[tokio::test]
async fn when_the_controller_is_away_longer_than_the_limit_then_the_wait_times_out() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let waiting = tokio::spawn({
        let socket = socket.clone();
        async move { at(&socket, &["wait", "web/web1", "down", "--timeout", "3s"]).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.stop().await;
    let output = waiting.await.unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("web/web1 is not down after 3s"), "{}", stderr(&output));
}

#[tokio::test]
async fn when_a_user_waits_for_a_state_then_it_is_reached_or_the_error_names_the_state() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    assert_eq!(stdout(&at(&socket, &["wait", "web/web2", "up"]).await), "backend web/web2 up\n");
    let output = at(&socket, &["wait", "web/web2", "down", "--timeout", "300ms"]).await;
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(stderr(&output), "balancer: backend web/web2 is not down after 300ms; it is up\n");
    let output = at(&socket, &["wait", "web/web2", "drained", "--timeout", "300ms"]).await;
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(
        stderr(&output),
        "balancer: backend web/web2 is not drained after 300ms; it is up: drain it with `balancer backend drain web/web2`\n"
    );
    stdout(&at(&socket, &["backend", "drain", "web/web1"]).await);
    assert_eq!(stdout(&at(&socket, &["wait", "web/web1", "drained"]).await), "backend web/web1 drained\n");
    for (args, words) in [
        (["wait", "web/web9", "up"], "there is no backend web/web9; did you mean \"web1\"?"),
        (["wait", "wbe/web1", "up"], "there is no service \"wbe\"; did you mean \"web\"?"),
        (
            ["wait", "web/web2", "drained"],
            "backend web/web2 is in use (admin state ready): drain it with `balancer backend drain web/web2`",
        ),
    ] {
        let output = at(&socket, &args).await;
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), format!("balancer: {words}\n")), "{args:?}");
    }
}

#[tokio::test]
async fn when_there_is_a_fleet_then_its_members_are_shown() {
    let fake = Fake::start().await;
    let text = stdout(&at(&fake.socket(), &["fleet"]).await);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "fleet site1: this is lb1, epoch 7, 1 of 2 members ready");
    assert!(lines.iter().any(|line| line.starts_with("lb1 (leads)  0.1.0    ready")), "{text}");
    assert!(lines.iter().any(|line| line.contains("degraded") && line.ends_with("2.5 s  web/web2")), "{text}");
    assert!(text.contains("etcd 3.5.16 at https://192.0.2.1:2379: reachable"), "{text}");
    assert!(text.ends_with("records: 90 told, 80 taken over, 1 dropped (full), 2 conflicts\n"), "{text}");
}

#[tokio::test]
async fn when_events_are_shown_then_they_have_their_time_and_the_user() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let about = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
    let moves = Moved { slots: 32_769, needless: 0, known_clients: None };
    fake.events.change(Some(&about), "backend web/web1 drained: 32,769 of 65,537 slots moved", Some(1000), Some(moves));
    let shown = stdout(&at(&socket, &["events"]).await);
    let lines: Vec<&str> = shown.lines().collect();
    let [fleet, note, change] = lines.as_slice() else { panic!("{shown}") };
    assert_eq!(*fleet, "fleet site1: this is lb1, epoch 7, 1 of 2 members ready");
    assert!(note.ends_with("Z INFO attached to eth0 in native mode"), "{note}");
    assert!(
        change.ends_with("Z INFO backend web/web1 drained: 32,769 of 65,537 slots moved (by uid 1000)"),
        "{change}"
    );
    let time = change.split(' ').next().unwrap();
    assert_eq!((time.len(), time.ends_with('Z')), ("2026-01-02T03:04:05.678Z".len(), true));

    let events: Vec<EventView> = serde_json::from_str(&stdout(&at(&socket, &["events", "--json"]).await)).unwrap();
    assert_eq!((events[1].sequence, events[1].kind.as_str(), events[1].moves), (2, "change", Some(moves)));
    assert_eq!(events[1].backend.as_deref(), Some("web1"));
    assert_eq!(stdout(&at(&socket, &["events", "--since", "1h"]).await), shown);
}

/// The test reads each line of a running `events --follow` within a time limit.
#[tokio::test]
async fn when_events_are_followed_then_new_events_are_shown() {
    let fake = Fake::start().await;
    let mut follow = tokio::process::Command::new(env!("CARGO_BIN_EXE_balancer"))
        .args(["events", "--follow", "--json"])
        .env("BALANCER_SOCKET", fake.socket())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = async || -> EventView {
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    };
    assert_eq!(next().await.message, "attached to eth0 in native mode");
    for number in 0..3 {
        fake.events.note(&format!("note {number}"));
        assert_eq!(next().await.message, format!("note {number}"));
    }
    follow.kill().await.unwrap();
}

#[tokio::test]
async fn when_a_plan_is_shown_then_nothing_changes() {
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
    let out = stdout(&at(&fake.socket(), &["plan", "service", "listen", "add", "web", "192.0.2.9:443/udp"]).await);
    assert_eq!(out.lines().nth(1), Some("would listen on 192.0.2.9:443/udp"), "{out}");
    let json =
        stdout(&at(&fake.socket(), &["plan", "service", "listen", "add", "web", "192.0.2.9:80", "--json"]).await);
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["listeners_added"], serde_json::json!(["192.0.2.9:80/tcp"]));
    let refused = at(&fake.socket(), &["plan", "backend", "weight", "web/web1", "7"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("is refused"), "{}", stderr(&refused));
    assert_eq!(fake.changes(), []);
}

#[tokio::test]
async fn when_readiness_is_asked_for_then_it_is_an_exit_code_a_line_and_json() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let missing = socket.with_file_name("missing.sock");
    let name = "web/web1";
    for (state, admin, line, [code, strict]) in [
        ("ready", "ready", "ready", [0, 0]),
        ("degraded", "drain", "degraded: the program is not on eth1", [0, 1]),
        ("not_ready", "maint", "not ready: it is ending; and more", [1, 1]),
    ] {
        at(&socket, &["backend", admin, name]).await;
        for (arguments, code) in [(&["ready"][..], code), (&["ready", "--strict"], strict)] {
            let output = at(&socket, arguments).await;
            assert_eq!(output.status.code(), Some(code), "{state} {arguments:?}");
            assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), format!("{line}\n"));
            assert_eq!(stderr(&output), "");
        }
        let output = at(&socket, &["ready", "--json"]).await;
        assert_eq!(output.status.code(), Some(code));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let reasons = line.split_once(": ").map(|(_, reasons)| reasons.split("; ").collect::<Vec<_>>());
        assert_eq!(json, serde_json::json!({"state": state, "reasons": reasons.unwrap_or_default()}));
        let status = at(&socket, &["status"]).await;
        let shown = if state == "ready" { String::new() } else { format!("{line}\n") };
        assert!(
            String::from_utf8(status.stdout)
                .unwrap()
                .starts_with(&format!("generation 2\n{shown}changed at run time: 1 backend\n\n"))
        );
    }
    let output = at(&missing, &["ready"]).await;
    assert_eq!(output.status.code(), Some(1), "where nobody answers");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("not ready: no controller reachable at "), "{said}");
    let output = at(&missing, &["ready", "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["state"], "not_ready");
}

#[tokio::test]
async fn when_a_user_withdraws_then_the_command_waits_until_no_vip_is_left() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    assert_eq!(stdout(&at(&socket, &["withdraw"]).await), "done\n");
    let status = stdout(&at(&socket, &["status"]).await);
    assert!(status.starts_with("generation 2\nwithdrawn until `balancer announce`: no VIPs"), "{status}");
    assert!(status.contains("\nVIPs on this machine: 198.51.100.10 (lo)\n"), "{status}");
    assert_eq!(stdout(&at(&socket, &["withdraw", "--wait"]).await), "done\nno VIP is left\n");
    assert_eq!(stdout(&at(&socket, &["ready", "--strict"]).await), "ready\n");
    let announced = at(&socket, &["ready", "--announced"]).await;
    assert_eq!((announced.status.code(), announced.stdout.as_slice()), (Some(1), &b"not ready: it is withdrawn\n"[..]));
    let status: StatusView = serde_json::from_str(&stdout(&at(&socket, &["status", "--json"]).await)).unwrap();
    assert!(status.withdrawn && status.vips.is_empty());
    assert_eq!(stdout(&at(&socket, &["announce"]).await), "done\n");
    let stale = at(&socket, &["--if-generation", "1", "withdraw"]).await;
    assert_eq!(stale.status.code(), Some(1));
    assert_eq!(fake.change_requests(), [true, true, false].map(ChangeRequest::Withdraw));
}

#[tokio::test]
async fn when_a_user_forces_health_then_it_is_shown_and_sent() {
    let fake = Fake::start().await;
    let socket = fake.socket();
    let table = stdout(&at(&socket, &["health", "show", "web"]).await);
    let line = table.lines().find(|line| line.starts_with("web/web1")).unwrap();
    for cell in ["10.0.0.11:8080", "up", "1m", "passed", "3.0 ms", "down after 3 more failures", "tcp every 2s"] {
        assert!(line.contains(cell), "{cell}: {table}");
    }
    let views: Vec<HealthView> =
        serde_json::from_str(&stdout(&at(&socket, &["health", "show", "--json"]).await)).unwrap();
    assert_eq!((views.len(), views[0].verdict.as_str(), views[0].verdict_seconds), (2, "up", 60.0));
    let missing = at(&socket, &["health", "show", "wep"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(stderr(&missing), "balancer: there is no service \"wep\"; did you mean \"web\"?\n");

    for word in ["up", "down", "auto"] {
        assert_eq!(stdout(&at(&socket, &["health", "force", "web/web1", word]).await), "done\n");
    }
    let name = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
    let expected = [Some(Forced::Up), Some(Forced::Down), None];
    assert_eq!(fake.changes(), expected.map(|forced| Change::ForceHealth { name: name.clone(), forced }));
}
