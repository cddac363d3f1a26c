//! Inputs that fuzzing has kept, given to their targets again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, panic, thread};

use balancer_tests::fuzz::{TARGETS, corpus};

/// Gives a target every file of its corpus, on a thread of its own: one target moves it into another namespace.
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
fn api() {
    replay("api");
}

#[test]
fn checks() {
    replay("checks");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn contest() {
    replay("contest");
}

#[test]
fn fleet() {
    replay("fleet");
}

#[test]
fn netlink() {
    replay("netlink");
}

#[test]
fn notes() {
    replay("notes");
}

#[test]
fn packet() {
    replay("packet");
}

#[test]
fn state() {
    replay("state");
}

#[test]
fn words() {
    replay("words");
}
