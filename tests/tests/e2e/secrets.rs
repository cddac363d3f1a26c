//! Tests that the balancer does not reveal secrets. The key of client hashes determines the bucket of each client, so
//! an attacker who knows the key could fill a bucket. No output may contain the key, or a secret that checks send.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{QUICK_HTTP_CHECK, Site},
    topology::{Family, Shape},
};

use crate::support::wait;

/// The key as written in the configuration, and the two halves of the key as numbers.
const KEY: [&str; 3] = ["000102030405060708090a0b0c0d0e0f", "506097522914230528", "1084818905618843912"];

/// Returns all outputs of a balancer, each with its source.
fn told(site: &Site) -> Vec<(&'static str, String)> {
    let mut told = vec![
        ("metrics", site.metrics_text().unwrap()),
        ("log", fs::read_to_string(site.files().join("balancer.log")).unwrap()),
    ];
    for command in ["status", "stats", "service show web", "health show web", "client top", "events", "rule list web"] {
        let words: Vec<&str> = command.split(' ').collect();
        for json in [&[][..], &["--json"]] {
            told.push((command, site.cli(&[&words, json].concat()).unwrap()));
        }
    }
    told
}

#[test]
fn when_a_balancer_shows_anything_then_it_does_not_have_the_hash_key() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 3, |settings, _| {
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap();
    let homes = site.homes(Family::V4, 1..=20).unwrap();
    site.restart(|_| {}).unwrap();
    assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), homes);
    let client = site.topology().client_address(Family::V4, 1).to_string();
    let mut told = told(&site);
    told.push(("client where", site.cli(&["client", "where", &client, "--json"]).unwrap()));
    // The error message for an invalid file must not contain a line of the file.
    let config = fs::read_to_string(site.config()).unwrap();
    assert!(config.contains(KEY[0]), "the key is another one");
    let broken = site.files().join("broken.toml");
    fs::write(&broken, config.replace("[hash]\nkey = \"hex:00", "[hash]\nkey = \"hex:zz")).unwrap();
    let output = site.output(&["apply", &broken.to_string_lossy()]).unwrap();
    assert!(!output.status.success());
    told.push(("a broken key", String::from_utf8_lossy(&output.stderr).replace("zz", "00")));
    for (what, text) in &told {
        assert!(!text.is_empty(), "{what} says nothing");
        for key in KEY {
            assert!(!text.to_lowercase().contains(key), "{what} tells {key}: {text}");
        }
    }
    let socket = fs::metadata(site.files().join("balancer.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
}

/// Members of the control socket's group may change services, but must not be able to run programs as other users.
#[test]
fn when_a_file_has_a_program_that_the_balancers_own_file_has_not_then_apply_refuses_it() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |_, _| Ok(())).unwrap();
    let own = fs::read_to_string(site.config()).unwrap();
    let with = |user: &str| {
        let check =
            format!("check = {{ type = \"exec\", command = [\"true\"], user = \"{user}\" }}\n[[service.backend]]");
        let text: String =
            own.lines().filter(|line| !line.starts_with("check = ")).map(|line| format!("{line}\n")).collect();
        text.replacen("[[service.backend]]", &check, 1)
    };
    let other = site.files().join("other.toml");
    fs::write(&other, with("nobody")).unwrap();
    let apply = || site.output(&["apply", other.to_str().unwrap()]).unwrap();
    for dry in [&["apply", "--dry-run"][..], &["apply"]] {
        let output = site.output(&[dry, &[other.to_str().unwrap()]].concat()).unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("the check that runs \"true\" as \"nobody\" is new"), "{words}");
        assert!(words.contains("apply") && words.contains("--reread"), "{words}");
    }
    // If the user of a check program changes, the balancer treats the program as a different one.
    fs::write(site.config(), with("daemon")).unwrap();
    assert!(!apply().status.success());
    fs::write(site.config(), with("nobody")).unwrap();
    let config = site.config().display().to_string();
    site.cli(&["apply", &config, "--reread"]).unwrap();
    let output = apply();
    assert!(output.status.success(), "{output:?}");
    fs::write(&other, with("root")).unwrap();
    let words = String::from_utf8_lossy(&apply().stderr).into_owned();
    assert!(words.contains("programs of checks never run as root"), "{words}");
}

/// Returns a check with two secrets, one of which is in a file.
fn check_with_secrets(token: &Path) -> String {
    let headers = format!("headers = {{ X-Probe = \"hidden words\", Authorization = {{ file = {token:?} }} }}");
    QUICK_HTTP_CHECK.trim_end().strip_suffix('}').map(|check| format!("{check}, {headers} }}")).unwrap()
}

#[test]
fn when_a_check_sends_secrets_then_they_are_not_told_and_it_follows_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.check = check_with_secrets(&token);
        Ok(())
    })
    .unwrap();
    let why = format!("the file of the header authorization, {} cannot be read: No such file", token.display());
    let ready = |site: &Site| String::from_utf8(site.output(&["ready"]).unwrap().stdout).unwrap();
    let degraded = format!("degraded: this machine cannot check backend web/web1: {why}");
    let hindered = |site: &Site| site.metrics().unwrap().sum("checks_hindered", &[]).unwrap();
    wait("it is not degraded", || ready(&site).starts_with(&degraded));
    wait("not all are hindered", || hindered(&site) == 2.0);
    fs::write(&token, "hidden token\n").unwrap();
    wait("it is degraded", || ready(&site) == "ready\n");
    site.wait_state(1, &["up"]).unwrap();
    assert_eq!(hindered(&site), 0.0);
    // Without the file of the secret, the check continues with the earlier secret.
    fs::remove_file(&token).unwrap();
    wait("it is not degraded again", || ready(&site).starts_with(&degraded));
    site.wait_state(1, &["up"]).unwrap();

    let mut told = told(&site);
    let config = fs::read_to_string(site.config()).unwrap();
    let other = site.files().join("other.toml");
    fs::write(&other, config.replace("interval = \"300ms\"", "interval = \"400ms\"")).unwrap();
    told.push(("a plan", site.cli(&["apply", other.to_str().unwrap(), "--dry-run"]).unwrap()));
    fs::write(&other, config.replace("hidden words", "hidden\\nwords")).unwrap();
    let broken = site.output(&["apply", other.to_str().unwrap()]).unwrap();
    assert!(!broken.status.success());
    told.push(("a broken value", String::from_utf8(broken.stderr).unwrap()));
    for (what, text) in &told {
        assert!(!text.is_empty(), "{what} says nothing");
        assert!(!text.contains("hidden"), "{what} tells a secret: {text}");
    }
    let state = fs::metadata(site.files().join("state.json"));
    assert!(state.is_ok_and(|state| state.permissions().mode() & 0o777 == 0o600));
}

/// Members of the control socket's group must not be able to make the balancer send files that the members cannot read
/// themselves.
#[test]
fn when_a_check_reads_a_file_that_the_balancers_own_file_has_not_then_apply_refuses_it() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 1, |settings, _| {
        settings.check = QUICK_HTTP_CHECK.to_owned();
        Ok(())
    })
    .unwrap();
    let own = fs::read_to_string(site.config()).unwrap();
    let other = site.files().join("other.toml");
    let secure = own.replace("type = \"http\"", "type = \"https\", ca_file = \"/etc/shadow\"");
    for (text, wanted) in [
        (own.replace(QUICK_HTTP_CHECK, &check_with_secrets("/etc/shadow".as_ref())), "the header whose value is in"),
        (secure, "the ca_file"),
    ] {
        assert_ne!(text, own);
        fs::write(&other, text).unwrap();
        let output = site.output(&["apply", other.to_str().unwrap()]).unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains(&format!("{wanted} /etc/shadow is new")), "{words}");
        assert!(words.contains("apply") && words.contains("--reread"), "{words}");
    }
}
