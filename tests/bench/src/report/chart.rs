//! The contents of a picture: bars under headings, in the order in which the benchmark's document lists them.

use crate::{
    figures::Spread,
    report::{
        document::{Document, Series},
        number::shown,
    },
};

/// The contents of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The title of the picture.
    pub title: String,
    /// The smallest and the largest number of rounds that a figure in the picture has.
    pub rounds: (usize, usize),
    /// The groups of bars, from top to bottom.
    pub groups: Vec<Group>,
}

/// A group of bars under one heading.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The heading of the group.
    pub heading: String,
    /// The unit of the bars' values.
    pub unit: String,
    /// The value that a bar of full width has; groups with the same unit have the same value.
    pub full: f64,
    /// The bars of the group, from top to bottom.
    pub bars: Vec<Bar>,
}

/// A bar that shows one figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// The program or path that the bar shows.
    pub label: String,
    /// The spread of the figure over all rounds.
    pub spread: Spread,
    /// Whether the figure belongs to the balancer.
    pub ours: bool,
}

impl Bar {
    fn of(series: &Series) -> Self {
        Self { label: series.of.replace('`', ""), spread: Spread::of(values(series)), ours: series.ours }
    }

    /// Returns the value of the bar as text.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(self.spread.median)
    }
}

impl Chart {
    /// Creates the chart of a document; returns `None` if the document contains nothing to draw.
    #[must_use]
    pub fn of(document: &Document) -> Option<Self> {
        let mut groups: Vec<Group> = Vec::new();
        let drawn = document.series.iter().filter_map(|series| Some((series.heading.as_ref()?, series)));
        for (heading, series) in drawn.clone() {
            let bar = Bar::of(series);
            if let Some(group) = groups.iter_mut().find(|group| group.heading == *heading) {
                group.bars.push(bar);
            } else {
                groups.push(Group { heading: heading.clone(), unit: unit(series), full: 0.0, bars: vec![bar] });
            }
        }
        let rounds = drawn.map(|(_, series)| series.samples.len());
        let rounds = (rounds.clone().min()?, rounds.max()?);
        let most = |group: &Group| group.bars.iter().map(|bar| bar.spread.p95).fold(0.0, f64::max);
        let full: Vec<_> = groups.iter().map(|group| (group.unit.clone(), most(group))).collect();
        for group in &mut groups {
            let same = full.iter().filter(|(unit, _)| *unit == group.unit);
            group.full = same.map(|(_, most)| *most).fold(0.0, f64::max);
        }
        Some(Self { title: document.title.clone(), rounds, groups })
    }
}

/// Returns the samples of a series. If the samples count items out of a total, the function converts the samples to
/// percent.
fn values(series: &Series) -> impl Iterator<Item = f64> + '_ {
    let factor = series.total.map_or(1.0, |total| 100.0 / total.max(1) as f64);
    series.samples.iter().map(move |sample| sample * factor)
}

fn unit(series: &Series) -> String {
    if series.total.is_some() { format!("% of {}", series.unit) } else { series.unit.clone() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Chart, Document, Series};

    pub(in crate::report) fn document() -> Document {
        let share =
            |of: &str, moved| Series { total: Some(200), ..Series::others(of, "delete", "clients", vec![moved]) };
        let series = vec![
            Series::ours("balancer `dsr`", "rate", "1/s", vec![10.0, 30.0, 20.0]).under("fast"),
            Series::others("nginx <1>", "rate", "1/s", vec![5.0; 3]).under("fast"),
            Series::others("nobody", "rate", "1/s", vec![60.0; 3]).under("slow"),
            share("nginx <1>", 150.0).under("moved"),
            Series::ours("unseen", "rate", "1/s", vec![1e9]),
        ];
        Document { benchmark: "x".to_owned(), title: "How & why".to_owned(), series, ..Document::default() }
    }

    #[test]
    fn when_groups_have_one_unit_then_they_have_one_scale() {
        let chart = Chart::of(&document()).unwrap();
        let groups: Vec<_> = chart.groups.iter().map(|group| (&*group.heading, &*group.unit, group.full)).collect();
        assert_eq!(groups, [("fast", "1/s", 60.0), ("slow", "1/s", 60.0), ("moved", "% of clients", 75.0)]);
        assert_eq!(chart.rounds, (1, 3));
        let [balancer, nginx] = &chart.groups[0].bars[..] else { panic!("{chart:?}") };
        assert_eq!((&*balancer.label, balancer.shown(), balancer.ours), ("balancer dsr", "20".to_owned(), true));
        assert!(!nginx.ours);
    }

    #[test]
    fn when_there_are_no_headings_then_there_is_no_picture() {
        let mut document = document();
        document.series.retain(|series| series.heading.is_none());
        assert_eq!(Chart::of(&document), None);
    }
}
