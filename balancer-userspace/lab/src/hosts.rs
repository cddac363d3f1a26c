//! The hosts of the lab: clients behind a router, balancers, servers, and a second network that connects servers with
//! each other and with stores.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use balancer_common::map_types::Forwarding;
use balancer_demo::{
    namespace::{Namespace, join},
    topology::{Family, Shape, Topology},
};
use tempfile::TempDir;

pub(crate) const BALANCERS: u16 = 3;
/// The host numbers of the etcd servers on the backends' segment.
const ENGINES: [u16; 3] = [61, 62, 63];
/// The host number of the first store on the second network.
const FIRST_STORE: u8 = 101;

/// The host of a store, which is connected only to the second network.
#[derive(Debug)]
pub(crate) struct StoreHost {
    pub(crate) namespace: Namespace,
    pub(crate) address: IpAddr,
    port: String,
}

/// All hosts of the lab. Dropping the value removes the hosts and ends their processes.
#[derive(Debug)]
pub(crate) struct Hosts {
    pub(crate) topology: Topology,
    pub(crate) engines: Vec<Namespace>,
    pub(crate) stores: Vec<StoreHost>,
    _temporary: Option<TempDir>,
    files: PathBuf,
    balancer: PathBuf,
    node_modules: Option<PathBuf>,
}

/// The settings that the caller provides.
#[derive(Clone, Debug)]
pub(crate) struct Outside {
    pub(crate) balancer: PathBuf,
    /// The directory with the packages of the Node servers, if the caller has named one.
    pub(crate) node_modules: Option<PathBuf>,
    /// Whether the lab keeps its configurations and logs.
    pub(crate) keep: bool,
}

/// The numbers of bytes that an interface has sent and received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Octets {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Hosts {
    /// Creates the hosts for these numbers of stores and servers; the servers' hosts suit this forwarding mode.
    pub(crate) fn new(forwarding: Forwarding, servers: u16, stores: u8, outside: Outside) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("lab-sessions-").tempdir()?;
        // Servers that do not run as root must be able to write files below this directory.
        fs::set_permissions(files.path(), fs::Permissions::from_mode(0o711))?;
        let mut topology = Topology::new(Shape::Routed, forwarding, usize::from(servers))?;
        for _ in 1..BALANCERS {
            topology.add_balancer()?;
        }
        let switch = topology.switch();
        switch.ip("link add br1 type bridge mcast_snooping 0")?;
        switch.ip("link set br1 up")?;
        for (number, host) in (1..).zip(topology.backends()) {
            behind(switch, host, "eth1", &format!("in-web{number}"), server_address(number))?;
        }
        let stores = (0..stores)
            .map(|index| {
                let name = format!("store{}", index + 1);
                let (namespace, address) = (Namespace::new(&name)?, inner(FIRST_STORE + index));
                behind(switch, &namespace, "eth0", &name, address)?;
                Ok(StoreHost { namespace, address, port: name })
            })
            .collect::<Result<_>>()?;
        let engines = ENGINES
            .into_iter()
            .map(|number| topology.add_host(&format!("etcd{}", number - 60), number))
            .collect::<Result<_>>()?;
        let path = files.path().to_owned();
        let temporary = if outside.keep {
            eprintln!("configurations and logs are in {}", files.keep().display());
            None
        } else {
            Some(files)
        };
        let Outside { balancer, node_modules, .. } = outside;
        Ok(Self { topology, engines, stores, _temporary: temporary, files: path, balancer, node_modules })
    }

    pub(crate) fn balancer(&self) -> &Path {
        &self.balancer
    }

    /// Returns the directory with the packages of the Node servers, if the caller has named one.
    pub(crate) fn node_modules(&self) -> Option<&Path> {
        self.node_modules.as_deref()
    }

    /// The directory that contains all files of the lab.
    pub(crate) fn files(&self) -> &Path {
        &self.files
    }

    /// Creates a directory among the files of the lab.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.files.join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// The addresses of the etcd servers.
    pub(crate) fn engine_addresses() -> Vec<IpAddr> {
        ENGINES.map(|number| Topology::host_address(Family::V4, number)).into()
    }

    /// Connects or disconnects a store's link to the second network.
    pub(crate) fn plug_store(&self, index: usize, plugged: bool) -> Result<()> {
        let store = self.stores.get(index).context("there is no such store")?;
        self.plug(&store.port, plugged)
    }

    /// Connects or disconnects a port of the switch.
    pub(crate) fn plug(&self, port: &str, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.topology.switch().ip(&format!("link set {port} {state}")).map(drop)
    }

    /// Returns the numbers of bytes that the servers have sent and received on the second network.
    pub(crate) fn octets(&self) -> Result<Octets> {
        let mut sum = Octets::default();
        for host in self.topology.backends() {
            let text = host.run_in_thread(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
            let octets = octets_of(&text, "eth1").context("an interface without counters")?;
            sum.sent += octets.sent;
            sum.received += octets.received;
        }
        Ok(sum)
    }
}

/// The address of the server `number`, counted from 1, on the second network.
pub(crate) const fn server_address(number: u8) -> IpAddr {
    inner(number)
}

/// The address that moves from one store to another.
pub(crate) const STORE_VIP: IpAddr = inner(100);

const fn inner(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 4, 0, host))
}

fn behind(switch: &Namespace, host: &Namespace, interface: &str, port: &str, address: IpAddr) -> Result<()> {
    join((host, interface), (switch, port))?;
    switch.ip(&format!("link set {port} master br1"))?;
    host.ip(&format!("addr add {address}/24 dev {interface}")).map(drop)
}

/// Reads the byte counters of an interface from the text of `/proc/net/dev`.
fn octets_of(text: &str, interface: &str) -> Option<Octets> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some(Octets { received: *numbers.first()?, sent: *numbers.get(8)? })
}

#[cfg(test)]
mod tests {
    use super::octets_of;

    #[test]
    fn when_the_kernels_counters_are_parsed_then_both_directions_are_found() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n  \
                    eth1: 1000 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0\n";
        let octets = octets_of(text, "eth1").unwrap();
        assert_eq!((octets.received, octets.sent), (1000, 2000));
        assert!(octets_of(text, "eth0").is_none());
    }
}
