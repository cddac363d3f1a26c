//! Draws a chart as SVG without scripts: horizontal bars with labels, for light and dark colour schemes.

use maud::{Markup, PreEscaped, html};

use super::{
    chart::{Bar, Chart, Group},
    number::shown,
};

/// The width of the picture, in pixels.
const WIDTH: f64 = 640.0;
const MARGIN: f64 = 16.0;
const TITLE: f64 = 26.0;
const LINE: f64 = 18.0;
const HEADING: f64 = 30.0;
const ROW: f64 = 22.0;
const BAR: f64 = 12.0;
/// The width of one letter of a label, in pixels.
const LETTER: f64 = 6.7;
const LABELS: f64 = 320.0;
/// The space after a bar for the bar's number, in pixels.
const NUMBER: f64 = 64.0;

const STYLE: &str = "\
.b{fill:#fff}text{font:12px system-ui,sans-serif;fill:#24292f}.t{font-size:16px;font-weight:600}\
.h{font-weight:600}.n{fill:#57606a}.ours{fill:#0969da}.others{fill:#8c959f}.w{stroke:#24292f}\
@media (prefers-color-scheme:dark){.b{fill:#0d1117}text{fill:#e6edf3}.n{fill:#9198a1}.ours{fill:#4493f8}\
.others{fill:#656c76}.w{stroke:#e6edf3}}";

/// Draws the picture; `place` describes where and when the benchmark ran.
pub(super) fn svg(chart: &Chart, place: &str) -> String {
    let labels = chart.groups.iter().flat_map(|group| &group.bars).map(|bar| bar.label.chars().count()).max();
    let labels = (labels.unwrap_or(0) as f64 * LETTER).clamp(60.0, LABELS);
    let mut height = MARGIN + TITLE + 2.0 * LINE;
    let mut tops = Vec::new();
    for group in &chart.groups {
        tops.push(height);
        height += HEADING + group.bars.len() as f64 * ROW;
    }
    height += MARGIN;
    let markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {height}")) role="img" {
            title { (chart.title) }
            style { (PreEscaped(STYLE)) }
            rect.b width=(WIDTH) height=(height) rx="8" {}
            (text("t", MARGIN, MARGIN + 16.0, &chart.title))
            (text("n", MARGIN, MARGIN + TITLE + 10.0, &legend(chart)))
            (text("n", MARGIN, MARGIN + TITLE + LINE + 10.0, place))
            @for (group, &top) in chart.groups.iter().zip(&tops) { (self::group(group, labels, top)) }
        }
    };
    markup.into_string() + "\n"
}

fn legend(chart: &Chart) -> String {
    let (least, most) = chart.rounds;
    if most <= 1 {
        return "one round each".to_owned();
    }
    let rounds = if least == most { most.to_string() } else { format!("{least} to {most}") };
    format!("median of {rounds} rounds; the line on a bar goes from the least to the 95th percentile")
}

fn group(group: &Group, labels: f64, top: f64) -> Markup {
    html! {
        text.h x=(MARGIN) y=(top + 20.0) { (group.heading) tspan.n { ", " (group.unit) } }
        @for (index, bar) in group.bars.iter().enumerate() {
            (row(bar, group.full, labels, top + HEADING + index as f64 * ROW))
        }
    }
}

fn row(bar: &Bar, full: f64, labels: f64, top: f64) -> Markup {
    let left = MARGIN + labels + 8.0;
    let scale = if full > 0.0 { (WIDTH - MARGIN - NUMBER - left) / full } else { 0.0 };
    let at = |value: f64| left + value.max(0.0) * scale;
    let spread = &bar.spread;
    let middle = top + ROW / 2.0;
    let class = if bar.ours { "ours" } else { "others" };
    html! {
        g {
            title { (format!("{}: least {}, median {}, 95th percentile {}",
                bar.label, shown(spread.least), shown(spread.median), shown(spread.p95))) }
            (text("", MARGIN, middle + 4.0, &cut(&bar.label)))
            rect class=(class) x=(tenths(left)) y=(tenths(middle - BAR / 2.0)) height=(BAR)
                width=(tenths((at(spread.median) - left).max(1.0))) {}
            @if spread.p95 > spread.least {
                line.w x1=(tenths(at(spread.least))) x2=(tenths(at(spread.p95))) y1=(tenths(middle)) y2=(tenths(middle)) {}
            }
            (text("", at(spread.p95) + 6.0, middle + 4.0, &bar.shown()))
        }
    }
}

fn text(class: &str, x: f64, y: f64, words: &str) -> Markup {
    html! { text class=[(!class.is_empty()).then_some(class)] x=(tenths(x)) y=(tenths(y)) { (words) } }
}

/// Shortens a label to the maximal length of a label.
fn cut(label: &str) -> String {
    let most = (LABELS / LETTER) as usize;
    if label.chars().count() <= most {
        return label.to_owned();
    }
    label.chars().take(most - 1).chain(['…']).collect()
}

fn tenths(pixels: f64) -> String {
    format!("{pixels:.1}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::chart::{Chart, tests::document},
        cut, svg,
    };

    #[test]
    fn when_bars_are_drawn_then_they_have_labels_and_numbers() {
        let picture = svg(&Chart::of(&document()).unwrap(), "here");
        for part in ["How &amp; why", ">balancer dsr</text>", ">20</text>", ">nginx &lt;1&gt;</text>", ">75</text>"] {
            assert!(picture.contains(part), "{part} in {picture}");
        }
        assert_eq!(picture.matches("<rect class=\"ours\"").count(), 1, "{picture}");
        // Only one bar has different values for minimum and 95th percentile.
        assert_eq!(picture.matches("<line").count(), 1, "{picture}");
        assert!(picture.contains("median of 1 to 3 rounds") && picture.contains("prefers-color-scheme"), "{picture}");
        assert!(!picture.contains("script") && !picture.contains("NaN"), "{picture}");
    }

    #[test]
    fn when_bars_are_drawn_then_each_is_within_the_picture() {
        let picture = svg(&Chart::of(&document()).unwrap(), "here");
        for part in picture.split("x2=\"").skip(1) {
            let end: f64 = part.split('"').next().unwrap().parse().unwrap();
            assert!(end < 640.0, "{end}");
        }
    }

    #[test]
    fn when_a_label_is_long_then_it_is_cut() {
        assert_eq!(cut("short"), "short");
        let cut = cut(&"x".repeat(99));
        assert!(cut.chars().count() == 47 && cut.ends_with('…'), "{cut}");
    }
}
