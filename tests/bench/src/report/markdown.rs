//! Writes the tables of a report in Markdown.

use std::fmt::Write as _;

use super::{
    Report,
    document::{Document, Series},
    number::shown,
    setting::Setting,
};
use crate::figures::Spread;

pub(super) fn page(report: &Report) -> String {
    let mut page = setting(&report.setting);
    for document in &report.benchmarks {
        page += &section(document);
    }
    page += "\n## Not measured\n\n";
    for left_out in report.benchmarks.iter().flat_map(|document| &document.left_out) {
        page += &line(&format!("Not installed: {left_out}"));
    }
    for failed in &report.failed {
        page += &line(&format!("Failed: `cargo xtask bench {failed}`."));
    }
    for other in report.not_measured {
        page += &line(other);
    }
    page
}

fn setting(setting: &Setting) -> String {
    let Setting { command, date, seconds, commit, load_before, machine } = setting;
    let governor = machine.governor.as_deref().unwrap_or("none that is to be seen");
    format!(
        "# Benchmarks\n\n`{command}`, {date}, {} min; commit {commit}.\n{}; cpufreq governor: {governor}; load before: \
         {load_before}.\nEvery sample is in `results.json`.\n",
        seconds.div_ceil(60),
        machine.describe(),
    )
}

fn section(document: &Document) -> String {
    let mut section = format!("\n## {}: {}\n\n", document.benchmark, document.title);
    if !document.about.is_empty() {
        section += &format!("{}\n\n", document.about);
    }
    section += "| of | what | unit | rounds | min | median | p95 |\n| --- | --- | --- | ---: | ---: | ---: | ---: |\n";
    for series in &document.series {
        let Spread { least, median, p95, .. } = Spread::of(series.samples.iter().copied());
        let [mut least, median, mut p95] = [least, median, p95].map(|value| cell(series, value));
        if series.samples.len() == 1 {
            // The figures of a single round have no spread.
            (least, p95) = (String::new(), String::new());
        }
        // Writing to a string cannot fail.
        let _ = writeln!(
            section,
            "| {} | {} | {} | {} | {least} | {median} | {p95} |",
            series.of,
            series.what,
            series.unit,
            series.samples.len()
        );
    }
    section
}

fn cell(series: &Series, value: f64) -> String {
    match series.total {
        Some(total) => {
            let percent = value * 100.0 / total.max(1) as f64;
            format!("{} of {} ({percent:.1}%)", shown(value), shown(total as f64))
        }
        None => shown(value),
    }
}

fn line(words: &str) -> String {
    format!("- {words}\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{Report, chart::tests::document, setting::Setting},
        page,
    };

    #[test]
    fn when_a_table_is_written_then_it_has_spreads_and_missing_parts() {
        let setting = Setting::here("a command".to_owned(), "0.1 0.2 0.3".to_owned(), Duration::from_secs(61));
        let mut document = document();
        document.left_out.push("nft: it is in nftables".to_owned());
        let page = page(&Report::new(setting, vec![document], vec!["path".to_owned()]));
        for line in [
            "| balancer `dsr` | rate | 1/s | 3 | 10 | 20 | 30 |",
            "| nginx <1> | delete | clients | 1 |  | 150 of 200 (75.0%) |  |",
            "- Not installed: nft: it is in nftables",
            "- Failed: `cargo xtask bench path`.",
        ] {
            assert!(page.lines().any(|other| other == line), "{line} in {page}");
        }
        assert!(page.contains("`a command`") && page.contains(", 2 min; commit ") && page.contains("arm64"), "{page}");
    }
}
