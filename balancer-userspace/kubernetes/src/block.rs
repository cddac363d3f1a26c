//! The part of the balancer's configuration file that belongs to this program: everything between two lines.
//!
//! This part outlives the program, so it also records which backends existed and which of them the program drains.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

const BEGIN: &str = "# BEGIN balancer-kubernetes: it writes everything down to END";
const END: &str = "# END balancer-kubernetes";
const DRAINED: &str = "# drained: ";

/// A placeholder while there are no services, because the balancer accepts no file without one. Its address is in the
/// discard prefix (RFC 6666), to which no client sends.
pub const PLACEHOLDER: (&str, &str) = ("k8s.none", "[100::1]:9/udp");

/// The services of this program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// The services, in the order of their names.
    pub services: Vec<ServiceText>,
    /// The backends that this program has drained, as `SERVICE/BACKEND`. It makes only these ready again.
    pub drained: BTreeSet<String>,
}

/// A service, as it is written in the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceText {
    /// The name of the service.
    pub name: String,
    /// The listeners, each as `ADDRESS:PORT` with an optional `/udp`.
    pub listen: Vec<String>,
    /// The forwarding mode, such as `nat`.
    pub forwarding: String,
    /// Keys that annotations set, and keys that the Service determines.
    #[serde(flatten)]
    pub settings: toml::Table,
    /// The ports on which backends listen, by the port of the listener.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// Rules that deny prefixes.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleText>,
    /// The backends, in the order of their names.
    #[serde(default, rename = "backend", skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendText>,
}

/// A rule for clients of a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleText {
    /// The clients that the rule is for.
    pub prefix: String,
    /// The action for these clients, such as `deny`.
    pub action: String,
}

/// A backend, as it is written in the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendText {
    /// The pod's UID, or the node's name.
    pub name: String,
    /// The address, or `ADDRESS:PORT`.
    pub address: String,
    /// The IPv6 address beside an IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Services {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    service: Vec<ServiceText>,
}

/// A configuration file: the text that others have written, and this program's part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    before: String,
    /// This program's part of the file.
    pub block: Block,
    after: String,
}

impl File {
    /// Splits a file into both parts.
    ///
    /// # Errors
    /// If a line that begins or ends this program's part is missing or occurs twice, or the part cannot be read.
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

    /// The text that others have written.
    #[must_use]
    pub fn others(&self) -> String {
        format!("{}{}", self.before, self.after)
    }

    /// The same file with `block` as this program's part. `alone` says that there are no services of others in the
    /// file.
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

    /// A service of this part, by its name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceText> {
        self.services.iter().find(|service| service.name == name)
    }
}

impl ServiceText {
    /// A file with only this service, to find out whether the balancer would accept it.
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
