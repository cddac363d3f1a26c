//! Service discovery: backends from a list of targets that another program maintains.

use std::{
    collections::BTreeMap,
    fmt, mem,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

pub use crate::target::{MAX_TARGETS, Target};
use crate::{
    dns::{DnsSource, Records},
    states::Admin,
    target::{DEFAULT_WEIGHT, implied_name},
    value,
    words::counted,
};

const FORM: &str =
    "this is not a list of targets; write [{\"targets\": [\"192.0.2.1:80\"], \"labels\": {\"name\": \"web1\"}}]";

/// One `[[service.discover]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoverConfig {
    /// The source of the list.
    pub source: Source,
    /// The minimum number of targets; a shorter list is not applied.
    pub min: Floor,
    /// The configuration of the only backend, if the list is the addresses of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Own>,
}

/// The configured part of a backend whose address is a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// The share of new clients.
    pub weight: u16,
    /// Whether other backends are used first.
    pub backup: bool,
}

/// The source of a list of targets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// In a file, by its absolute path.
    File(PathBuf),
    /// In records of DNS.
    Dns(DnsSource),
}

impl Source {
    /// The file, if the source is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Dns(_) => None,
        }
    }

    /// The backend whose address it is, if it belongs to one.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        match &self.dns()?.records {
            Records::Backend { backend, .. } => Some(backend),
            Records::Services | Records::Addresses { .. } => None,
        }
    }

    /// Whether it queries the same records of the same name as an earlier source. The address of a backend belongs only
    /// to that backend.
    #[must_use]
    pub fn succeeds(&self, former: &Self) -> bool {
        let kind = |dns: &DnsSource| mem::discriminant(&dns.records);
        let asks = self.dns().zip(former.dns());
        self.backend().is_none()
            && asks.is_some_and(|(now, before)| now.name == before.name && kind(now) == kind(before))
    }

    /// The DNS query, if the source is one.
    #[must_use]
    pub const fn dns(&self) -> Option<&DnsSource> {
        match self {
            Self::File(_) => None,
            Self::Dns(dns) => Some(dns),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Dns(dns) => dns.fmt(f),
        }
    }
}

/// The minimum number of targets for applying a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Floor {
    /// A fixed number.
    Targets(u32),
    /// A percentage of the number when the list was last applied, but at least one.
    Share(u8),
}

impl Floor {
    /// The minimum number, given the earlier number.
    #[must_use]
    pub fn least(self, had: usize) -> usize {
        match self {
            Self::Targets(count) => count as usize,
            Self::Share(percent) => (had * usize::from(percent)).div_ceil(100).max(1),
        }
    }

    /// Returns an error if a list of `count` targets, which had `had` before, has too few.
    #[must_use]
    pub fn too_few(self, count: usize, had: usize) -> Option<String> {
        let least = self.least(had);
        if count >= least {
            return None;
        }
        let of = match self {
            Self::Share(percent) if had > 0 => format!("{percent} % of the {had} before"),
            Self::Targets(_) | Self::Share(_) => format!("min = {least}"),
        };
        Some(format!("has {}, fewer than {of}; if that is meant, lower min", counted(count, "target")))
    }
}

impl From<u32> for Floor {
    fn from(count: u32) -> Self {
        Self::Targets(count)
    }
}

impl Default for Floor {
    fn default() -> Self {
        Self::Targets(1)
    }
}

/// The part of a backend that a list of targets controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    /// The list.
    pub source: Source,
    /// The weight in the list, which can be changed at run time.
    pub weight: u16,
    /// Set while a backend that is no longer listed drains: the state that the operator wanted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Admin>,
}

/// Parses a list in the JSON format of Prometheus' `file_sd`: groups of targets with labels. Only the labels `name` and
/// `weight` count; others belong to other programs.
///
/// # Errors
/// The first error and its line. The text does not quote the list, because a caller of the API may name any file and
/// must not learn its contents.
pub fn parse(text: &[u8]) -> Result<Vec<Target>, (Option<usize>, String)> {
    let groups: Vec<Group> = serde_json::from_slice(text).map_err(|error| {
        let line = Some(error.line()).filter(|line| *line > 0);
        let said = error.to_string();
        let said = said.rsplit_once(" at line ").map_or(&*said, |(said, _)| said);
        // These messages of serde quote the input.
        let quotes = ["invalid type", "invalid value", "unknown", "invalid length"];
        let is_form = error.is_data() && quotes.iter().any(|word| said.starts_with(word));
        (line, if is_form { FORM.to_owned() } else { said.to_owned() })
    })?;
    let targets: Vec<Target> = groups.into_iter().flat_map(|group| group.0).collect();
    if targets.len() > MAX_TARGETS {
        return Err((None, format!("has {}; {MAX_TARGETS} are the most", counted(targets.len(), "target"))));
    }
    let mut seen = BTreeMap::new();
    for (number, target) in (1..).zip(&targets) {
        if let Some(first) = seen.insert(&target.name, number) {
            return Err((
                None,
                format!("targets {first} and {number} have one name; give each a label name of its own"),
            ));
        }
    }
    Ok(targets)
}

/// The targets of one group.
struct Group(Vec<Target>);

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A group as written.
        #[derive(Deserialize)]
        struct Written {
            targets: Vec<Place>,
            #[serde(default)]
            labels: Labels,
        }
        let Written { targets, labels: Labels { name, weight } } = Written::deserialize(deserializer)?;
        if name.is_some() && targets.len() != 1 {
            let several = "a group with a label name has one target; give each target a group of its own";
            return Err(D::Error::custom(several));
        }
        let target = |Place { address, port }| Target {
            name: name.clone().unwrap_or_else(|| implied_name(address, port)),
            addresses: vec![address],
            why: None,
            port,
            weight: weight.unwrap_or(DEFAULT_WEIGHT),
            backup: false,
        };
        Ok(Self(targets.into_iter().map(target).collect()))
    }
}

/// The address of a target.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Place {
    address: IpAddr,
    port: Option<u16>,
}

impl TryFrom<String> for Place {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (address, port) = value::address(&text).map_err(|_| {
            "this target is no address of a backend; write \"192.0.2.1:80\" or \"[2001:db8::1]:80\", host names are not looked up"
        })?;
        Ok(Self { address, port })
    }
}

/// The labels that count.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Labels {
    #[serde(deserialize_with = "name")]
    name: Option<String>,
    #[serde(deserialize_with = "weight")]
    weight: Option<u16>,
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let right = "this label name is no name of a backend; use 1 to 63 of A-Z a-z 0-9 . _ -";
    value::name(&text).map(Some).map_err(|_| D::Error::custom(right))
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let right = "this label weight is no weight; write \"0\" to \"65535\"";
    text.parse().map(Some).map_err(|_| D::Error::custom(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let targets = parse(text.as_bytes()).unwrap();
        let port = |target: &Target| target.port.map_or_else(|| "-".to_owned(), |port| port.to_string());
        let line =
            |target: &Target| format!("{} {} {} {}", target.name, target.addresses[0], port(target), target.weight);
        targets.iter().map(line).collect()
    }

    #[test]
    fn when_a_list_is_as_prometheus_has_it_then_names_and_weights_are_taken_from_labels() {
        let text = r#"[
            {"targets": ["10.0.0.1:8080"], "labels": {"name": "web1", "weight": "7", "job": "web"}},
            {"targets": ["10.0.0.2:8080", "[2001:DB8::1]:80", "10.0.0.3"], "labels": {"__meta_x": "y"}},
            {"targets": []}
        ]"#;
        let expected = [
            "web1 10.0.0.1 8080 7",
            "10.0.0.2-8080 10.0.0.2 8080 100",
            "2001-db8--1-80 2001:db8::1 80 100",
            "10.0.0.3 10.0.0.3 - 100",
        ];
        assert_eq!(shown(text), expected);
        assert_eq!(shown("[]"), [""; 0]);
    }

    #[test]
    fn when_a_list_is_wrong_then_the_line_is_told_and_nothing_of_the_list() {
        let refused = |text: &str| parse(text.as_bytes()).unwrap_err();
        for (text, line, said) in [
            ("", 1, "EOF while parsing a value"),
            ("[\n{\"targets\": [\"secret\"]}]", 2, "this target is no address of a backend; write"),
            ("[\n\n{\"targets\": [\"10.0.0.1:99999\"]}]", 3, "this target is no address"),
            (
                "[{\"targets\": [\"10.0.0.1\"], \"labels\": {\n\"weight\": \"secret\"}}]",
                2,
                "this label weight is no weight",
            ),
            ("[{\"targets\": [\"10.0.0.1\"], \"labels\": {\n\"weight\": 17}}]", 2, "this is not a list of targets"),
            ("[{\"targets\": [\"10.0.0.1\"], \"labels\": {\"name\": \"se cret\"}}]", 1, "this label name is no name"),
            (
                "[{\"targets\": [\"10.0.0.1\", \"10.0.0.2\"], \"labels\": {\"name\": \"a\"}}]",
                1,
                "a group with a label name",
            ),
            ("[{\"labels\": {}}]", 1, "missing field `targets`"),
            ("\"secret\"", 1, "this is not a list of targets"),
            ("{\"secret\": 1}", 1, "this is not a list of targets"),
            ("root:secret:1", 1, "expected value"),
        ] {
            let (at, told) = refused(text);
            assert!(at == Some(line) && told.starts_with(said) && !told.contains("secret"), "{text}: {at:?} {told}");
        }
        let (line, text) =
            refused(r#"[{"targets": ["10.0.0.1"]}, {"targets": ["10.0.0.2"], "labels": {"name": "10.0.0.1"}}]"#);
        assert_eq!((line, &*text), (None, "targets 1 and 2 have one name; give each a label name of its own"));
    }
}
