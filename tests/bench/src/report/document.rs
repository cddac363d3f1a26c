//! The results of one benchmark.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The results of a benchmark, as the benchmark's program prints them with `--json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The name of the benchmark.
    pub benchmark: String,
    /// The subject of the benchmark, in one line.
    pub title: String,
    /// The method of the measurement.
    pub about: String,
    /// The series that the benchmark measured.
    pub series: Vec<Series>,
    /// The figures that the benchmark could not measure on the machine, with the reasons.
    pub left_out: Vec<String>,
}

/// The samples of one figure in all rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The program or path to which the figure belongs.
    pub of: String,
    /// The name of the figure.
    pub what: String,
    /// The unit of the samples.
    pub unit: String,
    /// The total, if the samples count items out of a total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Whether the figure belongs to the balancer. Figures of other programs serve for comparison.
    #[serde(default)]
    pub ours: bool,
    /// The heading of the series in the picture. Series without a heading appear only in tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heading: Option<String>,
    /// The samples of all rounds, in the order of the rounds.
    pub samples: Vec<f64>,
}

impl Series {
    /// Creates a figure of the balancer.
    #[must_use]
    pub fn ours(of: impl Into<String>, what: impl Into<String>, unit: &str, samples: Vec<f64>) -> Self {
        Self { ours: true, ..Self::others(of, what, unit, samples) }
    }

    /// Creates a figure of another program.
    #[must_use]
    pub fn others(of: impl Into<String>, what: impl Into<String>, unit: &str, samples: Vec<f64>) -> Self {
        Self { of: of.into(), what: what.into(), unit: unit.to_owned(), samples, ..Self::default() }
    }

    /// Puts the series into the picture, under the given heading.
    #[must_use]
    pub fn under(self, heading: impl Into<String>) -> Self {
        Self { heading: Some(heading.into()), ..self }
    }
}

impl Document {
    /// Reads the document that a benchmark has printed.
    ///
    /// # Errors
    /// Fails if the benchmark's output cannot be read, or contains no document.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what a benchmark prints with --json", file.display()))
    }

    /// Prints the document in a form that other programs can read.
    ///
    /// # Errors
    /// Fails if a figure of the document is not a number.
    pub fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string_pretty(self)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Document, Series};

    #[test]
    fn when_a_document_is_printed_then_it_can_be_parsed() {
        let series = vec![
            Series::ours("balancer", "connections", "1/s", vec![1.5, 2.0]).under("connections"),
            Series { total: Some(9), ..Series::others("nginx", "moved", "clients", vec![7.0]) },
        ];
        let document = Document { benchmark: "x".to_owned(), series, ..Document::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_vec(&document).unwrap()).unwrap();
        assert_eq!(Document::read(file.path()).unwrap(), document);
        std::fs::write(file.path(), "{}").unwrap();
        let error = Document::read(file.path()).unwrap_err();
        assert!(format!("{error:#}").contains("--json"), "{error:#}");
    }
}
