//! Tests of changes that users make at run time: over restarts, with new configuration files, and by many users at the
//! same time.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, process::Command, thread, time::Instant};

use balancer_api::model::StatusView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    faults::Faults,
    site::{PATIENCE, QUICK_CHECK, Site},
    topology::{Family, Shape},
};
use nix::{sys::stat::Mode, unistd::mkfifo};

fn site(hosts: u16) -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, hosts, |settings, _| {
        settings.remember = "1h";
        Ok(())
    })
    .unwrap()
}

/// Maps the name of each backend to its address, weight and administrative state.
type Configured = BTreeMap<String, (String, u16, String)>;

fn configured(status: &StatusView) -> Configured {
    let of = |backend: &balancer_api::model::BackendView| {
        (backend.name.clone(), (backend.address.clone(), backend.weight, backend.admin.clone()))
    };
    status.services[0].backends.iter().map(of).collect()
}

fn log(site: &Site) -> String {
    fs::read_to_string(site.files().join("balancer.log")).unwrap()
}

fn wait_log(site: &Site, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !log(site).contains(words) {
        assert!(Instant::now() < deadline, "the log does not say {words:?}: {}", log(site));
        thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The wall clock changes between the last write of the state and the next start, as if an operator or NTP had set the
/// clock.
#[test]
fn when_the_wall_clock_jumps_then_drains_end_at_the_right_time() {
    const DAY: i64 = 86_400;
    let place = tempfile::tempdir().unwrap();
    let faults = Faults::new(place.path(), &binaries::balancer().unwrap()).unwrap();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, _| {
        settings.remember = "1h";
        settings.on_exit = "keep";
        settings.binary = Some(faults.program());
        Ok(())
    })
    .unwrap();
    let homes = site.homes(Family::V4, 1..=40).unwrap();
    site.cli(&["backend", "drain", "web/web1", "--timeout", "300s"]).unwrap();
    for seconds in [-2 * DAY, 2 * DAY, 0] {
        site.controller().process().kill().unwrap();
        faults.wall_clock(seconds).unwrap();
        site.start_again().unwrap();
        let status = site.status().unwrap();
        let left = status.services[0].backends[0].drain_seconds_left;
        assert!(left.is_some_and(|left| (200..=300).contains(&left)), "{left:?} s left");
        assert_eq!(site.homes(Family::V4, 1..=40).unwrap(), homes);
    }
}

#[test]
fn when_the_balancer_restarts_or_gets_a_new_file_then_run_time_changes_survive() {
    let mut site = site(5);
    site.cli(&["backend", "remove", "web/web3", "--force"]).unwrap();
    site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
    site.cli(&["backend", "drain", "web/web2", "--timeout", "1h"]).unwrap();
    let extra = site.backend_address(Family::V4, 3).to_string();
    site.cli(&["backend", "add", "web/extra", &extra]).unwrap();
    let (before, homes) = (site.status().unwrap(), site.homes(Family::V4, 1..=100).unwrap());
    assert_eq!(before.generation, 4);

    site.restart(|_| {}).unwrap();
    let after = site.status().unwrap();
    assert_eq!((configured(&after), after.generation), (configured(&before), 4));
    assert_eq!(after.services[0].table_generation, before.services[0].table_generation);
    assert_eq!(site.homes(Family::V4, 1..=100).unwrap(), homes, "the table is the same");
    assert!(log(&site).contains("backend web/extra"), "{}", log(&site));

    site.controller().process().kill().unwrap();
    site.start_again().unwrap();
    assert_eq!(configured(&site.status().unwrap()), configured(&before));
    assert_eq!(site.homes(Family::V4, 1..=100).unwrap(), homes);

    // A changed file overrides only those run-time settings that have changed in the file.
    site.restart(|settings| {
        settings.backends.retain(|backend| backend.0 != 5);
        settings.backends[3].1 = 70;
    })
    .unwrap();
    let mut expected = configured(&before);
    expected.remove("web5");
    expected.get_mut("web4").unwrap().1 = 70;
    assert_eq!(configured(&site.status().unwrap()), expected);
    assert!(log(&site).contains("weight of web/web1: 50 set at run time is kept, the file says 100 as before"));
}

#[test]
fn when_a_user_runs_apply_or_sends_sighup_then_the_file_is_applied() {
    let mut site = site(4);
    let file = site.config();
    let path = file.to_str().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
    assert!(site.cli(&["apply", path]).unwrap().contains("nothing changed"));
    let before = site.status().unwrap();

    let (head, tail) = text.rsplit_once("weight = 100").unwrap();
    fs::write(&file, format!("{head}weight = 10{tail}")).unwrap();
    let plan = site.cli(&["apply", path, "--dry-run", "--json"]).unwrap();
    let plan: balancer_api::model::Applied = serde_json::from_str(&plan).unwrap();
    assert_eq!(configured(&site.status().unwrap()), configured(&before));
    assert!(plan.differences.iter().any(|line| line.contains("weight of web/web1: 50")), "{plan:?}");
    let moved = &plan.services[0];
    assert!(moved.slots_moved > 0 && moved.moves.iter().all(|moves| moves.from.is_some()), "{plan:?}");
    let stale = site.cli(&["apply", path, "--if-generation", "0"]).unwrap_err().to_string();
    assert!(
        stale.contains("exit status: 1") && stale.contains(&format!("generation {}: ", before.generation)),
        "{stale}"
    );
    let generation = before.generation.to_string();
    let applied = site.cli(&["apply", path, "--if-generation", &generation]).unwrap();
    assert!(applied.contains("1 backend changed"), "{applied}");
    let after = configured(&site.status().unwrap());
    assert_eq!((after["web1"].1, after["web4"].1), (50, 10));

    for (bad, words) in [
        (text.replace("remember", "rememebr"), format!("{path}:")),
        (text.replace("state.json", "other.json"), "state_file cannot change while the balancer runs".to_owned()),
        (text.replace("hex:00", "hex:01"), "hash.key cannot change".to_owned()),
    ] {
        fs::write(&file, bad).unwrap();
        let error = site.cli(&["apply", path]).unwrap_err().to_string();
        assert!(error.contains("exit status: 1") && error.contains(&words), "{error}");
        let known = log(&site).matches("reload: nothing was changed").count();
        site.controller().process().signal(nix::sys::signal::Signal::SIGHUP).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while log(&site).matches("reload: nothing was changed").count() == known {
            assert!(Instant::now() < deadline, "{}", log(&site));
            thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(configured(&site.status().unwrap()), after);
    }
    // Nobody writes into the pipe. The next signal finds a file again.
    fs::remove_file(&file).unwrap();
    mkfifo(&file, Mode::S_IRWXU).unwrap();
    site.controller().process().signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    wait_log(&site, "cannot be read: it is not a regular file");
    fs::remove_file(&file).unwrap();
    fs::write(&file, text.replace("weight = 100", "weight = 30")).unwrap();
    site.controller().process().signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    wait_log(&site, "configuration applied, 4 backends changed");
    assert!(configured(&site.status().unwrap()).values().all(|backend| backend.1 == 30));
}

/// Tests 500 changes that 20 processes make. The controller makes the changes one after another, each completely, and
/// answers a change only when the state file contains the change.
#[test]
fn when_many_users_make_changes_at_once_then_they_are_made_one_after_the_other() {
    const USERS: u16 = 8;
    const STEPS: u16 = 13;
    let mut site = site(2);
    let (binary, socket) = (binaries::balancer().unwrap(), site.files().join("balancer.sock"));
    let change = |arguments: &[String]| {
        let output = Command::new(&binary).args(arguments).env("BALANCER_SOCKET", &socket).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    thread::scope(|scope| {
        for user in 0..USERS {
            let change = &change;
            scope.spawn(move || {
                // Each user adds, weighs and removes a separate backend several times, and finally adds the backend
                // again.
                let own = format!("web/own{user}");
                let steps = (0..4).flat_map(|round| {
                    let add = format!("backend add {own} 10.9.0.{}:80", user + 1);
                    [add, format!("backend weight {own} {}", round + 1), format!("backend remove {own} --force")]
                });
                let steps: Vec<String> = steps.chain([format!("backend add {own} 10.9.0.{}:80", user + 1)]).collect();
                assert_eq!(steps.len(), usize::from(STEPS));
                for (number, step) in steps.into_iter().enumerate() {
                    assert_eq!(change(&words(step.clone())), (Some(0), String::new()), "{step}");
                    // In addition, all users try to add one common backend, and only one attempt succeeds.
                    if number % 5 == 0 {
                        let (code, error) = change(&words("backend add web/shared 10.9.1.1:80".to_owned()));
                        assert!(code == Some(0) || code == Some(1) && error.contains("exists already"), "{error}");
                    }
                }
            });
        }
    });
    let status = site.status().unwrap();
    let names: Vec<String> = configured(&status).into_keys().collect();
    let mut expected: Vec<String> = (0..USERS).map(|user| format!("own{user}")).collect();
    expected.extend(["shared", "web1", "web2"].map(str::to_owned));
    expected.sort();
    assert_eq!(names, expected);
    let changes = u64::from(USERS * STEPS + 1);
    assert_eq!(status.generation, changes);
    site.controller().process().kill().unwrap();
    site.start_again().unwrap();
    let again = site.status().unwrap();
    assert_eq!((configured(&again), again.generation), (configured(&status), changes));
}

/// If the state is large, the controller appends each change as a line to a journal next to the state file.
#[test]
fn when_the_state_is_large_then_changes_survive_any_end_of_the_balancer() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, _| {
        settings.remember = "1h";
        settings.on_exit = "keep";
        settings.crowd = 60;
        Ok(())
    })
    .unwrap();
    let [state, journal] = ["state.json", "state.json.journal"].map(|name| site.files().join(name));
    let web = |site: &Site| {
        let status = site.status().unwrap();
        let web = status.services.iter().find(|service| service.name == "web").unwrap();
        let weights: Vec<u16> = web.backends.iter().map(|backend| backend.weight).collect();
        (status.generation, weights)
    };
    let whole = fs::metadata(&state).unwrap().len();
    assert!(whole > 256 << 10, "a state of {whole} bytes is not large");
    site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
    site.cli(&["backend", "remove", "web/web2", "--force"]).unwrap();
    let written = fs::metadata(&journal).unwrap().len();
    assert!((1..whole / 10).contains(&written), "{written} bytes of changes, {whole} of state");
    let homes = site.homes(Family::V4, 1..=40).unwrap();
    assert_eq!(web(&site), (2, vec![50, 100]));

    site.controller().process().kill().unwrap();
    site.start_again().unwrap();
    assert_eq!(web(&site), (2, vec![50, 100]));
    assert_eq!(site.homes(Family::V4, 1..=40).unwrap(), homes);
    assert!(!journal.exists(), "a start writes the state whole");

    // If the line of a change was incomplete when the machine failed, the controller has not answered the change.
    site.cli(&["backend", "weight", "web/web1", "60"]).unwrap();
    site.cli(&["backend", "weight", "web/web1", "70"]).unwrap();
    site.controller().process().kill().unwrap();
    let lines = fs::read(&journal).unwrap();
    fs::write(&journal, &lines[..lines.len() - 1]).unwrap();
    site.start_again().unwrap();
    assert_eq!(web(&site), (3, vec![60, 100]));
    assert!(!log(&site).contains("is lost"), "{}", log(&site));

    // The log reports the loss of a change that the controller had answered.
    site.cli(&["backend", "weight", "web/web1", "80"]).unwrap();
    site.cli(&["backend", "weight", "web/web1", "90"]).unwrap();
    site.controller().process().kill().unwrap();
    let mut lines = fs::read(&journal).unwrap();
    let last = lines.len() - 10;
    lines[last] ^= 1;
    fs::write(&journal, &lines).unwrap();
    site.start_again().unwrap();
    assert_eq!(web(&site), (4, vec![80, 100]));
    assert!(
        log(&site).contains("line 2 cannot be used") && log(&site).contains("later changes are lost"),
        "{}",
        log(&site)
    );

    // After a clean end of the controller, only the state file remains.
    site.cli(&["backend", "weight", "web/web1", "30"]).unwrap();
    site.restart(|_| {}).unwrap();
    assert_eq!(web(&site), (5, vec![30, 100]));
    assert!(!journal.exists());
}

#[test]
fn when_the_state_cannot_be_read_or_written_then_the_balancer_says_so() {
    let mut site = site(2);
    site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
    site.cli(&["backend", "weight", "web/web1", "60"]).unwrap();
    let state = site.files().join("state.json");
    site.controller().process().kill().unwrap();
    let whole = fs::read(&state).unwrap();
    fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    site.start_again().unwrap();
    assert!(
        log(&site).contains("cannot use the state file") && log(&site).contains("changes after that are lost"),
        "{}",
        log(&site)
    );
    assert!(configured(&site.status().unwrap())["web1"].1 >= 50);

    // If the controller cannot write the state file, the controller refuses changes. A verdict goes on unsaved.
    let unsaved = |site: &Site| site.metrics().unwrap().sum("state_unsaved", &[]).unwrap();
    assert_eq!(unsaved(&site), 0.0);
    site.apply(|settings| settings.check = QUICK_CHECK.to_owned()).unwrap();
    let blocked = site.files().join("state.json.new");
    fs::create_dir(&blocked).unwrap();
    site.kill_backend(2).unwrap();
    wait_log(&site, "degraded: cannot write the state file");
    assert_eq!(unsaved(&site), 1.0);
    let before = configured(&site.status().unwrap());
    let error = site.cli(&["backend", "weight", "web/web2", "7"]).unwrap_err().to_string();
    assert!(error.contains("nothing was changed: cannot write the state file"), "{error}");
    assert_eq!(configured(&site.status().unwrap()), before);
    let ready = site.cli(&["ready"]).unwrap();
    assert!(ready.starts_with("degraded") && ready.contains("cannot write the state file"), "{ready}");
    fs::remove_dir(&blocked).unwrap();
    site.cli(&["backend", "weight", "web/web2", "7"]).unwrap();
    let ready = site.cli(&["ready"]).unwrap();
    assert!(ready.starts_with("ready"), "{ready}");
    assert_eq!(unsaved(&site), 0.0);
}

/// The test removes all backends of a service, and adds the same backends again.
#[test]
fn when_all_backends_are_removed_and_added_again_then_their_clients_are_at_home_and_none_has_moved() {
    let site = site(4);
    let before = site.homes(Family::V4, 1..=60).unwrap();
    let name = |number| format!("web/web{number}");
    for round in 0..2 {
        (1..=4).for_each(|number| drop(site.cli(&["backend", "remove", &name(number), "--force"]).unwrap()));
        assert!(site.status().unwrap().services[0].backends.is_empty());
        for number in 1..=4 {
            let address = site.backend_address(Family::V4, number).to_string();
            site.cli(&["backend", "add", &name(number), &address]).unwrap();
        }
        assert_eq!(site.homes(Family::V4, 1..=60).unwrap(), before, "round {round}");
        let metrics = site.metrics().unwrap();
        assert_eq!(metrics.sum("moves_total", &[]).unwrap_or_default(), 0.0, "round {round}");
    }
}
