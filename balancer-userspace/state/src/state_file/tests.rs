//! Tests that damage a state file and its journal in many ways, and then load them.

use std::{os::unix::fs::PermissionsExt as _, time::UNIX_EPOCH};

use balancer_common::map_types::Forwarding;
use balancer_config::fixture::{KEY, backend, config, name, now, service, web};
use balancer_control::{
    controller::Controller,
    io::{Change, Event},
    service::Service,
    state::{Clocks, Moment},
};
use tempfile::TempDir;

use super::*;

fn state(generation: u64) -> SavedState {
    let mut controller = Controller::new(config(vec![web()]), KEY);
    let now = now();
    controller.start(now);
    SavedState { generation, ..controller.export(Clocks { now, wall: UNIX_EPOCH }) }
}

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lib/state.json");
    (directory, path)
}

fn generation(loaded: &Loaded) -> u64 {
    match loaded {
        Loaded::Nothing => panic!("a silent empty state"),
        Loaded::State(state) => state.generation,
        Loaded::Older(state, warning) => {
            assert!(warning.contains("are lost") && !warning.contains('\n'), "{warning}");
            state.generation
        }
    }
}

#[test]
fn when_a_state_is_saved_then_it_is_loaded_and_only_its_owner_can_read_it() {
    let (_directory, path) = place();
    let mut file = StateFile::open(&path).unwrap();
    assert!(matches!(file.load().unwrap(), Loaded::Nothing));
    for number in 1..=3 {
        file.save(&state(number)).unwrap();
    }
    assert!(matches!(file.load().unwrap(), Loaded::State(loaded) if *loaded == state(3)));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut names: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["state.json", "state.json.lock", "state.json.previous"]);
}

/// Makes a running controller in which `web` is the smaller service, and returns its start time.
fn begun() -> (Controller, Instant) {
    let web = service("web", "198.51.100.10:80", Forwarding::Nat, &["web1 10.0.0.1:80", "web2 10.0.0.2:80"]);
    let mut dns = service("dns", "198.51.100.11:53", Forwarding::Nat, &[]);
    dns.backends = (1..20).map(|host| backend(&format!("dns{host}"), &format!("10.0.1.{host}:53"))).collect();
    let mut controller = Controller::new(config(vec![web, dns]), KEY);
    let now = now();
    controller.start(now);
    (controller, now)
}

fn weigh(controller: &mut Controller, weight: u16, now: Instant) {
    controller.change(Change::SetWeight { name: name("web/web1"), weight }, now).unwrap();
}

/// Counts a sweep of the client table, which changes only counters.
fn sweep(controller: &mut Controller, known: u64, now: Instant) {
    let ids = controller.services().iter().flat_map(Service::backends).map(|backend| (backend.id(), known));
    let known = ids.collect();
    controller.handle(Event::Swept { known }, now);
}

fn loaded(file: &mut StateFile) -> SavedState {
    match file.load().unwrap() {
        Loaded::State(saved) => *saved,
        other @ (Loaded::Nothing | Loaded::Older(..)) => panic!("{other:?}"),
    }
}

fn keep_now(file: &mut StateFile, controller: &Controller, now: Instant, occasion: Occasion) {
    file.keep(Restorable::of(controller.clone(), now), occasion).unwrap();
}

#[test]
fn when_a_state_is_written_in_pieces_then_it_is_whole_under_its_seal() {
    let (_directory, path) = place();
    let mut file = StateFile::open(&path).unwrap();
    let now = now();
    for backends in [2, 2000] {
        let mut dns = service("dns", "198.51.100.11:53", Forwarding::Nat, &[]);
        dns.backends =
            (0..backends).map(|host| backend(&format!("dns{host}"), &format!("10.0.1.1:{}", host + 1))).collect();
        let mut controller = Controller::new(config(vec![web(), dns]), KEY);
        controller.start(now);
        keep_now(&mut file, &controller, now, Occasion::Whole);
        let Restorable { controller, clocks, .. } = Restorable::of(controller.clone(), now);
        let whole = sealed(VERSION, &serde_json::to_string(&controller.export(clocks)).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        assert_eq!(file.written.as_ref().unwrap().length, whole.len() as u64);
    }
    assert!(fs::metadata(&path).unwrap().len() > 200_000, "more than some pieces");
}

#[test]
fn when_only_counters_change_then_they_are_written_from_time_to_time() {
    let (_directory, path) = place();
    let mut file = StateFile::open(&path).unwrap();
    let (mut controller, now) = begun();
    keep_now(&mut file, &controller, now, Occasion::Refresh);
    let first = loaded(&mut file);
    sweep(&mut controller, 7, now);
    keep_now(&mut file, &controller, now + COUNTS_EVERY / 2, Occasion::Refresh);
    assert_eq!(loaded(&mut file), first);
    // When the balancer writes another change, it also writes the counters.
    weigh(&mut controller, 50, now);
    keep_now(&mut file, &controller, now + COUNTS_EVERY / 2, Occasion::Refresh);
    let second = loaded(&mut file);
    assert_eq!((second.generation, second.services[0].backends[0].known), (1, 7));
    // If nothing but counters has changed, the balancer writes the counters after a while.
    sweep(&mut controller, 8, now);
    keep_now(&mut file, &controller, now + 2 * COUNTS_EVERY, Occasion::Refresh);
    assert_eq!(loaded(&mut file).services[0].backends[0].known, 8);
    fs::remove_file(&path).unwrap();
    keep_now(&mut file, &controller, now + 4 * COUNTS_EVERY, Occasion::Refresh);
    assert!(matches!(file.load().unwrap(), Loaded::Nothing), "written again");
}

#[test]
fn when_a_state_is_large_then_changes_are_written_until_they_are_half_as_long() {
    let (_directory, path) = place();
    let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
    let (mut controller, now) = begun();
    keep_now(&mut file, &controller, now, Occasion::Whole);
    let whole = fs::read(&path).unwrap();
    let journal = journal::of_state(&path);
    let mut journals = 0;
    for weight in 1..40 {
        weigh(&mut controller, weight, now);
        keep_now(&mut file, &controller, now, Occasion::Change);
        assert_eq!(loaded(&mut file).services, controller.export(Clocks { now, wall: UNIX_EPOCH }).services);
        let length = fs::metadata(&journal).map_or(0, |metadata| metadata.len());
        assert!(length <= whole.len() as u64 / 2, "{length} of {}", whole.len());
        if length == 0 {
            break;
        }
        assert_eq!(fs::read(&path).unwrap(), whole, "the state was written whole");
        journals += 1;
    }
    assert!((1..39).contains(&journals), "{journals}");
    // The previous state together with its journal is as recent as the current state was before the damage.
    fs::write(&path, "").unwrap();
    assert_eq!(generation(&file.load().unwrap()), journals);
}

#[test]
fn when_the_wall_clock_was_set_then_changes_are_not_dated_by_it() {
    let (_directory, path) = place();
    let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
    let (mut controller, now) = begun();
    let at = |controller: &Controller, uptime: u64, wall: u64| Restorable {
        clock: Some(SavedClock {
            boot: "b".to_owned(),
            uptime: Duration::from_secs(uptime),
            wall: Moment(Duration::from_secs(wall)),
        }),
        ..Restorable::of(controller.clone(), now)
    };
    file.keep(at(&controller, 100, 1000), Occasion::Whole).unwrap();
    let journal = journal::of_state(&path);
    weigh(&mut controller, 50, now);
    file.keep(at(&controller, 110, 1010), Occasion::Change).unwrap();
    assert!(journal.exists());
    weigh(&mut controller, 51, now);
    file.keep(at(&controller, 111, 700), Occasion::Change).unwrap();
    assert!(!journal.exists(), "moments of two clocks are in one state");
    assert_eq!(loaded(&mut file).generation, 2);
}

#[test]
fn when_a_journal_is_cut_or_flipped_anywhere_then_it_is_noticed() {
    let (_directory, path) = place();
    let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
    let (mut controller, now) = begun();
    keep_now(&mut file, &controller, now, Occasion::Whole);
    for weight in [50, 51] {
        weigh(&mut controller, weight, now);
        keep_now(&mut file, &controller, now, Occasion::Change);
    }
    let journal = journal::of_state(&path);
    let good = fs::read(&journal).unwrap();
    let first = good.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    let mut check = |bytes: &[u8], expected: u64, told: Option<&str>| {
        fs::write(&journal, bytes).unwrap();
        let (state, warning) = match file.load().unwrap() {
            Loaded::State(state) => (state, None),
            Loaded::Older(state, warning) => (state, Some(warning)),
            Loaded::Nothing => panic!("a silent empty state"),
        };
        assert_eq!(state.generation, expected, "{warning:?}");
        assert_eq!(warning.is_some(), told.is_some(), "{warning:?}");
        assert!(warning.is_none_or(|warning| warning.contains(told.unwrap()) && warning.contains("are lost")));
    };
    // Cutting the file simulates a machine that failed during a write.
    for length in (0..good.len()).filter(|length| length % first < 60 || length % 7 == 0) {
        check(&good[..length], u64::from(length >= first), None);
    }
    check(&good, 2, None);
    // The test flips bits in all seals, and in some of the sealed data.
    for place in (0..good.len()).filter(|place| place % first < 60 || place % 7 == 0) {
        let mut bytes = good.clone();
        bytes[place] ^= 0x01;
        match place {
            // A line without its line end is incomplete.
            _ if place + 1 == good.len() => check(&bytes, 1, None),
            _ if place < first => check(&bytes, 0, Some("line 1")),
            _ => check(&bytes, 1, Some("line 2")),
        }
    }
    check(&good[first..], 0, Some("the change before change"));
    check(&[&good[..first], &good[..first]].concat(), 1, Some("line 2"));
}

#[test]
fn when_a_journal_belongs_to_another_state_then_it_is_passed_over() {
    let (_directory, path) = place();
    let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
    let (mut controller, now) = begun();
    keep_now(&mut file, &controller, now, Occasion::Whole);
    weigh(&mut controller, 50, now);
    keep_now(&mut file, &controller, now, Occasion::Change);
    let journal = journal::of_state(&path);
    let left = fs::read(&journal).unwrap();
    weigh(&mut controller, 51, now);
    keep_now(&mut file, &controller, now, Occasion::Whole);
    assert!(!journal.exists());
    // The test simulates a machine that failed after the first of two writes.
    fs::write(&journal, &left).unwrap();
    assert_eq!(loaded(&mut file).generation, 2);
    // The next change starts a new journal.
    weigh(&mut controller, 52, now);
    keep_now(&mut file, &controller, now, Occasion::Change);
    assert_eq!(loaded(&mut file).generation, 3);
}

#[test]
fn when_a_write_has_failed_then_the_state_is_written_whole() {
    let (directory, path) = place();
    let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
    let (mut controller, now) = begun();
    keep_now(&mut file, &controller, now, Occasion::Whole);
    let away = directory.path().join("away");
    fs::rename(path.parent().unwrap(), &away).unwrap();
    weigh(&mut controller, 50, now);
    let refused = file.keep(Restorable::of(controller.clone(), now), Occasion::Change).unwrap_err();
    assert!(format!("{refused:#}").starts_with("cannot write the state file "), "{refused:#}");
    fs::rename(&away, path.parent().unwrap()).unwrap();
    assert_eq!(loaded(&mut file).generation, 0);
    keep_now(&mut file, &controller, now, Occasion::Change);
    assert!(!journal::of_state(&path).exists());
    assert_eq!(loaded(&mut file).generation, 1);
}

#[test]
fn when_a_file_is_cut_or_flipped_anywhere_then_it_is_noticed() {
    let (_directory, path) = place();
    let mut file = StateFile::open(&path).unwrap();
    file.save(&state(1)).unwrap();
    file.save(&state(2)).unwrap();
    let good = fs::read(&path).unwrap();
    let previous = with_suffix(&path, "previous");
    let before = fs::read(&previous).unwrap();
    let mut check = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        fs::write(&previous, &before).unwrap();
        match file.load().unwrap() {
            // The loader ignores whether the file ends with a newline.
            Loaded::State(loaded) => assert!(*loaded == state(2) && bytes.trim_ascii() == good.trim_ascii()),
            loaded @ (Loaded::Nothing | Loaded::Older(..)) => assert_eq!(generation(&loaded), 1),
        }
        fs::remove_file(&previous).unwrap();
        if bytes.trim_ascii() != good.trim_ascii() {
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("state.json") && error.contains("move both away"), "{error}");
        }
    };
    for length in 0..good.len() {
        check(&good[..length]);
    }
    for place in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut bytes = good.clone();
            bytes[place] ^= flip;
            check(&bytes);
        }
    }
}

#[test]
fn when_a_file_is_broken_then_it_never_becomes_the_previous_one() {
    let (_directory, path) = place();
    let mut file = StateFile::open(&path).unwrap();
    file.save(&state(1)).unwrap();
    file.save(&state(2)).unwrap();
    fs::write(&path, "{}").unwrap();
    assert_eq!(generation(&file.load().unwrap()), 1);
    file.save(&state(3)).unwrap();
    fs::write(&path, "").unwrap();
    assert_eq!(generation(&file.load().unwrap()), 1);
}

#[test]
fn when_a_file_is_of_another_version_then_it_is_refused_whatever_came_before() {
    for version in [VERSION - 1, VERSION + 1] {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        file.save(&state(1)).unwrap();
        file.save(&SavedState { version, ..state(2) }).unwrap();
        let error = file.load().unwrap_err().to_string();
        assert!(error.contains(&format!("is of version {version}, this controller reads version 2")), "{error}");
    }
}

#[test]
fn when_two_controllers_want_one_file_then_the_second_is_refused() {
    let (_directory, path) = place();
    let first = StateFile::open(&path).unwrap();
    let error = StateFile::open(&path).unwrap_err().to_string();
    assert!(error.contains(&format!("another controller (process {})", std::process::id())), "{error}");
    drop(first);
    StateFile::open(&path).unwrap();
}

#[test]
fn when_a_place_cannot_be_written_then_it_is_named() {
    let (directory, _) = place();
    let blocked = directory.path().join("file");
    fs::write(&blocked, "").unwrap();
    let error = format!("{:#}", StateFile::open(&blocked.join("state.json")).unwrap_err());
    assert!(error.contains(&blocked.display().to_string()), "{error}");
    let path = directory.path().join("lib/state.json");
    let mut file = StateFile::open(&path).unwrap();
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let error = format!("{:#}", file.save(&state(1)).unwrap_err());
    assert!(error.starts_with("cannot write the state file "), "{error}");
}
