//! The bill of materials: each crate and library in the program, as CycloneDX 1.5 JSON. This module uses `cargo
//! metadata`, because the output of cargo-cyclonedx contains the directory of the sources.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::VERSION;
use crate::command::{cargo, output};

/// The crates of the command, of the kernel program inside the command, and of the program for Kubernetes clusters.
const ROOTS: [&str; 3] = ["balancer-userspace", "balancer-ebpf", "balancer-kubernetes"];

/// A library that is linked with the program but is not a crate.
pub(super) struct Library {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) licence: &'static str,
}

/// Returns the bill of materials of the program for `target`.
pub(super) fn bill(target: &str, libraries: &[Library]) -> Result<String> {
    let metadata = output(cargo().args(["metadata", "--locked", "--format-version", "1", "--filter-platform", target]));
    let metadata: Value = serde_json::from_str(&metadata.context("`cargo metadata` failed")?)?;
    let lock = std::fs::read_to_string(crate::command::root().join("Cargo.lock")).context("Cargo.lock")?;
    let mut document = document(&metadata, &checksums(&lock));
    if let Some(components) = document["components"].as_array_mut() {
        components.extend(libraries.iter().map(|Library { name, version, licence }| {
            let reference = format!("pkg:generic/{name}@{version}");
            json!({
                "type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference,
                "licenses": [{ "expression": licence }],
            })
        }));
    }
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// Each package's checksum, by name and version, in the text of a `Cargo.lock`.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let packages = lock.split("[[package]]").map(|package| {
        let value = |key: &str| {
            package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
        };
        Some(((value("name")?, value("version")?), value("checksum")?))
    });
    packages.flatten().collect()
}

fn document(metadata: &Value, checksums: &BTreeMap<(&str, &str), &str>) -> Value {
    let packages: BTreeMap<&str, &Value> =
        items(&metadata["packages"]).map(|package| (text(&package["id"]), package)).collect();
    let edges: BTreeMap<&str, Vec<&str>> = items(&metadata["resolve"]["nodes"])
        .map(|node| {
            (
                text(&node["id"]),
                items(&node["deps"]).filter(|edge| is_linked(edge)).map(|edge| text(&edge["pkg"])).collect(),
            )
        })
        .collect();
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> =
        packages.iter().filter(|(_, package)| ROOTS.contains(&text(&package["name"]))).map(|(&id, _)| id).collect();
    while let Some(id) = open.pop() {
        if packages.get(id).is_some_and(|package| !is_macro(package)) && found.insert(id) {
            open.extend(edges.get(id).into_iter().flatten());
        }
    }
    let mut parts: Vec<(String, &str)> = found.iter().map(|&id| (reference(packages[id]), id)).collect();
    parts.sort();
    let dependencies = parts.iter().map(|(own, id)| {
        let on: BTreeSet<String> =
            edges[id].iter().filter(|id| found.contains(*id)).map(|id| reference(packages[id])).collect();
        json!({ "ref": own, "dependsOn": on })
    });
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": { "type": "application", "name": "balancer", "version": VERSION } },
        "components": parts.iter().map(|(own, id)| component(own, packages[id], checksums)).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    })
}

fn component(reference: &str, package: &Value, checksums: &BTreeMap<(&str, &str), &str>) -> Value {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    let mut component = json!({
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
    });
    if let Some(checksum) = checksums.get(&(name, version)) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if let Some(licence) = package["license"].as_str() {
        // In a licence expression, a slash is an older notation for "or".
        component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
    }
    component
}

fn reference(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
}

/// Whether the dependency is linked with the program, instead of being needed only for the build or for tests.
fn is_linked(edge: &Value) -> bool {
    items(&edge["dep_kinds"]).any(|kind| kind["kind"].is_null())
}

/// Whether the package is a procedural macro, which is part of the compiler.
fn is_macro(package: &Value) -> bool {
    items(&package["targets"]).any(|target| items(&target["kind"]).any(|kind| kind == "proc-macro"))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{checksums, document};

    fn package(name: &str, kind: &str) -> Value {
        json!({
            "id": name, "name": name, "version": "1.2.3", "license": "MIT/Apache-2.0",
            "targets": [{ "kind": [kind] }],
        })
    }

    fn node(name: &str, on: &[(&str, Value)]) -> Value {
        let edges: Vec<Value> =
            on.iter().map(|(name, kind)| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] })).collect();
        json!({ "id": name, "deps": edges })
    }

    #[test]
    fn when_a_bill_is_made_then_it_has_exactly_what_is_linked() {
        let metadata = json!({
            "packages": [
                package("balancer-userspace", "bin"), package("serde", "lib"), package("serde_derive", "proc-macro"),
                package("cc", "lib"), package("proptest", "lib"), package("xtask", "bin"),
            ],
            "resolve": { "nodes": [
                node("balancer-userspace", &[("serde", Value::Null), ("cc", json!("build")), ("proptest", json!("dev"))]),
                node("serde", &[("serde_derive", Value::Null)]),
                node("serde_derive", &[]), node("cc", &[]), node("proptest", &[]), node("xtask", &[]),
            ] },
        });
        let lock = "[[package]]\nname = \"serde\"\nversion = \"1.2.3\"\nchecksum = \"00ff\"\n";
        let bill = document(&metadata, &checksums(lock));
        let names: Vec<&str> =
            bill["components"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["balancer-userspace", "serde"]);
        let serde = &bill["components"][1];
        assert_eq!(serde["hashes"][0]["content"], "00ff");
        assert_eq!(serde["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["dependencies"][0]["dependsOn"], json!(["pkg:cargo/serde@1.2.3"]));
    }
}
