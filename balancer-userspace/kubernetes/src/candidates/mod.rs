//! Pods and nodes that may become backends of a Service.

pub mod nodes;
pub mod pods;

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Service;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name of the port; empty if the port has no name.
    pub name: String,
    /// The protocol: `TCP` or `UDP`.
    pub protocol: String,
    /// The port that clients connect to.
    pub port: u16,
    pub node_port: Option<u16>,
}

/// A pod or a node that may become a backend of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The IPv4 address of the candidate, if it has one.
    pub v4: Option<IpAddr>,
    /// The IPv6 address of the candidate, if it has one.
    pub v6: Option<IpAddr>,
    /// The port on which the candidate listens, by the port of the Service.
    pub ports: BTreeMap<u16, u16>,
    /// Whether the candidate may take new clients.
    pub eligible: bool,
}

/// The candidates, by the names that they have as backends.
pub type Candidates = BTreeMap<String, Candidate>;

impl Candidate {
    fn at(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(_) => self.v4 = Some(address),
            IpAddr::V6(_) => self.v6 = Some(address),
        }
    }
}

/// Returns the ports of a Service, and descriptions of the mistakes because of which ports are left out.
#[must_use]
pub fn ports(service: &Service) -> (Vec<Port>, Vec<String>) {
    let (mut ports, mut wrong) = (Vec::new(), Vec::new());
    for of in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        let protocol = of.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        match number(of.port) {
            Some(port) if protocol == "TCP" || protocol == "UDP" => ports.push(Port {
                name: of.name.clone().unwrap_or_default(),
                protocol,
                port,
                node_port: of.node_port.and_then(number),
            }),
            Some(port) => wrong.push(format!("port {port} is for {protocol}; the balancer serves TCP and UDP")),
            None => wrong.push(format!("port {} is none", of.port)),
        }
    }
    (ports, wrong)
}
