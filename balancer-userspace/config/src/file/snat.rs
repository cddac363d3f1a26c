//! Reads the keys `snat`, `idle` and `drain` of a service.

use std::{net::IpAddr, time::Duration};

use balancer_common::map_types::Forwarding;

use super::{
    findings::Findings,
    section::{Located, Section},
};
use crate::{
    snat::{DrainUntil, IdleTimes, SnatConfig},
    value,
};

const MOST_IDLE: Duration = Duration::from_secs(24 * 3600);
const MIN_GRACE: Duration = Duration::from_secs(1);

/// Reads the settings for connections, which are valid only in a `snat` service.
pub(super) fn section(
    service: &mut Section<'_>,
    forwarding: Option<Forwarding>,
    findings: &mut Findings<'_>,
) -> SnatConfig {
    let snat = service.table("snat", "snat", "{ addresses = [\"10.0.0.5\"], ports = \"20000-59999\" }", findings);
    let idle = service.table("idle", "idle", "{ tcp = \"15m\", udp = \"60s\" }", findings);
    if forwarding.is_some_and(|forwarding| forwarding != Forwarding::Snat) {
        let used = [snat.as_ref().map(|snat| ("snat", snat.at)), idle.as_ref().map(|idle| ("idle", idle.at))];
        for (key, at) in used.into_iter().flatten() {
            findings.error(at, format!("{key} is for forwarding = \"snat\" alone; remove it"));
        }
    }
    let mut config = SnatConfig::default();
    if let Some(mut snat) = snat {
        let wanted = "a list such as [\"10.0.0.5\", \"fd00::5\"]";
        if let Some(addresses) = snat.texts("addresses", wanted, findings, address) {
            config.addresses = addresses.into_iter().map(|address| address.value).collect();
        }
        config.ports = snat.text("ports", findings, ports).map(|ports| ports.value);
        let at = snat.at;
        snat.finish(findings);
        if let Some(fault) = config.fault() {
            findings.error(at, fault);
        }
    }
    if let Some(idle) = idle {
        config.idle = times(idle, findings);
    }
    config
}

fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr =
        text.parse().map_err(|_| format!("{} is no address; give one such as \"10.0.0.5\"", value::quoted(text)))?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!("backends cannot answer to {address}; give an address of this machine"));
    }
    Ok(address)
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("ports = {} is no range; give one such as \"20000-59999\"", value::quoted(text));
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let (first, last): (u16, u16) =
        (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
    if first == 0 || first > last {
        return Err(wrong());
    }
    Ok((first, last))
}

fn times(mut section: Section<'_>, findings: &mut Findings<'_>) -> IdleTimes {
    let default = IdleTimes::default();
    let mut time = |key: &'static str, default| {
        section.text(key, findings, |text| idle(key, text)).map_or(default, |time| time.value)
    };
    let times = IdleTimes {
        tcp: time("tcp", default.tcp),
        udp: time("udp", default.udp),
        udp_once: time("udp_once", default.udp_once),
        half_open: time("half_open", default.half_open),
        closing: time("closing", default.closing),
    };
    section.finish(findings);
    times
}

fn idle(key: &str, text: &str) -> Result<Duration, String> {
    let time = value::duration(text)?;
    if time < Duration::from_secs(1) || time > MOST_IDLE {
        return Err(format!("{key} = {} is too short or too long; give \"1s\" to \"24h\"", value::quoted(text)));
    }
    Ok(time)
}

/// The keys of `drain`, as far as they are given.
#[derive(Default)]
pub(super) struct DrainKeys {
    pub(super) timeout: Option<Duration>,
    pub(super) until: Option<Located<DrainUntil>>,
    pub(super) grace: Option<Duration>,
}

pub(super) fn drain(mut section: Section<'_>, findings: &mut Findings<'_>) -> DrainKeys {
    let timeout = section.text("timeout", findings, value::duration).map(|timeout| timeout.value);
    let words = [("clients", DrainUntil::Clients), ("connections", DrainUntil::Connections)];
    let until = section.text("until", findings, |text| value::word("until", text, &words));
    let grace = section.text("grace", findings, grace);
    section.finish(findings);
    if let Some(grace) = &grace
        && until.as_ref().is_none_or(|until| until.value != DrainUntil::Connections)
    {
        let text = "grace needs until = \"connections\", because other drains wait for clients; remove it";
        findings.error(grace.at, text.to_owned());
    }
    DrainKeys { timeout, until, grace: grace.map(|grace| grace.value) }
}

fn grace(text: &str) -> Result<Duration, String> {
    let grace = value::duration(text)?;
    if grace < MIN_GRACE {
        return Err(format!("grace = {} is too short; give \"1s\" and more", value::quoted(text)));
    }
    Ok(grace)
}
