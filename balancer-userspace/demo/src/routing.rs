//! Routing daemons with the configurations in `contrib/`: BIRD on a router and on balancers, keepalived on a pair.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{
    namespace::Namespace,
    process::Process,
    topology::{Family, Topology},
};

const ROUTER: &str = include_str!("../../../contrib/bird/router.conf");
const BALANCER: &str = include_str!("../../../contrib/bird/balancer.conf");
const KEEPALIVED: &str = include_str!("../../../contrib/keepalived/keepalived.conf");

/// Balancers that the sample for the router names.
const NAMED: u16 = 2;

/// BIRD's configuration on the router in front of the balancers.
///
/// # Errors
/// When the sample is not as it was.
pub fn router(balancers: u16) -> Result<String> {
    let address = |index| Topology::balancers_address(Family::V4, index).to_string();
    let mut text = adapted(
        ROUTER,
        &[
            ("192.0.2.11", &address(0)),
            ("192.0.2.12", &address(1)),
            ("192.0.2.1", &Topology::router_address(Family::V4).to_string()),
            ("198.51.100.0/24", &Topology::vips(Family::V4)),
            ("2001:db8:100::/64", &Topology::vips(Family::V6)),
        ],
    )?;
    for index in NAMED..balancers {
        text += &format!("protocol bgp lb{} from balancer {{ neighbor {} as 65001; }}\n", index + 1, address(index));
    }
    Ok(text)
}

/// BIRD's configuration on balancer `index`, counted from 0.
///
/// # Errors
/// When the sample is not as it was.
pub fn balancer(index: u16) -> Result<String> {
    let own = |family| Topology::balancers_address(family, index).to_string();
    adapted(
        BALANCER,
        &[
            ("192.0.2.11", &own(Family::V4)),
            ("192.0.2.1", &Topology::router_address(Family::V4).to_string()),
            ("2001:db8::11", &own(Family::V6)),
            ("198.51.100.0/24", &Topology::vips(Family::V4)),
            ("2001:db8:100::/64", &Topology::vips(Family::V6)),
        ],
    )
}

/// keepalived's configuration on one of two balancers, 0 or 1; `ready` is the command that says whether it may have the
/// VIPs. The first one has the higher priority.
///
/// # Errors
/// When the sample is not as it was.
pub fn keepalived(topology: &Topology, index: u16, ready: &str) -> Result<String> {
    let address = |index| Topology::balancers_address(Family::V4, index).to_string();
    let vip = |family| topology.vip(family).to_string();
    adapted(
        KEEPALIVED,
        &[
            ("router_id lb1", if index == 0 { "router_id lb1" } else { "router_id lb2" }),
            // The program may lie below a directory that anybody may write to.
            ("enable_script_security", ""),
            ("/usr/sbin/balancer ready --announced", ready),
            ("priority 150", if index == 0 { "priority 150" } else { "priority 100" }),
            ("192.0.2.11", &address(index)),
            ("192.0.2.12", &address(1 - index.min(1))),
            ("198.51.100.10", &vip(Family::V4)),
            ("2001:db8:100::10", &vip(Family::V6)),
        ],
    )
}

/// Starts BIRD with this configuration; its log, its socket and its process id lie beside it.
///
/// # Errors
/// When it cannot be started.
pub fn start_bird(namespace: &Namespace, config: &Path) -> Result<Process> {
    let at = |end: &str| config.with_extension(end);
    let mut command = namespace.command("bird");
    command.arg("-f").arg("-c").arg(config).arg("-s").arg(at("ctl")).arg("-P").arg(at("pid"));
    Process::spawn("bird", &mut command, &at("log"))
}

/// Starts keepalived with this configuration; its log and its process ids lie beside it.
///
/// # Errors
/// When it cannot be started.
pub fn start_keepalived(namespace: &Namespace, config: &Path) -> Result<Process> {
    let at = |end: &str| config.with_extension(end);
    let mut command = namespace.command("keepalived");
    command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp"]);
    command.arg("-f").arg(config).arg("-p").arg(at("pid")).arg("-r").arg(at("vrrp-pid"));
    Process::spawn("keepalived", &mut command, &at("log"))
}

/// A sample with the addresses of this place.
fn adapted(sample: &str, replaced: &[(&str, &str)]) -> Result<String> {
    let mut text = sample.to_owned();
    for (from, to) in replaced {
        ensure!(sample.contains(from), "{from} is not in the sample");
        text = text.replace(from, to);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{balancer, router};

    #[test]
    fn nothing_of_the_samples_addresses_is_left() {
        for text in [router(2).unwrap(), router(8).unwrap(), balancer(0).unwrap(), balancer(7).unwrap()] {
            let settings: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            let settings = settings.join("\n");
            for sample in ["192.0.2.", "198.51.100.", "2001:db8:"] {
                assert!(!settings.contains(sample), "{settings}");
            }
        }
        assert_eq!(router(8).unwrap().matches(" from balancer {").count(), 8);
    }
}
