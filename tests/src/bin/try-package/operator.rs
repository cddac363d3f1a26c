//! The hosts around the machine, and the operator's actions on the machine.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    binaries,
    machine::Machine,
    namespace::Namespace,
    topology::{Family, Shape, Topology},
};
use tempfile::TempDir;

use crate::{
    Options,
    clients::{Clients, PORT},
};

/// The time limit of every action except a boot.
const PATIENCE: Duration = Duration::from_secs(60);
const BACKENDS: u16 = 2;
const BACKEND_PORT: u16 = 8080;
/// The path of the configuration that the unit uses, below the machine's root.
const CONFIG: &str = "etc/balancer/balancer.toml";

/// The machine with the balancer, its backends and its clients.
pub(crate) struct Operator {
    /// The machine runs in the network namespace that the next field contains. This field comes first, so that Rust
    /// drops the machine before the namespace.
    pub(crate) machine: Machine,
    backends: Vec<Backend>,
    _logs: TempDir,
    pub(crate) topology: Topology,
}

impl Operator {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let topology = Topology::new(Shape::OneLegged, Forwarding::Nat, usize::from(BACKENDS))?;
        let logs = tempfile::tempdir()?;
        let backends = (1..=BACKENDS).zip(topology.backends()).map(|(number, namespace)| {
            let listen = Family::BOTH.map(|family| backend(&topology, family, number));
            Backend::start(&binaries::balancer()?, namespace, &format!("web{number}"), &listen, logs.path())
        });
        let backends = backends.collect::<Result<_>>()?;
        let mut machine = Machine::install(&options.suite, &options.directory, topology.balancer())?;
        machine.bring(&options.package, "balancer.deb")?;
        machine.bring(&options.upgrade, "upgrade.deb")?;
        machine.bring(&options.kubernetes, "kubernetes.deb")?;
        machine.boot()?;
        Ok(Self { machine, backends, _logs: logs, topology })
    }

    pub(crate) fn systemd(&self) -> Result<String> {
        let version = self.types("systemctl --version")?;
        Ok(version.lines().next().unwrap_or_default().to_owned())
    }

    /// Runs a command, which must succeed, and returns the output of the command.
    pub(crate) fn types(&self, line: &str) -> Result<String> {
        let (words, success) = self.machine.shell(line)?;
        ensure!(success, "`{line}` failed: {}", words.trim());
        Ok(words.trim().to_owned())
    }

    /// Runs a command, which must fail, and returns the output of the command.
    pub(crate) fn types_in_vain(&self, line: &str) -> Result<String> {
        let (words, success) = self.machine.shell(line)?;
        ensure!(!success, "`{line}` succeeded: {}", words.trim());
        Ok(words.trim().to_owned())
    }

    /// Runs a command whose output must contain each of `wanted`.
    pub(crate) fn reads(&self, line: &str, wanted: &[&str]) -> Result<String> {
        let (words, _) = self.machine.shell(line)?;
        for part in wanted {
            ensure!(words.contains(part), "`{line}` does not say {part:?}: {}", words.trim());
        }
        Ok(words.trim().to_owned())
    }

    /// Waits until the output of a command is exactly `wanted`.
    pub(crate) fn wait(&self, line: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (words, _) = self.machine.shell(line)?;
            if words.trim() == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "`{line}` says {:?} instead of {wanted:?}", words.trim());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Returns a property of the balancer's unit.
    pub(crate) fn property(&self, name: &str) -> Result<String> {
        self.types(&format!("systemctl show --property={name} --value balancer"))
    }

    /// Waits until the property `name` of the unit has the value `wanted`.
    pub(crate) fn wait_property(&self, name: &str, wanted: &str) -> Result<()> {
        self.wait(&format!("systemctl show --property={name} --value balancer"), wanted)
    }

    /// Writes the unit's configuration: services of both families, a weight for `web1`, and `lines` before the
    /// services. A backend goes down only after five seconds of silence, so that a busy machine moves no client.
    /// Passive signals are off, because passive signals shorten the detection of failures to one second.
    pub(crate) fn configures(&self, weight: u16, lines: &str) -> Result<()> {
        let mut text = format!("interfaces = [\"eth0\"]\non_exit = \"keep\"\n{lines}\n");
        for (family, name) in Family::BOTH.into_iter().zip(["web", "web6"]) {
            let vip = SocketAddr::new(self.topology.vip(family), PORT);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nforwarding = \"nat\"\n\
                 check = {{ type = \"http\", path = \"/healthz\", interval = \"500ms\", timeout = \"500ms\", fall = 10, \
                 passive = false }}\n"
            );
            for number in 1..=BACKENDS {
                let (address, weight) =
                    (backend(&self.topology, family, number), if number == 1 { weight } else { 100 });
                let _ = write!(
                    text,
                    "[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\nweight = {weight}\n"
                );
            }
        }
        self.machine.write(CONFIG, &text)
    }

    /// Sets the answer to the health checks of `web{number}`.
    pub(crate) fn fails(&self, number: usize, mode: &str) -> Result<()> {
        self.backends[number - 1].fail(&self.topology.backends()[number - 1], mode)
    }

    /// Runs `work` while clients send requests, and checks that no request fails and that no client moves.
    pub(crate) fn under_traffic<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, String)> {
        let clients = Clients::start(&self.topology);
        clients.round();
        let done = work(self)?;
        clients.round();
        let traffic = clients.finish().map_err(|error| anyhow!("{error:#}; resets: {}", self.resets()))?;
        Ok((done, traffic))
    }

    /// Returns the kernel's counters of reset connections on each host, by cause.
    fn resets(&self) -> String {
        const COUNTERS: [&str; 6] =
            ["OutRsts", "EstabResets", "TCPAbortOnData", "TCPAbortOnClose", "TCPAbortOnMemory", "ListenOverflows"];
        let servers = self.topology.backends().iter().zip(1..).map(|(host, number)| (format!("web{number}"), host));
        let hosts = servers.chain([("clients".to_owned(), self.topology.client())]);
        let count = |(name, host): (String, &Namespace)| {
            let read = || ["snmp", "netstat"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")));
            let files = host.run_in_thread(read).map(|files| files.map(Result::unwrap_or_default)).unwrap_or_default();
            let lines: Vec<&str> = files.iter().flat_map(|file| file.lines()).collect();
            let (pairs, _) = lines.as_chunks::<2>();
            let all = pairs.iter().flat_map(|[names, values]| names.split(' ').zip(values.split(' ')));
            let found = all.filter(|(name, value)| COUNTERS.contains(name) && *value != "0");
            format!("{name}: {}", found.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(" "))
        };
        hosts.map(count).collect::<Vec<_>>().join(", ")
    }

    /// Returns whether an XDP program is attached to the machine's interface.
    pub(crate) fn attached(&self) -> Result<bool> {
        Ok(self.types("ip -details link show dev eth0")?.contains("prog/xdp"))
    }

    /// Returns the main process of the running service, which must not be the process `before`.
    pub(crate) fn new_main_process(&self, before: &str) -> Result<String> {
        self.wait_property("ActiveState", "active")?;
        let now = self.property("MainPID")?;
        ensure!(now != "0" && now != before, "the main process is still {now}");
        Ok(now)
    }

    /// Waits until systemd has restarted the unit more than `before` times, and until the unit runs again.
    pub(crate) fn wait_restarted(&self, before: &str) -> Result<()> {
        let before: u32 = before.parse().context("NRestarts")?;
        let deadline = Instant::now() + PATIENCE;
        while self.property("NRestarts")?.parse::<u32>()? <= before || self.property("ActiveState")? != "active" {
            if Instant::now() > deadline {
                bail!("systemd does not start it again: {}", self.property("ActiveState")?);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Returns the last lines of the journal, and the last journal lines about backends.
    pub(crate) fn journal(&self) -> String {
        let words = self.machine.shell(
            "systemctl status --no-pager balancer; journalctl --no-pager --lines=30 --output=short-precise; \
                 journalctl --no-pager --unit=balancer --output=short-precise | grep -E 'backend|checked' | tail -n 30",
        );
        words.map_or_else(|error| error.to_string(), |(words, _)| words)
    }
}

fn backend(topology: &Topology, family: Family, number: u16) -> SocketAddr {
    SocketAddr::new(topology.backend_address(family, number - 1), BACKEND_PORT)
}
