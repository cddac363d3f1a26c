//! Rules about single clients: none yet.

use std::net::IpAddr;

use super::Service;

/// What a rule says of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {}

/// The rule of `service` for the client at `source`.
pub(super) const fn rule(_service: &Service, _source: IpAddr) -> Option<Rule> {
    None
}
