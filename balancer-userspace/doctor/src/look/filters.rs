//! The parts of this machine that may drop packets: chains of the firewall, as listed by `nft`, and filters, as listed
//! by `tc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    process::Command,
};

use serde::Deserialize;
use serde_json::Value;

use crate::facts::{Chain, Direction, TcFilter};

/// The names of this product's own filters.
const OWN: [&str; 2] = ["handover", "local_replies"];

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

/// An object in the output of `nft`; the doctor reads only chains and rules.
#[derive(Deserialize)]
struct Object {
    chain: Option<Listed>,
    rule: Option<Rule>,
}

#[derive(Deserialize)]
struct Listed {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct Rule {
    family: String,
    table: String,
    chain: String,
    expr: Value,
}

/// A chain by its family, table and name.
type Key = (String, String, String);

/// Returns the chains at hooks of the kernel that may drop packets of IPv4 or IPv6.
///
/// # Errors
/// Fails if `nft` is missing, or if it fails.
pub(super) fn chains() -> io::Result<Vec<Chain>> {
    // The elements of sets, which may be many, are left out.
    read(&run("nft", &["-j", "-t", "list", "ruleset"], "what a firewall drops is seen from probes")?)
}

/// Whether tables of `iptables-legacy` exist in this network namespace.
pub(super) fn has_legacy_tables() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        let tables = fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        tables.is_ok_and(|tables| !tables.trim().is_empty())
    })
}

/// Returns the filters of other programs on an interface.
///
/// # Errors
/// Fails if `tc` is missing, or if it fails.
pub(super) fn on_interface(ifindex: u32, name: &str) -> io::Result<Vec<TcFilter>> {
    let mut found = Vec::new();
    for (direction, word) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
        let listed = run("tc", &["-j", "filter", "show", "dev", name, word], "filters are not looked at")?;
        let names = read_filters(&listed)?;
        found.extend(names.into_iter().map(|name| TcFilter { ifindex, direction, name }));
    }
    Ok(found)
}

/// The output of a command that lists something.
fn run(program: &str, arguments: &[&str], without: &str) -> io::Result<Vec<u8>> {
    let output = Command::new(program).args(arguments).output().map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        if missing { io::Error::other(format!("{program} is not installed; {without}")) } else { error }
    })?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(output.stdout)
}

fn read(json: &[u8]) -> io::Result<Vec<Chain>> {
    let listing: Listing = serde_json::from_slice(json)?;
    let mut verdicts: BTreeMap<Key, Verdicts> = BTreeMap::new();
    let mut chains = Vec::new();
    for Object { chain, rule } in listing.nftables {
        if let Some(Rule { family, table, chain, expr }) = rule {
            verdicts.entry((family, table, chain)).or_default().add(&expr);
        }
        chains.extend(chain);
    }
    let hooked = chains.into_iter().filter_map(|Listed { family, table, name, hook, policy }| {
        let hook = hook.filter(|_| matches!(family.as_str(), "inet" | "ip" | "ip6" | "netdev"))?;
        let place = format!("{family} {table} {name}");
        let drops = policy.as_deref() == Some("drop") || may_drop((family, table, name), &verdicts);
        drops.then_some(Chain { place, hook })
    });
    Ok(hooked.collect())
}

/// What the rules of a chain may do with a packet, apart from accepting it.
#[derive(Default)]
struct Verdicts {
    drops: bool,
    /// The chains to which rules lead.
    chains: BTreeSet<String>,
}

impl Verdicts {
    fn add(&mut self, expression: &Value) {
        match expression {
            Value::Object(fields) => {
                for (word, value) in fields {
                    match word.as_str() {
                        // `nft` does not show the verdicts of extensions of iptables, nor those of named maps.
                        "drop" | "reject" | "xt" | "queue" | "synproxy" => self.drops = true,
                        "vmap" if value.get("data").is_some_and(Value::is_string) => self.drops = true,
                        "jump" | "goto" => {
                            self.chains.extend(value.get("target").and_then(Value::as_str).map(str::to_owned));
                        }
                        _ => self.add(value),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.add(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// Whether a chain, or another chain to which it leads, has a rule that may drop a packet.
fn may_drop((family, table, name): Key, verdicts: &BTreeMap<Key, Verdicts>) -> bool {
    let mut waiting = vec![name];
    let mut seen = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let Some(rules) = verdicts.get(&(family.clone(), table.clone(), name)) else { continue };
        if rules.drops {
            return true;
        }
        waiting.extend(rules.chains.iter().cloned());
    }
    false
}

#[derive(Deserialize)]
struct Filter {
    kind: Option<String>,
    options: Option<Value>,
}

/// The kinds and names of other programs' filters in a listing of `tc`.
fn read_filters(json: &[u8]) -> io::Result<Vec<String>> {
    if json.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let filters: Vec<Filter> = serde_json::from_slice(json)?;
    // For each priority, `tc` also lists an entry without options, which is no filter.
    let named = filters.into_iter().filter_map(|Filter { kind, options }| {
        let (kind, options) = (kind?, options?);
        let program = options.get("bpf_name").and_then(Value::as_str);
        let is_own = program.is_some_and(|program| OWN.contains(&program));
        let name = program.map_or_else(|| kind.clone(), |program| format!("{kind} {program}"));
        (!is_own).then_some(name)
    });
    let mut names: Vec<String> = named.collect();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "filter", "handle": 1}},
        {"chain": {"family": "inet", "table": "filter", "name": "in", "handle": 1, "type": "filter", "hook": "input",
                   "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "filter", "name": "out", "handle": 2, "type": "filter", "hook": "output",
                   "prio": 0, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "raw", "name": "pre", "handle": 1, "type": "filter", "hook": "prerouting",
                   "prio": -300, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "raw", "name": "sub", "handle": 2}},
        {"chain": {"family": "arp", "table": "a", "name": "in", "handle": 1, "type": "filter", "hook": "input",
                   "prio": 0, "policy": "drop"}},
        {"rule": {"family": "inet", "table": "filter", "chain": "out", "handle": 5, "expr": [
            {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, {"counter": null},
            {"accept": null}]}},
        {"rule": {"family": "ip", "table": "raw", "chain": "pre", "handle": 5, "expr": [
            {"vmap": {"key": {"payload": {"protocol": "tcp", "field": "sport"}},
                      "data": {"set": [[80, {"jump": {"target": "sub"}}]]}}}]}},
        {"rule": {"family": "ip", "table": "raw", "chain": "sub", "handle": 6, "expr": [VERDICT]}}]}"#;

    #[test]
    fn when_nft_lists_rules_then_the_chains_that_may_drop_are_known() {
        let chain = |place: &str, hook: &str| Chain { place: place.to_owned(), hook: hook.to_owned() };
        let input = chain("inet filter in", "input");
        for (verdict, drops) in [
            (r#"{"drop": null}"#, true),
            (r#"{"reject": {"type": "tcp reset"}}"#, true),
            (r#"{"xt": null}"#, true),
            (r#"{"jump": {"target": "sub"}}"#, false),
            (r#"{"accept": null}"#, false),
        ] {
            let found = read(RULES.replace("VERDICT", verdict).as_bytes()).unwrap();
            let raw = drops.then(|| chain("ip raw pre", "prerouting"));
            assert_eq!(found, [input.clone()].into_iter().chain(raw).collect::<Vec<_>>(), "{verdict}");
        }
        assert!(read(b"{}").is_err());
    }

    #[test]
    fn when_tc_lists_filters_then_those_of_other_programs_are_known() {
        let json = br#"[
            {"protocol": "all", "pref": 49151, "kind": "bpf", "chain": 0},
            {"protocol": "all", "pref": 49151, "kind": "bpf", "chain": 0,
             "options": {"handle": "0x1", "bpf_name": "local_replies", "direct-action": true}},
            {"protocol": "all", "pref": 49152, "kind": "matchall", "chain": 0},
            {"protocol": "all", "pref": 49152, "kind": "matchall", "chain": 0, "options": {"handle": 1}},
            {"protocol": "ip", "pref": 2, "kind": "bpf", "chain": 0, "options": {"bpf_name": "shaper"}}]"#;
        assert_eq!(read_filters(json).unwrap(), ["matchall", "bpf shaper"]);
        assert_eq!(read_filters(b"\n").unwrap(), Vec::<String>::new());
    }
}
