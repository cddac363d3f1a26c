//! Reads the key `spread_heavy` of a service.

use super::{findings::Findings, section::Section};

const KEY: &str = "spread_heavy";
const SHARES: (f64, f64) = (0.01, 1.0);
const EXAMPLE: &str = "0.2";

/// Reads the key `spread_heavy` as a number, or as a table that contains a number; `None` if the key is missing or
/// invalid. The function adds errors to `findings`.
pub(super) fn share(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<f64> {
    if !section.is_table(KEY) {
        return section.number(KEY, findings, SHARES, EXAMPLE).map(|share| share.value);
    }
    let mut table = section.table(KEY, KEY, "{ share = 0.2 }", findings)?;
    table.require("share", "share = 0.2", findings);
    let share = table.number("share", findings, SHARES, EXAMPLE);
    if table.boolean("auto", findings) == Some(true) {
        let text = "spread_heavy cannot add rules by itself: a rule spread ends open connections of its clients, and \
                    sessions of those that are known; remove auto = true, and add the rule that is proposed";
        findings.error(table.at, text.to_owned());
    }
    table.finish(findings);
    share.map(|share| share.value)
}
