//! Reads the section `[fleet]` of the configuration.

use std::time::Duration;

use super::{etcd::etcd_servers, findings::Findings, section::Section};
use crate::{
    fleet::{Fleet, LINGER, WhenAlone},
    value,
};

const DEFAULT_LEASE: Duration = Duration::from_secs(5);
const MIN_LEASE: Duration = Duration::from_secs(1);
const MAX_LEASE: Duration = Duration::from_secs(60);
const MAX_LINGER: Duration = Duration::from_secs(60);

/// Reads the section `[fleet]`; `None` if the section is invalid. The function adds errors to `findings`.
pub(super) fn fleet(mut section: Section<'_>, findings: &mut Findings<'_>) -> Option<Fleet> {
    section.require("name", "name = \"…\", the same for all its members", findings);
    section.require("endpoints", "endpoints = [\"https://…:2379\"], where etcd is", findings);
    let name = section.text("name", findings, value::name);
    let member = section.text("member", findings, value::name);
    let etcd = etcd_servers(&mut section, findings);
    let lease = section.text("lease", findings, lease);
    let share_clients = section.boolean("share_clients", findings).unwrap_or(true);
    let when_alone = section.text("when_alone", findings, |text| {
        value::word("when_alone", text, &[("serve", WhenAlone::Serve), ("withdraw", WhenAlone::Withdraw)])
    });
    let linger = section.text("linger", findings, linger);
    section.finish(findings);

    Some(Fleet {
        name: name?.value,
        member: member.map(|member| member.value),
        etcd: etcd?,
        lease: lease.map_or(DEFAULT_LEASE, |lease| lease.value),
        share_clients,
        when_alone: when_alone.map_or(WhenAlone::Serve, |when| when.value),
        linger: linger.map_or(LINGER, |linger| linger.value),
    })
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = value::duration(text)?;
    if !(MIN_LEASE..=MAX_LEASE).contains(&lease) {
        return Err(format!("lease = {} is out of range; give \"1s\" to \"1m\"", value::quoted(text)));
    }
    if lease.subsec_nanos() != 0 {
        return Err(format!("lease = {} is not in whole seconds; give some, such as \"5s\"", value::quoted(text)));
    }
    Ok(lease)
}

fn linger(text: &str) -> Result<Duration, String> {
    let linger = value::duration(text)?;
    if linger > MAX_LINGER {
        return Err(format!("linger = {} is out of range; give \"0s\" to \"1m\"", value::quoted(text)));
    }
    Ok(linger)
}
