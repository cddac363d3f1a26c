//! Prometheus' text format, version 0.0.4: every Prometheus reads it, and promtool checks it.

use std::fmt::{Display, Write as _};

/// What a family's samples are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins the samples of one name.
    pub(super) fn family(&mut self, name: &str, help: &str, kind: Kind) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of that name.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        let mut before = '{';
        for (label, value) in labels {
            self.0.push(before);
            self.0.push_str(label);
            self.0.push_str("=\"");
            self.label_value(value);
            self.0.push('"');
            before = ',';
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn label_value(&mut self, value: &str) {
        if !value.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
            self.0.push_str(value);
            return;
        }
        for character in value.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_prometheus_reads_them() {
        let mut text = Text::default();
        text.family("x_total", "What.", Kind::Counter);
        text.sample("x_total", &[("a", "plain"), ("b", "\"\\\n")], 7u64);
        text.family("y", "Which.", Kind::Gauge);
        text.sample("y", &[], 0.25);
        let expected = concat!(
            "# HELP x_total What.\n# TYPE x_total counter\nx_total{a=\"plain\",b=\"\\\"\\\\\\n\"} 7\n",
            "# HELP y Which.\n# TYPE y gauge\ny 0.25\n",
        );
        assert_eq!(text.into_string(), expected);
    }
}
