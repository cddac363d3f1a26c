//! The settings of an etcd driver, from the configuration.

use std::time::Duration;

use balancer_config::etcd::EtcdServers;
use balancer_etcd::Settings;

/// The settings of an etcd driver that uses the keys below `prefix`.
pub fn settings(prefix: String, etcd: &EtcdServers, lease: Duration) -> Settings {
    let EtcdServers { endpoints, ca, cert, key } = etcd.clone();
    Settings { prefix, endpoints, ca, cert, key, lease }
}
