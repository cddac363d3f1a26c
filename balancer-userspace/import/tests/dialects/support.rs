//! The sample configurations, and functions for converting them.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use balancer_import::{Conversion, Dialect, NotUnderstood, convert};

/// For each program, the sample and the addresses that replace the addresses of listeners on every address.
pub(crate) const SAMPLES: [(Dialect, &str, &[&str]); 4] = [
    (Dialect::Nginx, "nginx/nginx.conf", &["198.51.100.10"]),
    (Dialect::Haproxy, "haproxy.cfg", &[]),
    (Dialect::Keepalived, "keepalived/keepalived.conf", &[]),
    (Dialect::Ipvsadm, "ipvsadm.rules", &[]),
];

pub(crate) fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples")
}

/// Returns the files that `pattern` names; the pattern is relative to the directory of the sample `from`.
pub(crate) fn include(from: &str, pattern: &str) -> Result<Vec<(String, String)>, String> {
    let directory = Path::new(from).parent().unwrap();
    let full = samples().join(directory).join(pattern);
    let found = glob::glob(full.to_str().unwrap()).map_err(|error| error.to_string())?;
    let name = |path: &Path| path.strip_prefix(samples()).unwrap().display().to_string();
    let files: Vec<_> = found
        .flatten()
        .filter(|path| path.is_file())
        .map(|path| (name(&path), fs::read_to_string(&path).unwrap()))
        .collect();
    if files.is_empty() { Err("there is no such file".to_owned()) } else { Ok(files) }
}

pub(crate) fn text_of(sample: &str) -> String {
    fs::read_to_string(samples().join(sample)).unwrap()
}

pub(crate) fn try_convert(
    dialect: Dialect,
    name: &str,
    text: &str,
    addresses: &[&str],
) -> Result<Conversion, NotUnderstood> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    convert(dialect, &[(name.to_owned(), text.to_owned())], &addresses, &mut include)
}

/// Checks that the balancer accepts a configuration.
pub(crate) fn accepted(text: &str) {
    let parsed = balancer_config::file::parse(Path::new("balancer.toml"), text.as_bytes());
    assert!(parsed.is_ok(), "{}\n{text}", parsed.unwrap_err());
}

/// Checks the resulting configuration with the balancer's validation; returns the configuration.
pub(crate) fn checked(conversion: &Conversion) -> String {
    let text = conversion.toml();
    if text.contains("\n[[service]]\n") {
        accepted(&text);
    }
    text
}

/// Returns the services without an address, with `address` filled in.
pub(crate) fn completed(text: &str, address: &str) -> String {
    // A service ends at an empty line.
    let services = text.split("\n# This service lacks").skip(1);
    let lines = services.flat_map(|service| service.lines().skip(1).take_while(|line| !line.is_empty()));
    let lines = lines.map(|line| line.strip_prefix("# ").unwrap_or(line.trim_start_matches('#')));
    lines.map(|line| format!("{line}\n")).collect::<String>().replace("ADDRESS", address)
}

pub(crate) fn assert_has(text: &str, wanted: &[&str]) {
    for each in wanted {
        assert!(text.contains(each), "no {each} in\n{text}");
    }
}
