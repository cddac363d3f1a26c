//! The section of the balancer's configuration file that belongs to this program: all lines between two marker lines.
//!
//! The section outlives this program's process, so it also records all existing backends, and those that the program
//! drains.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

const BEGIN: &str = "# BEGIN balancer-kubernetes: it writes everything down to END";
const END: &str = "# END balancer-kubernetes";
const DRAINED: &str = "# drained: ";

/// The name and listener of a placeholder service, which is needed because the balancer accepts no file without a
/// service. The address of the placeholder is in the discard prefix (RFC 6666), to which no client sends.
pub const PLACEHOLDER: (&str, &str) = ("k8s.none", "[100::1]:9/udp");

/// The contents of this program's section of the configuration file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// The services, in the order of their names.
    pub services: Vec<ServiceText>,
    /// The backends that this program has drained, as `SERVICE/BACKEND`. The program makes no other drained backends
    /// ready again.
    pub drained: BTreeSet<String>,
}

/// A service in the form of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceText {
    /// The name of the service.
    pub name: String,
    /// The listeners, each as `ADDRESS:PORT` with an optional `/udp`.
    pub listen: Vec<String>,
    /// The forwarding mode, such as `nat`.
    pub forwarding: String,
    /// Keys that annotations set, and keys that follow from the Service.
    #[serde(flatten)]
    pub settings: toml::Table,
    /// The port on which backends listen, by the port of the listener.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// The rules, which deny prefixes of clients.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleText>,
    /// The backends, in the order of their names.
    #[serde(default, rename = "backend", skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendText>,
}

/// A rule for the clients in a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleText {
    /// The prefix of the clients to which the rule applies.
    pub prefix: String,
    /// The action for these clients, such as `deny`.
    pub action: String,
}

/// A backend in the form of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendText {
    /// The name of the backend: the pod's UID, or the node's name.
    pub name: String,
    /// The address of the backend, as `ADDRESS` or `ADDRESS:PORT`.
    pub address: String,
    /// The IPv6 address of the backend, if `address` is an IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Services {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    service: Vec<ServiceText>,
}

/// A configuration file: the text of other authors, and this program's section.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    before: String,
    /// The contents of this program's section.
    pub block: Block,
    after: String,
}

impl File {
    /// Splits a configuration file into this program's section and the remaining text.
    ///
    /// # Errors
    /// Fails if a marker line of this program's section is missing or occurs twice, or if the section cannot be parsed.
    pub fn read(text: &str) -> Result<Self, String> {
        let line_is = |line: &str, wanted: &str| line.trim_end() == wanted;
        let begins = text.split_inclusive('\n').filter(|line| line_is(line, BEGIN)).count();
        let ends = text.split_inclusive('\n').filter(|line| line_is(line, END)).count();
        match (begins, ends) {
            (0, 0) => return Ok(Self { before: text.to_owned(), ..Self::default() }),
            (1, 1) => {}
            _ => {
                return Err(format!(
                    "the line {BEGIN:?} is there {begins} times and {END:?} {ends} times; leave one of each, or none"
                ));
            }
        }
        let (mut before, mut own, mut after) = (String::new(), String::new(), String::new());
        let mut part = &mut before;
        for line in text.split_inclusive('\n') {
            if line_is(line, BEGIN) {
                part = &mut own;
            } else if line_is(line, END) {
                part = &mut after;
            } else {
                part.push_str(line);
            }
        }
        let block = Block::read(&own).map_err(|error| format!("between {BEGIN:?} and {END:?}: {error}"))?;
        Ok(Self { before, block, after })
    }

    /// The text of the file outside this program's section.
    #[must_use]
    pub fn others(&self) -> String {
        format!("{}{}", self.before, self.after)
    }

    /// Returns the same file, with `block` as this program's section. `alone` tells that the remaining text contains no
    /// services.
    #[must_use]
    pub fn with(&self, block: &Block, alone: bool) -> String {
        let before = match self.before.ends_with('\n') || self.before.is_empty() {
            true => self.before.clone(),
            false => format!("{}\n", self.before),
        };
        format!("{before}{BEGIN}\n{}{END}\n{}", block.written(alone), self.after)
    }
}

impl Block {
    fn read(text: &str) -> Result<Self, String> {
        let Services { mut service } = toml::from_str(text).map_err(|error| error.to_string())?;
        service.retain(|service| service.name != PLACEHOLDER.0);
        let drained = text.lines().filter_map(|line| line.strip_prefix(DRAINED)).map(str::to_owned).collect();
        Ok(Self { services: service, drained })
    }

    fn written(&self, alone: bool) -> String {
        let mut service = self.services.clone();
        if alone && service.is_empty() {
            service.push(placeholder());
        }
        let drained: String = self.drained.iter().map(|name| format!("{DRAINED}{name}\n")).collect();
        drained + &toml::to_string(&Services { service }).unwrap_or_default()
    }

    /// Returns the service with this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceText> {
        self.services.iter().find(|service| service.name == name)
    }
}

impl ServiceText {
    /// Returns a configuration file with only this service, which shows whether the balancer would accept the service.
    #[must_use]
    pub fn alone(&self) -> String {
        let service = vec![self.clone()];
        format!("interfaces = [\"lo\"]\n{}", toml::to_string(&Services { service }).unwrap_or_default())
    }
}

fn placeholder() -> ServiceText {
    let (name, listen) = PLACEHOLDER;
    ServiceText {
        name: name.to_owned(),
        listen: vec![listen.to_owned()],
        forwarding: "ipip".to_owned(),
        ..ServiceText::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "interfaces = [\"eth0\"]\n\n[[service]]\nname = \"web\"\naddress = \"198.51.100.1:80\"\n\
                          forwarding = \"ipip\" # ours";

    fn block() -> Block {
        let mut settings = toml::Table::new();
        settings.insert("remember".to_owned(), "10m".into());
        settings.insert("check".to_owned(), toml::toml! { type = "http" }.into());
        let backend = BackendText { name: "u1".to_owned(), address: "10.0.0.11".to_owned(), address6: None };
        let service = ServiceText {
            name: "k8s.shop.web".to_owned(),
            listen: vec!["198.51.100.2:80".to_owned()],
            forwarding: "nat".to_owned(),
            settings,
            ports: [("80".to_owned(), 8080)].into(),
            rules: vec![RuleText { prefix: "10.0.0.0/8".to_owned(), action: "deny".to_owned() }],
            backends: vec![backend],
        };
        Block { services: vec![service], drained: ["k8s.shop.web/u1".to_owned()].into() }
    }

    #[test]
    fn when_the_part_is_written_then_it_reads_the_same_and_all_else_stays_byte_for_byte() {
        let written = File::read(OTHERS).unwrap().with(&block(), false);
        assert!(written.starts_with(OTHERS), "{written}");
        let read = File::read(&format!("{written}# the end\n[metrics]\nlisten = \"off\"\n")).unwrap();
        assert_eq!(read.block, block());
        assert_eq!(read.others(), format!("{OTHERS}\n# the end\n[metrics]\nlisten = \"off\"\n"));
        let emptied = read.with(&Block::default(), false);
        assert_eq!(File::read(&emptied).unwrap().others(), read.others());
        assert!(!emptied.contains("k8s."), "{emptied}");
        balancer_config::file::parse("balancer.toml".as_ref(), emptied.as_bytes()).unwrap();
    }

    #[test]
    fn when_it_is_written_then_the_balancer_takes_the_file() {
        let written = File::read(OTHERS).unwrap().with(&block(), false);
        let (config, _) = balancer_config::file::parse("balancer.toml".as_ref(), written.as_bytes()).unwrap();
        assert_eq!(config.services.len(), 2);
        let alone = File::read("interfaces = [\"eth0\"]\n").unwrap().with(&Block::default(), true);
        balancer_config::file::parse("balancer.toml".as_ref(), alone.as_bytes()).unwrap();
        assert_eq!(File::read(&alone).unwrap().block, Block::default(), "the placeholder is nobody's service");
    }

    #[test]
    fn when_a_line_that_bounds_the_part_is_missing_or_doubled_then_nothing_is_read() {
        for text in [BEGIN.to_owned(), END.to_owned(), format!("{BEGIN}\n{BEGIN}\n{END}\n")] {
            let error = File::read(&text).unwrap_err();
            assert!(error.contains("leave one of each, or none"), "{error}");
        }
        let error = File::read(&format!("{BEGIN}\nname = \n{END}\n")).unwrap_err();
        assert!(error.starts_with("between"), "{error}");
    }
}
