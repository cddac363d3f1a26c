//! Lists of targets in the `file_sd` format of Prometheus: groups of targets with labels, in JSON or YAML.

use std::{collections::BTreeMap, ffi::OsStr, net::IpAddr, path::Path};

use serde::{Deserialize, Deserializer};

use crate::{
    target::{DEFAULT_WEIGHT, MAX_TARGETS, Target, implied_name},
    value,
    words::counted,
};

const JSON_FORM: &str =
    "this is not a list of targets; write [{\"targets\": [\"192.0.2.1:80\"], \"labels\": {\"name\": \"web1\"}}]";
const YAML_FORM: &str =
    "this is not a list of targets; write - targets: [\"192.0.2.1:80\"], and on the next line   labels: {name: web1}";

/// The format of a list of targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
}

impl Format {
    /// The format is YAML if the file's name ends with `.yaml` or `.yml`, otherwise JSON.
    #[must_use]
    pub(crate) fn of(file: &Path) -> Self {
        match file.extension().and_then(OsStr::to_str) {
            Some("yaml" | "yml") => Self::Yaml,
            _ => Self::Json,
        }
    }

    fn groups(self, text: &[u8]) -> Result<Vec<Group>, (Option<usize>, String)> {
        match self {
            Self::Json => serde_json::from_slice(text).map_err(|error| of_json(&error)),
            Self::Yaml => serde_saphyr::from_slice_with_options(text, limits()).map_err(|error| of_yaml(&error)),
        }
    }
}

/// The limits for the YAML parser: they allow [`MAX_TARGETS`] groups with several labels, and aliases cannot expand to
/// a longer list.
fn limits() -> serde_saphyr::Options {
    const NODES: usize = 64 * MAX_TARGETS;
    let mut options = serde_saphyr::Options::default();
    if let Some(budget) = &mut options.budget {
        budget.max_nodes = NODES;
        budget.max_events = 2 * NODES;
    }
    options
}

/// Parses a list of targets. Only the labels `name` and `weight` have a meaning for the balancer; other labels belong
/// to other programs. An entry that cannot be a target, or whose name another entry has, becomes a faulty target. Its
/// fault names the entry by its number and does not quote the list, because a caller of the API may name any file and
/// must not learn the file's contents.
///
/// # Errors
/// Returns the first error of the form, with its line.
pub(crate) fn parse(text: &[u8], format: Format) -> Result<Vec<Target>, (Option<usize>, String)> {
    let mut targets: Vec<Target> = format.groups(text)?.into_iter().flat_map(|group| group.0).collect();
    if targets.len() > MAX_TARGETS {
        return Err((None, format!("has {}; at most {MAX_TARGETS} are possible", counted(targets.len(), "target"))));
    }
    let mut seen = BTreeMap::new();
    for (number, target) in (1..).zip(&mut targets) {
        let entry = format!("target {number}");
        let fault = match &target.fault {
            Some(fault) => Some(fault.clone()),
            None => seen
                .insert(target.name.clone(), number)
                .map(|first| format!("target {first} has its name as well; {OWN_NAMES}")),
        };
        let Some(fault) = fault else { continue };
        let is_second = target.fault.is_none();
        let name = if is_second || target.name.is_empty() { entry.clone() } else { target.name.clone() };
        *target = Target::faulty(name, None, format!("{entry}: {fault}"));
    }
    Ok(targets)
}

fn of_json(error: &serde_json::Error) -> (Option<usize>, String) {
    let line = Some(error.line()).filter(|line| *line > 0);
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(&*said, |(said, _)| said);
    // These error messages of serde would quote the input.
    let quotes = ["invalid type", "invalid value", "unknown", "invalid length"];
    let is_form = error.is_data() && quotes.iter().any(|word| said.starts_with(word));
    (line, if is_form { JSON_FORM.to_owned() } else { said.to_owned() })
}

/// Replaces the library's error messages, because they may quote the input.
fn of_yaml(error: &serde_saphyr::Error) -> (Option<usize>, String) {
    let line = error.location().and_then(|location| usize::try_from(location.line()).ok()).filter(|line| *line > 0);
    (line, YAML_FORM.to_owned())
}

const OWN_NAMES: &str = "give each a label name of its own";
const SEVERAL: &str = "a group with a label name has one target; give each target a group of its own";
const NO_ADDRESS: &str = "this target is no address of a backend; write \"192.0.2.1:80\" or \"[2001:db8::1]:80\", host names are \
                          not looked up";
const NO_NAME: &str = "this label name is no name of a backend; use 1 to 63 of A-Z a-z 0-9 . _ -";
const NO_WEIGHT: &str = "this label weight is no weight; write \"0\" to \"65535\"";

/// The targets of one group, with their labels.
struct Group(Vec<Target>);

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A group of targets in the form that the list contains.
        #[derive(Deserialize)]
        struct Written {
            targets: Vec<Place>,
            #[serde(default)]
            labels: Labels,
        }
        let Written { targets, labels } = Written::deserialize(deserializer)?;
        if labels.name.is_some() && targets.len() != 1 {
            let name = labels.name.and_then(Result::ok).unwrap_or_default();
            let faulty = Target::faulty(name, None, SEVERAL.to_owned());
            return Ok(Self(vec![faulty; targets.len().max(1)]));
        }
        Ok(Self(targets.into_iter().map(|place| labels.target(&place)).collect()))
    }
}

/// The address and the port of a target, if the text is an address of a backend.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Place(Option<(IpAddr, Option<u16>)>);

impl From<String> for Place {
    fn from(text: String) -> Self {
        Self(value::address(&text).ok())
    }
}

/// The labels of a group that the balancer uses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Labels {
    #[serde(deserialize_with = "name")]
    name: Option<Result<String, &'static str>>,
    #[serde(deserialize_with = "weight")]
    weight: Option<Result<u16, &'static str>>,
}

impl Labels {
    /// The target at `place`. If nobody can tell the name of a faulty target, the name is empty.
    fn target(&self, place: &Place) -> Target {
        let named = self.name.clone().transpose();
        let name = named.clone().unwrap_or_default();
        let name = name.or_else(|| place.0.map(|(address, port)| implied_name(address, port))).unwrap_or_default();
        let sound = named.and_then(|_| Ok((place.0.ok_or(NO_ADDRESS)?, self.weight.unwrap_or(Ok(DEFAULT_WEIGHT))?)));
        match sound {
            Ok(((address, port), weight)) => {
                Target { name, addresses: vec![address], why: None, fault: None, port, weight, backup: false }
            }
            Err(fault) => Target::faulty(name, None, fault.to_owned()),
        }
    }
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Result<String, &'static str>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Some(value::name(&text).map_err(|_| NO_NAME)))
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Result<u16, &'static str>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Some(text.parse().map_err(|_| NO_WEIGHT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, format: Format) -> Vec<String> {
        let targets = parse(text.as_bytes(), format).unwrap();
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
        let yaml = "
            # Made by a script.
            - targets: ['10.0.0.1:8080']
              labels:
                name: web1
                weight: '7'
                job: web
            - targets:
                - 10.0.0.2:8080
                - '[2001:DB8::1]:80'
                - 10.0.0.3
              labels: {__meta_x: y}
            - targets: []
        ";
        let expected = [
            "web1 10.0.0.1 8080 7",
            "10.0.0.2-8080 10.0.0.2 8080 100",
            "2001-db8--1-80 2001:db8::1 80 100",
            "10.0.0.3 10.0.0.3 - 100",
        ];
        assert_eq!(shown(text, Format::Json), expected);
        assert_eq!(shown(text, Format::Yaml), expected, "JSON is YAML");
        assert_eq!(shown(yaml, Format::Yaml), expected);
        assert_eq!(shown("- targets: [10.0.0.1]\n  labels: {weight: 7}\n", Format::Yaml), ["10.0.0.1 10.0.0.1 - 7"]);
        for format in [Format::Json, Format::Yaml] {
            assert_eq!(shown("[]", format), [""; 0]);
        }
    }

    #[test]
    fn when_a_files_name_ends_with_yaml_or_yml_then_its_list_is_yaml() {
        let of = |name: &str| Format::of(Path::new(name));
        assert_eq!(["/x/a.yaml", "/x/a.b.yml"].map(of), [Format::Yaml; 2]);
        assert_eq!(["/x/a.json", "/x/yaml", "/x/a.yaml.json", "/x/a"].map(of), [Format::Json; 4]);
    }

    #[test]
    fn when_a_yaml_list_is_wrong_then_the_line_is_told_and_nothing_of_the_list() {
        for (text, line, said) in [
            ("- labels: {secret: secret}\n", 1, "this is not a list of targets"),
            ("secret: 1\n", 1, "this is not a list of targets"),
            ("root:secret:1", 1, "this is not a list of targets"),
            ("- targets: [\n\nsecret\n", 1, "this is not a list of targets"),
            ("- targets: *secret\n", 1, "this is not a list of targets"),
        ] {
            let (at, told) = parse(text.as_bytes(), Format::Yaml).unwrap_err();
            assert!(told.starts_with(said) && !told.contains("secret"), "{text}: {at:?} {told}");
            assert_eq!(at, Some(line), "{text}: {told}");
        }
        let bytes = [b"- targets: ['".as_slice(), &[0xff, 0xfe]].concat();
        assert!(parse(&bytes, Format::Yaml).is_err());
    }

    #[test]
    fn when_a_yaml_list_expands_aliases_without_end_then_it_is_refused() {
        let mut text = "- targets: []\n  labels:\n    a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (one, other) in ('a'..'h').zip('b'..='h') {
            let aliases = vec![format!("*{one}"); 9].join(", ");
            text += &format!("    {other}: &{other} [{aliases}]\n");
            if other == 'c' {
                assert!(parse(text.as_bytes(), Format::Yaml).is_ok(), "few");
            }
        }
        let (_, told) = parse(text.as_bytes(), Format::Yaml).unwrap_err();
        assert!(told.starts_with("this is not a list of targets"), "{told}");
    }

    #[test]
    fn when_a_yaml_list_is_as_long_as_is_allowed_then_it_is_taken() {
        let line = |number: usize| {
            format!(
                "- targets: ['10.{}.{}.1:80']\n  labels: {{name: web{number}, weight: 100, job: web, rack: r1, zone: a}}\n",
                number >> 8,
                number & 255
            )
        };
        let text: String = (0..MAX_TARGETS).map(line).collect();
        assert_eq!(parse(text.as_bytes(), Format::Yaml).unwrap().len(), MAX_TARGETS);
    }

    #[test]
    fn when_a_list_has_more_targets_than_fit_then_the_list_is_refused() {
        let list = |count: usize| {
            let targets: Vec<String> = (0..count).map(|n| format!("\"10.{}.{}.1:80\"", n >> 8, n & 255)).collect();
            parse(format!("[{{\"targets\": [{}]}}]", targets.join(",")).as_bytes(), Format::Json)
        };
        assert_eq!(list(MAX_TARGETS).unwrap().len(), MAX_TARGETS);
        let refused = (None, "has 65,535 targets; at most 65534 are possible".to_owned());
        assert_eq!(list(MAX_TARGETS + 1).unwrap_err(), refused);
    }

    #[test]
    fn when_a_list_is_wrong_then_the_line_is_told_and_nothing_of_the_list() {
        let refused = |text: &str| parse(text.as_bytes(), Format::Json).unwrap_err();
        for (text, line, said) in [
            ("", 1, "EOF while parsing a value"),
            ("[{\"targets\": [\"10.0.0.1\"], \"labels\": {\n\"weight\": 17}}]", 2, "this is not a list of targets"),
            ("[{\"labels\": {}}]", 1, "missing field `targets`"),
            ("\"secret\"", 1, "this is not a list of targets"),
            ("{\"secret\": 1}", 1, "this is not a list of targets"),
            ("root:secret:1", 1, "expected value"),
        ] {
            let (at, told) = refused(text);
            assert!(at == Some(line) && told.starts_with(said) && !told.contains("secret"), "{text}: {at:?} {told}");
        }
    }

    #[test]
    fn when_an_entry_of_a_list_is_wrong_then_it_alone_is_faulty_and_nothing_of_it_is_told() {
        let sound = "- targets: [10.0.0.9:80]\n";
        for (text, name, said) in [
            ("- targets:\n  - secret\n", "target 2", "this target is no address of a backend; write"),
            ("- targets: ['10.0.0.1:99999']\n", "target 2", "this target is no address"),
            ("- targets: [web1]\n  labels: {name: web1}\n", "web1", "this target is no address"),
            ("- targets: [10.0.0.1]\n  labels:\n    weight: secret\n", "10.0.0.1", "this label weight is no weight"),
            ("- targets: [10.0.0.1]\n  labels: {name: se cret}\n", "10.0.0.1", "this label name is no name"),
            ("- targets: []\n  labels: {name: web1}\n", "web1", "a group with a label name"),
            ("- targets: [10.0.0.1]\n  labels: {name: 10.0.0.9-80}\n", "target 2", "target 1 has its name as well"),
        ] {
            let targets = parse(format!("{sound}{text}").as_bytes(), Format::Yaml).unwrap();
            let fault = targets[1].fault.clone().unwrap();
            assert!(fault.starts_with(&format!("target 2: {said}")) && !fault.contains("secret"), "{text}: {fault}");
            assert_eq!((&*targets[1].name, targets.len(), &targets[0].fault), (name, 2, &None), "{text}");
        }
        let several = r#"[{"targets": ["10.0.0.1", "10.0.0.2"], "labels": {"name": "a"}}]"#;
        let targets = parse(several.as_bytes(), Format::Json).unwrap();
        let faults: Vec<_> = targets.iter().map(|target| (&*target.name, target.fault.is_some())).collect();
        assert_eq!(faults, [("a", true), ("a", true)]);
    }
}
