//! Runs web servers with Node and Express.

use std::fs;

use anyhow::{Context as _, Result};

use super::{PORT, Setting};
use crate::{part::Part, software, strategy::Strategy};

pub(super) fn start(setting: &Setting<'_>, number: u16) -> Result<Vec<Part>> {
    let store = match setting.strategy {
        Strategy::NodeRedis | Strategy::NodeRedisHaproxy | Strategy::NodeRedisKeepalived => "redis",
        Strategy::NodeRedisSentinel => "sentinel",
        Strategy::NodePostgres => "postgres",
        Strategy::NodeCookie => "cookie",
        Strategy::NodeEncryptedCookie => "encrypted-cookie",
        _ => "memory",
    };
    let name = format!("web{number}");
    let mut command = setting.hosts.topology.backends()[usize::from(number) - 1].command("node");
    let application = setting.hosts.files().join("app.js");
    fs::write(&application, software::own::NODE).with_context(|| application.display().to_string())?;
    command.env("NODE_PATH", software::node_modules(setting.hosts.node_modules())?).env("NODE_ENV", "production");
    command.arg(application).args([&name, &PORT.to_string(), store]).args(setting.endpoints);
    Ok(vec![Part::start(&format!("{name}-node"), &mut command, setting.hosts.files())?])
}
