//! The key of client hashes decides who meets whom in a bucket: who knows it can fill one. Nothing that is shown has it.

use std::{fs, os::unix::fs::PermissionsExt as _};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

/// As it stands in the configuration, and its halves as numbers.
const KEY: [&str; 3] = ["000102030405060708090a0b0c0d0e0f", "506097522914230528", "1084818905618843912"];

#[test]
fn the_key_of_hashes_is_not_told() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Dsr, 3, |settings, _| {
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap();
    let homes = site.homes(Family::V4, 1..=20).unwrap();
    site.restart(|_| {}).unwrap();
    assert_eq!(site.homes(Family::V4, 1..=20).unwrap(), homes);
    let client = site.topology().client_address(Family::V4, 1).to_string();
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
    told.push(("client where", site.cli(&["client", "where", &client, "--json"]).unwrap()));
    // What a file that is refused is told with has no line of it either.
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

/// Members of the socket's group may change services, which must not let them run programs as other users.
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
    // As another user it is another program.
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
