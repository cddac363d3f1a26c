//! A balancer that the lab runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use balancer_common::map_types::Forwarding;

use super::{Kind, Options};
use crate::{config::Config, controller::Controller, topology::Topology};

/// The number of backends at the start.
pub(super) const BACKENDS: u16 = 4;

/// A balancer of the lab with its files. A user may have killed the process of the balancer, and started another
/// process with the same files.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) controller: Controller,
    pub(super) files: PathBuf,
}

impl Member {
    /// Starts the balancer `index`, counted from 0, with its files in a new directory in `files`.
    pub(super) fn start(
        options: &Options,
        topology: &Topology,
        index: u16,
        endpoints: &[&str],
        files: &Path,
    ) -> Result<Self> {
        let name = format!("lb{}", index + 1);
        let namespace = topology.balancers().nth(index.into()).with_context(|| format!("{name} has no host"))?;
        let files = files.join(&name);
        fs::create_dir(&files).with_context(|| files.display().to_string())?;
        let config = files.join("balancer.toml");
        fs::write(&config, config_text(options, topology, &name, endpoints, &files))
            .with_context(|| config.display().to_string())?;
        let (socket, log) = (files.join("balancer.sock"), files.join("balancer.log"));
        let controller = Controller::start(namespace, &options.balancer, &config, &socket, &log)?;
        Ok(Self { name, controller, files })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.files.join("balancer.sock")
    }
}

fn config_text(options: &Options, topology: &Topology, name: &str, endpoints: &[&str], files: &Path) -> String {
    let fleet = format!("\n[fleet]\nname      = \"lab\"\nmember    = \"{name}\"\nendpoints = {endpoints:?}\n");
    let service_lines = match options.kind {
        Kind::Spread(_) => "assign_vip = \"lo\"\nwhen_all_down = \"drop\"\n",
        Kind::Standby => "assign_vip = false\n",
    };
    let config = Config {
        forwarding: Forwarding::Dsr,
        remember: options.remember,
        backends: BACKENDS,
        files,
        tables: &fleet,
        service_lines,
    };
    config.text(topology)
}
