//! The valid configuration. Only `config::load` makes one, from a file that passed every check.

use std::{net::SocketAddr, path::PathBuf};

use balancer_common::{client::HashKey, map_types::SAMPLE_INTERVAL};
use serde::{Deserialize, Serialize};

use crate::validate::Valid;
pub use crate::{
    agent::AgentConfig,
    bounded::{BoundedLoad, Load},
    check::{BodyTest, CheckConfig, CheckKind, ExecCheck, FileUse, HttpCheck, StatusRanges, Tls, Via},
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
    /// Interfaces to attach to, without duplicates. May be empty where the command line names them.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub xdp_mode: XdpMode,
    /// What a clean exit leaves behind.
    pub on_exit: OnExit,
    /// Where runtime changes are kept.
    pub state_file: PathBuf,
    /// The sockets that it is controlled by.
    pub control: Control,
    /// Where `/metrics` is served; `None` when switched off.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether there is a page for people at `/` beside it.
    pub metrics_page: bool,
    /// Known clients over all services.
    pub client_table_capacity: u32,
    /// Connections of all `snat` services that the table is made for, if there is such a service.
    pub flow_table_capacity: u32,
    /// The fleet's hash key; `None`: the controller makes one.
    pub hash_key: Option<HashKey>,
    /// What is watched, and when it is told.
    pub statistics: StatisticsConfig,
    /// The balancers that this one is of; `None`: it is alone.
    pub fleet: Option<Fleet>,
    /// Services in file order; names and listeners are unique.
    pub services: Valid,
}

/// `[statistics]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StatisticsConfig {
    /// The part of a backend's bytes, 0 to 1, from which on a single client is warned of; 0: never.
    pub heavy_client_share: f64,
    /// One forwarded packet in so many is sampled, on average.
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
    /// Native, or generic where the driver has no native mode.
    Auto,
    /// Native or nothing.
    Native,
    /// Generic.
    Generic,
}

/// What a clean exit leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// Nothing.
    Detach,
    /// The pinned data path, which goes on forwarding.
    Keep,
}
