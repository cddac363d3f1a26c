//! The results of a guest, as reported by the guest's process 1.

use std::{collections::BTreeMap, time::Duration};

use super::{LOADING, Suite};

/// The outcome of a guest's run.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    kernel: String,
    /// The number of instructions that the verifier processed, by program.
    verified: BTreeMap<String, u32>,
    /// The exit code and the duration in seconds, by suite.
    suites: BTreeMap<String, (i32, u32)>,
    trouble: bool,
    /// Whether the guest shut down by itself.
    ended: bool,
    /// Whether the guest's process 1 has reported anything.
    heard: bool,
    seconds: u64,
}

impl Outcome {
    pub(super) fn new(kernel: String) -> Self {
        Self { kernel, ..Self::default() }
    }

    pub(super) fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Parses a line from the guest's process 1.
    pub(super) fn hear(&mut self, said: &str) {
        self.heard = true;
        match *said.split_whitespace().collect::<Vec<_>>() {
            ["suite", name, code, seconds] => {
                let ran = (code.parse().unwrap_or(-1), seconds.parse().unwrap_or_default());
                self.suites.insert(name.to_owned(), ran);
            }
            [program, count, "verified", "instructions"] => {
                self.verified.insert(program.trim_end_matches(':').to_owned(), count.parse().unwrap_or_default());
            }
            ["end"] => self.ended = true,
            _ => self.trouble = true,
        }
    }

    pub(super) fn end(&mut self, after: Duration) {
        self.seconds = after.as_secs();
    }

    /// Whether the guest's kernel reached process 1.
    pub(super) const fn has_booted(&self) -> bool {
        self.heard
    }

    /// Whether every suite passed, and the kernel reported no trouble.
    pub(super) fn passed(&self, suites: &[Suite]) -> bool {
        let all = suites.iter().all(|suite| matches!(self.suites.get(suite.name), Some((0, _))));
        all && self.ended && !self.trouble
    }

    fn row(&self, suites: &[Suite]) -> Vec<String> {
        let missing = if suites.iter().any(|suite| suite.name == LOADING.name) { "refused" } else { "not asked" };
        let verified = |program| self.verified.get(program).map_or_else(|| missing.to_owned(), u32::to_string);
        let mut row = vec![self.kernel.clone(), verified("balancer"), verified("decap")];
        row.extend(suites.iter().map(|suite| match self.suites.get(suite.name) {
            Some((0, seconds)) => format!("passed, {seconds} s"),
            Some((_, seconds)) => format!("FAILED, {seconds} s"),
            None => "not run".to_owned(),
        }));
        row.push(if self.trouble { "TROUBLE" } else { "none" }.to_owned());
        row.push(format!("{} s", self.seconds));
        row
    }
}

/// Formats a table with a row for each guest.
pub(super) fn table(outcomes: &[Outcome], suites: &[Suite]) -> String {
    let mut head = vec!["kernel", "balancer", "decap"];
    head.extend(suites.iter().map(|suite| suite.name));
    head.extend(["kernel's complaints", "all"]);
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    rows.extend(outcomes.iter().map(|outcome| outcome.row(suites)));
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_guest_has_said_nothing_then_it_has_not_booted() {
        assert!(!heard(&[]).has_booted());
        assert!(heard(&["suite verifier 1 9"]).has_booted());
    }

    fn heard(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::new("6.1.0-56".to_owned());
        lines.iter().for_each(|line| outcome.hear(line));
        outcome
    }

    #[test]
    fn when_a_guest_does_not_pass_to_its_end_then_it_has_failed() {
        let lines = ["balancer: 317702 verified instructions", "suite verifier 0 14", "end"];
        let good = heard(&lines);
        assert!(good.passed(&[LOADING]));
        let table = table(&[good], &[LOADING]);
        assert!(table.contains("6.1.0-56  317702    refused  passed, 14 s  none"), "{table}");
        assert!(!heard(&lines[..2]).passed(&[LOADING]), "it hung");
        assert!(!heard(&[lines[0], "suite verifier 101 14", "end"]).passed(&[LOADING]));
        assert!(!heard(&[lines[1], "trouble WARNING: CPU: 0", "end"]).passed(&[LOADING]));
        assert!(!heard(&["end"]).passed(&[LOADING]));
    }
}
