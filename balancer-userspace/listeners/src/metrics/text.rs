//! A writer of Prometheus' text format, version 0.0.4, which every Prometheus reads and promtool checks.

use std::{fmt::Write as _, mem};

/// The type of a metric family.
#[derive(Clone, Copy, Debug)]
pub(super) enum FamilyKind {
    /// A counter, whose value only increases.
    Counter,
    /// A gauge, whose value may rise and fall.
    Gauge,
}

/// The labels of a sample.
pub(super) trait Labels {
    /// Appends the labels as they appear between the braces of a sample.
    fn write(&self, text: &mut String);
}

impl<const N: usize> Labels for [(&'static str, &str); N] {
    fn write(&self, text: &mut String) {
        for (index, (label, value)) in self.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(label);
            text.push_str("=\"");
            push_label_value(text, value);
            text.push('"');
        }
    }
}

/// Labels that many samples share and that are formatted only once.
#[derive(Debug)]
pub(super) struct Written(String);

impl Written {
    pub(super) fn new(labels: &impl Labels) -> Self {
        let mut text = String::new();
        labels.write(&mut text);
        Self(text)
    }
}

impl Labels for &Written {
    fn write(&self, text: &mut String) {
        text.push_str(&self.0);
    }
}

/// Shared labels, followed by labels of one sample.
impl<const N: usize> Labels for (&Written, [(&'static str, &str); N]) {
    fn write(&self, text: &mut String) {
        self.0.write(text);
        text.push(',');
        self.1.write(text);
    }
}

/// The value of a sample.
pub(super) trait Value {
    /// Appends the value to `text`.
    fn write(self, text: &mut String);
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn write(self, text: &mut String) {
                text.push_str(itoa::Buffer::new().format(self));
            }
        }
    )*};
}

whole_numbers!(u32, u64, usize);

impl Value for f64 {
    fn write(self, text: &mut String) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{self}");
    }
}

/// The approximate length in bytes of a piece of text: most answers are shorter, and many pieces fit into memory.
const PIECE: usize = 256 * 1024;
/// An upper estimate for the length of a sample in bytes.
const SAMPLE: usize = 1024;

/// The text that was written after the last full piece.
pub(super) struct Text<'a> {
    text: String,
    full: &'a mut dyn FnMut(String),
}

impl<'a> Text<'a> {
    /// Makes a text that passes each piece except the last one to `full`.
    pub(super) fn new(full: &'a mut dyn FnMut(String)) -> Self {
        Self { text: String::new(), full }
    }

    /// Starts a metric family.
    pub(super) fn family(&mut self, name: &str, help: &str, kind: FamilyKind) {
        let kind = match kind {
            FamilyKind::Counter => "counter",
            FamilyKind::Gauge => "gauge",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Appends a sample to the metric family that was started last.
    pub(super) fn sample(&mut self, name: &str, labels: &impl Labels, value: impl Value) {
        self.text.push_str(name);
        let bare = self.text.len();
        self.text.push('{');
        let empty = self.text.len();
        labels.write(&mut self.text);
        if self.text.len() == empty {
            self.text.truncate(bare);
        } else {
            self.text.push('}');
        }
        self.text.push(' ');
        value.write(&mut self.text);
        self.text.push('\n');
        if self.text.len() >= PIECE {
            let next = String::with_capacity(PIECE + SAMPLE);
            (self.full)(mem::replace(&mut self.text, next));
        }
    }

    /// Returns the last piece of the text.
    pub(super) fn end(self) -> String {
        self.text
    }
}

fn push_label_value(text: &mut String, value: &str) {
    if !value.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        text.push_str(value);
        return;
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

/// Writes counters; the names get the prefix `balancer_` and the suffix `_total`.
pub(super) fn counters<L: Labels>(
    encoder: &mut Text<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (L, u64)>,
) {
    let name = format!("balancer_{name}_total");
    encoder.family(&name, help, FamilyKind::Counter);
    samples.for_each(|(labels, value)| encoder.sample(&name, &labels, value));
}

/// Writes gauges; the names get the prefix `balancer_`.
pub(super) fn gauges<L: Labels, V: Value>(
    encoder: &mut Text<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (L, V)>,
) {
    let name = format!("balancer_{name}");
    encoder.family(&name, help, FamilyKind::Gauge);
    samples.for_each(|(labels, value)| encoder.sample(&name, &labels, value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_samples_are_written_then_lines_are_in_prometheus_format() {
        let mut none = |piece| panic!("{piece}");
        let mut text = Text::new(&mut none);
        text.family("x_total", "What.", FamilyKind::Counter);
        text.sample("x_total", &[("a", "plain"), ("b", "\"\\\n")], 7u64);
        let written = Written::new(&[("a", "once")]);
        text.sample("x_total", &&written, 8u64);
        text.sample("x_total", &(&written, [("b", "more")]), 9u64);
        text.family("y", "Which.", FamilyKind::Gauge);
        text.sample("y", &[], 0.25);
        let expected = concat!(
            "# HELP x_total What.\n# TYPE x_total counter\nx_total{a=\"plain\",b=\"\\\"\\\\\\n\"} 7\n",
            "x_total{a=\"once\"} 8\nx_total{a=\"once\",b=\"more\"} 9\n",
            "# HELP y Which.\n# TYPE y gauge\ny 0.25\n",
        );
        assert_eq!(text.end(), expected);
    }
    #[test]
    fn when_a_text_is_long_then_its_pieces_have_whole_lines() {
        let mut pieces = Vec::new();
        let mut keep = |piece| pieces.push(piece);
        let mut text = Text::new(&mut keep);
        for number in 0..40_000u64 {
            text.sample("x_total", &[("a", "a name of some length")], number);
        }
        let last = text.end();
        pieces.push(last);
        assert!(pieces.len() > 4 && pieces.iter().all(|piece| piece.len() < PIECE + SAMPLE && piece.ends_with('\n')));
        let all = pieces.concat();
        let numbers = all.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
        assert!(numbers.eq(0..40_000));
    }
}
