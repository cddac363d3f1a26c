//! Checks the documents: all links work, the program accepts all examples, and the book covers all commands and all
//! drop reasons.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::wildcard_enum_match_arm, reason = "Markdown has much that is of no interest here")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use balancer_api::model::MAX_IMPORTED;
use balancer_common::{
    map_types::{
        CACHED_HOPS_OF_CPU, LAST_BACKEND, LOCAL_MACS, MAX_ASKED, MAX_DECAP_ADDRESSES, MAX_FRAGMENTS, MAX_INTERFACES,
        MAX_LISTENERS, MAX_POOL, MAX_RULES,
    },
    quic::MAX_QUIC_SERVICES,
    signs::HANDSHAKES,
    verdict::DropReason,
};
use balancer_config::{
    deny::MAX_DENIED, discover::MAX_TARGETS, file::MAX_FILE_SIZE, header::MAX_HEADER_VALUE,
    listeners::MAX_LISTENERS_OF_SERVICE, words::grouped,
};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns the Markdown files, relative to the root of the repository.
fn documents() -> Vec<PathBuf> {
    let chapters = fs::read_dir(root().join("docs/src")).unwrap().map(|entry| entry.unwrap().file_name());
    let chapters = chapters.map(|name| Path::new("docs/src").join(name));
    let mut documents: Vec<_> = chapters.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    documents.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(PathBuf::from));
    documents
}

fn read(document: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

fn events(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// Returns the targets of links and pictures in a text.
fn targets(text: &str) -> Vec<String> {
    let targets = events(text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => Some(dest_url.to_string()),
        _ => None,
    });
    targets.collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut heading = None;
    for event in events(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let kept = |c: &char| c.is_alphanumeric() || "_- ".contains(*c);
                anchors.extend(heading.take().map(|text: String| {
                    text.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
                }));
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            _ => {}
        }
    }
    anchors
}

/// Returns the code blocks in a text, each with its language.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for event in events(text) {
        match event {
            Event::Start(Tag::CodeBlock(kind)) => {
                let language = match kind {
                    CodeBlockKind::Fenced(language) => language.to_string(),
                    CodeBlockKind::Indented => String::new(),
                };
                blocks.push((language, String::new()));
                inside = true;
            }
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(text) if inside => blocks.last_mut().unwrap().1.push_str(&text),
            _ => {}
        }
    }
    blocks
}

/// Removes the components `.` and `..` from a path.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(plain.pop(), "{} leads out of the source tree", path.display()),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    plain
}

#[test]
fn when_a_document_has_a_link_then_its_target_exists() {
    let mut wrong = Vec::new();
    for document in documents() {
        let text = read(&document);
        for target in targets(&text).iter().filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = plain(&match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            });
            let exists = root().join(&path).exists();
            if !exists || !anchor.is_empty() && !anchors(&read(&path)).contains(anchor) {
                wrong.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere: {wrong:#?}");
}

/// The directory to which `cargo xtask book` writes the HTML pages.
const BUILT: &str = "docs/book";

#[test]
fn when_a_document_names_a_file_then_the_file_exists() {
    let mut wrong = Vec::new();
    for document in documents() {
        for event in events(&read(&document)) {
            let Event::Code(name) = event else { continue };
            let of_the_tree = ["tests/", "contrib/", "docs/", "packaging/", "xtask/", "balancer-"];
            let is_path = name.contains('/') && !name.contains(['*', '{', ' ', '(']) && &*name != BUILT;
            if is_path && of_the_tree.iter().any(|start| name.starts_with(start)) && !root().join(&*name).exists() {
                wrong.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "files that are not there: {wrong:#?}");
}

/// Returns the text of all Rust files below a directory.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

#[test]
fn when_a_document_names_a_test_then_the_test_exists() {
    let sources: String =
        ["balancer-common", "balancer-userspace", "tests", "xtask"].map(|name| sources(&root().join(name))).concat();
    let mut wrong = Vec::new();
    for document in documents() {
        for event in events(&read(&document)) {
            let Event::Code(name) = event else { continue };
            let is_test = name.starts_with("when_") && name.contains("_then_");
            if is_test && !sources.contains(&format!("fn {name}(")) {
                wrong.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "there are no such tests: {wrong:#?}");
}

#[test]
fn when_a_bound_changes_then_the_page_on_limits_has_the_new_value() {
    let page = read("docs/src/limits.md");
    for (row, bound) in [
        ("listeners of all services", u64::from(MAX_LISTENERS) - 1),
        ("listeners of one service", MAX_LISTENERS_OF_SERVICE as u64),
        ("services with QUIC", MAX_QUIC_SERVICES as u64),
        ("backends of all services", u64::from(LAST_BACKEND)),
        ("rules of all services", u64::from(MAX_RULES)),
        ("prefixes of a `deny` list", MAX_DENIED as u64),
        ("targets of a discovered list", MAX_TARGETS as u64),
        ("interfaces", u64::from(MAX_INTERFACES)),
        ("addresses of a `snat` pool", MAX_POOL as u64),
        ("headers of a check; bytes in a header", MAX_HEADER_VALUE as u64),
        ("handshakes watched", u64::from(HANDSHAKES)),
        ("fragmented datagrams remembered", u64::from(MAX_FRAGMENTS)),
        ("next hops of replies", u64::from(CACHED_HOPS_OF_CPU)),
        ("neighbours that replies wait for", u64::from(MAX_ASKED)),
        ("clients that `client import` sends", MAX_IMPORTED as u64),
        ("MAC addresses of one interface", LOCAL_MACS as u64),
        ("addresses and `--from` prefixes", u64::from(MAX_DECAP_ADDRESSES)),
        ("configuration, drop-in", MAX_FILE_SIZE >> 20),
    ] {
        let line = page.lines().find(|line| line.starts_with(&format!("| {row}"))).unwrap_or_else(|| panic!("{row}"));
        let cells: Vec<&str> = line.split(" | ").collect();
        let numbers: Vec<&str> = cells[1].split(|c: char| !c.is_ascii_digit() && c != ',').collect();
        let bound = grouped(bound);
        assert!(numbers.iter().any(|number| number.trim_end_matches(',') == bound), "{row}: {bound} in {}", cells[1]);
    }
}

#[test]
fn when_a_page_exists_then_the_table_of_contents_lists_it_once() {
    let mut listed = targets(&read("docs/src/SUMMARY.md"));
    listed.push("SUMMARY.md".to_owned());
    listed.sort();
    let chapters = documents().into_iter().filter(|path| path.starts_with("docs/src"));
    let mut chapters: Vec<_> = chapters.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    chapters.sort();
    assert_eq!(listed, chapters);
}

#[test]
fn when_a_reader_opens_the_readme_then_it_shows_how_to_start() {
    let readme = read("README.md");
    for command in ["cargo xtask run", "cargo xtask test"] {
        assert!(blocks(&readme).iter().any(|(_, block)| block.contains(command)), "{command}");
    }
}

#[test]
fn when_a_document_shows_a_configuration_then_it_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("balancer.toml");
    let mut tried = Vec::new();
    for document in documents() {
        for (_, block) in blocks(&read(&document)).iter().filter(|(language, _)| language == "toml") {
            fs::write(&file, block).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_balancer")).arg("check").arg(&file).output().unwrap();
            assert!(output.status.success(), "{}: {}", document.display(), String::from_utf8_lossy(&output.stderr));
            tried.push(document.clone());
        }
    }
    for page in ["docs/src/getting-started.md", "docs/src/configuration.md"] {
        assert!(tried.contains(&PathBuf::from(page)), "{page}");
    }
}

#[test]
fn when_a_document_shows_a_command_then_the_program_accepts_it() {
    let mut tried = 0;
    for document in documents() {
        for (language, block) in blocks(&read(&document)) {
            if language != "sh" && language != "console" && !block.starts_with("$ ") {
                continue;
            }
            for line in block.lines() {
                let line = line.strip_prefix("$ ").unwrap_or(line);
                let (line, _) = line.split_once(" # ").unwrap_or((line, ""));
                if line.starts_with("balancer ") && !line.contains('…') {
                    let taken = balancer::command().try_get_matches_from(line.split_whitespace());
                    assert!(taken.is_ok(), "{}: {line}: {}", document.display(), taken.unwrap_err());
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 25, "only {tried} commands were found");
}

#[test]
fn when_a_command_exists_then_the_chapter_on_the_command_line_has_it() {
    fn look(chapter: &str, command: &clap::Command, path: &str) {
        let commands: Vec<_> = command
            .get_subcommands()
            .filter(|command| command.get_name() != "help" && !command.is_hide_set())
            .collect();
        for command in &commands {
            look(chapter, command, &format!("{path} {}", command.get_name()));
        }
        // `plan backend` accepts the same arguments as `backend`, and the action of a rule follows the prefix.
        let is_short = path.starts_with("balancer plan") || path.starts_with("balancer rule add ");
        if commands.is_empty() && !is_short {
            let is_there = chapter.lines().any(|line| line == path || line.starts_with(&format!("{path} ")));
            assert!(is_there, "{path} is not in docs/src/commands.md");
        }
    }
    look(&read("docs/src/commands.md"), &balancer::command(), "balancer");
}

#[test]
fn when_a_drop_has_a_reason_then_the_book_explains_it() {
    let chapter = read("docs/src/troubleshooting.md");
    for reason in DropReason::ALL {
        assert!(chapter.contains(&format!("\n| `{}` | ", reason.label())), "{}", reason.label());
    }
}
