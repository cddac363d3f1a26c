//! Formats results as a self-contained HTML page with tables and SVG pictures.

use std::fmt::Write as _;

use super::{
    cell::Cell,
    event::Event,
    row::{Front, Row},
    table::percent,
};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px}\
th,td{padding:.3rem .5rem;text-align:right;white-space:nowrap;border-bottom:1px solid #d5dae0}\
th:first-child,td:first-child{text-align:left}thead th{vertical-align:bottom;font-weight:600}\
.all{background:#d9f2e0}.most{background:#fdf3c8}.some{background:#fbdcc4}.none{background:#f6c4c4}\
svg text{font:12px system-ui,sans-serif;fill:currentColor}svg rect{fill:#3b6fb6}\
@media(prefers-color-scheme:dark){body{background:#14181d;color:#e3e7ec}th,td{border-color:#39424d}\
.all{background:#1d4a2c}.most{background:#574c17}.some{background:#5c3a1c}.none{background:#5c2323}svg rect{fill:#6f9fe0}}";

/// Formats the results as an HTML page.
#[must_use]
pub(crate) fn html(cells: &[Cell]) -> String {
    let behind =
        |wanted: fn(Front) -> bool| -> Vec<&Cell> { cells.iter().filter(|cell| wanted(cell.row.front)).collect() };
    let sticky = behind(Front::remembers);
    let spread = behind(|front| front == Front::Spread);
    let classics = behind(|front| !front.is_balancer());
    let mut body = String::new();
    section(&mut body, "Sessions that survive, behind the balancer with memory", &sticky);
    section(&mut body, "The same without stickiness: a rule spread for everybody", &spread);
    section(&mut body, "The same servers behind the classics", &classics);
    let quiet: Vec<&Cell> = sticky.iter().copied().filter(|cell| cell.event == Event::Nothing).collect();
    let inner = |cell: &&Cell| (cell.row.title(), cell.per_request(cell.inner.servers + cell.inner.store));
    picture(
        &mut body,
        "Bytes behind the servers for each request, while nothing happens",
        "B",
        quiet.iter().map(inner),
    );
    picture(
        &mut body,
        "Latency of 99 of 100 requests, while nothing happens",
        "ms",
        quiet.iter().map(|cell| (cell.row.title(), cell.latency_ms.p99)),
    );
    details(&mut body, cells);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Sessions</title><style>{STYLE}</style></head>\n<body><h1>Which way of keeping \
         sessions survives what</h1>\n<p>In each cell: of the sessions of all clients, how many went on with every answer. \
         Hover for more.</p>\n{body}</body></html>\n"
    )
}

/// Writing to a string cannot fail, so this module drops the results of `write!`.
fn section(body: &mut String, title: &str, cells: &[&Cell]) {
    if cells.is_empty() {
        return;
    }
    let events: Vec<Event> =
        Event::ALL.into_iter().filter(|&event| cells.iter().any(|cell| cell.event == event)).collect();
    let mut rows: Vec<Row> = Vec::new();
    for cell in cells {
        if !rows.contains(&cell.row) {
            rows.push(cell.row);
        }
    }
    let _ = write!(body, "<h2>{}</h2><div class=\"scroll\"><table><thead><tr><th>sessions</th>", escaped(title));
    for event in &events {
        let _ = write!(body, "<th>{}</th>", escaped(event.title()).replace(' ', "<br>"));
    }
    *body += "</tr></thead><tbody>\n";
    for row in rows {
        let _ = write!(body, "<tr><td>{}</td>", escaped(&row.title()));
        for event in &events {
            let found = cells.iter().find(|cell| cell.row == row && cell.event == *event);
            *body += &found.map_or_else(|| "<td></td>".to_owned(), |cell| square(cell));
        }
        *body += "</tr>\n";
    }
    *body += "</tbody></table></div>\n";
}

fn square(cell: &Cell) -> String {
    let survived = cell.sessions().percent();
    let class = match survived {
        all if all >= 100.0 => "all",
        most if most >= 95.0 => "most",
        some if some >= 5.0 => "some",
        _ => "none",
    };
    let hint = format!(
        "own addresses {}, behind NAT {}; lost {}, stale {}; {} of {} requests failed",
        percent(cell.own.percent()),
        percent(cell.nat.percent()),
        cell.sessions().lost,
        cell.sessions().stale,
        cell.failed,
        cell.requests
    );
    format!("<td class=\"{class}\" title=\"{}\">{}</td>", escaped(&hint), percent(survived))
}

/// Draws a bar for each figure, whose length represents the figure.
fn picture(body: &mut String, title: &str, unit: &str, figures: impl Iterator<Item = (String, f64)>) {
    const LINE: usize = 22;
    const LEFT: f64 = 300.0;
    const WIDTH: f64 = 480.0;
    let figures: Vec<(String, f64)> = figures.collect();
    let most = figures.iter().map(|&(_, value)| value).fold(0.0, f64::max);
    if most <= 0.0 {
        return;
    }
    let height = LINE * figures.len();
    let _ = writeln!(
        body,
        "<h2>{title}</h2><div class=\"scroll\"><svg role=\"img\" aria-label=\"{title}\" width=\"880\" height=\"{height}\" \
         viewBox=\"0 0 880 {height}\">",
        title = escaped(title)
    );
    for (index, (name, value)) in figures.iter().enumerate() {
        let (top, width) = (LINE * index, value / most * WIDTH);
        let (text, end) = (top + 15, LEFT + width + 6.0);
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" \
             height=\"14\"/><text x=\"{end:.1}\" y=\"{text}\">{value:.0} {unit}</text>",
            LEFT - 8.0,
            escaped(name),
            top + 4
        );
    }
    *body += "</svg></div>\n";
}

fn details(body: &mut String, cells: &[Cell]) {
    const HEADS: [&str; 14] = [
        "sessions",
        "event",
        "survived",
        "own addresses",
        "behind NAT",
        "elsewhere",
        "lost",
        "stale",
        "failed requests",
        "p50 ms",
        "p99 ms",
        "moved, seen",
        "moved, counted",
        "B/request: servers, store",
    ];
    *body += "<h2>All figures</h2><p>“Elsewhere” are sessions that were not at the backend that the event concerns; “stale” \
              ones came back as they were some requests ago; a client address counts as moved each time that it comes from \
              one backend to another.</p><div class=\"scroll\"><table><thead><tr>";
    for head in HEADS {
        let _ = write!(body, "<th>{head}</th>");
    }
    *body += "</tr></thead><tbody>\n";
    for cell in cells {
        let sessions = cell.sessions();
        let counted = cell.moved_counted.map_or_else(|| "–".to_owned(), |moved| moved.to_string());
        let figures = [
            escaped(&cell.row.title()),
            cell.event.title().to_owned(),
            percent(sessions.percent()),
            percent(cell.own.percent()),
            percent(cell.nat.percent()),
            percent(cell.elsewhere.percent()),
            sessions.lost.to_string(),
            sessions.stale.to_string(),
            format!("{} of {}", cell.failed, cell.requests),
            format!("{:.1}", cell.latency_ms.p50),
            format!("{:.1}", cell.latency_ms.p99),
            cell.moved_seen.to_string(),
            counted,
            format!("{:.0}, {:.0}", cell.per_request(cell.inner.servers), cell.per_request(cell.inner.store)),
        ];
        let _ = writeln!(body, "<tr><td>{}</td></tr>", figures.join("</td><td>"));
    }
    *body += "</tbody></table></div>\n";
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{escaped, html};
    use crate::{
        cell::{Cell, Inner, Latency, Sessions, fixture},
        event::Event,
        row::{Front, Row},
        strategy::Strategy,
    };

    fn cell(strategy: Strategy, front: Front, event: Event, survived: u64) -> Cell {
        Cell {
            requests: 100,
            failed: 3,
            latency_ms: Latency { p50: 1.0, p99: 40.0 },
            moved_seen: 2,
            inner: Inner { servers: 0, store: 12_300 },
            ..fixture(Row { strategy, front }, event, Sessions { total: 10, survived, lost: 10 - survived, stale: 0 })
        }
    }

    #[test]
    fn when_a_page_is_made_then_each_figure_is_where_it_belongs() {
        let page = html(&[
            cell(Strategy::NodeRedis, Front::Sticky, Event::Nothing, 10),
            cell(Strategy::NodeMemory, Front::Sticky, Event::Kill, 7),
            cell(Strategy::NodeMemory, Front::NginxIpHash, Event::Add, 0),
        ]);
        for part in [">100%</td>", "class=\"some\"", ">70%</td>", "class=\"none\"", "123 B</text>", "nginx ip_hash"] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("without stickiness"), "a section without a row");
        assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
        assert_eq!(page.matches("<svg").count(), 2);
    }

    #[test]
    fn when_a_text_has_markup_then_it_is_escaped() {
        assert_eq!(escaped("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }
}
