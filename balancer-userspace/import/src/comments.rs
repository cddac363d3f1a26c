//! Formats the notes of a conversion: as comments in the result, and as lines for the terminal.

use std::collections::BTreeMap;

use crate::{
    dialect::Dialect,
    notes::{Conversion, Kind, Note},
    place::Place,
};

/// The mark of the comments that need the operator.
pub(crate) const MARK: &str = "NEEDS YOU";

/// The maximum number of directives that a comment about several of them names.
const NAMED: usize = 12;

impl Conversion {
    /// The comments about directives that did not become settings: first one for each directive that needs the
    /// operator, then one for each reason why directives are not needed, and one about all of the program's own.
    pub(crate) fn comments(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text += &without_controls(&line);
            text.push('\n');
        };
        for note in self.for_you() {
            line(format!("# {MARK} ({}): {}: {}", note.place, note.directive, note.why));
        }
        for (why, notes) in self.remarks() {
            let directives = named(notes.iter().map(|note| note.directive.as_str()));
            line(format!("# note ({}): {directives}: {why}", places(&notes)));
        }
        let own: Vec<&Note> = self.notes.iter().filter(|note| note.kind == Kind::Own).collect();
        if !own.is_empty() {
            let names = named(own.iter().filter_map(|note| note.directive.split_whitespace().next()));
            let of = self.dialect.map_or("the program", Dialect::shown);
            line(format!("# nothing to do ({}): these concern {of} itself: {names}", places(&own)));
        }
        text
    }

    /// The reasons why directives are not needed, in the order of the file, each with its notes.
    fn remarks(&self) -> Vec<(&str, Vec<&Note>)> {
        let mut at: BTreeMap<&str, usize> = BTreeMap::new();
        let mut all: Vec<(&str, Vec<&Note>)> = Vec::new();
        for note in self.notes.iter().filter(|note| note.kind == Kind::Remark) {
            let index = *at.entry(&note.why).or_insert(all.len());
            match all.get_mut(index) {
                Some((_, notes)) => notes.push(note),
                None => all.push((&note.why, vec![note])),
            }
        }
        all
    }

    /// The directives that need the operator, one for each line, as `FILE:LINE: DIRECTIVE: WHY`. `file` is the name of
    /// the file if there is only one.
    #[must_use]
    pub fn for_the_terminal(&self, file: &str) -> Vec<String> {
        let line = |note: &Note| {
            let Place { line, file: own } = &note.place;
            format!("{}:{line}: {}: {}", own.as_deref().unwrap_or(file), note.directive, note.why)
        };
        self.for_you().map(|note| without_controls(&line(note))).collect()
    }
}

fn without_controls(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Lists different directives once each, separated by commas.
fn named<'a>(directives: impl Iterator<Item = &'a str>) -> String {
    let mut all: Vec<&str> = Vec::new();
    let mut has_more = false;
    for directive in directives {
        if all.contains(&directive) {
            continue;
        }
        if all.len() < NAMED { all.push(directive) } else { has_more = true }
    }
    all.join(", ") + if has_more { ", …" } else { "" }
}

/// Formats lines as `lines 3 to 9, 12; line 4 of other.conf`.
fn places(notes: &[&Note]) -> String {
    let mut of_files: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
    for Note { place, .. } in notes {
        let file = place.file.as_deref();
        match of_files.last_mut().filter(|(last, _)| *last == file) {
            Some((_, lines)) => lines.push(place.line),
            None => of_files.push((file, vec![place.line])),
        }
    }
    let shown = of_files.into_iter().map(|(file, mut lines)| {
        lines.sort_unstable();
        lines.dedup();
        let of = file.map_or_else(String::new, |file| format!(" of {file}"));
        format!("line{} {}{of}", if lines.len() == 1 { "" } else { "s" }, ranges(&lines))
    });
    shown.collect::<Vec<_>>().join("; ")
}

/// Formats sorted numbers as `3 to 9, 12`.
fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut().filter(|(_, last)| last + 1 == number) {
            Some((_, last)) => *last = number,
            None => ranges.push((number, number)),
        }
    }
    let shown = ranges.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first} to {last}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn when_line_numbers_follow_each_other_then_they_are_one_range() {
        assert_eq!(ranges(&[3, 4, 5, 8, 10, 11]), "3 to 5, 8, 10, 11");
        assert_eq!(ranges(&[7]), "7");
    }
}
