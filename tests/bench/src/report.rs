//! Combines many benchmarks on one page: results, tables and pictures.

pub mod chart;
pub mod criterion;
pub mod document;
pub mod number;
pub mod setting;

mod markdown;
mod picture;

use serde::Serialize;

use self::{chart::Chart, document::Document, setting::Setting};

/// The gaps that no benchmark covers, listed for readers of the results.
const NOT_MEASURED: [&str; 5] = [
    "Real network cards: packets are in memory (`path`), or cross veth pairs (`live`, `proxy`, `sticky`, `failover`).",
    "Other processors than the one that is named above, those for arm64 among them.",
    "Several receive queues at once: `path` and `live` use one processor.",
    "How probably a known client is forgotten: `cargo xtask bench memory`.",
    "A fleet of balancers on etcd: `cargo xtask bench fleet`.",
];

/// The results of one run of `cargo xtask bench --all`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine, time and program of the measurements.
    pub setting: Setting,
    /// The documents of the benchmarks that succeeded.
    pub benchmarks: Vec<Document>,
    /// The names of the benchmarks that failed.
    pub failed: Vec<String>,
    not_measured: [&'static str; 5],
}

impl Report {
    /// Creates a report from the results of the benchmarks that succeeded, and from the names of the benchmarks that
    /// `failed`.
    #[must_use]
    pub const fn new(setting: Setting, benchmarks: Vec<Document>, failed: Vec<String>) -> Self {
        Self { setting, benchmarks, failed, not_measured: NOT_MEASURED }
    }

    /// Returns the report's tables in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        markdown::page(self)
    }

    /// Returns the report's pictures, each with the name of its benchmark.
    #[must_use]
    pub fn pictures(&self) -> Vec<(String, String)> {
        let place = self.setting.in_short();
        let drawn =
            |document: &Document| Some((document.benchmark.clone(), picture::svg(&Chart::of(document)?, &place)));
        self.benchmarks.iter().filter_map(drawn).collect()
    }
}
