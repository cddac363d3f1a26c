//! The chains of this machine's firewall that packets may pass, as listed by `nft`.

use std::{io, process::Command};

use serde::Deserialize;

use crate::facts::Chain;

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

/// An object in the output of `nft`; the doctor reads only chains.
#[derive(Deserialize)]
struct Object {
    chain: Option<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
}

/// Returns the chains that are attached to a hook of the kernel.
///
/// # Errors
/// Fails if `nft` is missing, or if it fails.
pub(super) fn chains() -> io::Result<Vec<Chain>> {
    let output = Command::new("nft").args(["-j", "list", "chains"]).output();
    let output = output.map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        if missing {
            io::Error::other("nft is not installed; what a firewall drops is seen from probes")
        } else {
            error
        }
    })?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    read(&output.stdout)
}

fn read(json: &[u8]) -> io::Result<Vec<Chain>> {
    let listing: Listing = serde_json::from_slice(json)?;
    let chains = listing.nftables.into_iter().filter_map(|object| object.chain);
    let hooked = chains.filter_map(|Listed { family, table, name, hook }| {
        let hook = hook.filter(|_| matches!(family.as_str(), "inet" | "ip" | "ip6"))?;
        Some(Chain { place: format!("{family} {table} {name}"), hook })
    });
    Ok(hooked.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_nft_lists_chains_then_those_with_a_hook_are_known() {
        let json = br#"{"nftables": [
            {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
            {"table": {"family": "inet", "name": "filter", "handle": 1}},
            {"chain": {"family": "inet", "table": "filter", "name": "in", "handle": 1, "type": "filter", "hook": "input",
                       "prio": 0, "policy": "drop"}},
            {"chain": {"family": "arp", "table": "a", "name": "in", "handle": 1, "type": "filter", "hook": "input",
                       "prio": 0, "policy": "accept"}},
            {"chain": {"family": "ip", "table": "nat", "name": "own", "handle": 2}}]}"#;
        let expected = Chain { place: "inet filter in".to_owned(), hook: "input".to_owned() };
        assert_eq!(read(json).unwrap(), [expected]);
        assert!(read(b"{}").is_err());
    }
}
