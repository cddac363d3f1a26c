//! The drop-in that this program keeps in the balancer: the services of the cluster.
//!
//! The drop-in outlives this program's process, so it also records all existing backends, and those that the program
//! drains.

use std::collections::{BTreeMap, BTreeSet};

use balancer_api::model::ServiceView;
use serde::{Deserialize, Serialize};

pub const NAME: &str = "kubernetes";

/// Whether a service of the balancer comes from this drop-in.
#[must_use]
pub fn has(service: &ServiceView) -> bool {
    service.drop_in.as_deref() == Some(NAME)
}

const HEAD: &str = "# balancer-kubernetes replaces this text\n";
const DRAINED: &str = "# drained: ";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DropIn {
    /// The services, in the order of their names.
    pub services: Vec<ServiceText>,
    /// The backends that this program has drained, as `SERVICE/BACKEND`. The program makes no other drained backends
    /// ready again.
    pub drained: BTreeSet<String>,
}

/// A service in the form of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceText {
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

impl DropIn {
    /// Parses the text of the drop-in.
    ///
    /// # Errors
    /// Fails if another program has written the text.
    pub fn read(text: &str) -> Result<Self, String> {
        let Services { service } = toml::from_str(text).map_err(|error| error.to_string())?;
        // Only this program writes comments, and only at the beginning; values of annotations can contain other lines.
        let head = text.lines().take_while(|line| line.starts_with('#'));
        let drained = head.filter_map(|line| line.strip_prefix(DRAINED)).map(str::to_owned).collect();
        Ok(Self { services: service, drained })
    }

    /// The text of the drop-in; empty if there are no services.
    #[must_use]
    pub fn text(&self) -> String {
        if self.services.is_empty() {
            return String::new();
        }
        let drained: String = self.drained.iter().map(|name| format!("{DRAINED}{name}\n")).collect();
        format!("{HEAD}{drained}{}", sections(self.services.clone()))
    }

    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceText> {
        self.services.iter().find(|service| service.name == name)
    }
}

impl ServiceText {
    /// The text of a drop-in with only this service, which shows whether the balancer would accept the service.
    #[must_use]
    pub fn alone(&self) -> String {
        sections(vec![self.clone()])
    }
}

fn sections(service: Vec<ServiceText>) -> String {
    toml::to_string(&Services { service }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop_in() -> DropIn {
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
        DropIn { services: vec![service], drained: ["k8s.shop.web/u1".to_owned()].into() }
    }

    #[test]
    fn when_the_drop_in_is_written_then_it_reads_the_same_and_the_balancer_takes_it() {
        let text = drop_in().text();
        assert_eq!(DropIn::read(&text).unwrap(), drop_in());
        let (services, _) = balancer_config::file::parse_drop_in(NAME, "x".as_ref(), text.as_bytes()).unwrap();
        assert_eq!(services.len(), 1);
        balancer_config::file::parse_drop_in(NAME, "x".as_ref(), drop_in().services[0].alone().as_bytes()).unwrap();
    }

    #[test]
    fn when_an_annotation_contains_a_line_like_a_mark_then_it_is_none() {
        let mut forged = drop_in();
        let check = toml::toml! { type = "http" expect_body = "x\n# drained: k8s.other.web/u9\n" };
        forged.services[0].settings.insert("check".to_owned(), check.into());
        assert!(forged.text().contains("\n# drained: k8s.other.web/u9\n"));
        assert_eq!(DropIn::read(&forged.text()).unwrap(), forged);
    }

    #[test]
    fn when_there_are_no_services_then_there_is_no_drop_in() {
        let nothing = DropIn { drained: drop_in().drained, ..DropIn::default() };
        assert_eq!(nothing.text(), "");
        assert_eq!(DropIn::read("").unwrap(), DropIn::default());
    }

    #[test]
    fn when_the_text_is_another_programs_then_it_is_refused() {
        assert!(DropIn::read("[[service]]\nname = 1\n").is_err());
    }
}
