//! Parses HAProxy's configuration into sections, which consist of lines.

use std::str::Chars;

use crate::{
    error::NotUnderstood,
    place::{Place, named},
};

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) words: Vec<String>,
}

impl Line {
    pub(super) fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    pub(super) fn after(&self, at: usize) -> &[String] {
        self.words.get(at..).unwrap_or_default()
    }

    pub(super) fn text(&self) -> String {
        self.words.join(" ")
    }
}

#[derive(Debug)]
pub(super) struct Section {
    /// The first line of the section, such as `backend NAME`.
    pub(super) head: Line,
    pub(super) lines: Vec<Line>,
}

const SECTIONS: [&str; 21] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "userlist",
    "resolvers",
    "mailers",
    "cache",
    "program",
    "http-errors",
    "ring",
    "log-forward",
    "fcgi-app",
    "crt-store",
    "traces",
    "log-profile",
    "acme",
    "namespace_list",
    "dynamic-update",
];

pub(super) fn parse(files: &[(String, String)]) -> Result<Vec<Section>, NotUnderstood> {
    let mut sections: Vec<Section> = Vec::new();
    for (name, text) in files {
        let file = named(files, name);
        for (number, text) in text.lines().enumerate() {
            let place = Place { line: number + 1, file: file.clone() };
            let words = words(text).map_err(|what| NotUnderstood::at(&place, what))?;
            let Some(first) = words.first() else { continue };
            let is_head = SECTIONS.contains(&first.as_str());
            let line = Line { place, words };
            match sections.last_mut() {
                _ if is_head => sections.push(Section { head: line, lines: Vec::new() }),
                Some(section) => section.lines.push(line),
                // Lines such as `.if` may precede the first section.
                None if line.word(0).starts_with('.') => {}
                None => {
                    let what =
                        format!("`{}` stands in no section; `defaults`, `listen` and others begin one", line.word(0));
                    return Err(NotUnderstood::at(&line.place, what));
                }
            }
        }
    }
    Ok(sections)
}

/// The character that a backslash and the characters after it stand for.
fn escaped(characters: &mut Chars<'_>) -> Option<char> {
    let next = characters.next()?;
    Some(match next {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'x' => {
            let digits = characters.as_str().get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            // A byte above 127 begins no character of its own, and stays as it is written.
            let Some(byte) = digits.filter(u8::is_ascii) else { return Some(next) };
            characters.nth(1);
            char::from(byte)
        }
        other => other,
    })
}

fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(escaped(&mut characters)),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '#') => break,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("a quote is not closed") } else { Ok(words) }
}
