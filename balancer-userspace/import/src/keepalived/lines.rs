//! Reads the lines of keepalived's files; inserts the lines of included files and the values of `$PARAMETER`s.

use std::{collections::BTreeMap, rc::Rc};

use crate::{Include, error::NotUnderstood, notes::Conversion, place::Place};

const DEEPEST: usize = 16;
const MOST_FILES: usize = 4096;
/// The maximum number of lines, which is needed because parameters that contain each other could expand without end.
const MOST_LINES: usize = 1_000_000;
const LONGEST: usize = 65_536;

const INCLUDES: [&str; 6] = ["include", "includer", "includem", "includew", "includeb", "includea"];

/// A line of a file, without its comment.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) text: String,
}

pub(super) struct Reader<'a> {
    pub(super) conversion: &'a mut Conversion,
    pub(super) include: Include<'a>,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) lines: Vec<Line>,
    pub(super) files: usize,
    /// The number of lines that were read so far.
    pub(super) seen: usize,
}

impl Reader<'_> {
    /// Reads the lines of a file. Relative file names refer to the directory of the file that contains them.
    pub(super) fn read(
        &mut self,
        file: Option<&Rc<str>>,
        name: &str,
        text: &str,
        depth: usize,
    ) -> Result<(), NotUnderstood> {
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let place = Place { line: number + 1, file: file.cloned() };
            let line = without_comment(line);
            let Some((parameter, value)) = definition(line) else {
                self.line(&place, name, line, depth)?;
                continue;
            };
            let mut value = value.to_owned();
            while let Some(first) = value.trim_end().strip_suffix('\\') {
                let more = lines.next().map_or("", |(_, line)| without_comment(line));
                value = format!("{first}\n{more}");
                self.fits(&place, value.len())?;
            }
            self.parameters.insert(parameter.to_owned(), value.trim().to_owned());
        }
        Ok(())
    }

    fn fits(&self, place: &Place, length: usize) -> Result<(), NotUnderstood> {
        if length > LONGEST || self.seen > MOST_LINES {
            return Err(NotUnderstood::at(place, "too long once parameters and files are put in"));
        }
        Ok(())
    }

    fn line(&mut self, place: &Place, name: &str, line: &str, depth: usize) -> Result<(), NotUnderstood> {
        self.seen += 1;
        self.fits(place, line.len())?;
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if INCLUDES.contains(&first) {
            return self.included(place, name, line, words.next().unwrap_or_default().trim_matches('"'), depth);
        }
        let text = self.put_in(place, line)?;
        if first.starts_with(['@', '~']) {
            let why = if first.starts_with('@') {
                "conditions are ignored; remove the `@` and its word where the line is for this machine"
            } else {
                "sequences are not written out; write the lines"
            };
            if text.contains(['{', '}']) {
                return Err(NotUnderstood::at(place, format!("`{first}`: {why}")));
            }
            self.conversion.needs_you(place, text, why);
            return Ok(());
        }
        if let Some((parameter, value)) = definition(line) {
            self.parameters.insert(parameter.to_owned(), value.trim().to_owned());
            return Ok(());
        }
        // The value of a parameter may consist of several lines, which may define other parameters.
        if text.contains('\n') {
            if depth >= DEEPEST {
                return Err(NotUnderstood::at(place, "parameters stand for each other too deeply"));
            }
            for line in text.lines() {
                self.line(place, name, line, depth + 1)?;
            }
            return Ok(());
        }
        self.lines.push(Line { place: place.clone(), text });
        Ok(())
    }

    /// Inserts the values of parameters into a line. A reference to an undefined parameter stays unchanged.
    fn put_in(&self, place: &Place, line: &str) -> Result<String, NotUnderstood> {
        let mut text = line.to_owned();
        // If a value consists of several lines, the loop inserts only this value, because the lines may change
        // parameters.
        for _ in 0..DEEPEST {
            let Some((from, to, value)) = self.parameter(&text) else { break };
            let value = value.to_owned();
            text.replace_range(from..to, &value);
            self.fits(place, text.len())?;
            if value.contains('\n') {
                break;
            }
        }
        Ok(text)
    }

    /// The position and the value of the first defined parameter in a text.
    fn parameter(&self, text: &str) -> Option<(usize, usize, &str)> {
        text.match_indices('$').find_map(|(from, _)| {
            let rest = text.get(from + 1..)?;
            let (name, length) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once('}').map(|(name, _)| (name, name.len() + 3))?,
                None => {
                    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                    (rest.get(..end)?, end + 1)
                }
            };
            self.parameters.get(name).map(|value| (from, from + length, value.as_str()))
        })
    }

    fn included(
        &mut self,
        place: &Place,
        name: &str,
        line: &str,
        pattern: &str,
        depth: usize,
    ) -> Result<(), NotUnderstood> {
        if depth >= DEEPEST {
            return Err(NotUnderstood::at(place, "files include each other too deeply"));
        }
        match (self.include)(name, pattern) {
            Ok(files) => {
                for (name, text) in files {
                    self.files += 1;
                    if self.files > MOST_FILES {
                        return Err(NotUnderstood::at(place, format!("more than {MOST_FILES} files are included")));
                    }
                    self.read(Some(&Rc::from(name.as_str())), &name, &text, depth + 1)?;
                }
            }
            Err(why) => {
                let why = format!("{why}; name the file on the command line as well");
                self.conversion.needs_you(place, line.trim(), why);
            }
        }
        Ok(())
    }
}

/// Parses a definition `$NAME=VALUE`.
fn definition(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.trim_start().strip_prefix('$')?.split_once('=')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then_some((name, value))
}

/// Removes the comment of a line, which begins with # or ! outside of quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '#' | '!') => return line.get(..at).unwrap_or(line),
            _ => {}
        }
    }
    line
}
