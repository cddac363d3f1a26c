//! The validated configuration. Only `config::load` creates a configuration, from a file that has passed all checks.

use std::{net::SocketAddr, path::PathBuf};

use balancer_common::{client::HashKey, map_types::SAMPLE_INTERVAL};
use serde::{Deserialize, Serialize};

use crate::validate::Valid;
pub use crate::{
    addresses::crosses_families,
    agent::AgentConfig,
    bounded::{BoundedLoad, Load},
    check::{
        BodyTest, CheckConfig, CheckKind, ClientFiles, ExecCheck, FileUse, GrpcCheck, HttpCheck, StatusRanges, Talk,
        Tls, Via,
    },
    control::{Control, Remote, Role},
    fleet::{Fleet, LINGER, WhenAlone},
    header::{Header, HeaderText, Secret},
    limits::{Limits, WhenFull},
    protocol::Protocol,
    question::{DnsCheck, DnsName, Payload, Rcode, Record, UdpCheck},
    service::{
        BackendConfig, ClientPrefix, Failback, FailureAction, OnFailure, Outage, ServiceConfig, WhenAllDown,
        forwarding_word,
    },
    vip::AssignVip,
};

/// A whole configuration of the balancer.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The interfaces to which the program is attached, without duplicates. The list may be empty if the command line
    /// names the interfaces.
    pub interfaces: Vec<String>,
    /// The XDP mode in which the program is attached.
    pub xdp_mode: XdpMode,
    /// The parts of the balancer that a clean exit leaves in place.
    pub on_exit: OnExit,
    /// The file that stores changes made at run time.
    pub state_file: PathBuf,
    /// The sockets that control the balancer, and the users that may use these sockets.
    pub control: Control,
    /// The address for `/metrics`; `None`: the metrics are switched off.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether the metrics listener also serves the page for browsers at `/`.
    pub metrics_page: bool,
    /// The number of known clients, over all services, for which the client table is sized.
    pub client_table_capacity: u32,
    /// The number of connections, over all `snat` services, for which the flow table is sized, if there is a `snat`
    /// service.
    pub flow_table_capacity: u32,
    /// Whether the configuration has a section `[flow_table]` and no services, so that drop-ins may bring `snat` services
    /// later.
    pub flow_table_wanted: bool,
    /// The fleet's hash key; `None`: the controller makes a key.
    pub hash_key: Option<HashKey>,
    /// The section `[statistics]` of the configuration.
    pub statistics: StatisticsConfig,
    /// The fleet of this balancer; `None`: the balancer belongs to no fleet.
    pub fleet: Option<Fleet>,
    /// The services in the order of the file; names and listeners are unique.
    pub services: Valid,
}

/// The section `[statistics]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StatisticsConfig {
    /// The fraction of a backend's bytes, 0 to 1, above which a single client causes a warning; 0: no client causes a
    /// warning.
    pub heavy_client_share: f64,
    /// The average sampling interval: the program samples one in this many forwarded packets.
    pub sample_interval: u32,
}

impl Default for StatisticsConfig {
    fn default() -> Self {
        Self { heavy_client_share: 0.5, sample_interval: SAMPLE_INTERVAL }
    }
}

/// The XDP modes that the balancer may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// The balancer uses native mode, or generic mode if the driver has no native mode.
    Auto,
    /// The balancer may use only native mode.
    Native,
    /// The balancer may use only generic mode.
    Generic,
}

/// The parts of the balancer that a clean exit leaves in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// A clean exit leaves nothing in place.
    Detach,
    /// A clean exit leaves the pinned data path in place, which continues to forward packets.
    Keep,
}
