//! The validated configuration. Only `config::load` makes one, from a file that passed every check.

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
    /// Interfaces to attach to, without duplicates. It may be empty if the command line names them.
    pub interfaces: Vec<String>,
    /// The mode of attachment.
    pub xdp_mode: XdpMode,
    /// The parts that a clean exit leaves in place.
    pub on_exit: OnExit,
    /// The file that stores runtime changes.
    pub state_file: PathBuf,
    /// The control sockets, and who may use them.
    pub control: Control,
    /// The address of `/metrics`; `None` if switched off.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether the page for people is served at `/` beside it.
    pub metrics_page: bool,
    /// The number of known clients over all services that the client table is sized for.
    pub client_table_capacity: u32,
    /// The number of connections of all `snat` services that the flow table is sized for, if there is such a service.
    pub flow_table_capacity: u32,
    /// The fleet's hash key; `None`: the controller makes one.
    pub hash_key: Option<HashKey>,
    /// The settings of statistics.
    pub statistics: StatisticsConfig,
    /// The fleet of this balancer; `None`: there is none.
    pub fleet: Option<Fleet>,
    /// Services in file order; names and listeners are unique.
    pub services: Valid,
}

/// The section `[statistics]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StatisticsConfig {
    /// The fraction of a backend's bytes, 0 to 1, from which on a single client causes a warning; 0: never.
    pub heavy_client_share: f64,
    /// The average sampling interval: one of this many forwarded packets.
    pub sample_interval: u32,
}

impl Default for StatisticsConfig {
    fn default() -> Self {
        Self { heavy_client_share: 0.5, sample_interval: SAMPLE_INTERVAL }
    }
}

/// Which XDP modes may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// Native mode, or generic mode if the driver has no native mode.
    Auto,
    /// Native mode only.
    Native,
    /// Generic mode only.
    Generic,
}

/// The parts that a clean exit leaves in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// A clean exit leaves nothing in place.
    Detach,
    /// The pinned data path, which continues to forward.
    Keep,
}
