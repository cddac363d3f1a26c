//! Runs routing daemons with the sample configurations in `contrib/`: BIRD or FRR on a router and on balancers, and
//! keepalived on a pair of balancers.

use std::{
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    namespace::Namespace,
    process::Process,
    topology::{Family, Topology},
};

const ROUTER: &str = include_str!("../../../contrib/bird/router.conf");
const BALANCER: &str = include_str!("../../../contrib/bird/balancer.conf");
const FRR_ROUTER: &str = include_str!("../../../contrib/frr/router.conf");
const FRR_BALANCER: &str = include_str!("../../../contrib/frr/balancer.conf");
const KEEPALIVED: &str = include_str!("../../../contrib/keepalived/keepalived.conf");

/// The number of balancers in the sample configuration for the router.
const NAMED: u16 = 2;

/// BIRD's configuration for the router in front of the balancers.
///
/// # Errors
/// Fails if the sample configuration does not contain the expected text.
pub fn router(balancers: u16) -> Result<String> {
    let mut text = for_router(ROUTER)?;
    for index in NAMED..balancers {
        let address = Topology::balancers_address(Family::V4, index);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "protocol bgp lb{} from balancer {{ neighbor {address} as 65001; }}", index + 1);
    }
    Ok(text)
}

/// BIRD's configuration for the balancer `index`, counted from 0.
///
/// # Errors
/// Fails if the sample configuration does not contain the expected text.
pub fn balancer(index: u16) -> Result<String> {
    for_balancer(BALANCER, index)
}

/// FRR's configuration for the router in front of two balancers.
///
/// # Errors
/// Fails if the sample configuration does not contain the expected text.
pub fn frr_router() -> Result<String> {
    for_router(FRR_ROUTER)
}

/// FRR's configuration for the balancer `index`, counted from 0.
///
/// # Errors
/// Fails if the sample configuration does not contain the expected text.
pub fn frr_balancer(index: u16) -> Result<String> {
    for_balancer(FRR_BALANCER, index)
}

fn for_router(sample: &str) -> Result<String> {
    let address = |index| Topology::balancers_address(Family::V4, index).to_string();
    adapted(
        sample,
        &[
            ("192.0.2.11", &address(0)),
            ("192.0.2.12", &address(1)),
            ("192.0.2.1", &Topology::router_address(Family::V4).to_string()),
            ("198.51.100.0/24", &Topology::vips(Family::V4)),
            ("2001:db8:100::/64", &Topology::vips(Family::V6)),
        ],
    )
}

fn for_balancer(sample: &str, index: u16) -> Result<String> {
    let own = |family| Topology::balancers_address(family, index).to_string();
    adapted(
        sample,
        &[
            ("192.0.2.11", &own(Family::V4)),
            ("192.0.2.1", &Topology::router_address(Family::V4).to_string()),
            ("2001:db8::11", &own(Family::V6)),
            ("198.51.100.0/24", &Topology::vips(Family::V4)),
            ("2001:db8:100::/64", &Topology::vips(Family::V6)),
        ],
    )
}

/// keepalived's configuration for the balancer `index` of two balancers, 0 or 1; `ready` is the command by which
/// keepalived checks whether the balancer may have the VIPs. The balancer 0 has the higher priority.
///
/// # Errors
/// Fails if the sample configuration does not contain the expected text.
pub fn keepalived(topology: &Topology, index: u16, ready: &str) -> Result<String> {
    let address = |index| Topology::balancers_address(Family::V4, index).to_string();
    let vip = |family| topology.vip(family).to_string();
    adapted(
        KEEPALIVED,
        &[
            ("router_id lb1", if index == 0 { "router_id lb1" } else { "router_id lb2" }),
            // Script security must be off, because the program may be in a directory in which any user can write.
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

/// Starts BIRD with the configuration in the file `config`. BIRD's log, socket and process id file are beside the
/// configuration file.
///
/// # Errors
/// Fails if BIRD cannot be started.
pub fn start_bird(namespace: &Namespace, config: &Path) -> Result<Process> {
    let at = |end: &str| config.with_extension(end);
    let mut command = namespace.command("bird");
    command.arg("-f").arg("-c").arg(config).arg("-s").arg(at("ctl")).arg("-P").arg(at("pid"));
    Process::spawn("bird", &mut command, &at("log"))
}

/// Starts FRR's daemons with the configuration in the file `config`, as FRR's service does with `/etc/frr/frr.conf`.
/// The daemons write to a directory beside the configuration file.
///
/// # Errors
/// Fails if a daemon cannot be started, or if it refuses a line of the configuration.
pub fn start_frr(namespace: &Namespace, config: &Path) -> Result<Vec<Process>> {
    let programs = ["/usr/lib/frr", "/usr/libexec/frr"].map(Path::new).into_iter().find(|place| place.exists());
    let programs = programs.context("FRR is not installed")?;
    let place = config.with_extension("frr");
    fs::create_dir_all(&place)?;
    // The daemons run as another user, which must be able to write to this directory.
    fs::set_permissions(&place, Permissions::from_mode(0o777))?;
    let within = config.parent().context("a file lies in a directory")?;
    fs::set_permissions(within, Permissions::from_mode(0o711))?;
    let own: &[(&str, &[&str])] = &[("zebra", &[]), ("bgpd", &[]), ("bfdd", &["--bfdctl", "bfdd.sock"])];
    let mut daemons = Vec::new();
    for (name, own) in own {
        let mut command = namespace.command(programs.join(name));
        command.current_dir(&place).arg("--vty_socket").arg(&place).args(["-P", "0", "-f", "/dev/null"]);
        command.arg("-z").arg(place.join("zserv.api")).arg("-i").arg(place.join(format!("{name}.pid")));
        if let [option, file] = own {
            command.arg(option).arg(place.join(file));
        }
        daemons.push(Process::spawn(name, &mut command, &place.join(format!("{name}.log")))?);
        wait_for(&place.join(format!("{name}.vty")))?;
    }
    let mut shell = namespace.command("vtysh");
    let output = shell.arg("--vty_socket").arg(&place).arg("-f").arg(config).output().context("vtysh")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success() && !said.contains(&b'%'),
        "FRR refuses the configuration: {}",
        String::from_utf8_lossy(&said)
    );
    Ok(daemons)
}

fn wait_for(file: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !file.exists() {
        if Instant::now() > deadline {
            bail!("there is no {}", file.display());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts keepalived with the configuration in the file `config`. keepalived's log and process id files are beside the
/// configuration file.
///
/// # Errors
/// Fails if keepalived cannot be started.
pub fn start_keepalived(namespace: &Namespace, config: &Path) -> Result<Process> {
    let at = |end: &str| config.with_extension(end);
    let mut command = namespace.command("keepalived");
    command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp"]);
    command.arg("-f").arg(config).arg("-p").arg(at("pid")).arg("-r").arg(at("vrrp-pid"));
    Process::spawn("keepalived", &mut command, &at("log"))
}

/// Replaces the addresses in a sample configuration by the demo's addresses.
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
    use super::{balancer, frr_balancer, frr_router, router};

    #[test]
    fn when_a_sample_is_adapted_then_none_of_its_addresses_is_left() {
        let bird = [router(2).unwrap(), router(8).unwrap(), balancer(0).unwrap(), balancer(7).unwrap()];
        for text in bird.into_iter().chain([frr_router().unwrap(), frr_balancer(1).unwrap()]) {
            let settings: Vec<&str> = text.lines().filter(|line| !line.starts_with(['#', '!'])).collect();
            let settings = settings.join("\n");
            for sample in ["192.0.2.", "198.51.100.", "2001:db8:"] {
                assert!(!settings.contains(sample), "{settings}");
            }
        }
        assert_eq!(router(8).unwrap().matches(" from balancer {").count(), 8);
    }
}
