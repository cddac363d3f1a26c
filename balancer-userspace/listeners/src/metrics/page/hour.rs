//! A chart of a service's last hour, or of a shorter time if the service was observed for less than an hour. Above one
//! time axis, the chart shows the backends' shares as a stacked band, the events, and the known clients that moved.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use balancer_api::events::EventView;
use balancer_config::words::{counted, grouped};
use balancer_control::{
    shares::{Load, Minute},
    snapshot::ServiceSnapshot,
};
use maud::{Markup, html};

use super::{
    chart::{Axis, HEIGHT, Stretch, named_bars, picture, stretches_of},
    colours::Colours,
};

/// If more than this time lies between two samples, the chart starts the later minute one minute before its sample,
/// because the shares in the gap are unknown.
const LATE: Duration = Duration::from_secs(90);
const MINUTE: Duration = Duration::from_secs(60);
/// The maximum number of events that the chart names as causes of moves.
const NAMED: usize = 3;
/// The gap between the areas of two backends, in units of the band's [`HEIGHT`].
const GAP: f64 = 0.6;

/// Draws the band, the events of the service up to `now`, the moves, and the axis.
pub(super) fn hour(service: &ServiceSnapshot, colours: &Colours<'_>, events: &[EventView], now: SystemTime) -> Markup {
    let axis = Axis::of(service);
    let columns = columns(service, colours, &axis);
    let moves = stretches_of(service, &axis);
    let marks = marks(service, events, now, &axis);
    html! {
        figure {
            figcaption { "Shares of " (load_words(service.load_kind())) " over the last " (axis.words()) }
            (picture("band", &html! {
                @for place in 0..colours.count() {
                    @let path = path(&columns, place, &axis);
                    @if !path.is_empty() { path.(colours.class(place)) d=(path) {} }
                }
                @for (ago, event) in &marks {
                    @let x = format!("{:.1}", axis.x(*ago));
                    line.event x1=(x) x2=(x) y1="0" y2=(HEIGHT) vector-effect="non-scaling-stroke" {
                        title { (event.time) " " (event.message) }
                    }
                }
            }))
            (ticks(&axis))
            @if service.remembers { (moved(&moves, &axis, &marks)) }
        }
    }
}

pub(super) const fn load_words(load: Load) -> &'static str {
    match load {
        Load::Clients => "known clients",
        Load::Connections => "connections",
    }
}

fn ticks(axis: &Axis) -> Markup {
    html! {
        div.axis aria-hidden="true" {
            @for tick in axis.ticks() { span { (tick) } }
            span { "now" }
        }
    }
}

fn moved(moves: &[Stretch], axis: &Axis, marks: &[(Duration, &EventView)]) -> Markup {
    let of = |stretch: &Stretch| stretch.counted.moves.iter().sum::<u64>();
    let all: u64 = moves.iter().map(of).sum();
    let step = if axis.is_short() { "ten seconds" } else { "a minute" };
    let named = |stretch: &Stretch| event_of(stretch, marks).map(|event| event.message.clone());
    html! {
        figcaption {
            @if all == 0 { "No known client moved in the last " (axis.words()) } @else {
                (counted(all as usize, "known client")) " moved in the last " (axis.words()) ", at most "
                (grouped(moves.iter().map(of).max().unwrap_or(0))) " in " (step)
            }
        }
        @if all > 0 { div.moves { (named_bars(axis, moves, |stretch| of(stretch) as f64, named)) } }
        @for (event, clients) in by_event(moves, marks, of) {
            p.quiet { (grouped(clients)) " after " (event.time) ": " (event.message) }
        }
    }
}

/// The event to which the chart attributes the moves in a time span: the last event before the end of the span.
fn event_of<'a>(stretch: &Stretch, marks: &[(Duration, &'a EventView)]) -> Option<&'a EventView> {
    let end = stretch.ago.saturating_sub(stretch.length);
    let before = marks.iter().filter(|(ago, _)| *ago >= end);
    before.min_by_key(|(ago, _)| *ago).map(|(_, event)| *event)
}

/// The number of clients that moved after each event, latest events first.
fn by_event<'a>(
    moves: &[Stretch],
    marks: &[(Duration, &'a EventView)],
    of: impl Fn(&Stretch) -> u64,
) -> Vec<(&'a EventView, u64)> {
    let mut named: Vec<(&EventView, u64)> = Vec::new();
    for stretch in moves.iter().rev().filter(|stretch| of(stretch) > 0) {
        let Some(event) = event_of(stretch, marks) else { continue };
        match named.iter_mut().find(|(known, _)| known.sequence == event.sequence) {
            Some((_, clients)) => *clients += of(stretch),
            None => named.push((event, of(stretch))),
        }
    }
    named.truncate(NAMED);
    named
}

/// A column of the band, which represents a minute.
#[derive(Debug, PartialEq)]
struct Column {
    /// The start of the column, as a duration before the present. The field `to` contains the end of the column.
    from: Duration,
    to: Duration,
    /// The upper edge of each colour's area, 0 to 1, by the index of the colour.
    ends: Vec<f64>,
}

fn columns(service: &ServiceSnapshot, colours: &Colours<'_>, axis: &Axis) -> Vec<Column> {
    let statistics = &service.statistics;
    let ago = |at: Duration| statistics.now.saturating_sub(at);
    let mut before: Option<&Minute> = None;
    let mut columns = Vec::new();
    for minute in statistics.shares.minutes() {
        let began =
            before.replace(minute).map(|before| before.at).filter(|&began| minute.at.saturating_sub(began) < LATE);
        let from = ago(began.unwrap_or(minute.at.saturating_sub(MINUTE)));
        columns.extend(column(colours, from, ago(minute.at), minute.shares()));
    }
    // If the load is known clients, the last column shows the current numbers of known clients. If the load is
    // connections per minute, there is no such column, because the current minute is not over.
    if let (Load::Clients, Some(last)) = (service.load_kind(), before) {
        let shares = service.backends.iter().zip(service.shares());
        let shares = shares.filter_map(|(backend, (share, _))| Some((backend.name.as_str(), share?)));
        columns.extend(column(colours, ago(last.at), Duration::ZERO, shares));
    }
    columns.retain(|column| column.to < axis.span());
    columns
}

/// Makes a column from the load of each backend; `None` if the service had no load.
fn column<'a>(
    colours: &Colours<'_>,
    from: Duration,
    to: Duration,
    shares: impl Iterator<Item = (&'a str, f64)>,
) -> Option<Column> {
    let mut ends = vec![0.0; colours.count()];
    for (name, share) in shares {
        if let Some(part) = ends.get_mut(colours.place(name)) {
            *part += share;
        }
    }
    let mut sum = 0.0;
    for end in &mut ends {
        sum += *end;
        *end = sum;
    }
    (sum > 0.0).then_some(Column { from, to, ends })
}

/// The SVG path of one colour, with a rectangle for each series of minutes with equal edges.
fn path(columns: &[Column], place: usize, axis: &Axis) -> String {
    let mut path = String::new();
    let mut open: Option<(f64, f64, [String; 2])> = None;
    let mut close = |rectangle: Option<(f64, f64, [String; 2])>| {
        if let Some((left, right, [top, bottom])) = rectangle.filter(|(_, _, [top, bottom])| top != bottom) {
            // Writing to a string cannot fail.
            let _ = write!(path, "M{left:.1} {top}H{right:.1}V{bottom}H{left:.1}z");
        }
    };
    for column in columns {
        let end = |place: usize| column.ends.get(place).copied().unwrap_or(0.0) * HEIGHT;
        let (top, bottom) = (place.checked_sub(1).map_or(0.0, end), end(place));
        // The gap reduces the height of a colour's area, unless the area would disappear.
        let bottom = if bottom - top > 2.0 * GAP { bottom - GAP } else { bottom };
        let sides = [top, bottom].map(|y| format!("{y:.1}"));
        let (left, right) = (axis.x(column.from).max(0.0), axis.x(column.to));
        open = match open.take() {
            Some((from, to, same)) if same == sides && (left - to).abs() < 0.05 => Some((from, right, same)),
            other => {
                close(other);
                Some((left, right, sides))
            }
        };
    }
    close(open);
    path
}

/// The events about the service's backends within the time span of an axis, each with its age.
fn marks<'a>(
    service: &'a ServiceSnapshot,
    events: &'a [EventView],
    now: SystemTime,
    axis: &Axis,
) -> Vec<(Duration, &'a EventView)> {
    let own = events.iter().filter(|event| event.backend.is_some() && event.service.as_ref() == Some(&service.name));
    let marks = own.filter_map(|event| {
        let at = humantime::parse_rfc3339(&event.time).ok()?;
        // If the wall clock was set back, the chart shows future events at the present time.
        let ago = now.duration_since(at).unwrap_or_default();
        (ago <= axis.span()).then_some((ago, event))
    });
    marks.collect()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::UNIX_EPOCH};

    use balancer_common::verdict::MoveCause;
    use balancer_control::{
        history::{Counted, History},
        shares::ShareHistory,
    };

    use super::*;
    use crate::metrics::render_test::snapshot;

    const SECOND: Duration = Duration::from_secs(1);

    /// Makes a service that remembers clients, `now` seconds after the machine's start; web1 and web2 know 60 and 20
    /// clients now, and `past` gives their numbers of known clients at earlier times.
    fn service(now: u64, past: &[(u64, u64, u64)]) -> ServiceSnapshot {
        let mut service = snapshot().services.remove(0);
        service.remembers = true;
        service.backends.truncate(2);
        (service.backends[0].known_clients, service.backends[1].known_clients) = (60, 20);
        let mut shares = ShareHistory::default();
        for &(at, web1, web2) in past {
            assert!(shares.keep(SECOND * at as u32, Load::Clients, &[("web1", web1), ("web2", web2)]));
        }
        service.statistics.shares = Arc::new(shares);
        service.statistics.now = SECOND * now as u32;
        let mut history = History::default();
        if let Some(long_ago) = now.checked_sub(3600) {
            history.keep(SECOND * long_ago as u32, service.counted());
        }
        service.statistics.history = Arc::new(history);
        service
    }

    fn drawn(service: &ServiceSnapshot, events: &[EventView]) -> String {
        hour(service, &Colours::of(service), events, UNIX_EPOCH + SECOND * 10_000).into_string()
    }

    #[test]
    fn when_minutes_are_equal_then_they_are_one_rectangle() {
        let text = drawn(&service(3630, &[(3480, 3, 1), (3540, 3, 1), (3600, 1, 1)]), &[]);
        // The values begin 210 s ago, and a pixel is six seconds wide: equal shares until 90 s ago, one half until 30 s
        // ago, and then the current values.
        let (first, second) = ("M565.0 0.0H585.0V74.4H565.0z", "M565.0 75.0H585.0V99.4H565.0z");
        assert!(
            text.contains(&format!("<path class=\"c0\" d=\"{first}M585.0 0.0H595.0V49.4H585.0zM595.0 0.0")),
            "{text}"
        );
        assert!(text.contains(&format!("<path class=\"c1\" d=\"{second}")), "{text}");
        assert!(text.contains("Shares of known clients over the last hour"), "{text}");
    }

    #[test]
    fn when_a_time_is_not_known_then_it_is_left_empty() {
        // No samples exist between 100 s and 3,000 s; the chart ignores samples that are older than an hour.
        let mut past = service(3700, &[(50, 1, 0), (110, 1, 0), (3600, 1, 0)]);
        past.backends.clear();
        let colours = Colours::of(&past);
        let axis = Axis::of(&past);
        let columns = columns(&past, &colours, &axis);
        let times: Vec<_> = columns.iter().map(|column| (column.from.as_secs(), column.to.as_secs())).collect();
        assert_eq!(times, [(3650, 3590), (160, 100)]);
        let drawn_path = path(&columns, 0, &axis);
        assert!(drawn_path.starts_with("M0.0 0.0H1.7V"), "{drawn_path}");
        assert_eq!(drawn(&service(10, &[]), &[]).matches("<path").count(), 0);
    }

    #[test]
    fn when_this_minute_is_not_over_then_its_connections_are_not_drawn() {
        let mut shares = ShareHistory::default();
        for (at, web1) in [(60, 0), (120, 0), (180, 9)] {
            shares.keep(SECOND * at, Load::Connections, &[("web1", web1), ("web2", 0)]);
        }
        let mut service = service(190, &[]);
        service.remembers = false;
        service.statistics.shares = Arc::new(shares);
        let columns = columns(&service, &Colours::of(&service), &Axis::of(&service));
        assert_eq!(columns, [Column { from: SECOND * 70, to: SECOND * 10, ends: vec![1.0, 1.0] }]);
        assert!(drawn(&service, &[]).contains("Shares of connections over the last 4 minutes"));
    }

    fn event(time: &str, service: &str, backend: Option<&str>) -> EventView {
        EventView {
            sequence: 1,
            time: time.to_owned(),
            level: "info".to_owned(),
            kind: "state".to_owned(),
            service: Some(service.to_owned()),
            backend: backend.map(str::to_owned),
            message: format!("<{service}> {backend:?} at {time}"),
            member: None,
            uid: None,
            moves: None,
        }
    }

    #[test]
    fn when_backends_have_events_then_they_are_marked_at_their_time() {
        // The time of the snapshot is 02:46:40.
        let events = [
            event("1970-01-01T01:46:30.000Z", "web", Some("web1")),
            event("1970-01-01T02:16:40.000Z", "web", Some("web1")),
            event("1970-01-01T02:26:40.000Z", "other", Some("web1")),
            event("1970-01-01T02:26:40.000Z", "web", None),
            event("1970-01-01T02:47:00.000Z", "web", Some("web2")),
            event("yesterday", "web", Some("web2")),
        ];
        let text = drawn(&service(3700, &[(3600, 1, 1)]), &events);
        assert_eq!(text.matches("class=\"event\"").count(), 2, "{text}");
        assert!(text.contains("x1=\"300.0\" x2=\"300.0\"") && text.contains("x1=\"600.0\""), "{text}");
        assert!(
            text.contains("&lt;web&gt; Some(\"web1\") at 1970") || text.contains("&lt;web&gt; Some(&quot;web1"),
            "{text}"
        );
    }

    #[test]
    fn when_a_service_is_young_then_the_picture_begins_with_what_there_is() {
        for (age, words, ticks) in [
            (20, "minute", ["−60 s", "−45 s", "−30 s", "−15 s"]),
            (60, "minute", ["−60 s", "−45 s", "−30 s", "−15 s"]),
            (61, "2 minutes", ["−120 s", "−90 s", "−60 s", "−30 s"]),
            (130, "4 minutes", ["−4 min", "−3 min", "−2 min", "−1 min"]),
            (481, "20 minutes", ["−20 min", "−15 min", "−10 min", "−5 min"]),
            (1201, "hour", ["−60 min", "−45 min", "−30 min", "−15 min"]),
            (90_000, "hour", ["−60 min", "−45 min", "−30 min", "−15 min"]),
        ] {
            let mut young = service(0, &[]);
            let mut history = History::default();
            history.keep(SECOND * 100, Counted::default());
            young.statistics.history = Arc::new(history);
            young.statistics.now = SECOND * (100 + age);
            let text = drawn(&young, &[]);
            assert!(text.contains(&format!("Shares of known clients over the last {words}<")), "{age}: {text}");
            let drawn_ticks = ticks.map(|tick| format!("<span>{tick}</span>")).concat();
            assert!(text.contains(&drawn_ticks), "{age}: {text}");
        }
    }

    #[test]
    fn when_clients_moved_then_the_event_before_is_named() {
        let mut moving = service(3600, &[(3540, 1, 1)]);
        let moves = |moves| {
            let mut counted = Counted::default();
            counted.moves[balancer_common::verdict::CauseIndex::from(MoveCause::Down).counter()] = moves;
            counted
        };
        let mut history = History::default();
        for (at, count) in [(3300, 0), (3360, 4), (3420, 9), (3480, 9)] {
            history.keep(SECOND * at, moves(count));
        }
        moving.statistics.history = Arc::new(history);
        moving.backends[0].stats.moves[balancer_common::verdict::CauseIndex::from(MoveCause::Down).counter()] = 12;
        // The time of the snapshot is 02:46:40. Clients moved between 240 and 180 s ago, and between 120 and 0 s ago.
        let (mut down, mut drain) = (
            event("1970-01-01T02:42:10.000Z", "web", Some("web1")),
            event("1970-01-01T02:45:00.000Z", "web", Some("web2")),
        );
        (down.sequence, drain.sequence) = (1, 2);
        let text = drawn(&moving, &[down, drain]);
        let (first, last) =
            (text.find("9 after 1970-01-01T02:42:10.000Z"), text.find("3 after 1970-01-01T02:45:00.000Z"));
        assert!(first.is_some() && last < first, "{text}");
        assert!(text.contains("<title>&lt;web&gt;"), "{text}");
    }

    #[test]
    fn when_clients_move_then_the_moves_are_on_the_same_axis() {
        let mut moving = service(3600, &[(3540, 1, 1)]);
        assert!(drawn(&moving, &[]).contains("No known client moved in the last hour"));
        let counted = |moves| {
            let mut counted = Counted::default();
            counted.moves[balancer_common::verdict::CauseIndex::from(MoveCause::Down).counter()] = moves;
            counted
        };
        let mut history = History::default();
        for (at, moves) in [(1740, 0), (1800, 0), (1860, 1_200), (1920, 1_250)] {
            history.keep(SECOND * at, counted(moves));
        }
        moving.backends[0].stats.moves[balancer_common::verdict::CauseIndex::from(MoveCause::Down).counter()] = 1_253;
        moving.statistics.history = Arc::new(history);
        let text = drawn(&moving, &[]);
        assert!(text.contains("1,250 known clients moved in the last hour, at most 1,200 in a minute"), "{text}");
        assert!(text.contains("<rect class=\"fill\" x=\"300.0\""), "{text}");
    }
}
