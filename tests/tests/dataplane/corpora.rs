//! Runs the fuzz targets on the inputs that libFuzzer kept.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, panic, thread};

use balancer_tests::fuzz::{TARGETS, corpus};

/// Runs a target on every file of the target's corpus. A new thread runs the target, because one of the targets moves
/// its thread into another namespace.
fn replay(name: &'static str) {
    let (_, target) = TARGETS.into_iter().find(|(of, _)| *of == name).unwrap();
    let mut files: Vec<_> = fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 8, "{} files", files.len());
    files.sort();
    let played = thread::spawn(move || {
        for file in files {
            let bytes = fs::read(&file).unwrap();
            let outcome = panic::catch_unwind(|| target(&bytes));
            assert!(outcome.is_ok(), "{} fails; its panic is above", file.display());
        }
    });
    played.join().unwrap();
}

#[test]
fn when_the_corpus_of_api_is_replayed_then_no_input_fails() {
    replay("api");
}

#[test]
fn when_the_corpus_of_checks_is_replayed_then_no_input_fails() {
    replay("checks");
}

#[test]
fn when_the_corpus_of_config_is_replayed_then_no_input_fails() {
    replay("config");
}

#[test]
fn when_the_corpus_of_contest_is_replayed_then_no_input_fails() {
    replay("contest");
}

#[test]
fn when_the_corpus_of_fleet_is_replayed_then_no_input_fails() {
    replay("fleet");
}

#[test]
fn when_the_corpus_of_netlink_is_replayed_then_no_input_fails() {
    replay("netlink");
}

#[test]
fn when_the_corpus_of_notes_is_replayed_then_no_input_fails() {
    replay("notes");
}

#[test]
fn when_the_corpus_of_packet_is_replayed_then_no_input_fails() {
    replay("packet");
}

#[test]
fn when_the_corpus_of_state_is_replayed_then_no_input_fails() {
    replay("state");
}

#[test]
fn when_the_corpus_of_words_is_replayed_then_no_input_fails() {
    replay("words");
}
