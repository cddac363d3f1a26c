//! Reads the key `agent` of a service.

use std::time::Duration;

use super::{findings::Findings, section::Section};
use crate::{agent::AgentConfig, value};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Reads the section `agent`; `None` if the section is invalid. The function adds errors to `findings`.
pub(super) fn section(mut section: Section<'_>, findings: &mut Findings<'_>) -> Option<AgentConfig> {
    section.require("port", "port = 9777, the TCP port of the agents", findings);
    let port = section.integer("port", findings, (1, 65_535));
    let interval = section.text("interval", findings, interval);
    section.finish(findings);
    Some(AgentConfig { port: port?.value, interval: interval.map_or(DEFAULT_INTERVAL, |interval| interval.value) })
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = value::duration(text)?;
    if interval < MIN_INTERVAL {
        return Err(format!("interval = {} is too short; give \"1s\" or more", value::quoted(text)));
    }
    Ok(interval)
}
