//! The validated configuration. Only `config::load` creates one, from a file that has passed all checks.

use std::{net::SocketAddr, path::PathBuf};

use balancer_common::{client::HashKey, map_types::SAMPLE_INTERVAL};
use serde::{Deserialize, Serialize};

use crate::validate::Valid;
pub use crate::{
    agent::AgentConfig,
    bounded::{BoundedLoad, Load},
    check::{
        BodyTest, CheckConfig, CheckKind, ClientFiles, ExecCheck, FileUse, GrpcCheck, HttpCheck, StatusRanges, Tls, Via,
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

/// A whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The interfaces to attach to, without duplicates. The list may be empty if the command line names interfaces.
    pub interfaces: Vec<String>,
    /// The mode in which the program is attached.
    pub xdp_mode: XdpMode,
    /// The parts that a clean exit leaves in place.
    pub on_exit: OnExit,
    /// The file that stores runtime changes.
    pub state_file: PathBuf,
    /// The control sockets, and who may use them.
    pub control: Control,
    /// The address of `/metrics`; `None` if switched off.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether the metrics listener also serves the page for browsers at `/`.
    pub metrics_page: bool,
    /// The number of known clients, over all services, for which the client table is sized.
    pub client_table_capacity: u32,
    /// The number of connections, over all `snat` services, for which the flow table is sized, if there is such a
    /// service.
    pub flow_table_capacity: u32,
    /// The fleet's hash key; `None`: the controller creates one.
    pub hash_key: Option<HashKey>,
    /// The settings of statistics.
    pub statistics: StatisticsConfig,
    /// The fleet of this balancer; `None`: there is none.
    pub fleet: Option<Fleet>,
    /// The services in file order; names and listeners are unique.
    pub services: Valid,
}

/// The section `[statistics]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StatisticsConfig {
    /// The fraction of a backend's bytes, 0 to 1, from which on a single client causes a warning; 0: it never does.
    pub heavy_client_share: f64,
    /// The average sampling interval: one in this many forwarded packets is sampled.
    pub sample_interval: u32,
}

impl Default for StatisticsConfig {
    fn default() -> Self {
        Self { heavy_client_share: 0.5, sample_interval: SAMPLE_INTERVAL }
    }
}

/// The XDP modes that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// Native mode, or generic mode if the driver has no native mode.
    Auto,
    /// Only native mode is allowed.
    Native,
    /// Only generic mode is allowed.
    Generic,
}

/// The parts that a clean exit leaves in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// A clean exit leaves nothing in place.
    Detach,
    /// The pinned data path, which continues to forward packets.
    Keep,
}
