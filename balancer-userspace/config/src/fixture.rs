//! Configurations and values for tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use balancer_common::{client::HashKey, map_types::Forwarding};

use crate::{
    config::{
        AssignVip, BackendConfig, CheckConfig, CheckKind, ClientPrefix, Config, Control, Failback, FailureAction,
        OnExit, OnFailure, Outage, Protocol, ServiceConfig, StatisticsConfig, Via, WhenAllDown, XdpMode,
    },
    limits::{Limits, WhenFull},
    listeners::Listener,
    names::BackendName,
    shared::shared,
    snat::SnatConfig,
    table_size::TableSize,
    validate::Valid,
};

/// The hash key of the fleet in tests.
pub const KEY: HashKey = HashKey { k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908 };

/// The time at which a test begins.
#[expect(clippy::disallowed_methods, reason = "nothing is decided by it")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Parses an address with its port.
#[must_use]
pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Parses the name of a backend in the form `SERVICE/BACKEND`.
#[must_use]
pub fn name(text: &str) -> BackendName {
    let (service, backend) = text.split_once('/').unwrap();
    BackendName { service: service.to_owned(), backend: backend.to_owned() }
}

/// A TCP check with the settings that most tests use.
#[must_use]
pub fn check() -> CheckConfig {
    CheckConfig {
        kind: CheckKind::Tcp { port: None, talk: None },
        via: Via::Backend,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        fast_interval: Duration::from_millis(500),
        passive: true,
        fall: 3,
        rise: 2,
    }
}

/// A backend with the default weight.
#[must_use]
pub fn backend(name: &str, at: &str) -> BackendConfig {
    BackendConfig {
        name: name.to_owned(),
        renamed_from: None,
        address: address(at),
        address6: None,
        weight: 100,
        backup: false,
        limits: Limits::default(),
        check: None,
        quic_server_id: None,
        discovered: None,
    }
}

/// A service at the address `at`, whose backends are given as `NAME ADDRESS:PORT`.
#[must_use]
pub fn service(name: &str, at: &str, forwarding: Forwarding, backends: &[&str]) -> ServiceConfig {
    let service = ServiceConfig {
        drop_in: None,
        name: name.to_owned(),
        renamed_from: None,
        listen: vec![Listener::at(address(at), Protocol::Tcp)],
        ports: BTreeMap::new(),
        forwarding,
        table_size: TableSize::Fixed(65_537),
        client_prefix: ClientPrefix { v4: 32, v6: 64 },
        remember: Duration::ZERO,
        failback: Failback::Stay,
        when_all_down: WhenAllDown::Open,
        when_full: WhenFull::Open,
        slow_start: Duration::ZERO,
        drain_timeout: Duration::from_secs(300),
        drain_until: None,
        drain_grace: None,
        on_failure: OnFailure { hard: FailureAction::Move, soft: FailureAction::Drain },
        snat: SnatConfig::default(),
        withhold: ServiceConfig::withhold_by_default(),
        restart_grace: None,
        outage: Outage::default(),
        start_down: false,
        reject: false,
        steer: 100,
        assign_vip: AssignVip::No,
        deny: None,
        discover: Vec::new(),
        agent: None,
        bounded_load: None,
        quic: None,
        spread_heavy: None,
        expect: None,
        check: check(),
        backends: backends
            .iter()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, at)| backend(name, at))
            .collect(),
        rules: Vec::new(),
    };
    service.normalised()
}

/// A configuration that contains `services`, which must be valid.
#[must_use]
pub fn config(services: Vec<ServiceConfig>) -> Config {
    Config {
        interfaces: vec!["eth0".to_owned()],
        xdp_mode: XdpMode::Auto,
        on_exit: OnExit::Detach,
        state_file: "state.json".into(),
        control: Control::at("balancer.sock".into()),
        metrics_listen: None,
        metrics_page: true,
        client_table_capacity: 262_144,
        flow_table_capacity: 262_144,
        flow_table_wanted: false,
        hash_key: Some(KEY),
        statistics: StatisticsConfig::default(),
        fleet: None,
        services: Valid::new(shared(services)).unwrap(),
    }
}

/// A service `web` in `nat` mode, with the backends web1 to web4.
#[must_use]
pub fn web() -> ServiceConfig {
    let backends = ["web1 10.0.0.11:8080", "web2 10.0.0.12:8080", "web3 10.0.0.13:8080", "web4 10.0.0.14:8080"];
    service("web", "198.51.100.10:80", Forwarding::Nat, &backends)
}
