//! Makes services from HAProxy's listeners and backends.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    bind::bind,
    other::{BEHIND, other},
    parse::{Line, Section, parse},
    proxy::{Timeouts, fill, inherits},
};
use crate::{error::NotUnderstood, notes::Conversion, service::Service};

type Backends<'a> = BTreeMap<&'a str, (&'a Section, Vec<Line>)>;

/// The lines that sections inherit, from the preceding `defaults` section or from a `defaults` section that they name.
#[derive(Default)]
struct Defaults<'a> {
    last: Vec<Line>,
    named: BTreeMap<&'a str, Vec<Line>>,
}

impl<'a> Defaults<'a> {
    /// Reads a section `defaults [NAME] [from NAME]`.
    fn add(&mut self, section: &'a Section) {
        let mut lines = self.from(section).cloned().unwrap_or_default();
        lines.extend(section.lines.iter().filter(|line| inherits(line)).cloned());
        if !["", "from"].contains(&section.head.word(1)) {
            self.named.insert(section.head.word(1), lines.clone());
        }
        self.last = lines;
    }

    fn from(&self, section: &Section) -> Option<&Vec<Line>> {
        let mut words = section.head.words.iter().skip_while(|word| *word != "from").skip(1);
        self.named.get(words.next()?.as_str())
    }

    fn of(&self, section: &Section) -> Vec<Line> {
        self.from(section).unwrap_or(&self.last).clone()
    }
}

pub(crate) fn convert(conversion: &mut Conversion, files: &[(String, String)]) -> Result<(), NotUnderstood> {
    let sections = parse(files)?;
    let mut defaults = Defaults::default();
    let mut backends: Backends<'_> = BTreeMap::new();
    let mut fronts = Vec::new();
    for section in &sections {
        match section.head.word(0) {
            "defaults" => {
                defaults.add(section);
                section.lines.iter().filter(|line| !inherits(line)).for_each(|line| other(conversion, line));
            }
            _ if section.lines.iter().any(|line| line.word(0) == "disabled") => {
                conversion.not_needed(&section.head.place, section.head.text(), "it is disabled; nothing to do");
            }
            "backend" => {
                backends.insert(section.head.word(1), (section, defaults.of(section)));
            }
            "frontend" | "listen" => fronts.push((section, defaults.of(section))),
            "global" => section.lines.iter().for_each(|line| conversion.own(&line.place, line.text())),
            "peers" => conversion.needs_you(
                &section.head.place,
                section.head.text(),
                "several balancers share clients by `[fleet]`",
            ),
            "resolvers" | "mailers" | "userlist" | "cache" | "ring" | "program" => {
                conversion.not_needed(
                    &section.head.place,
                    section.head.text(),
                    "lines that refer to it have their own comments; nothing to do",
                );
            }
            _ => conversion.needs_you(
                &section.head.place,
                section.head.text(),
                "this balancer has no counterpart; check whether you need it",
            ),
        }
    }
    let mut used = BTreeSet::new();
    for (section, inherited) in &fronts {
        conversion.has_candidates = true;
        if section.head.word(0) == "listen" {
            listen(conversion, section, inherited);
        } else {
            used.extend(frontend(conversion, section, inherited, &backends));
        }
    }
    for (name, (section, _)) in &backends {
        if !used.contains(*name) {
            let why = "no frontend could be converted that leads to it alone; add a service for it by hand";
            conversion.needs_you(&section.head.place, section.head.text(), why);
        }
    }
    Ok(())
}

fn is_bind(line: &Line) -> bool {
    line.word(0) == "bind"
}

fn listen(conversion: &mut Conversion, section: &Section, inherited: &[Line]) {
    let serves = |line: &Line| ["server", "server-template"].contains(&line.word(0));
    if !section.lines.iter().any(serves) {
        return no_server(conversion, section);
    }
    let chooses = |line: &&Line| ["use_backend", "default_backend"].contains(&line.word(0));
    if section.lines.iter().any(|line| chooses(&line) && line.word(1) != section.head.word(1)) {
        section.lines.iter().filter(chooses).for_each(|line| conversion.needs_you(&line.place, line.text(), BEHIND));
        return chooses_by_request(conversion, section);
    }
    let mut service = Service::new(&section.head.place, section.head.word(1));
    service.listeners =
        section.lines.iter().filter(|line| is_bind(line)).flat_map(|line| bind(conversion, line)).collect();
    let lines = section.lines.iter().filter(|line| !is_bind(line));
    fill(conversion, &mut service, lines, inherited, Timeouts::default());
    finish(conversion, service);
}

fn no_server(conversion: &mut Conversion, section: &Section) {
    let head = &section.head;
    if section.lines.iter().any(|line| line.word(0) == "stats") {
        let why = "HAProxy's own page; `balancer status`, `balancer stats` and the metrics have what it shows";
        conversion.not_needed(&head.place, head.text(), why);
    } else {
        conversion.needs_you(&head.place, head.text(), format!("it has no server; {BEHIND}"));
    }
}

fn finish(conversion: &mut Conversion, service: Service) {
    if service.listeners.is_empty() {
        conversion.not_needed(&service.place, service.name, "none of its listeners could be converted; see its `bind`");
    } else {
        conversion.add(service);
    }
}

/// The lines of a frontend that choose its backend, in the order in which HAProxy asks them. The last one has no
/// condition, unless the frontend serves only requests that meet one.
fn branches(section: &Section) -> Vec<&Line> {
    let of = |word: &'static str| section.lines.iter().filter(move |line| line.word(0) == word);
    let mut branches = Vec::new();
    for line in of("use_backend") {
        branches.push(line);
        if is_unconditional(line) {
            return branches;
        }
    }
    branches.extend(of("default_backend").next_back());
    branches
}

fn is_unconditional(line: &Line) -> bool {
    line.word(0) == "default_backend" || line.words.len() == 2
}

fn chooses_by_request(conversion: &mut Conversion, section: &Section) {
    let why = format!("it chooses between servers by the content of requests, and becomes no service; {BEHIND}");
    conversion.needs_you(&section.head.place, section.head.text(), why);
}

/// The line that names the only backend of a frontend; `None` if the frontend cannot be converted, with a note about the
/// reason.
fn only_backend<'a>(conversion: &mut Conversion, section: &'a Section) -> Option<&'a Line> {
    let branches = branches(section);
    let last = branches.last().filter(|line| is_unconditional(line));
    let only =
        last.filter(|last| branches.iter().all(|line| line.word(1) == last.word(1)) && !last.word(1).contains('%'));
    for line in branches.iter().filter(|line| line.word(0) == "use_backend") {
        if only.is_none() {
            conversion.needs_you(&line.place, line.text(), BEHIND);
        } else if !is_unconditional(line) {
            let why = "all requests go to this backend, with or without the condition; nothing to do";
            conversion.not_needed(&line.place, line.text(), why);
        }
    }
    if only.is_none() && last.is_some() {
        chooses_by_request(conversion, section);
    } else if only.is_none() {
        no_server(conversion, section);
    }
    only.copied()
}

fn frontend(conversion: &mut Conversion, section: &Section, own: &[Line], backends: &Backends<'_>) -> Option<String> {
    let branch = only_backend(conversion, section);
    let mut listeners = Vec::new();
    for line in &section.lines {
        match line.word(0) {
            "bind" if branch.is_none() => {
                conversion.not_needed(&line.place, line.text(), "its frontend could not be converted, see there");
            }
            "bind" => listeners.extend(bind(conversion, line)),
            "default_backend" | "use_backend" => {}
            _ => other(conversion, line),
        }
    }
    let branch = branch?;
    let name = branch.word(1);
    let Some((backend, inherited)) = backends.get(name) else {
        let why = "there is no such backend, or it is disabled; name one";
        conversion.needs_you(&branch.place, branch.text(), why);
        return None;
    };
    let mut service = Service::new(&section.head.place, name);
    service.listeners = listeners;
    let of_clients = Timeouts::of(own.iter().chain(&section.lines));
    fill(conversion, &mut service, backend.lines.iter(), inherited, of_clients);
    finish(conversion, service);
    Some(name.to_owned())
}
