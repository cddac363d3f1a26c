//! Backends from keys of etcd: determines which keys to read, and turns the keys and their values into targets. The key
//! of a target identifies it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::PathBuf,
    str,
};

use serde::{Deserialize, Serialize};

use crate::{
    target::{DEFAULT_WEIGHT, MAX_TARGETS, Target, backend_name},
    value,
    words::counted,
};

/// The priority of a target whose value contains no priority, the same as in SkyDNS.
const DEFAULT_PRIORITY: u32 = 10;

/// The servers of etcd, and the certificates for connections to them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EtcdServers {
    /// The URLs of the servers, `http` or `https`, without a path: at least one URL, without duplicates.
    pub endpoints: Vec<String>,
    /// The certificates that have signed the servers' certificates; `None`: the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The file with the client's certificate, which requires `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// The file with the private key of the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// The keys of etcd that contain a list of targets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EtcdSource {
    /// The prefix of all keys in the list; the prefix ends with `/`.
    pub prefix: String,
    /// The etcd servers from which the balancer reads these keys.
    pub etcd: EtcdServers,
}

impl fmt::Display for EtcdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd {}", self.prefix)
    }
}

/// Parses a prefix of keys, and appends a slash if it has none.
///
/// # Errors
/// Fails if the prefix would include all keys, or contains characters that no key should have.
pub(crate) fn prefix(text: &str) -> Result<String, String> {
    let right = "write the path of a service's keys, such as \"/services/web/\"";
    let path = text.trim_end_matches('/');
    if path.is_empty() {
        return Err(format!("the prefix {} is that of all keys; {right}", value::quoted(text)));
    }
    if path.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(format!("the prefix {} has a space or a control character; {right}", value::quoted(text)));
    }
    Ok(format!("{path}/"))
}

/// The value of a key in the format of SkyDNS. Other fields of the value have no effect.
#[derive(Deserialize)]
struct SkyDns {
    host: String,
    #[serde(default)]
    port: u16,
    weight: Option<u32>,
    #[serde(default)]
    priority: u32,
}

/// The address, the port, the weight and the priority of one target.
struct Place {
    address: IpAddr,
    port: Option<u16>,
    weight: u16,
    priority: u32,
}

/// The targets from the keys below a prefix; the keys are given with their values and without this prefix. The targets
/// with the best priority are normal backends, and all other targets are backups.
///
/// A key with an invalid value becomes a faulty target. The fault does not quote the value, because a caller of the API
/// may name any prefix and must not learn the values of its keys.
///
/// # Errors
/// Fails if there are too many keys.
pub fn targets(tree: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Target>, String> {
    if tree.len() > MAX_TARGETS {
        return Err(format!("has {}; at most {MAX_TARGETS} are possible", counted(tree.len(), "key")));
    }
    let (mut places, mut faulty) = (Vec::with_capacity(tree.len()), Vec::new());
    let mut names = BTreeSet::new();
    // Some programs create a key that equals the prefix, like a directory.
    for (key, value) in tree.iter().filter(|(key, _)| !key.is_empty()) {
        let (name, key) = (name(key), format!("key {}", value::quoted(key)));
        if !names.insert(name.clone()) {
            let fault = format!("{key}: another key has the name {name}; rename one");
            faulty.push(Target::faulty(key, None, fault));
            continue;
        }
        match place(value) {
            Ok(place) => places.push((name, place)),
            Err(why) => faulty.push(Target::faulty(name, None, format!("{key}: {why}"))),
        }
    }
    let best = places.iter().map(|(_, place)| place.priority).min();
    let target = |(name, place): (String, Place)| Target {
        name,
        addresses: vec![place.address],
        why: None,
        fault: None,
        port: place.port,
        weight: place.weight,
        backup: Some(place.priority) != best,
    };
    Ok(places.into_iter().map(target).chain(faulty).collect())
}

/// The backend name for a key: the key with `-` in place of `/`, if the result is a valid name.
fn name(key: &str) -> String {
    value::name(&key.replace('/', "-")).unwrap_or_else(|_| backend_name(key))
}

fn place(value: &[u8]) -> Result<Place, String> {
    const FORM: &str = "write 192.0.2.1:80, or {\"host\": \"192.0.2.1\", \"port\": 80} as for SkyDNS";
    let text = str::from_utf8(value).map_err(|_| format!("the value is not text; {FORM}"))?.trim();
    if !text.starts_with('{') {
        let (address, port) =
            value::address(text).map_err(|_| format!("the value is no address of a backend; {FORM}"))?;
        return Ok(Place { address, port, weight: DEFAULT_WEIGHT, priority: DEFAULT_PRIORITY });
    }
    let of: SkyDns = serde_json::from_str(text).map_err(|_| format!("the value is no such JSON; {FORM}"))?;
    let (address, port) = value::address(&of.host)
        .map_err(|_| format!("\"host\" is no address of a backend, and host names are not looked up; {FORM}"))?;
    let port = Some(of.port).filter(|port| *port != 0).or(port);
    let weight = of.weight.unwrap_or(DEFAULT_WEIGHT.into());
    let weight = u16::try_from(weight).map_err(|_| "\"weight\" is too large; give 0 to 65535".to_owned())?;
    let priority = if of.priority == 0 { DEFAULT_PRIORITY } else { of.priority };
    Ok(Place { address, port, weight, priority })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(keys: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        keys.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn shown(keys: &[(&str, &str)]) -> Vec<String> {
        let line = |target: Target| {
            let port = target.port.map_or_else(|| "-".to_owned(), |port| port.to_string());
            let backup = if target.backup { " backup" } else { "" };
            format!("{} {} {port} {}{backup}", target.name, target.addresses[0], target.weight)
        };
        targets(&tree(keys)).unwrap().into_iter().map(line).collect()
    }

    #[test]
    fn when_keys_are_as_confd_has_them_then_each_value_is_an_address() {
        let keys = [("", ""), ("app1", "10.0.1.10:8080"), ("app2", "[2001:db8::1]:80\n"), ("rack1/app3", "10.0.1.12")];
        let expected = ["app1 10.0.1.10 8080 100", "app2 2001:db8::1 80 100", "rack1-app3 10.0.1.12 - 100"];
        assert_eq!(shown(&keys), expected);
        assert_eq!(shown(&[]), [""; 0]);
    }

    #[test]
    fn when_keys_are_as_skydns_has_them_then_weights_count_and_worse_priorities_are_backups() {
        let keys = [
            ("1", r#"{"host": "10.0.1.10", "port": 8080, "weight": 7, "priority": 5, "ttl": 60, "group": "g"}"#),
            ("2", r#"{"host":"2001:db8::1","port":80,"priority":5}"#),
            ("3", r#"{"host":"10.0.1.12","weight":0}"#),
            ("4", "10.0.1.13"),
        ];
        let expected =
            ["1 10.0.1.10 8080 7", "2 2001:db8::1 80 100", "3 10.0.1.12 - 0 backup", "4 10.0.1.13 - 100 backup"];
        assert_eq!(shown(&keys), expected);
        assert_eq!(shown(&keys[2..]), ["3 10.0.1.12 - 0", "4 10.0.1.13 - 100"]);
    }

    #[test]
    fn when_a_key_is_no_name_of_a_backend_then_its_name_is_its_beginning_and_a_hash() {
        let registrator = shown(&[("host:nginx:80", "10.0.0.1:32768")]);
        assert_eq!(registrator, ["host-nginx-80-f2068a651c9417c1 10.0.0.1 32768 100"]);
        assert_eq!(name(&"k".repeat(200)).len(), 63);
    }

    /// Returns the fault of the only faulty target, which is called `name`.
    fn faults(tree: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
        let all = targets(tree).unwrap();
        let faulty: Vec<&Target> = all.iter().filter(|target| target.fault.is_some()).collect();
        assert_eq!((faulty.len(), &*faulty[0].name), (1, name));
        faulty[0].fault.clone().unwrap()
    }

    #[test]
    fn when_a_value_is_wrong_then_its_key_is_told_and_nothing_of_the_value() {
        for (value, said) in [
            ("", "the value is no address of a backend; write 192.0.2.1:80, or {"),
            ("secret:80", "the value is no address of a backend"),
            ("10.0.0.1:99999", "the value is no address of a backend"),
            ("0.0.0.0:80", "the value is no address of a backend"),
            (r#"{"secret": 1}"#, "the value is no such JSON"),
            (r#"{"host": "10.0.0.1", "port": "secret"}"#, "the value is no such JSON"),
            (r#"{"host": "secret.internal"}"#, "\"host\" is no address of a backend, and host names are not"),
            (r#"{"host": "10.0.0.1", "weight": 70000}"#, "\"weight\" is too large"),
        ] {
            let told = faults(&tree(&[("app0", "10.0.0.9"), ("app1", value)]), "app1");
            assert!(told.starts_with(&format!("key \"app1\": {said}")) && !told.contains("secret"), "{value}: {told}");
        }
        let told = faults(&BTreeMap::from([("a".to_owned(), vec![0xff])]), "a");
        assert!(told.starts_with("key \"a\": the value is not text"), "{told}");
        let told = faults(&tree(&[("a-b", "10.0.0.1"), ("a/b", "10.0.0.2")]), "key \"a/b\"");
        assert_eq!(told, "key \"a/b\": another key has the name a-b; rename one");
    }

    #[test]
    fn when_a_prefix_is_given_then_it_ends_with_a_slash_and_is_not_that_of_all_keys() {
        for text in ["/services/web", "/services/web/", "/services/web//"] {
            assert_eq!(prefix(text).as_deref(), Ok("/services/web/"));
        }
        for text in ["", "/", "//", "/a b/", "/a\n"] {
            assert!(prefix(text).unwrap_err().contains("such as \"/services/web/\""), "{text:?}");
        }
    }
}
