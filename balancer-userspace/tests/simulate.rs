//! Tests that run `balancer simulate` as a process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// Makes a log of one day with 4,935 addresses in 358 networks, and a crawler.
fn access_log() -> String {
    let mut log = String::new();
    let mut state = 1u64;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for second in (0..86_400).step_by(3) {
        let client = draw(3_000);
        let (address, agent) = match draw(8) {
            0 => ("203.0.113.77".to_owned(), "crawler/1.0"),
            1 => (format!("2001:db8:{:x}::{client:x}", client % 200), "Mozilla/5.0 (X11; Linux x86_64)"),
            _ => {
                let network = client * client % 1_000;
                (format!("198.{}.{}.{}", 18 + network / 250, network % 250, 1 + client % 254), "Mozilla/5.0 (iPhone)")
            }
        };
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        writeln!(
            log,
            "{address} - - [10/Oct/2000:{hour:02}:{minute:02}:{second:02} +0000] \"GET /{client} HTTP/1.1\" 200 512 \"-\" \"{agent}\""
        )
        .unwrap();
    }
    log
}

fn simulate(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancer"));
    command.current_dir(directory).arg("simulate").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(directory: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&simulate(directory, &[args, &["--json"]].concat()))).unwrap()
}

fn with(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn chapter() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap();
    fs::read_to_string(root.join("docs/src/simulation.md")).unwrap()
}

#[test]
fn when_the_books_log_is_simulated_then_the_report_is_the_books() {
    let directory = with(&[("access.log", &access_log())]);
    let output = simulate(directory.path(), &["access.log"]);
    let (text, said) = (stdout(&output), stderr(&output));
    assert_eq!(said, "");
    let chapter = chapter();
    let (_, block) = chapter.split_once("```console\n$ balancer simulate access.log\n").unwrap();
    let (shown, _) = block.split_once("```").unwrap();
    assert!(shown == text, "docs/src/simulation.md should show:\n{text}");
}

/// Collects the names of all fields in a JSON value, at any depth.
fn fields(value: &Value, all: &mut BTreeSet<String>) {
    if let Some(object) = value.as_object() {
        for (name, value) in object {
            all.insert(name.clone());
            fields(value, all);
        }
    }
    value.as_array().into_iter().flatten().for_each(|value| fields(value, all));
}

#[test]
fn when_json_is_printed_then_the_book_has_every_field_and_totals_agree() {
    let directory = with(&[("access.log", &access_log())]);
    let report = json(directory.path(), &["access.log"]);
    let mut all = BTreeSet::new();
    fields(&report, &mut all);
    let chapter = chapter();
    for field in &all {
        assert!(chapter.contains(&format!("`{field}`")), "{field} is not in docs/src/simulation.md");
    }
    let number = |value: &Value| value.as_f64().unwrap();
    let (requests, clients) =
        (number(&report["log"]["requests"]), number(&report["clients"]["ipv4"]) + number(&report["clients"]["ipv6"]));
    assert_eq!((requests, number(&report["log"]["lines"])), (28_800.0, 28_800.0));
    for shares in report["rules"].as_array().unwrap() {
        let sum =
            |field: &str| shares["servers"].as_array().unwrap().iter().map(|share| number(&share[field])).sum::<f64>();
        assert!((sum("requests") - requests).abs() < 0.01, "{shares}");
        assert_eq!(sum("clients") + number(&shares["spread"]), clients, "{shares}");
        for part in ["expected", "client_share", "request_share"] {
            assert!((sum(part) - 1.0).abs() < 1e-9, "{part}: {shares}");
        }
    }
}

#[test]
fn when_a_server_is_removed_then_memory_moves_its_clients_and_no_others() {
    let directory = with(&[("access.log", &access_log())]);
    let args = [
        "access.log",
        "--change",
        "backend remove web/web2 --force",
        "--change",
        "backend remove web/web2",
        "--change",
        "reorder",
    ];
    let report = json(directory.path(), &args);
    let rules = report["rules"].as_array().unwrap();
    let [forced, drained, reordered] = report["changes"].as_array().unwrap().as_slice() else { panic!("{report}") };
    let active = report["active"]["clients"].as_u64().unwrap();
    assert!(active > 500 && active < rules[0]["servers"][0]["clients"].as_u64().unwrap() * 4, "{active}");
    for (place, rule) in rules.iter().enumerate() {
        let of = |change: &Value| {
            let moves = &change["rules"][place];
            ["of", "moved", "draining", "by_table"].map(|field| moves[field].as_u64().unwrap())
        };
        let ([all, moved, draining, _], [_, moved_drained, draining_drained, _], [_, moved_reordered, ..]) =
            (of(forced), of(drained), of(reordered));
        if rule["rule"]["kind"] == "balancer" {
            assert!((all / 5..all / 3).contains(&moved), "{rule}: {moved} of {all}");
            assert_eq!((draining, moved_drained, draining_drained, moved_reordered), (0, 0, moved, 0), "{rule}");
        } else {
            assert!(moved > all / 2 && moved_drained == moved && moved_reordered > all / 2, "{rule}: {moved} of {all}");
        }
    }
}

#[test]
fn when_the_crawler_is_spread_then_no_server_is_busier_than_the_others() {
    let directory = with(&[("access.log", &access_log())]);
    let report = json(directory.path(), &["access.log"]);
    let largest = |spread: bool| {
        let rules = report["rules"].as_array().unwrap();
        let rule = rules.iter().find(|shares| shares["rule"]["spread"] == spread).unwrap();
        rule["largest_requests"].as_f64().unwrap()
    };
    assert!(largest(false) > 1.25 && largest(true) < 1.15, "{} {}", largest(false), largest(true));
    let lines: Vec<&str> = report["suggestions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|suggestion| suggestion["line"].as_str().unwrap())
        .collect();
    assert!(lines.contains(&"balancer rule add web 203.0.113.77/32 spread"), "{lines:?}");
    assert_eq!(report["heaviest"][0]["prefix"], "203.0.113.0/24");
}

#[test]
fn when_a_log_is_compressed_on_standard_input_or_split_then_the_report_is_the_same() {
    let log = access_log();
    let middle = log.len() / 2 + log[log.len() / 2..].find('\n').unwrap() + 1;
    let (first, second) = log.split_at(middle);
    let directory = with(&[("access.log", &log), ("first.log", first), ("second.log", second)]);
    let expected = stdout(&simulate(directory.path(), &["access.log"]));
    assert_eq!(stdout(&simulate(directory.path(), &["first.log", "second.log"])), expected);
    assert_eq!(stdout(&simulate(directory.path(), &["second.log", "first.log"])), expected, "the newer log first");
    let gzip = Command::new("gzip").arg("-k").arg(directory.path().join("access.log")).status().unwrap();
    assert!(gzip.success());
    assert_eq!(stdout(&simulate(directory.path(), &["access.log.gz"])), expected);
    let mut child = Command::new(env!("CARGO_BIN_EXE_balancer"))
        .args(["simulate", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), expected);
}

/// A line in the combined format, with more text at its end.
fn line(address: &str, minute: u32, more: &str) -> String {
    let (hour, minute) = (minute / 60, minute % 60);
    format!(
        "{address} - - [10/Oct/2000:{hour:02}:{minute:02}:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"curl\"{more}\n"
    )
}

#[test]
fn when_two_logs_are_of_the_same_time_then_it_is_said_that_gaps_are_lost() {
    let log = |address: &str| (0..60).map(|minute| line(address, minute, "")).collect::<String>();
    let directory = with(&[("a.log", &log("203.0.113.7")), ("b.log", &log("203.0.113.8"))]);
    let output = simulate(directory.path(), &["a.log", "b.log"]);
    let wanted = "b.log begins 3540 s before the end of another log: gaps between requests in both are not counted";
    assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    stdout(&output);
}

#[test]
fn when_the_families_differ_then_each_gets_its_own_prefix() {
    // All IPv4 clients have networks of their own, and all IPv6 clients share four.
    let of_v4 = (0..200).map(|number| line(&format!("198.18.{number}.1"), number, ""));
    let of_v6 = (0..200).map(|number| line(&format!("2001:db8:{:x}:{number:x}::1", number % 4), number, ""));
    let directory = with(&[("access.log", &of_v4.chain(of_v6).collect::<String>())]);
    let report = json(directory.path(), &["access.log", "--backends", "1"]);
    let suggestion = &report["suggestions"][0];
    assert_eq!(suggestion["line"], "client_prefix = { v4 = 32, v6 = 56 }", "{suggestion}");
    let why = suggestion["why"].as_str().unwrap();
    for wanted in ["IPv4: only 0 of 200 addresses share a /24", "; IPv6: 200 of 200 addresses share a /56"] {
        assert!(why.contains(wanted), "{why}");
    }
    let only_v4 = with(&[("access.log", &line("203.0.113.7", 1, ""))]);
    let why = json(only_v4.path(), &["access.log"])["suggestions"][0]["why"].as_str().unwrap().to_owned();
    assert!(why.starts_with("IPv4: ") && !why.contains("IPv6"), "{why}");
}

#[test]
fn when_clients_come_through_another_proxy_then_it_is_said_that_packets_have_other_addresses() {
    let log = |more: &str| (0..9).map(|minute| line("203.0.113.7", minute, more)).collect::<String>();
    let directory = with(&[("main.log", &log(" \"198.51.100.9, 10.0.0.1\"")), ("direct.log", &log(" \"-\""))]);
    let warning = "WARNING: 9 requests came through another proxy";
    assert!(stdout(&simulate(directory.path(), &["main.log"])).contains(warning));
    let direct = stdout(&simulate(directory.path(), &["direct.log"]));
    assert!(!direct.contains("WARNING"), "{direct}");
    assert!(direct.contains("\nno address has several user agents\n"), "{direct}");
}

#[test]
fn when_a_rule_to_spread_a_client_is_suggested_then_it_is_said_what_it_costs() {
    let directory = with(&[("access.log", &access_log())]);
    let text = stdout(&simulate(directory.path(), &["access.log"]));
    let (_, rule) = text.split_once("balancer rule add web 203.0.113.77/32 spread\n").unwrap();
    assert!(rule.contains("the rule ends its sessions"), "{rule}");
}

#[test]
fn when_lines_cannot_be_read_then_they_are_reported_and_a_log_without_others_is_an_error() {
    let directory = with(&[
        ("some.log", "203.0.113.7\nnonsense\n203.0.113.8\n\n"),
        ("none.log", "nonsense\nmore\n"),
        ("empty.log", ""),
    ]);
    let output = simulate(directory.path(), &["some.log"]);
    assert!(
        stdout(&output).starts_with("3 lines, 2 requests; 1 line could not be read\nwithout times: "),
        "{output:?}"
    );
    assert_eq!(
        stderr(&output),
        "balancer: warning: some.log: 1 of 3 lines could not be read; the first is line 2: nonsense\n"
    );
    for (args, code, why) in [
        (&["none.log"][..], 1, "none.log: the first lines are of no format that is known: nonsense"),
        (
            &["none.log", "--format", "list"],
            1,
            "none.log: 2 of 2 lines could not be read; the first is line 1: nonsense",
        ),
        (&["empty.log"], 1, "there is no client in the log"),
        (&["missing.log"], 1, "missing.log cannot be opened: No such file"),
        (&["some.log", "--format", "csv"], 2, "\"csv\" is no format; give combined, haproxy, list"),
        (&["some.log", "--change", "backend remove web/web9"], 2, "web9"),
        (&["some.log", "--change", "backend remove shop/web1"], 2, "there is no service \"shop\"; there is web"),
        (&["some.log", "--backends", "0"], 2, "0 is not in 1..=1000"),
    ] {
        let output = simulate(directory.path(), args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert!(stderr(&output).contains(why) && output.stdout.is_empty(), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn when_a_configuration_has_several_services_then_a_name_or_a_change_chooses_one() {
    let service = |name: &str, last: u8, more: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"198.51.100.{last}:80\"\nforwarding = \"dsr\"\n{more}\
             [[service.backend]]\nname = \"a\"\naddress = \"10.0.0.11\"\nweight = 300\n\
             [[service.backend]]\nname = \"b\"\naddress = \"10.0.0.12\"\n\
             [[service.backend]]\nname = \"c\"\naddress = \"10.0.0.13\"\nbackup = true\n"
        )
    };
    let text =
        service("web", 10, "") + &service("shop", 11, "remember = \"0s\"\nclient_prefix = { v4 = 16, v6 = 48 }\n");
    let directory = with(&[("balancer.toml", &text), ("access.log", &access_log())]);
    let args = ["access.log", "--config", "balancer.toml"];
    let said = stderr(&simulate(directory.path(), &args));
    assert!(said.contains("choose one with --service, of web, shop"), "{said}");
    let report = json(directory.path(), &[&args[..], &["--change", "backend weight shop/a 100"]].concat());
    assert_eq!(report["service"]["client_prefix"]["v4"], 16);
    assert_eq!(report["service"]["remember_seconds"], 0);
    let shares = report["rules"].as_array().unwrap();
    assert_eq!(shares.len(), 6, "nginx, HAProxy, /16, /32, /24, and /16 with spread");
    for shares in shares {
        let part = |place: usize| shares["servers"][place]["client_share"].as_f64().unwrap();
        // The log contains few /16 networks, so the shares of the servers are uneven.
        assert!((0.6..0.95).contains(&part(0)) && part(2) == 0.0, "{shares}");
    }
    // The service remembers no clients, so only changes of the lookup table move them.
    let moves = report["changes"][0]["rules"].as_array().unwrap();
    assert!(moves.iter().all(|moves| moves["moved"] == moves["by_table"] && moves["draining"] == 0), "{moves:?}");
    let report = json(directory.path(), &[&args[..], &["--service", "web"]].concat());
    assert_eq!(
        (&report["service"]["name"], &report["changes"][0]["change"]),
        (&"web".into(), &"remove b --force".into())
    );
}
