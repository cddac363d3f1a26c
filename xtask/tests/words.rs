//! Limits on bad patterns in the text of this repository. A limit may only become lower.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The largest allowed number of doc comments, per thousand, that begin with a pronoun. Lower the limit when the number
/// has fallen.
const PRONOUNS: usize = 5;
/// The largest allowed number of doc comments, per thousand, with fewer than four words. Lower the limit when the
/// number has fallen.
const SHORT: usize = 71;
/// The largest allowed number of words on a page of the book.
const PAGE: usize = 4000;
/// The largest allowed number of characters in a commit's title.
const TITLE: usize = 72;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the doc comments of a file, each joined into one line.
fn doc_comments(text: &str) -> Vec<String> {
    let mut comments = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines().chain([""]) {
        let line = line.trim_start();
        let is_doc = (line.starts_with("///") && !line.starts_with("////")) || line.starts_with("//!");
        if is_doc {
            let comment = open.get_or_insert_default();
            comment.push_str(&line[3..]);
        } else {
            comments.extend(open.take());
        }
    }
    comments.iter().map(|comment| comment.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn begins_with_a_pronoun(comment: &str) -> bool {
    let first = comment.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
    matches!(first, "Its" | "Whose" | "What" | "Who" | "Of" | "Whoever" | "Nobody" | "Somebody")
        || comment.starts_with("That which ")
}

#[test]
fn when_doc_comments_are_written_then_they_name_their_subject() {
    let all: Vec<String> = git(&["ls-files", "*.rs"])
        .lines()
        .flat_map(|file| doc_comments(&fs::read_to_string(root().join(file)).unwrap_or_default()))
        .collect();
    let count = |test: fn(&str) -> bool| all.iter().filter(|comment| test(comment)).count();
    let pronouns = count(begins_with_a_pronoun);
    assert!(
        pronouns * 1000 <= PRONOUNS * all.len(),
        "{pronouns} of {} doc comments begin with What, Its, Of, Who or Whose: begin new ones with a noun or a verb",
        all.len()
    );
    let short = count(|comment| comment.split(' ').count() < 4);
    assert!(
        short * 1000 <= SHORT * all.len(),
        "{short} of {} doc comments have fewer than four words: say more, or leave the comment out",
        all.len()
    );
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
fn when_a_page_of_the_book_grows_then_it_stays_readable_in_one_sitting() {
    for file in git(&["ls-files", "docs/src/*.md"]).lines() {
        let words = fs::read_to_string(root().join(file)).unwrap().split_whitespace().count();
        assert!(words <= PAGE, "{file} has {words} words; {PAGE} are the most: split it");
    }
}

#[test]
fn when_a_change_is_committed_then_its_title_fits_in_a_line() {
    let baseline = fs::read_to_string(root().join("tests/bench/baseline")).unwrap();
    let titles = git(&["log", "--format=%s", &format!("{}..HEAD", baseline.trim())]);
    for title in titles.lines() {
        let length = title.chars().count();
        assert!(length <= TITLE, "{length} characters, {TITLE} are the most: {title}");
    }
}

#[test]
fn when_doc_comments_are_read_then_each_is_one_line() {
    let text =
        "//! A file.\n//! Goes on.\n\n/// What it is.\nfn a() {}\n//// no\n    /// Its name\n    b: u8,\n// no\n";
    let comments = doc_comments(text);
    assert_eq!(comments, ["A file. Goes on.", "What it is.", "Its name"]);
    assert_eq!(comments.iter().map(|comment| begins_with_a_pronoun(comment)).collect::<Vec<_>>(), [false, true, true]);
    assert!(!begins_with_a_pronoun("Whatever comes") && !begins_with_a_pronoun("Offsets"));
}

#[test]
fn when_a_file_has_tests_then_their_names_are_found() {
    let text = "#[test]\nfn one() {}\nfn no() {}\n    #[tokio::test(start_paused = true)]\n    async fn two() {\n";
    assert_eq!(test_names(text), ["one", "two"]);
}
