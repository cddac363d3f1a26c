//! Parses the Markdown of a chapter into a list of blocks; supports only the syntax that chapters use.

use std::mem;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// A chapter as a list of blocks.
pub type Document = Vec<Block>;

/// A text that consists of spans in different styles.
pub type Line = Vec<Span>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A heading with its level, where level 1 is the title of the chapter.
    Heading(u8, Line),
    Paragraph(Line),
    /// Lines that are shown without any formatting.
    Code(String),
    /// An item of a list, with the marker of the item: `-`, or a number and a dot.
    Item(String, Line),
    /// A table with the cells of the head, and with the rows.
    Table(Vec<Line>, Vec<Vec<Line>>),
}

/// A text in a single style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub style: Style,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// Text that users type, or a name in a program.
    Code,
    /// Strong or emphasised text.
    Strong,
}

/// Parses the Markdown of a chapter. `refer` returns the text, in brackets, that the parser adds to a link.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others are read one by one")]
pub fn parse(text: &str, refer: impl Fn(&str) -> Option<String>) -> Document {
    let mut reader = Reader::default();
    let mut links = Vec::new();
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. }) => links.push(refer(&dest_url)),
            Event::End(TagEnd::Link) => {
                if let Some(Some(reference)) = links.pop() {
                    reader.span(Style::Plain, &format!(" ({reference})"));
                }
            }
            event => reader.read(event),
        }
    }
    reader.document
}

#[derive(Default)]
struct Reader {
    document: Document,
    line: Line,
    strong: bool,
    /// Whether the parser is inside a picture's description. The parser skips this description, because it is for
    /// people who cannot see the picture.
    in_picture: bool,
    code: Option<String>,
    /// The number of the next item in each open list; `None` for a list without numbers.
    lists: Vec<Option<u64>>,
    marker: Option<String>,
    row: Vec<Line>,
    head: Vec<Line>,
    rows: Vec<Vec<Line>>,
}

impl Reader {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what else Markdown has, chapters do not use")]
    fn read(&mut self, event: Event<'_>) {
        match event {
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None => self.span(if self.strong { Style::Strong } else { Style::Plain }, &text),
            },
            Event::Code(text) => self.span(Style::Code, &text),
            Event::SoftBreak | Event::HardBreak => self.span(Style::Plain, " "),
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            _ => {}
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what else Markdown has, chapters do not use")]
    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Strong | Tag::Emphasis => self.strong = true,
            Tag::Image { .. } => self.in_picture = true,
            Tag::CodeBlock(_) => self.code = Some(String::new()),
            Tag::List(first) => {
                self.paragraph();
                self.lists.push(*first);
            }
            Tag::Item => {
                self.marker = Some(match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}.", *number - 1)
                    }
                    _ => "-".to_owned(),
                });
            }
            _ => {}
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what else Markdown has, chapters do not use")]
    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Strong | TagEnd::Emphasis => self.strong = false,
            TagEnd::Image => self.in_picture = false,
            TagEnd::Heading(level) => {
                let line = mem::take(&mut self.line);
                self.document.push(Block::Heading(number(level), line));
            }
            TagEnd::CodeBlock => {
                if let Some(code) = self.code.take() {
                    self.document.push(Block::Code(code));
                }
            }
            TagEnd::Paragraph | TagEnd::Item => self.paragraph(),
            TagEnd::List(_) => {
                self.lists.pop();
                self.marker = None;
            }
            TagEnd::TableCell => self.row.push(mem::take(&mut self.line)),
            TagEnd::TableHead => self.head = mem::take(&mut self.row),
            TagEnd::TableRow => self.rows.push(mem::take(&mut self.row)),
            TagEnd::Table => {
                let (head, rows) = (mem::take(&mut self.head), mem::take(&mut self.rows));
                self.document.push(Block::Table(head, rows));
            }
            _ => {}
        }
    }

    /// Ends the current paragraph or list item.
    fn paragraph(&mut self) {
        let line = mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        self.document.push(match self.marker.take() {
            Some(marker) => Block::Item(marker, line),
            None => Block::Paragraph(line),
        });
    }

    fn span(&mut self, style: Style, text: &str) {
        if self.in_picture {
            return;
        }
        match self.line.last_mut() {
            Some(last) if last.style == style => last.text.push_str(text),
            _ => self.line.push(Span { style, text: text.to_owned() }),
        }
    }
}

const fn number(level: HeadingLevel) -> u8 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        HeadingLevel::H3 | HeadingLevel::H4 | HeadingLevel::H5 | HeadingLevel::H6 => 3,
    }
}

/// Returns the text without styles, and with backticks around code.
#[must_use]
pub fn plain(line: &[Span]) -> String {
    line.iter()
        .map(|Span { style, text }| if *style == Style::Code { format!("`{text}`") } else { text.clone() })
        .collect()
}

/// Whether a table should be shown row by row, because its words are too long for columns.
#[must_use]
pub fn is_wide(head: &[Line], rows: &[Vec<Line>]) -> bool {
    const WORD: usize = 24;
    let is_long = |cell: &Line| plain(cell).split_whitespace().any(|word| word.chars().count() > WORD);
    head.len() > 2 && rows.iter().flatten().any(is_long)
}

/// Returns the cells of a row except for the first cell, each with the heading of its column.
pub fn details<'a>(head: &'a [Line], row: &'a [Line]) -> impl Iterator<Item = Line> {
    head.iter().zip(row).skip(1).filter(|(_, cell)| !cell.is_empty()).map(|(heading, cell)| {
        let colon = Span { style: Style::Plain, text: ": ".to_owned() };
        heading.iter().cloned().chain([colon]).chain(cell.iter().cloned()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::CHAPTERS;

    fn line(spans: &[(Style, &str)]) -> Line {
        spans.iter().map(|&(style, text)| Span { style, text: text.to_owned() }).collect()
    }

    #[test]
    fn when_a_chapter_is_parsed_then_blocks_and_styles_are_found() {
        let text = "# A `b`\n\nOne **two**\nthree [four](five.md).\n\n![no](x.png)\n\n1. x\n2. y\n   z\n\n- u\n\n```sh\n$ a\n```\n\n\
                    | h | i |\n| --- | --- |\n| `a\\|b` | |\n";
        let document = parse(text, |target| (target == "five.md").then(|| "see 5".to_owned()));
        let plain = |text| line(&[(Style::Plain, text)]);
        assert_eq!(
            document,
            [
                Block::Heading(1, line(&[(Style::Plain, "A "), (Style::Code, "b")])),
                Block::Paragraph(line(&[
                    (Style::Plain, "One "),
                    (Style::Strong, "two"),
                    (Style::Plain, " three four (see 5).")
                ])),
                Block::Item("1.".to_owned(), plain("x")),
                Block::Item("2.".to_owned(), plain("y z")),
                Block::Item("-".to_owned(), plain("u")),
                Block::Code("$ a\n".to_owned()),
                Block::Table(vec![plain("h"), plain("i")], vec![vec![line(&[(Style::Code, "a|b")]), Vec::new()]]),
            ]
        );
    }

    /// The test checks that every chapter uses only syntax that the parser supports.
    #[test]
    #[expect(clippy::wildcard_enum_match_arm, reason = "only text counts")]
    fn when_a_chapter_is_parsed_then_no_word_is_lost() {
        let squeezed = |text: &str| text.split_whitespace().collect::<String>();
        for chapter in CHAPTERS {
            let mut pictures = 0;
            let mut written = String::new();
            for event in Parser::new_ext(chapter.text, Options::ENABLE_TABLES) {
                match event {
                    Event::Start(Tag::Image { .. }) => pictures += 1,
                    Event::End(TagEnd::Image) => pictures -= 1,
                    Event::Text(text) | Event::Code(text) if pictures == 0 => written += &squeezed(&text),
                    Event::Html(html) | Event::InlineHtml(html) => written += &squeezed(&html),
                    _ => {}
                }
            }
            let mut read = String::new();
            for block in parse(chapter.text, |_| None) {
                let lines = match block {
                    Block::Heading(_, line) | Block::Paragraph(line) | Block::Item(_, line) => vec![line],
                    Block::Code(code) => vec![vec![Span { style: Style::Code, text: code }]],
                    Block::Table(head, rows) => head.into_iter().chain(rows.into_iter().flatten()).collect(),
                };
                read.extend(lines.iter().flatten().map(|span| squeezed(&span.text)));
            }
            assert_eq!(read, written, "{}", chapter.name);
        }
    }
}
