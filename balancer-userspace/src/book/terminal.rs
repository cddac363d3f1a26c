//! Renders a chapter as text for terminals.

use std::{fmt::Write as _, iter};

use comfy_table::{ContentArrangement, presets::UTF8_HORIZONTAL_ONLY};
use textwrap::{WordSplitter, core::display_width};

use super::document::{Block, Line, Span, Style, details, is_wide, plain};

/// The maximum width of lines, because longer lines are hard to read.
const WIDTH: usize = 100;

const BOLD: &str = "\x1b[1m";
const NORMAL: &str = "\x1b[0m";

/// Renders blocks as lines of at most `width` columns; code may be wider. With `styled`, the function adds styles for
/// terminals.
#[must_use]
pub fn render(document: &[Block], width: usize, styled: bool) -> String {
    let width = width.min(WIDTH);
    let mut out = String::new();
    let mut in_list = false;
    for block in document {
        let is_item = matches!(block, Block::Item(..));
        let follows_item = in_list && is_item;
        if !out.is_empty() && !follows_item {
            out.push('\n');
        }
        in_list = is_item;
        match block {
            Block::Heading(level, line) => heading(&mut out, *level, line, styled),
            Block::Paragraph(line) => wrap(&mut out, &text(line, styled), width, "", ""),
            Block::Item(marker, line) => {
                let first = format!("{marker} ");
                wrap(&mut out, &text(line, styled), width, &first, &" ".repeat(first.len()));
            }
            Block::Code(code) => {
                for line in code.lines() {
                    let _ = writeln!(out, "{}", format!("    {line}").trim_end());
                }
            }
            Block::Table(head, rows) if is_wide(head, rows) => {
                for row in rows {
                    entry(&mut out, head, row, width, styled);
                }
            }
            Block::Table(head, rows) => table(&mut out, head, rows, width),
        }
    }
    out
}

fn heading(out: &mut String, level: u8, line: &[Span], styled: bool) {
    let words = plain(line);
    if styled {
        let _ = writeln!(out, "{BOLD}{words}{NORMAL}");
        return;
    }
    let under = match level {
        1 => "=",
        2 => "-",
        _ => "",
    };
    out.push_str(&words);
    out.push('\n');
    if !under.is_empty() {
        let _ = writeln!(out, "{}", under.repeat(display_width(&words)));
    }
}

/// Makes each word bold on its own, because a line may end between any two words.
fn text(line: &[Span], styled: bool) -> String {
    if !styled {
        return plain(line);
    }
    let bold = |text: &str| {
        let words =
            text.split(' ').map(|word| if word.is_empty() { String::new() } else { format!("{BOLD}{word}{NORMAL}") });
        words.collect::<Vec<_>>().join(" ")
    };
    let spans = line.iter().map(|Span { style, text }| match style {
        Style::Plain => text.clone(),
        Style::Code | Style::Strong => bold(text),
    });
    spans.collect()
}

fn wrap(out: &mut String, text: &str, width: usize, first: &str, then: &str) {
    let options = textwrap::Options::new(width)
        .initial_indent(first)
        .subsequent_indent(then)
        .break_words(false)
        .word_splitter(WordSplitter::NoHyphenation);
    for line in textwrap::wrap(text, options) {
        out.push_str(&line);
        out.push('\n');
    }
}

fn entry(out: &mut String, head: &[Line], row: &[Line], width: usize, styled: bool) {
    let first = row.iter().take(1).cloned().chain(details(head, row));
    for (cell, indent) in first.zip(iter::once("").chain(iter::repeat("    "))) {
        wrap(out, &text(&cell, styled), width, indent, "    ");
    }
}

fn table(out: &mut String, head: &[Line], rows: &[Vec<Line>], width: usize) {
    let mut table = comfy_table::Table::new();
    table
        .load_style(UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(u16::try_from(width).unwrap_or(u16::MAX))
        .force_no_tty();
    let cells = |row: &[Line]| row.iter().map(|cell| plain(cell)).collect::<Vec<_>>();
    table.set_header(cells(head));
    table.add_rows(rows.iter().map(|row| cells(row)));
    out.extend(table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::{CHAPTERS, document};

    #[test]
    fn when_a_chapter_is_for_a_terminal_then_words_are_bold_and_for_a_pipe_they_are_plain() {
        let text = "# Title\n\nIt is `one two` and **three**.\n\n- first\n- second item\n\n```\n$ code\n```\n\n| a | b |\n| --- | --- |\n| `x` | y |\n";
        let document = document::parse(text, |_| None);
        assert_eq!(
            render(&document, 20, false),
            "Title\n=====\n\nIt is `one two` and\nthree.\n\n- first\n- second item\n\n    $ code\n\n\
             ─────────\n a     b\n═════════\n `x`   y\n─────────\n"
        );
        let styled = render(&document, 20, true);
        assert!(styled.starts_with("\u{1b}[1mTitle\u{1b}[0m\n\nIt is \u{1b}[1mone\u{1b}[0m"), "{styled:?}");
    }

    #[test]
    fn when_a_table_has_long_words_then_it_is_shown_row_by_row() {
        let text = "| a | b | c |\n| --- | --- | --- |\n| `a_very_long_name_of_something` | | one two |\n| x | y | |\n";
        assert_eq!(
            render(&document::parse(text, |_| None), 12, false),
            "`a_very_long_name_of_something`\n    c: one\n    two\nx\n    b: y\n"
        );
    }

    #[test]
    fn when_a_chapter_is_shown_then_it_fits_the_terminal() {
        for chapter in CHAPTERS {
            let document = chapter.document(|other| format!("balancer help {}", other.name));
            let is_code = |line: &str| chapter.text.lines().any(|other| other.trim() == line.trim());
            for styled in [false, true] {
                for line in render(&document, 80, styled).lines() {
                    let fits = display_width(line) <= 80 || is_code(line);
                    assert!(fits, "{} (styled: {styled}): {line}", chapter.name);
                }
            }
        }
    }
}
