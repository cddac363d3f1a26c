//! The live view of `--watch`: a text that is drawn again every second, over the previous contents of the terminal.

use std::time::Duration;

use terminal_size::{Height, Width, terminal_size};

use super::{Failure, output};

pub(super) const REDRAW: Duration = Duration::from_secs(1);
/// The size of a terminal that does not tell its size, in columns and lines.
const USUAL: (u16, u16) = (80, 24);
/// The ANSI sequences to erase the screen, to move the cursor home, to erase the rest of the line, and to erase
/// everything below.
const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
const END_OF_LINE: &str = "\x1b[K";
const BELOW: &str = "\x1b[J";

/// Updates the screen until interrupted, even while the controller is absent. `ask` returns the text to show.
pub(super) async fn show(ask: impl AsyncFn() -> Result<String, Failure>) -> Result<(), Failure> {
    let mut text = ask().await?;
    let mut trouble = None;
    output::print(CLEAR)?;
    loop {
        let (columns, rows) = terminal_size().map_or(USUAL, |(Width(columns), Height(rows))| (columns, rows));
        output::print(&screen(&text, trouble.as_deref(), columns.into(), rows.into()))?;
        tokio::time::sleep(REDRAW).await;
        match ask().await {
            Ok(now) => (text, trouble) = (now, None),
            Err(error) => trouble = Some(error.to_string()),
        }
    }
}

/// Returns the beginning of `text` that fits a terminal of this size, for drawing over the previous contents. The last
/// line shows `trouble`, which is therefore always visible.
fn screen(text: &str, trouble: Option<&str>, columns: usize, rows: usize) -> String {
    // The last line stays free, because the cursor is there.
    let rows = rows.saturating_sub(1);
    let lines: Vec<&str> = text.lines().collect();
    let fits = lines.len() + usize::from(trouble.is_some()) <= rows;
    let shown = if fits { lines.len() } else { rows.saturating_sub(1 + usize::from(trouble.is_some())) };
    let more = format!("… {} more lines; a larger terminal shows them", lines.len() - shown);
    let all = lines[..shown].iter().copied().chain((!fits).then_some(more.as_str())).chain(trouble);
    let cut: String = all.map(|line| line.chars().take(columns).collect::<String>() + END_OF_LINE + "\n").collect();
    format!("{HOME}{cut}{BELOW}")
}

#[cfg(test)]
mod tests {
    use super::screen;

    fn lines(text: &str, trouble: Option<&str>, columns: usize, rows: usize) -> Vec<String> {
        let screen = screen(text, trouble, columns, rows);
        let lines = screen.strip_prefix("\x1b[H").and_then(|screen| screen.strip_suffix("\x1b[J")).unwrap();
        lines.lines().map(|line| line.strip_suffix("\x1b[K").unwrap().to_owned()).collect()
    }

    #[test]
    fn when_a_text_is_larger_than_the_terminal_then_it_is_cut() {
        let text = "one\ntwo and more\nthree\n";
        assert_eq!(lines(text, None, 7, 4), ["one", "two and", "three"]);
        assert_eq!(lines(text, None, 80, 3), ["one", "… 2 more lines; a larger terminal shows them"]);
        assert_eq!(lines(text, Some("gone"), 80, 5), ["one", "two and more", "three", "gone"]);
        assert_eq!(lines(text, Some("gone"), 12, 4), ["one", "… 2 more lin", "gone"]);
        for rows in 3..8 {
            assert!(lines(text, Some("gone"), 80, rows).len() < rows);
        }
    }
}
