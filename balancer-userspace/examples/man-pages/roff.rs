//! Formats a chapter as a manual page.

use std::fmt::Write as _;

use balancer::book::document::{Block, Line, Span, Style, details, is_wide, plain};

/// The first line of a manual page, which requests the preprocessor for tables.
pub(crate) const TABLES: &str = "'\\\" t\n";

/// The width of a table in characters, which is divided among the columns according to their contents.
const COLUMNS: usize = 72;
const NARROW: usize = 24;

/// Formats the beginning of a manual page.
pub(crate) fn title(name: &str, section: u8, about: &str) -> String {
    let name = escaped(name);
    let about = escaped(about);
    // Hyphenation and justification are off, because titles and code must stay unchanged.
    format!("{TABLES}.TH \"{name}\" {section}\n.nh\n.ad l\n.SH NAME\n{name} \\- {about}\n.SH DESCRIPTION\n")
}

/// Formats a section of plain text.
pub(crate) fn section(heading: &str, text: &str) -> String {
    format!(".SH {}\n{}\n", escaped(&heading.to_uppercase()), escaped(text))
}

/// Formats the blocks of a chapter.
pub(crate) fn body(blocks: &[Block]) -> String {
    let mut page = String::new();
    for block in blocks {
        // Writing to a string cannot fail.
        let _ = match block {
            Block::Heading(1 | 2, line) => writeln!(page, ".SH {}", escaped(&plain(line).to_uppercase())),
            Block::Heading(_, line) => writeln!(page, ".SS {}", escaped(&plain(line))),
            Block::Paragraph(line) => writeln!(page, ".PP\n{}", text(line)),
            Block::Item(marker, line) if marker == "-" => writeln!(page, ".IP \\(bu 2\n{}", text(line)),
            Block::Item(marker, line) => writeln!(page, ".IP {marker} 4\n{}", text(line)),
            Block::Code(code) => {
                let lines: String = code.lines().map(|line| format!("{}\n", at_start(&escaped(line)))).collect();
                writeln!(page, ".PP\n.RS 4\n.EX\n{lines}.EE\n.RE")
            }
            Block::Table(head, rows) if is_wide(head, rows) => {
                rows.iter().try_for_each(|row| writeln!(page, "{}", entry(head, row)))
            }
            Block::Table(head, rows) => writeln!(page, "{}", table(head, rows)),
        };
    }
    page
}

fn entry(head: &[Line], row: &[Line]) -> String {
    let name = row.first().map(|cell| text(cell)).unwrap_or_default();
    let cells: Vec<_> = details(head, row).map(|cell| text(&cell)).collect();
    format!(".TP\n{name}\n{}", cells.join("\n.br\n"))
}

fn table(head: &[Line], rows: &[Vec<Line>]) -> String {
    let width = |column: usize| {
        let cells = std::iter::once(head).chain(rows.iter().map(Vec::as_slice)).filter_map(|row| row.get(column));
        cells.map(|cell| plain(cell).chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let all_fit = widths.iter().sum::<usize>() + 3 * widths.len() <= COLUMNS;
    let columns: Vec<_> = widths.iter().map(|&width| if all_fit || width <= NARROW { "l" } else { "lx" }).collect();
    // Each cell of the row is a text block, which may have several lines.
    let row =
        |cells: &[Line]| cells.iter().map(|cell| format!("T{{\n{}\nT}}", text(cell))).collect::<Vec<_>>().join("\t");
    let body = rows.iter().map(|cells| format!("{}\n", row(cells))).collect::<Vec<_>>().join("_\n");
    format!(".PP\n.TS\n{}.\n{}\n=\n{body}.TE", columns.join(" "), row(head))
}

fn text(line: &[Span]) -> String {
    let spans = line.iter().map(|Span { style, text }| match style {
        Style::Plain => escaped(text),
        Style::Code | Style::Strong => format!("\\fB{}\\fR", escaped(text)),
    });
    at_start(&spans.collect::<String>())
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('^', "\\(ha")
        .replace('~', "\\(ti")
        .replace('`', "\\(ga")
}

/// Escapes a dot at the start of a line, because roff would take the line as a request.
fn at_start(line: &str) -> String {
    if line.starts_with('.') { format!("\\&{line}") } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use balancer::book::document::parse;

    use super::*;

    #[test]
    fn when_blocks_are_formatted_then_they_become_requests() {
        let text = "## A b\n\nOne `-x` it's.\n\n- item\n\n```\n.dot \\n\n```\n\n| h | i |\n| --- | --- |\n| a | b |\n| c | |\n";
        assert_eq!(
            body(&parse(text, |_| None)),
            ".SH A B\n.PP\nOne \\fB\\-x\\fR it\\(aqs.\n.IP \\(bu 2\nitem\n.PP\n.RS 4\n.EX\n\\&.dot \\en\n.EE\n.RE\n\
             .PP\n.TS\nl l.\nT{\nh\nT}\tT{\ni\nT}\n=\nT{\na\nT}\tT{\nb\nT}\n_\nT{\nc\nT}\tT{\n\nT}\n.TE\n"
        );
    }
}
