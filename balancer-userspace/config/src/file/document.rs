//! Turns the text of a whole configuration file into a configuration.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use balancer_common::map_types::MAX_INTERFACES;
use toml::de::DeTable;

use super::{
    control,
    findings::Findings,
    fleet::fleet,
    pieces::{self, Known, Services},
    section::Section,
    service::{Placed, service},
};
use crate::{
    config::{Config, OnExit, StatisticsConfig, XdpMode},
    validate::{Place, Problem, Valid},
    value,
};

const STATE_FILE: &str = "/var/lib/balancer/state.json";
const METRICS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9660);
const CLIENT_TABLE_CAPACITY: u32 = 262_144;
const MAX_CLIENT_TABLE_CAPACITY: i64 = 1 << 26;
const FLOW_TABLE_CAPACITY: u32 = 262_144;
const MAX_FLOW_TABLE_CAPACITY: i64 = 1 << 23;
const MAX_SAMPLE_INTERVAL: i64 = 1 << 20;

/// Makes a configuration from the text of a file. The function adds errors to `findings`; the result is `None` only if
/// there are errors.
pub(super) fn config(text: &str, known: &mut Known, findings: &mut Findings<'_>) -> Option<Config> {
    if let Some((head, services)) = pieces::parse(text, known, findings) {
        let config = of_parts(Section::new("the file", 0, head), Some((services, &known.valid)), findings)?;
        known.valid = config.services.clone();
        return Some(config);
    }
    as_a_whole(text, findings)
}

/// Makes a configuration from the text of a file without reusing earlier results.
pub(super) fn as_a_whole(text: &str, findings: &mut Findings<'_>) -> Option<Config> {
    of_parts(document(text, "the file", findings)?, None, findings)
}

/// Parses TOML, and calls the whole text `title` in errors.
fn document<'i>(text: &'i str, title: &'static str, findings: &mut Findings<'_>) -> Option<Section<'i>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut lines = HashSet::new();
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        // Further errors on the same line are in most cases consequences of the first error.
        if lines.insert(findings.line(at)) {
            let hint = if error.message() == "duplicate key" { "; remove one" } else { "" };
            findings.error(at, format!("not TOML: {}{hint}", error.message().replace('\n', " ")));
        }
    }
    errors.is_empty().then(|| Section::new(title, 0, document.into_inner()))
}

/// Makes a configuration from the tables of a file. `services` contains the services of the file, if they are not in
/// `root`, and the services that are valid.
fn of_parts(
    mut root: Section<'_>,
    services: Option<(Services, &Valid)>,
    findings: &mut Findings<'_>,
) -> Option<Config> {
    let interfaces = interfaces(&mut root, findings);
    let xdp_mode = root.text("xdp_mode", findings, |text| {
        let words = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
        value::word("xdp_mode", text, &words)
    });
    let on_exit = root.text("on_exit", findings, |text| {
        value::word("on_exit", text, &[("detach", OnExit::Detach), ("keep", OnExit::Keep)])
    });
    let state_file = root.text("state_file", findings, value::absolute_path);
    let control = root.table("control", "[control]", "{ socket = \"/run/balancer/balancer.sock\" }", findings);
    let control = control::control(control, findings);
    let metrics = root.table("metrics", "[metrics]", "{ listen = \"127.0.0.1:9660\" }", findings);
    let (metrics_listen, metrics_page) = metrics.map_or((None, None), |mut section| {
        let listen = section.text("listen", findings, value::listen_address);
        let page = section.boolean("page", findings);
        section.finish(findings);
        (listen, page)
    });
    let capacity =
        root.table("client_table", "[client_table]", "{ capacity = 262144 }", findings).and_then(|mut section| {
            let capacity = section.integer("capacity", findings, (1, MAX_CLIENT_TABLE_CAPACITY));
            section.finish(findings);
            capacity
        });
    let flow_table = root.table("flow_table", "[flow_table]", "{ capacity = 262144 }", findings);
    let flow_table_wanted = flow_table.is_some();
    let flows = flow_table.and_then(|mut section| {
        let capacity = section.integer("capacity", findings, (1024, MAX_FLOW_TABLE_CAPACITY));
        section.finish(findings);
        capacity
    });
    let hash_key = root.table("hash", "[hash]", "{ key = \"hex:…\" }", findings).and_then(|mut section| {
        let key = section.text("key", findings, value::hash_key);
        section.finish(findings);
        key
    });
    let statistics = root
        .table("statistics", "[statistics]", "{ heavy_client_share = 0.5 }", findings)
        .map(|section| statistics(section, findings));
    let fleet = root
        .table("fleet", "[fleet]", "{ name = \"site1\", endpoints = [\"https://192.0.2.1:2379\"] }", findings)
        .and_then(|section| fleet(section, findings));
    let in_root = root.tables("service", "[[service]]", findings);
    root.finish(findings);
    let nothing = Valid::default();
    let (services, known) = match services {
        Some(services) => services,
        None => {
            if in_root.is_none() && !findings.has_errors() {
                findings.error(0, "no [[service]] in the file; add at least one".to_owned());
            }
            let placed = in_root.unwrap_or_default().into_iter().filter_map(|section| service(section, findings));
            (placed.map(|placed| (0, Arc::new(placed))).collect(), &nothing)
        }
    };
    let services = related(&services, known, findings)?;

    Some(Config {
        interfaces,
        xdp_mode: xdp_mode.map_or(XdpMode::Auto, |mode| mode.value),
        on_exit: on_exit.map_or(OnExit::Detach, |on_exit| on_exit.value),
        state_file: state_file.map_or_else(|| PathBuf::from(STATE_FILE), |path| path.value),
        control,
        metrics_listen: metrics_listen.map_or(Some(METRICS_LISTEN), |listen| listen.value),
        metrics_page: metrics_page.unwrap_or(true),
        client_table_capacity: capacity.map_or(CLIENT_TABLE_CAPACITY, |capacity| capacity.value),
        flow_table_capacity: flows.map_or(FLOW_TABLE_CAPACITY, |capacity| capacity.value),
        flow_table_wanted: flow_table_wanted && services.is_empty(),
        hash_key: hash_key.map(|key| key.value),
        statistics: statistics.unwrap_or_default(),
        fleet,
        services,
    })
}

/// Makes the services of a drop-in called `name`, which contains nothing but services. The function adds errors to
/// `findings`; the result is `None` only if there are errors.
pub(super) fn drop_in(name: &str, text: &str, findings: &mut Findings<'_>) -> Option<Valid> {
    let mut root = document(text, "the drop-in", findings)?;
    let sections = root.tables("service", "[[service]]", findings).unwrap_or_default();
    root.finish(findings);
    let placed = sections.into_iter().filter_map(|section| service(section, findings));
    let placed = placed.map(|mut placed| {
        Arc::make_mut(&mut placed.service).drop_in = Some(name.to_owned());
        (0, Arc::new(placed))
    });
    let services: Services = placed.collect();
    related(&services, &Valid::default(), findings)
}

fn statistics(mut section: Section<'_>, findings: &mut Findings<'_>) -> StatisticsConfig {
    let default = StatisticsConfig::default();
    let heavy = section.part("heavy_client_share", findings);
    let interval = section.integer("sample_interval", findings, (1, MAX_SAMPLE_INTERVAL));
    section.finish(findings);
    StatisticsConfig {
        heavy_client_share: heavy.map_or(default.heavy_client_share, |share| share.value),
        sample_interval: interval.map_or(default.sample_interval, |interval| interval.value),
    }
}

fn interfaces(root: &mut Section<'_>, findings: &mut Findings<'_>) -> Vec<String> {
    let wanted = "a list of names such as [\"eth0\"]";
    let located = root.texts("interfaces", wanted, findings, value::interface).unwrap_or_default();
    let mut names: Vec<String> = Vec::with_capacity(located.len());
    for interface in located {
        if names.contains(&interface.value) {
            findings.error(interface.at, format!("the interface {:?} is listed twice; remove one", interface.value));
        } else if names.len() == MAX_INTERFACES as usize {
            findings.error(interface.at, format!("more than {MAX_INTERFACES} interfaces; remove some"));
            break;
        } else {
            names.push(interface.value);
        }
    }
    names
}

/// Checks services, each of which is valid by itself, for conflicts with each other. The function adds errors to
/// `findings`.
fn related(services: &[(usize, Arc<Placed>)], known: &Valid, findings: &mut Findings<'_>) -> Option<Valid> {
    let configs = services.iter().map(|(_, placed)| Arc::clone(&placed.service)).collect();
    let report = |problems: Vec<Problem>| {
        for problem in problems {
            let at = |place| place_of(services, place).unwrap_or_default();
            let text = problem.text(|other| Some(findings.line(at(other))));
            findings.error(at(problem.at), text);
        }
    };
    Valid::or_problems(configs, known).map_err(report).ok()
}

fn place_of(services: &[(usize, Arc<Placed>)], place: Place) -> Option<usize> {
    let (Place::Name(service)
    | Place::Listener(service, _)
    | Place::TableSize(service)
    | Place::BackendName(service, _)
    | Place::BackendAddress(service, _)) = place;
    let (start, placed) = services.get(service)?;
    let at = match place {
        Place::Name(_) => placed.name_at,
        Place::Listener(_, listener) => *placed.listen_at.get(listener)?,
        Place::TableSize(_) => placed.table_size_at,
        Place::BackendName(_, backend) => placed.backends_at.get(backend)?.0,
        Place::BackendAddress(_, backend) => placed.backends_at.get(backend)?.1,
    };
    Some(start + at)
}
