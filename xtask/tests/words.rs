//! Checks of names and titles in this repository.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The largest allowed number of characters in a commit's title.
const TITLE: usize = 72;
/// The last commit before the rule about titles.
const BEFORE: &str = "897cc82e20b2204b3e15d9ba13d40252b1326e24";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the test functions of a file.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let function = ["fn ", "async fn ", "pub fn "].into_iter().find_map(|start| line.strip_prefix(start));
        if let Some(name) = function.and_then(|rest| rest.split(['(', '<']).next()) {
            names.extend(is_test.then_some(name));
            is_test = false;
        }
    }
    names
}

#[test]
fn when_a_test_is_named_then_it_says_when_and_then() {
    let says = |name: &str| name.strip_prefix("when_").is_some_and(|rest| rest.contains("_then_"));
    let mut wrong = Vec::new();
    for file in git(&["ls-files", "*.rs"]).lines() {
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        wrong.extend(test_names(&text).into_iter().filter(|name| !says(name)).map(|name| format!("{file}: {name}")));
    }
    assert!(wrong.is_empty(), "name these tests when_…_then_…:\n{}", wrong.join("\n"));
}

#[test]
fn when_a_change_is_committed_then_its_title_fits_in_a_line() {
    let titles = git(&["log", "--format=%s", &format!("{BEFORE}..HEAD")]);
    for title in titles.lines() {
        let length = title.chars().count();
        assert!(length <= TITLE, "{length} characters, {TITLE} are the most: {title}");
    }
}

#[test]
fn when_a_file_has_tests_then_their_names_are_found() {
    let text = "#[test]\nfn one() {}\nfn no() {}\n    #[tokio::test(start_paused = true)]\n    async fn two() {\n";
    assert_eq!(test_names(text), ["one", "two"]);
}
