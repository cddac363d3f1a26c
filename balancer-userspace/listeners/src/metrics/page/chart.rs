//! Small charts of the last minutes, for the page. The text beside each chart gives the same information.

use std::time::Duration;

use balancer_control::{history::Counted, snapshot::ServiceSnapshot};
use maud::{Markup, html};

/// The axis of the last ten minutes.
pub(super) const TEN_MINUTES: Axis = Axis(Duration::from_secs(600));
/// The time spans in minutes that a chart may have; the chart grows to an hour as samples accumulate. Each span has
/// quarters that are easy to read.
const SPANS: [u64; 6] = [1, 2, 4, 8, 20, 60];
const MINUTE: Duration = Duration::from_secs(60);
/// The minimum period over which a rate is computed.
const LEAST: Duration = Duration::from_secs(1);
/// The width of a chart in the chart's own coordinates; the page stretches the chart.
const WIDTH: f64 = 600.0;
pub(super) const HEIGHT: f64 = 100.0;

/// The time span of a chart, which ends at the present.
pub(super) struct Axis(Duration);

impl Axis {
    /// An axis that covers the whole time since the first sample of the service, but at most an hour.
    pub(super) fn of(service: &ServiceSnapshot) -> Self {
        let statistics = &service.statistics;
        let first = statistics.history.minutes().next().map(|(at, _)| at);
        let first = first.into_iter().chain(statistics.shares.minutes().next().map(|minute| minute.at)).min();
        let age = statistics.now.saturating_sub(first.unwrap_or(statistics.now));
        let spans = SPANS.map(|minutes| MINUTE * minutes as u32);
        Self(spans.into_iter().find(|span| *span >= age).unwrap_or(SPANS.map(|minutes| MINUTE * minutes as u32)[5]))
    }

    /// Returns the time span in words: `hour`, or for example `4 minutes`.
    pub(super) fn words(&self) -> String {
        match self.0.as_secs() / 60 {
            60 => "hour".to_owned(),
            1 => "minute".to_owned(),
            minutes => format!("{minutes} minutes"),
        }
    }

    /// Returns the labels for the starts of the axis' four quarters.
    pub(super) fn ticks(&self) -> [String; 4] {
        let seconds = self.0.as_secs();
        [4, 3, 2, 1].map(|quarters| match seconds * quarters / 4 {
            some if seconds >= 240 => format!("−{} min", some / 60),
            some => format!("−{some} s"),
        })
    }

    /// Whether the ten-second samples, which exist for the last ten minutes, cover the axis.
    pub(super) const fn is_short(&self) -> bool {
        self.0.as_secs() <= TEN_MINUTES.0.as_secs()
    }

    pub(super) const fn span(&self) -> Duration {
        self.0
    }

    /// The horizontal coordinate of the time that was `ago` before the snapshot.
    pub(super) fn x(&self, ago: Duration) -> f64 {
        WIDTH - self.width(ago)
    }

    fn width(&self, time: Duration) -> f64 {
        WIDTH * time.as_secs_f64() / self.0.as_secs_f64()
    }
}

/// An SVG picture with `content` in the coordinates of this module.
pub(super) fn picture(class: &str, content: &Markup) -> Markup {
    html! {
        svg.(class) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            (content)
        }
    }
}

/// The counts of a service in a span of time.
pub(super) struct Stretch {
    /// The time from the start of the span to the snapshot.
    pub(super) ago: Duration,
    pub(super) length: Duration,
    pub(super) counted: Counted,
}

/// The last ten minutes before the snapshot as spans of ten seconds, oldest first.
pub(super) fn stretches(service: &ServiceSnapshot) -> Vec<Stretch> {
    between(service, service.statistics.history.steps(), &TEN_MINUTES)
}

/// The spans on an axis of at most an hour: spans of ten seconds if ten-second samples cover the axis, and otherwise
/// spans of a minute.
pub(super) fn stretches_of(service: &ServiceSnapshot, axis: &Axis) -> Vec<Stretch> {
    if axis.is_short() {
        return between(service, service.statistics.history.steps(), axis);
    }
    between(service, service.statistics.history.minutes(), axis)
}

fn between(service: &ServiceSnapshot, moments: impl Iterator<Item = (Duration, Counted)>, axis: &Axis) -> Vec<Stretch> {
    let now = service.statistics.now;
    let moments: Vec<(Duration, Counted)> = moments.chain([(now, service.counted())]).collect();
    let pairs = moments.iter().zip(moments.iter().skip(1));
    let stretches = pairs.map(|((begin, before), (end, after))| Stretch {
        ago: now.saturating_sub(*begin),
        length: end.saturating_sub(*begin),
        counted: after.since(before),
    });
    stretches.filter(|stretch| stretch.length >= LEAST && stretch.ago <= axis.span()).collect()
}

/// A bar for each span; `value` determines the height of the bar.
pub(super) fn bars(axis: &Axis, stretches: &[Stretch], value: impl Fn(&Stretch) -> f64) -> Markup {
    named_bars(axis, stretches, value, |_| None)
}

/// Makes the same bars as [`bars`], each with a title from `name`.
pub(super) fn named_bars(
    axis: &Axis,
    stretches: &[Stretch],
    value: impl Fn(&Stretch) -> f64,
    name: impl Fn(&Stretch) -> Option<String>,
) -> Markup {
    let most = stretches.iter().map(&value).fold(0.0, f64::max);
    picture(
        "chart",
        &html! {
            @for stretch in stretches {
                @let tall = if most > 0.0 { HEIGHT * value(stretch) / most } else { 0.0 };
                @if tall > 0.0 {
                    rect.fill x=(format!("{:.1}", axis.x(stretch.ago)))
                        y=(format!("{:.1}", HEIGHT - tall))
                        width=(format!("{:.1}", (axis.width(stretch.length) - 1.0).max(1.0)))
                        height=(format!("{tall:.1}")) { @if let Some(name) = name(stretch) { title { (name) } } }
                }
            }
        },
    )
}
