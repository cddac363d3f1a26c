//! Reads the key `bounded_load` of a service.

use super::{
    findings::Findings,
    section::{Located, Section},
};
use crate::{
    bounded::{BoundedLoad, FACTORS, Load},
    value,
};

const DEFAULT_FACTOR: f64 = 1.25;

/// Reads the section `bounded_load`; `None` if the section is invalid. The function adds errors to `findings`.
pub(super) fn section(mut section: Section<'_>, findings: &mut Findings<'_>) -> Option<Located<BoundedLoad>> {
    let at = section.at;
    section.require("by", "by = \"clients\", \"connections\", \"bytes\" or \"latency\"", findings);
    let factor = section.number("factor", findings, FACTORS, "1.25");
    let by = section.text("by", findings, |text| value::word("by", text, &Load::WORDS));
    section.finish(findings);
    let value = BoundedLoad { factor: factor.map_or(DEFAULT_FACTOR, |factor| factor.value), by: by?.value };
    Some(Located { at, value })
}

/// Reports a missing requirement: in a service without client memory, every move of a slot would move the slot's
/// clients.
pub(super) fn needs(bounded: &Located<BoundedLoad>, (remembers, checks): (bool, bool), findings: &mut Findings<'_>) {
    if !remembers {
        let text = "bounded_load needs memory: with remember = \"0s\", clients would move with the slots that are given \
                    away; set remember, or remove bounded_load";
        findings.error(bounded.at, text.to_owned());
    }
    if bounded.value.by == Load::Latency && !checks {
        let text = "bounded_load by = \"latency\" needs health checks, which it measures; set check, or another by";
        findings.error(bounded.at, text.to_owned());
    }
}
