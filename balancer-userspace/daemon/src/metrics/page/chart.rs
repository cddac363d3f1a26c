//! Small pictures of the last minutes. The text beside each says what it shows.

use std::time::Duration;

use balancer_core::{history::Counted, snapshot::ServiceSnapshot};
use maud::{Markup, html};

/// Time that a picture shows, the newest at the right.
const SPAN: Duration = Duration::from_secs(600);
/// A shorter one says nothing of a rate.
const LEAST: Duration = Duration::from_secs(1);
/// Coordinates of a picture; it is stretched to its place.
const SIZE: (f64, f64) = (600.0, 100.0);

/// What was counted in a stretch of time.
pub(super) struct Stretch {
    /// How long before the snapshot it began.
    ago: Duration,
    /// Its length.
    pub(super) length: Duration,
    pub(super) counted: Counted,
}

/// The last ten minutes, the oldest stretch first, up to the snapshot.
pub(super) fn stretches(service: &ServiceSnapshot) -> Vec<Stretch> {
    let statistics = &service.statistics;
    let moments: Vec<(Duration, Counted)> =
        statistics.history.steps().chain([(statistics.now, service.counted())]).collect();
    let pairs = moments.iter().zip(moments.iter().skip(1));
    let stretches = pairs.map(|((begin, before), (end, after))| Stretch {
        ago: statistics.now.saturating_sub(*begin),
        length: end.saturating_sub(*begin),
        counted: after.since(before),
    });
    stretches.filter(|stretch| stretch.length >= LEAST && stretch.ago <= SPAN).collect()
}

/// A bar for each stretch, as high as `value` makes it.
pub(super) fn bars(stretches: &[Stretch], value: impl Fn(&Stretch) -> f64) -> Markup {
    let (width, height) = SIZE;
    let most = stretches.iter().map(&value).fold(0.0, f64::max);
    let per_second = width / SPAN.as_secs_f64();
    html! {
        svg.chart viewBox=(format!("0 0 {width} {height}")) preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            @for stretch in stretches {
                @let tall = if most > 0.0 { height * value(stretch) / most } else { 0.0 };
                @if tall > 0.0 {
                    rect.fill x=(format!("{:.1}", width - stretch.ago.as_secs_f64() * per_second))
                        y=(format!("{:.1}", height - tall))
                        width=(format!("{:.1}", (stretch.length.as_secs_f64() * per_second - 1.0).max(1.0)))
                        height=(format!("{tall:.1}")) {}
                }
            }
        }
    }
}
