//! Pods and nodes that may serve a Service.

pub mod nodes;
pub mod pods;

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Service;

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name of the port; empty if it has none.
    pub name: String,
    /// The protocol: `TCP` or `UDP`.
    pub protocol: String,
    /// The port that clients connect to.
    pub port: u16,
    /// The NodePort, if there is one.
    pub node_port: Option<u16>,
}

/// A pod or a node that may serve a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The IPv4 address, if any.
    pub v4: Option<IpAddr>,
    /// The IPv6 address, if any.
    pub v6: Option<IpAddr>,
    /// The port on which the candidate listens, by the port of the Service.
    pub ports: BTreeMap<u16, u16>,
    /// Whether the candidate takes new clients.
    pub eligible: bool,
}

/// The candidates, by their names as backends.
pub type Candidates = BTreeMap<String, Candidate>;

impl Candidate {
    fn at(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(_) => self.v4 = Some(address),
            IpAddr::V6(_) => self.v6 = Some(address),
        }
    }
}

/// The ports of a Service, and the mistakes in those that are left out.
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
