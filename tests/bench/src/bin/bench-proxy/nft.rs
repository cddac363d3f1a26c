//! The kernel's address translation, which chooses a server by a hash of the client's address.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use balancer_demo::needs;
use balancer_testkit::{
    namespace::run,
    site::PORT,
    topology::{Family, Topology},
};

pub(crate) fn ensure_installed() -> Result<()> {
    ensure!(needs::is_installed("nft"), "nft is missing: it is in the package nftables");
    Ok(())
}

/// Makes the balancer's host translate the service's address to the address of a server.
pub(crate) fn translate(topology: &Topology, servers: u16, port: u16, files: &Path) -> Result<()> {
    let mut map = String::new();
    for index in 0..servers {
        let between = if index == 0 { "" } else { ", " };
        write!(map, "{between}{index} : {}", topology.backend_address(Family::V4, index))?;
    }
    let rules = files.join("rules.nft");
    let vip = topology.vip(Family::V4);
    fs::write(
        &rules,
        format!(
            "table ip bench {{\nchain pre {{\ntype nat hook prerouting priority dstnat;\n\
             ip daddr {vip} tcp dport {PORT} dnat to jhash ip saddr mod {servers} seed 0x5eed map {{ {map} }} : {port}\n}}\n}}\n"
        ),
    )?;
    run(topology.balancer().command("nft").arg("-f").arg(&rules)).context("the kernel may have no nf_tables")?;
    Ok(())
}
