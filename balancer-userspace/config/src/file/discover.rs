//! Reads the sections `[[service.discover]]`, and the lists of targets that these sections name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use balancer_common::map_types::Forwarding;

use super::{
    contents, deny,
    etcd::etcd_servers,
    findings::{ConfigErrors, Finding, Findings},
    section::{Located, Section},
};
use crate::{
    config::{Config, crosses_families, forwarding_word},
    discover::{DEFAULT_KEEP, DiscoverConfig, Floor, MAX_TARGETS, Source, Target},
    dns::{self, DnsSource, Records},
    etcd::{self, EtcdSource},
    listeners::{Family, Listener},
    target_list::{self, Format},
    value,
};

const SOURCES: [&str; 4] = ["file", "dns", "dns_a", "etcd"];
const ONE_OF: &str = "add file = \"/etc/balancer/targets.json\", a list of targets, dns = \"_http._tcp.web.internal\", SRV \
                      records, dns_a = \"web.internal\", addresses, or etcd = \"/services/web/\", keys of etcd";
const FAMILIES: &[(&str, Family)] = &[("ipv4", Family::V4), ("ipv6", Family::V6)];
const SERVERS: &str = "a list of DNS servers such as [\"192.0.2.53\"]";
/// The maximum time for which a backend waits for its missing target.
const MOST_KEEP: Duration = Duration::from_secs(24 * 60 * 60);
const FLOOR: &str = "a number of targets such as 2, or a share such as \"50%\"";

/// Reads the sections `[[service.discover]]` of one service. `front` contains the service's listeners and its
/// forwarding mode, if these settings are valid.
pub(super) fn discover(
    sections: Vec<Section<'_>>,
    front: Option<(&[Listener], Forwarding)>,
    findings: &mut Findings<'_>,
) -> Vec<DiscoverConfig> {
    let mut lists: Vec<DiscoverConfig> = Vec::with_capacity(sections.len());
    for mut section in sections {
        let source = source(&mut section, front, findings);
        let min = section.integer_or_text("min", FLOOR, findings, (0, MAX_TARGETS as i64), share);
        let keep = section.text("keep", findings, keep);
        let at = section.at;
        section.finish(findings);
        let is_dns = source.as_ref().is_some_and(|source| source.value.dns().is_some());
        if let Some(min) = &min
            && is_dns
            && min.value == Floor::Targets(0)
        {
            let text = "min = 0 would let an empty answer remove all backends; give at least 1";
            findings.error(min.at, text.to_owned());
        }
        let Some(source) = source else { continue };
        if lists.iter().any(|list| list.source == source.value) {
            let (key, at) = match &source.value {
                Source::File(_) => ("file", source.at),
                Source::Dns(_) => ("name", at),
                Source::Etcd(_) => ("prefix", source.at),
            };
            let text = format!("this service has a [[service.discover]] with that {key} already; remove one");
            findings.error(at, text);
            continue;
        }
        let min = min.map_or_else(Floor::default, |min| min.value);
        let keep = keep.map_or(DEFAULT_KEEP, |keep| keep.value);
        lists.push(DiscoverConfig { source: source.value, min, keep, own: None });
    }
    lists
}

/// Reads the source of a list; exactly one of four keys specifies the source.
fn source(
    section: &mut Section<'_>,
    front: Option<(&[Listener], Forwarding)>,
    findings: &mut Findings<'_>,
) -> Option<Located<Source>> {
    let keys: Vec<&str> = SOURCES.into_iter().filter(|key| section.has(key)).collect();
    if keys.is_empty() {
        let text = format!("[[service.discover]] has no \"file\", \"dns\", \"dns_a\" or \"etcd\"; {ONE_OF}");
        findings.error(section.at, text);
    }
    if let [_, other, ..] = *keys {
        section.refuse(other, "is a second source; give each a [[service.discover]] of its own", findings);
    }
    match keys.first() {
        Some(&"file") => refuse(section, &["family", "servers"], "is for dns and dns_a, and this is a file", findings),
        Some(&"etcd") => refuse(section, &["family", "servers"], "is for dns and dns_a, and this is etcd", findings),
        _ => {}
    }
    if !keys.is_empty() && !keys.contains(&"dns_a") {
        refuse(section, &["port"], "is for dns_a: other sources say the port of each target", findings);
    }
    if !keys.is_empty() && !keys.contains(&"etcd") {
        refuse(section, &["endpoints", "ca", "cert", "key"], "is for etcd, and this is another source", findings);
    }
    if let Some(file) = section.text("file", findings, value::absolute_path) {
        return Some(Located { at: file.at, value: Source::File(file.value) });
    }
    if section.has("etcd") {
        section.require("endpoints", "endpoints = [\"https://…:2379\"], where etcd is", findings);
        let (prefix, servers) = (section.text("etcd", findings, etcd::prefix), etcd_servers(section, findings));
        let (prefix, etcd) = prefix.zip(servers)?;
        return Some(Located { at: prefix.at, value: Source::Etcd(EtcdSource { prefix: prefix.value, etcd }) });
    }
    dns_source(section, front, findings).map(|dns| Located { at: dns.at, value: Source::Dns(dns.value) })
}

fn refuse(section: &mut Section<'_>, keys: &[&'static str], why: &str, findings: &mut Findings<'_>) {
    keys.iter().for_each(|key| section.refuse(key, &format!("{why}; remove it"), findings));
}

/// Reads the keys of a DNS query.
fn dns_source(
    section: &mut Section<'_>,
    front: Option<(&[Listener], Forwarding)>,
    findings: &mut Findings<'_>,
) -> Option<Located<DnsSource>> {
    let at = section.at;
    let services = section.text("dns", findings, dns::host_name);
    let addresses = section.text("dns_a", findings, dns::host_name);
    let port = section.integer("port", findings, (1, 65_535));
    let family = section.text("family", findings, |text| value::word("family", text, FAMILIES));
    let servers = section.texts("servers", SERVERS, findings, dns::server);
    if servers.as_ref().is_some_and(Vec::is_empty) && !findings.has_errors() {
        findings.error(at, format!("servers is empty; leave it out for those of /etc/resolv.conf, or give {SERVERS}"));
    }
    let records =
        if addresses.is_some() { Records::Addresses { port: port.map(|port| port.value) } } else { Records::Services };
    let name = addresses.or(services)?;
    family_fits(&records, family.as_ref(), &name, front, findings);
    let servers = servers.unwrap_or_default().into_iter().map(|server| server.value).collect();
    let value = DnsSource { records, name: name.value, family: family.map(|family| family.value), servers };
    Some(Located { at: name.at, value })
}

/// Reports addresses to which the balancer cannot send packets of the service's clients.
fn family_fits(
    records: &Records,
    family: Option<&Located<Family>>,
    name: &Located<String>,
    front: Option<(&[Listener], Forwarding)>,
    findings: &mut Findings<'_>,
) {
    let Some((listen, forwarding)) = front else { return };
    if crosses_families(forwarding) {
        return;
    }
    let families: BTreeSet<Family> = listen.iter().map(Listener::family).collect();
    let mode = forwarding_word(forwarding);
    if families.len() > 1 && matches!(records, Records::Addresses { .. }) {
        let text = format!(
            "dns_a does not say which IPv4 and IPv6 addresses are one backend, and {mode} needs both for this service; use dns \
             with SRV records, or a service for each family"
        );
        findings.error(name.at, text);
    } else if let Some(family) = family
        && families.iter().any(|of| *of != family.value)
    {
        let text = format!("{mode} cannot reach {} addresses from all listeners; remove family", family.value);
        findings.error(family.at, text);
    }
}

/// Parses the time for which a backend waits for its missing target.
fn keep(text: &str) -> Result<Duration, String> {
    let keep = value::duration(text)?;
    if keep > MOST_KEEP {
        return Err(format!("keep = {} is too long; give \"0s\" to \"24h\"", value::quoted(text)));
    }
    Ok(keep)
}

/// Parses a minimum number of targets such as `50%`.
fn share(text: &str) -> Result<Floor, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
    let percent = percent.filter(|percent| (1..=100).contains(percent));
    percent.map(Floor::Share).ok_or_else(|| format!("min = {} is not a minimum; give {FLOOR}", value::quoted(text)))
}

/// Reads a list of targets from a file. Faulty entries are among the targets.
///
/// # Errors
/// Fails if the file is no list of targets.
pub fn load(path: &Path) -> Result<Vec<Target>, Finding> {
    let finding = |line, text| Finding { file: path.to_owned(), line, text };
    let text = contents::read(path, deny::LARGEST).map_err(|text| finding(None, text))?;
    target_list::parse(&text, Format::of(path)).map_err(|(line, text)| finding(line, text))
}

/// Reads the target files that a configuration names, and returns the total number of their targets. The function
/// queries neither DNS nor etcd, because the present answers on this machine say little about later answers to the
/// balancer.
///
/// # Errors
/// Returns the errors in all invalid lists of targets.
pub fn check(config: &Config) -> Result<usize, ConfigErrors> {
    let mut files: BTreeMap<&Path, Floor> = BTreeMap::new();
    for list in config.services.iter().flat_map(|service| &service.discover) {
        let Some(file) = list.source.file() else { continue };
        let min = files.entry(file).or_insert(list.min);
        if list.min.least(0) > min.least(0) {
            *min = list.min;
        }
    }
    let (mut count, mut errors) = (0, Vec::new());
    for (file, min) in files {
        match load(file) {
            Ok(targets) => {
                let finding = |text| Finding { file: file.to_owned(), line: None, text };
                let (faulty, sound): (Vec<_>, Vec<_>) = targets.into_iter().partition(|of| of.fault.is_some());
                errors.extend(faulty.into_iter().filter_map(|target| target.fault).map(finding));
                errors.extend(min.too_few(sound.len(), 0).map(finding));
                count += sound.len();
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(count) } else { Err(ConfigErrors::of(errors)) }
}
