//! Annotations of a Kubernetes Service.

use std::{collections::BTreeMap, net::IpAddr};

use balancer_config::{names::nearest, value};
use toml::{Table, Value};

use crate::args::Target;

/// The prefix of the names of annotations for this program.
pub const PREFIX: &str = "sticky.balancer/";

/// The keys of a service in the balancer's configuration that annotations may set. The value of the annotation has the
/// form of the text that would follow the `=`. Users of a cluster must not set keys that affect the balancer's machine,
/// such as `assign_vip` and `table_size`.
pub const KEYS: [&str; 12] = [
    "agent",
    "bounded_load",
    "check",
    "client_prefix",
    "drain",
    "failback",
    "on_failure",
    "outage",
    "reject",
    "remember",
    "slow_start",
    "when_all_down",
];

/// The keys of a check that annotations may set. Users of a cluster must not name programs or files on the balancer's
/// machine.
const CHECK_KEYS: [&str; 22] = [
    "expect",
    "expect_body",
    "expect_body_regex",
    "expect_rcode",
    "expect_status",
    "fall",
    "fast_interval",
    "host",
    "http2",
    "interval",
    "method",
    "name",
    "passive",
    "path",
    "port",
    "record",
    "rise",
    "send",
    "service",
    "sni",
    "timeout",
    "type",
];

/// The settings that the annotations of a Service request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The forwarding mode; absent: the default mode.
    pub forwarding: Option<String>,
    /// The addresses that the Service requests.
    pub addresses: Vec<IpAddr>,
    /// The keys of the balancer's service, with their values.
    pub keys: Table,
}

/// Reads the annotations of a Service; also returns descriptions of the mistakes in annotations that it ignores.
#[must_use]
pub fn read(annotations: Option<&BTreeMap<String, String>>, target: Target) -> (Settings, Vec<String>) {
    let (mut settings, mut wrong) = (Settings::default(), Vec::new());
    let own = annotations.into_iter().flatten().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value)));
    for (name, value) in own {
        if let Err(error) = settings.take(name, value.trim(), target) {
            wrong.push(format!("annotation {PREFIX}{name}: {error}"));
        }
    }
    (settings, wrong)
}

impl Settings {
    fn take(&mut self, name: &str, text: &str, target: Target) -> Result<(), String> {
        match name {
            "addresses" => self.addresses = addresses(text)?,
            "forwarding" => {
                let words: Vec<(&str, &str)> = target.forwarding().into_iter().map(|word| (word, word)).collect();
                self.forwarding = Some(value::word("forwarding", text, &words)?.to_owned());
            }
            _ if KEYS.contains(&name) => {
                let value = setting(name, text)?;
                self.keys.insert(name.to_owned(), value);
            }
            _ => return Err(unknown(name, &[&["addresses", "forwarding"], &KEYS[..]].concat())),
        }
        Ok(())
    }
}

fn unknown(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(nearest) => format!("there is none of that name; did you mean {nearest}?"),
        None => format!("there is none of that name; there are {}", known.join(", ")),
    }
}

/// Parses addresses that are separated by commas or spaces.
pub fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let words = text.split([',', ' ']).filter(|word| !word.is_empty());
    let address = |word: &str| word.parse().map_err(|_| format!("{} is not an IP address", value::quoted(word)));
    words.map(address).collect()
}

/// The value that an annotation gives to a key: a TOML value, or a word or number without quotes.
fn setting(name: &str, text: &str) -> Result<Value, String> {
    let table = |key: &str, value: Value| Value::Table([(key.to_owned(), value)].into_iter().collect());
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    let Some(value) = parsed else {
        let is_table = text.starts_with('{');
        return match name {
            _ if is_table => Err(format!("{} is not a table; write it as in the balancer's file", value::quoted(text))),
            "drain" => Ok(table("timeout", text.into())),
            "check" => checked(table("type", text.into())),
            _ => Ok(text.into()),
        };
    };
    match (name, value) {
        ("agent", number @ Value::Integer(_)) => Ok(table("port", number)),
        ("client_prefix", number @ Value::Integer(_)) => Ok(table("v4", number)),
        ("bounded_load", number @ (Value::Integer(_) | Value::Float(_))) => Ok(table("factor", number)),
        ("outage", number @ (Value::Integer(_) | Value::Float(_))) => Ok(table("share", number)),
        ("drain", text @ Value::String(_)) => Ok(table("timeout", text)),
        ("check", text @ Value::String(_)) => checked(table("type", text)),
        ("check", value) => checked(value),
        (_, value) => Ok(value),
    }
}

/// Returns the check, unless the check contains a key that would affect the balancer's machine.
fn checked(check: Value) -> Result<Value, String> {
    let Some(keys) = check.as_table() else {
        return Err("it is a table, such as { type = \"http\", path = \"/healthz\" }".to_owned());
    };
    if let Some(key) = keys.keys().find(|key| !CHECK_KEYS.contains(&key.as_str())) {
        return Err(format!("{key} is not for annotations; {}", value::hint(key, &CHECK_KEYS, "they have")));
    }
    if keys.get("type").and_then(Value::as_str) == Some("exec") {
        return Err("programs of checks come only from the balancer's own file, never from an annotation".to_owned());
    }
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let map = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        read(Some(&map), Target::Pod)
    }

    #[test]
    fn when_annotations_are_right_then_they_are_keys_of_the_service() {
        let (settings, wrong) = of(&[
            ("sticky.balancer/addresses", "198.51.100.7, 2001:db8::7"),
            ("sticky.balancer/forwarding", "ipip"),
            ("sticky.balancer/client_prefix", "{ v4 = 24, v6 = 56 }"),
            ("sticky.balancer/drain", "2m"),
            ("sticky.balancer/bounded_load", "1.25"),
            ("sticky.balancer/check", "{ type = \"http\", path = \"/healthz\" }"),
            ("sticky.balancer/failback", "return"),
            ("other.example/forwarding", "none of ours"),
        ]);
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(settings.addresses.len(), 2);
        assert_eq!(settings.forwarding.as_deref(), Some("ipip"));
        let expected = toml::toml! {
            client_prefix = { v4 = 24, v6 = 56 }
            drain = { timeout = "2m" }
            bounded_load = { factor = 1.25 }
            check = { type = "http", path = "/healthz" }
            failback = "return"
        };
        assert_eq!(settings.keys, expected);
    }

    #[test]
    fn when_a_value_is_short_then_it_is_the_one_that_matters_most() {
        for (key, text, expected) in [
            ("agent", "9777", toml::toml! { value = { port = 9777 } }),
            ("client_prefix", "24", toml::toml! { value = { v4 = 24 } }),
            ("drain", "\"2m\"", toml::toml! { value = { timeout = "2m" } }),
            ("check", "none", toml::toml! { value = { type = "none" } }),
            ("remember", "1h 30m", toml::toml! { value = "1h 30m" }),
            ("reject", "false", toml::toml! { value = false }),
        ] {
            assert_eq!(Some(&setting(key, text).unwrap()), expected.get("value"), "{key} {text}");
        }
    }

    #[test]
    fn when_an_annotation_is_unknown_or_wrong_then_it_is_told_and_left_out() {
        for (name, value, said) in [
            ("drian", "2m", "there is none of that name; did you mean drain?"),
            ("colour", "blue", "there are addresses, forwarding, agent, bounded_load"),
            ("forwarding", "nta", "did you mean \"nat\"?"),
            ("forwarding", "dsr", "known values: nat, snat, ipip"),
            ("addresses", "198.51.100", "\"198.51.100\" is not an IP address"),
            ("check", "{ type = \"http\", hots = \"a\" }", "hots is not for annotations; did you mean \"host\"?"),
            ("check", "{ type = \"http\"", "is not a table"),
            ("check", "7", "it is a table"),
        ] {
            let (settings, wrong) = of(&[(&format!("{PREFIX}{name}"), value)]);
            assert_eq!(settings, Settings::default(), "{name}");
            assert!(wrong.len() == 1 && wrong[0].starts_with(&format!("annotation {PREFIX}{name}: ")), "{wrong:?}");
            assert!(wrong[0].contains(said), "{wrong:?}");
        }
    }

    #[test]
    fn when_a_check_names_a_program_or_a_file_of_the_balancers_machine_then_it_is_left_out() {
        for check in [
            "exec",
            "{ type = \"exec\" }",
            "{ type = \"exec\", command = [\"/bin/sh\"] }",
            "{ type = \"https\", ca_file = \"/etc/shadow\" }",
            "{ type = \"grpcs\", client_cert = \"/etc/shadow\" }",
            "{ type = \"http\", headers = { X = { file = \"/etc/shadow\" } } }",
        ] {
            let (settings, wrong) = of(&[("sticky.balancer/check", check)]);
            assert!(settings.keys.is_empty() && wrong.len() == 1, "{check}: {settings:?}");
        }
    }
}
