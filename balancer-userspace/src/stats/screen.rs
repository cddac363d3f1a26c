//! The contents of the live view, for terminals of at least 80 × 24 characters.

use balancer_api::statistics::{BackendShare, StatsView};
use balancer_config::{states::BackendState, words::grouped};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Sparkline},
};

use super::{causes, name, ratio, share};

/// The number of seconds for which the view keeps connection rates, enough for a wide terminal.
pub(super) const SECONDS: usize = 240;
/// The width of a bar, in columns.
const BAR: usize = 30;

/// The data that the screen shows.
pub(super) struct Screen<'a> {
    /// The figures of the service that is shown; `None` if there is no service.
    pub(super) stats: Option<&'a StatsView>,
    /// The index of the service that is shown, and the number of services.
    pub(super) place: (usize, usize),
    /// The number of new connections in each of the last seconds.
    pub(super) rates: Vec<u64>,
    /// The reason why the figures are out of date, if they are.
    pub(super) trouble: Option<String>,
}

pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen<'_>) {
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(5),
        Constraint::Min(4),
        Constraint::Length(6),
        Constraint::Length(2),
    ]);
    let [head, periods, rates, shares, top, foot] = areas.areas(frame.area());
    let Some(stats) = screen.stats else {
        frame.render_widget(Paragraph::new("no services"), head);
        return;
    };
    frame.render_widget(Paragraph::new(headline(stats, screen.place)), head);
    frame.render_widget(Paragraph::new(period_lines(stats)), periods);
    draw_rates(frame, rates, &screen.rates);
    draw_shares(frame, shares, stats);
    frame.render_widget(Paragraph::new(top_lines(stats)).block(titled("Heaviest clients, by bytes")), top);
    frame.render_widget(Paragraph::new(foot_lines(stats, screen)), foot);
}

fn titled(title: &str) -> Block<'_> {
    Block::default().borders(Borders::TOP).title(title)
}

fn bold(text: String) -> Span<'static> {
    Span::styled(text, Style::default().add_modifier(Modifier::BOLD))
}

fn headline(stats: &StatsView, (place, of): (usize, usize)) -> Line<'static> {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    let place = if of > 1 { format!(" ({}/{of}, Tab)", place + 1) } else { String::new() };
    Line::from(vec![
        bold(format!("{}{place}{}", stats.service, if stats.watched { " (watched)" } else { "" })),
        Span::raw(format!(
            "  stickiness {}  imbalance {}  Gini {}  generation {}",
            ratio(stats.stickiness_ratio),
            number(stats.imbalance_ratio),
            number(stats.client_gini),
            stats.table.generation,
        )),
    ])
}

fn period_lines(stats: &StatsView) -> Vec<Line<'static>> {
    let head = bold(format!("{:<20}{:>10}{:>12}{:>8}{:>8}  MOVES", "", "STICKINESS", "CONNECTIONS", "NEW", "MOVED"));
    let rows = stats.periods.iter().map(|period| {
        let count = |decision: &str| grouped(period.decisions.get(decision).copied().unwrap_or(0));
        Line::raw(format!(
            "{:<20}{:>10}{:>12}{:>8}{:>8}  {}",
            name(period),
            ratio(period.stickiness_ratio),
            grouped(period.connections),
            count("new"),
            count("moved"),
            causes(period),
        ))
    });
    std::iter::once(Line::from(head)).chain(rows).collect()
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, rates: &[u64]) {
    let now = rates.last().copied().unwrap_or(0);
    let highest = rates.iter().copied().max().unwrap_or(0);
    let title = format!("Connections/s: {}, at most {}", grouped(now), grouped(highest));
    let shown = rates.get(rates.len().saturating_sub(usize::from(area.width))..).unwrap_or_default();
    let sparkline = Sparkline::default().block(titled(&title)).data(shown).style(Style::default().fg(Color::Cyan));
    frame.render_widget(sparkline, area);
}

fn draw_shares(frame: &mut Frame<'_>, area: Rect, stats: &StatsView) {
    let room = usize::from(area.height).saturating_sub(1);
    let more = stats.backends.len() > room;
    let shown = if more { room.saturating_sub(1) } else { room };
    let most = stats.backends.iter().flat_map(|b| [b.share, b.expected_share]).flatten().fold(0.0, f64::max);
    let mut lines: Vec<Line<'static>> =
        stats.backends.iter().take(shown).map(|backend| share_line(backend, most)).collect();
    if more {
        lines.push(Line::raw(format!("… {} more", stats.backends.len() - shown)));
    }
    frame.render_widget(Paragraph::new(lines).block(titled("Shares of clients, │ expected")), area);
}

fn share_line(backend: &BackendShare, most: f64) -> Line<'static> {
    let columns = |share: Option<f64>| {
        share.filter(|_| most > 0.0).map(|share| (share / most * (BAR - 1) as f64).round() as usize)
    };
    let (filled, mark) = (columns(backend.share).unwrap_or(0), columns(backend.expected_share));
    let bar: String = (0..BAR)
        .map(|column| match (Some(column) == mark, column < filled) {
            (true, _) => '│',
            (false, true) => '█',
            (false, false) => ' ',
        })
        .collect();
    let color = if backend.state == BackendState::Up.word() { Color::Green } else { Color::Yellow };
    Line::from(vec![
        Span::raw(format!("{:<14.14} {:<16.16} ", backend.name, backend.state)),
        Span::styled(bar, Style::default().fg(color)),
        Span::raw(format!(" {:>6}/{:>6}", share(backend.share), share(backend.expected_share))),
    ])
}

fn top_lines(stats: &StatsView) -> Vec<Line<'static>> {
    if stats.top_clients.is_empty() {
        return vec![Line::raw("none sampled in about the last minute")];
    }
    let rows = stats.top_clients.iter().map(|client| {
        Line::raw(format!(
            "{:<26.26} {:>6} {:>13} B/s {:>9} p/s  {}",
            client.client,
            share(Some(client.share)),
            grouped(client.bytes_per_second.round() as u64),
            grouped(client.packets_per_second.round() as u64),
            client.backend.as_deref().unwrap_or("-"),
        ))
    });
    rows.collect()
}

fn foot_lines(stats: &StatsView, screen: &Screen<'_>) -> Vec<Line<'static>> {
    let change = stats
        .table
        .last_change
        .as_ref()
        .map(|change| Line::raw(format!("{} s ago: {}", grouped(change.seconds_ago), change.message)));
    let warning =
        stats.warnings.first().map(|warning| Line::styled(warning.clone(), Style::default().fg(Color::Yellow)));
    let trouble = screen.trouble.as_ref().map(|trouble| Line::styled(trouble.clone(), Style::default().fg(Color::Red)));
    vec![trouble.or(warning).or(change).unwrap_or_default(), Line::raw("q quits")]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use balancer_api::statistics::{ChangeView, PeriodView, TableView, TopClient};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn stats() -> StatsView {
        let period = |period: &str, seconds, kept: u64, moved: u64| PeriodView {
            period: period.to_owned(),
            seconds,
            stickiness_ratio: Some(kept as f64 / (kept + moved) as f64),
            connections: kept + moved + 7,
            decisions: BTreeMap::from([("kept".to_owned(), kept), ("moved".to_owned(), moved), ("new".to_owned(), 7)]),
            moves: BTreeMap::from([("down".to_owned(), moved), ("drain".to_owned(), 0)]),
        };
        let backend = |name: &str, state: &str, share, expected_share| BackendShare {
            name: name.to_owned(),
            state: state.to_owned(),
            share,
            expected_share,
            known_clients: 10,
            connections: 100,
        };
        let client = |address: &str, share: f64| TopClient {
            client: address.to_owned(),
            service: "web".to_owned(),
            backend: Some("web1".to_owned()),
            share,
            packets_per_second: 1234.5,
            bytes_per_second: 1_234_567.8,
            known: true,
        };
        StatsView {
            service: "web".to_owned(),
            steer: 100,
            watched: false,
            stickiness_ratio: Some(0.9987),
            imbalance_ratio: Some(1.2),
            client_gini: Some(0.61),
            periods: vec![
                period("minute", Some(60), 990, 10),
                period("hour", Some(3601), 99_000, 1000),
                period("start", None, 1_000_000, 1300),
            ],
            backends: vec![
                backend("web1", "up", Some(0.4), Some(1.0 / 3.0)),
                backend("web2", "up", Some(0.35), Some(1.0 / 3.0)),
                backend("web3", "up", Some(0.25), Some(1.0 / 3.0)),
                backend("a-backend-with-a-long-name", "draining (health)", Some(0.0), Some(0.0)),
                backend("web5", "down", None, None),
                backend("web6", "maint", None, None),
            ],
            top_clients: vec![client("203.0.113.7/32", 0.6), client("2001:db8:1:2:3:4:5:6/128", 0.011)],
            table: TableView {
                size: 65_537,
                generation: 12,
                last_change: Some(ChangeView {
                    message: "backend web/web5 down (connect: refused), 13,107 of 65,537 slots moved to 4 backends"
                        .into(),
                    slots_moved: 13_107,
                    needless_slots_moved: 0,
                    seconds_ago: 42,
                }),
            },
            warnings: Vec::new(),
        }
    }

    fn drawn(screen: &Screen<'_>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(80);
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn when_the_terminal_has_80_by_24_then_the_view_fits() {
        let stats = stats();
        let rates: Vec<u64> = (0..100).map(|second| second % 50 * 10).collect();
        let screen = Screen { stats: Some(&stats), place: (0, 2), rates, trouble: None };
        let text = drawn(&screen);
        println!("{text}");
        assert_eq!(text, include_str!("screen_80x24.txt"));
    }

    #[test]
    fn when_the_controller_is_away_then_the_view_says_so_and_without_services_it_does_not() {
        let stats = stats();
        let trouble = Some("no controller reachable".to_owned());
        let text = drawn(&Screen { stats: Some(&stats), place: (0, 1), rates: Vec::new(), trouble });
        assert!(text.contains("no controller reachable") && text.contains("web3"), "{text}");
        let none = Screen { stats: None, place: (0, 0), rates: Vec::new(), trouble: None };
        assert!(drawn(&none).starts_with("no services"));
        // Drawing must not panic on a terminal that is too small.
        let mut terminal = Terminal::new(TestBackend::new(20, 5)).unwrap();
        terminal
            .draw(|frame| draw(frame, &Screen { stats: Some(&stats), place: (0, 1), rates: vec![1], trouble: None }))
            .unwrap();
    }
}
