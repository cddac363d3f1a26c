//! Faults of backends, before several backends with the same fault become one finding.

use super::some;
use crate::{
    facts::Backend,
    finding::{Cure, Finding, Kind, Step},
};

/// In the texts of a case, stands for the address and port of the backend.
pub(super) const AT: &str = "\u{1}";
/// In the texts of a case, stands for the address of the backend.
pub(super) const OWN: &str = "\u{2}";
/// In the texts of a case, stands for the name and address of the backend's machine.
pub(super) const HOST: &str = "\u{3}";

/// A fault of a backend. The texts of its finding contain [`AT`], [`OWN`] and [`HOST`], so that the texts of backends
/// with the same fault are equal.
pub(super) struct Case<'a> {
    pub(super) backend: &'a Backend,
    pub(super) finding: Finding,
    /// Whether the sentence is about the backend, whose name then precedes the sentence.
    named: bool,
}

impl<'a> Case<'a> {
    /// Makes a case. The sentence `what` continues the name of the backend and a colon.
    pub(super) const fn new(backend: &'a Backend, kind: Kind, what: String, seen: String, cure: Cure) -> Self {
        let finding = Finding { kind, service: None, backend: None, backends: Vec::new(), what, seen, cure };
        Self { backend, finding, named: true }
    }

    /// Makes a case of something else on the way to the backend. The sentence `what` has its own subject.
    pub(super) const fn on_the_way(backend: &'a Backend, kind: Kind, what: String, seen: String, cure: Cure) -> Self {
        let finding = Finding { kind, service: None, backend: None, backends: Vec::new(), what, seen, cure };
        Self { backend, finding, named: false }
    }
}

pub(super) fn name(backend: &Backend) -> String {
    format!("{}/{}", backend.service, backend.name)
}

pub(super) fn machine(backend: &Backend) -> String {
    format!("{} ({})", backend.name, backend.address.ip())
}

/// Makes one finding for each fault, in the order in which the faults first appear.
pub(super) fn joined(cases: Vec<Case<'_>>) -> Vec<Finding> {
    let mut groups: Vec<Vec<Case<'_>>> = Vec::new();
    for case in cases {
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| first.finding == case.finding)) {
            Some(group) => group.push(case),
            None => groups.push(vec![case]),
        }
    }
    groups.iter().filter_map(|group| finding(group)).collect()
}

/// The finding about backends with the same fault.
fn finding(group: &[Case<'_>]) -> Option<Finding> {
    let Case { backend, finding, named } = group.first()?;
    let each = |of: fn(&Backend) -> String| {
        let mut all: Vec<String> = Vec::new();
        for text in group.iter().map(|case| of(case.backend)) {
            if !all.contains(&text) {
                all.push(text);
            }
        }
        all
    };
    let words = [(AT, each(|of| of.address.to_string())), (OWN, each(|of| of.address.ip().to_string()))];
    let words = words.into_iter().chain([(HOST, each(machine))]);
    let words: Vec<(&str, String)> = words.map(|(word, all)| (word, list(&all))).collect();
    let fill = |text: &str| words.iter().fold(text.to_owned(), |text, (word, all)| text.replace(word, all));
    let mut commands: Vec<String> = Vec::new();
    let mut fix: Vec<Step> = Vec::new();
    for command in &finding.cure.commands {
        // An instruction is for all backends, and a command for one.
        let filled = if command.starts_with('#') { vec![fill(command)] } else { for_each(group, command) };
        commands.extend(filled.into_iter().filter(|new| !commands.contains(new)).collect::<Vec<_>>());
    }
    for step in &finding.cure.fix {
        let steps = group.iter().map(|case| Step {
            run: step.run.iter().map(|word| one(case.backend, word)).collect(),
            undo: one(case.backend, &step.undo),
        });
        fix.extend(steps.filter(|new| !fix.contains(new)).collect::<Vec<_>>());
    }
    fix.dedup();
    let names = each(name);
    let what = fill(&finding.what);
    let one_service = group.iter().all(|case| case.backend.service == backend.service);
    Some(Finding {
        kind: finding.kind,
        service: (*named && one_service).then(|| backend.service.clone()),
        backend: (*named && names.len() == 1).then(|| backend.name.clone()),
        what: if *named { format!("{}: {what}", list(&names)) } else { what },
        backends: names,
        seen: fill(&finding.seen),
        cure: Cure { on: fill(&finding.cure.on), commands, fix },
    })
}

/// The command for each of the backends.
fn for_each(group: &[Case<'_>], command: &str) -> Vec<String> {
    let mut commands: Vec<String> = group.iter().map(|case| one(case.backend, command)).collect();
    commands.dedup();
    commands
}

/// A text about one backend.
fn one(backend: &Backend, text: &str) -> String {
    let (at, own) = (backend.address.to_string(), backend.address.ip().to_string());
    text.replace(AT, &at).replace(OWN, &own).replace(HOST, &machine(backend))
}

fn list(all: &[String]) -> String {
    some(&all.iter().map(String::as_str).collect::<Vec<_>>())
}
