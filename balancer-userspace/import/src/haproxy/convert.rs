//! Makes services from HAProxy's listeners and backends.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    bind::bind,
    other::{BEHIND, OWN, other},
    parse::{Line, Section, parse},
    proxy::{fill, inherits},
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
            "global" => section.lines.iter().for_each(|line| conversion.not_needed(&line.place, line.text(), OWN)),
            "peers" => conversion.needs_you(
                &section.head.place,
                section.head.text(),
                "several balancers share clients by `[fleet]`",
            ),
            "resolvers" | "mailers" | "userlist" | "cache" | "ring" | "program" => {
                conversion.not_needed(
                    &section.head.place,
                    section.head.text(),
                    "what refers to it is named; nothing to do",
                );
            }
            _ => conversion.needs_you(
                &section.head.place,
                section.head.text(),
                "it has no counterpart; look whether it matters",
            ),
        }
    }
    let mut used = BTreeSet::new();
    for (section, inherited) in &fronts {
        conversion.has_candidates = true;
        if section.head.word(0) == "listen" {
            listen(conversion, section, inherited);
        } else {
            used.extend(frontend(conversion, section, &backends));
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
    let mut service = Service::new(&section.head.place, section.head.word(1));
    service.listeners =
        section.lines.iter().filter(|line| is_bind(line)).flat_map(|line| bind(conversion, line)).collect();
    fill(conversion, &mut service, section.lines.iter().filter(|line| !is_bind(line)), inherited);
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

fn frontend(conversion: &mut Conversion, section: &Section, backends: &Backends<'_>) -> Option<String> {
    let (mut listeners, mut target) = (Vec::new(), None);
    for line in &section.lines {
        match line.word(0) {
            "bind" => listeners.extend(bind(conversion, line)),
            "default_backend" => target = Some(line),
            "use_backend" if line.words.len() == 2 => target = Some(line),
            "use_backend" => conversion.needs_you(&line.place, line.text(), BEHIND),
            _ => other(conversion, line),
        }
    }
    let Some(line) = target else {
        no_server(conversion, section);
        return None;
    };
    let Some((backend, inherited)) = backends.get(line.word(1)) else {
        let why = "there is no such backend, or it is disabled; name one";
        conversion.needs_you(&line.place, line.text(), why);
        return None;
    };
    let mut service = Service::new(&section.head.place, line.word(1));
    service.listeners = listeners;
    fill(conversion, &mut service, backend.lines.iter(), inherited);
    finish(conversion, service);
    Some(line.word(1).to_owned())
}
