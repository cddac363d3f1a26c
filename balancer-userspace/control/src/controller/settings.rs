//! The settings of a configuration except its services: which settings can change at run time, and which need a
//! restart.

use std::{borrow::Borrow, collections::BTreeMap, fmt::Display, path::PathBuf, sync::Arc};

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::{Config, Control, Fleet, OnExit, Remote, Role, ServiceConfig, StatisticsConfig, XdpMode},
    validate::Valid,
};

use crate::io::{Command, Report, ReportLevel};

#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The settings without services, as the controller last read them.
    config: Config,
    /// The interfaces that the command line names, which override the file; empty if the file decides.
    named: Vec<String>,
    /// Whether the balancer has allocated client memory, because some service remembers clients.
    memory: bool,
    /// Whether the balancer has a flow table, because some service is `snat`.
    flows: bool,
}

/// The differences from another configuration's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// The reasons to refuse the other configuration, one line each.
    pub(super) refused: Vec<String>,
    /// The keys of the changed settings.
    pub(super) changed: Vec<&'static str>,
    /// The changed settings, each as a line with the old and the new value.
    pub(super) lines: Vec<String>,
}

impl Settings {
    pub(super) fn of(config: &Config) -> Self {
        let without_services = Config { services: Valid::default(), ..config.clone() };
        Self {
            config: without_services,
            named: Vec::new(),
            // These are the conditions under which the data path allocates client memory and the flow table.
            memory: remembers(&config.services) || config.services.is_empty() || config.fleet.is_some(),
            flows: is_snat(&config.services) || config.flow_table_wanted,
        }
    }

    /// Notes that the data path has room for `services`, which existed before the start.
    pub(super) fn make_room_for(&mut self, services: &[Arc<ServiceConfig>]) {
        self.memory |= remembers(services);
        self.flows |= is_snat(services);
    }

    /// Returns what the data path lacks for `services`, and the cure.
    pub(super) fn lacks(&self, services: &[ServiceConfig]) -> Option<String> {
        if !self.flows && is_snat(services) {
            return Some(
                "forwarding = \"snat\" needs a table of connections, and the balancer started without one: write \
                 [flow_table] capacity = 262144 into a configuration file with service = [], or a snat service into \
                 the file, and restart the balancer"
                    .to_owned(),
            );
        }
        (!self.memory && remembers(services)).then(|| {
            "remember needs a client table, and the balancer started without one: write remember into a service of \
             the configuration file, and restart the balancer"
                .to_owned()
        })
    }

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn name_interfaces(&mut self, named: Vec<String>) {
        self.named = named;
    }

    /// The interfaces to which the kernel program should be attached.
    pub(super) fn interfaces(&self) -> &[String] {
        if self.named.is_empty() { &self.config.interfaces } else { &self.named }
    }

    /// Replaces the settings with the settings of `config`, which has no services.
    pub(super) fn take_over(&mut self, config: Config) {
        self.config = config;
    }

    /// Compares the settings with the settings of `config`. The code of this function names every key, so that it does
    /// not compile if a key is forgotten.
    pub(super) fn differences(&self, config: &Config) -> Differences {
        let Config {
            interfaces,
            xdp_mode,
            on_exit,
            state_file,
            control: Control { socket, group, readers, remote, audit },
            metrics_listen,
            metrics_page,
            client_table_capacity,
            flow_table_capacity,
            flow_table_wanted: _,
            hash_key,
            statistics: StatisticsConfig { heavy_client_share, sample_interval },
            fleet,
            // The merge with changes made at run time handles the services.
            services: _,
        } = config;
        let old = &self.config;
        let mut differences = Differences::default();
        differences.restart("state_file", old.state_file == *state_file);
        differences.restart("control.socket", old.control.socket == *socket);
        differences.restart("client_table.capacity", old.client_table_capacity == *client_table_capacity);
        differences.restart("flow_table.capacity", old.flow_table_capacity == *flow_table_capacity);
        differences.restart("hash.key", old.hash_key == *hash_key);
        fleets(old.fleet.as_ref(), fleet.as_ref(), &mut differences);
        differences.restart(
            "forwarding = \"snat\" (no service was snat at the start, so there is no table of connections)",
            self.flows || !is_snat(&config.services),
        );
        differences.restart(
            "remember (no service has remembered its clients from the start, so no memory is set aside)",
            self.memory || !remembers(&config.services),
        );
        if self.named.is_empty() {
            differences.changes("interfaces", &old.interfaces.join(", "), &interfaces.join(", "));
            if interfaces.is_empty() {
                let wrong = "interfaces is empty: name one in the file (the command line names none)";
                differences.refused.push(wrong.to_owned());
            }
        } else if old.interfaces != *interfaces {
            let named = self.named.join(", ");
            differences.lines.push(format!(
                "interfaces: the file now says {}; {named} stay, by the command line",
                interfaces.join(", ")
            ));
        }
        differences.changes("xdp_mode", mode(old.xdp_mode), mode(*xdp_mode));
        differences.changes("on_exit", exit(old.on_exit), exit(*on_exit));
        differences.changes("control.group", name_of(old.control.group.as_deref()), name_of(group.as_deref()));
        differences.changes("control.readers", name_of(old.control.readers.as_deref()), name_of(readers.as_deref()));
        let file = |path: Option<&PathBuf>| path.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
        differences.changes("control.audit", &file(old.control.audit.as_ref()), &file(audit.as_ref()));
        remotes(old.control.remote.as_ref(), remote.as_ref(), &mut differences);
        let listen =
            |listen: Option<std::net::SocketAddr>| listen.map_or_else(|| "off".to_owned(), |at| at.to_string());
        differences.changes("metrics.listen", &listen(old.metrics_listen), &listen(*metrics_listen));
        differences.changes("metrics.page", &old.metrics_page, metrics_page);
        differences.changes("statistics.heavy_client_share", &old.statistics.heavy_client_share, heavy_client_share);
        differences.changes("statistics.sample_interval", &old.statistics.sample_interval, sample_interval);
        differences
    }
}

impl Differences {
    /// The differences between the settings as reports.
    pub(super) fn reports(&self) -> impl Iterator<Item = Command> {
        self.lines.iter().cloned().map(noted)
    }

    fn restart(&mut self, key: &str, same: bool) {
        if !same {
            self.refused.push(format!(
                "{key} cannot change while the balancer runs: restart the balancer, or leave {key} as \
                               it was"
            ));
        }
    }

    fn changes<T: Display + PartialEq + ?Sized>(&mut self, key: &'static str, before: &T, after: &T) {
        if before != after {
            self.changed.push(key);
            self.lines.push(format!("{key}: {before} → {after}"));
        }
    }
}

/// An added or removed remote listener counts as a change of its address.
fn remotes(old: Option<&Remote>, new: Option<&Remote>, differences: &mut Differences) {
    let at = |remote: Option<&Remote>| remote.map_or_else(|| "off".to_owned(), |remote| remote.listen.to_string());
    differences.changes("control.listen", &at(old), &at(new));
    let (Some(old), Some(Remote { listen: _, cert, key, client_ca, roles })) = (old, new) else { return };
    for (name, before, after) in [
        ("control.cert", &old.cert, cert),
        ("control.key", &old.key, key),
        ("control.client_ca", &old.client_ca, client_ca),
    ] {
        differences.changes(name, &before.display().to_string(), &after.display().to_string());
    }
    let words = |roles: &BTreeMap<String, Role>| {
        let all: Vec<String> = roles.iter().map(|(name, role)| format!("{name} {}", role.word())).collect();
        all.join(", ")
    };
    differences.changes("control.roles", &words(&old.roles), &words(roles));
}

/// A report about settings, for the log and the events.
pub(super) const fn noted(message: String) -> Command {
    Command::Report(Report { level: ReportLevel::Info, about: None, message, moves: None })
}

/// Compares the section `[fleet]` of two configurations; this section cannot change while the member runs.
fn fleets(old: Option<&Fleet>, new: Option<&Fleet>, differences: &mut Differences) {
    let (Some(old), Some(new)) = (old, new) else {
        return differences.restart("fleet", old.is_none() && new.is_none());
    };
    let Fleet { name, member, etcd, lease, share_clients, when_alone, linger } = new;
    differences.restart("fleet.name", old.name == *name);
    differences.restart("fleet.member", old.member == *member);
    differences.restart("fleet.endpoints", old.etcd.endpoints == etcd.endpoints);
    differences.restart("fleet.ca", old.etcd.ca == etcd.ca);
    differences.restart("fleet.cert", old.etcd.cert == etcd.cert);
    differences.restart("fleet.key", old.etcd.key == etcd.key);
    differences.restart("fleet.lease", old.lease == *lease);
    differences.restart("fleet.share_clients", old.share_clients == *share_clients);
    differences.restart("fleet.when_alone", old.when_alone == *when_alone);
    differences.restart("fleet.linger", old.linger == *linger);
}

fn is_snat(services: &[impl Borrow<ServiceConfig>]) -> bool {
    services.iter().any(|service| service.borrow().forwarding == Forwarding::Snat)
}

fn remembers(services: &[impl Borrow<ServiceConfig>]) -> bool {
    services.iter().any(|service| !service.borrow().remember.is_zero())
}

const fn mode(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    }
}

const fn exit(on_exit: OnExit) -> &'static str {
    match on_exit {
        OnExit::Detach => "detach",
        OnExit::Keep => "keep",
    }
}

fn name_of(group: Option<&str>) -> &str {
    group.unwrap_or("none")
}

#[cfg(test)]
mod tests {
    use balancer_config::file;

    use super::*;

    fn config(text: &str) -> Config {
        let service = "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\nforwarding = \"dsr\"\nremember = \"1h\"\n\
                       [[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.1\"\n";
        file::parse("test.toml".as_ref(), format!("{text}\n{service}").as_bytes()).unwrap().0
    }

    #[test]
    fn when_a_key_changes_then_it_is_applied_or_refused_by_its_name() {
        let base = "interfaces = [\"eth0\"]";
        let settings = Settings::of(&config(base));
        assert_eq!(settings.differences(&config(base)), Differences::default());
        for (text, changed, line) in [
            ("interfaces = [\"eth0\", \"eth1\"]", "interfaces", "interfaces: eth0 → eth0, eth1"),
            ("interfaces = [\"eth0\"]\nxdp_mode = \"generic\"", "xdp_mode", "xdp_mode: auto → generic"),
            ("interfaces = [\"eth0\"]\non_exit = \"keep\"", "on_exit", "on_exit: detach → keep"),
            ("interfaces = [\"eth0\"]\ncontrol.group = \"adm\"", "control.group", "control.group: none → adm"),
            ("interfaces = [\"eth0\"]\ncontrol.audit = \"/audit\"", "control.audit", "control.audit: none → /audit"),
            ("interfaces = [\"eth0\"]\ncontrol.readers = \"adm\"", "control.readers", "control.readers: none → adm"),
            (
                "interfaces = [\"eth0\"]\nmetrics.listen = \"off\"",
                "metrics.listen",
                "metrics.listen: 127.0.0.1:9660 → off",
            ),
            ("interfaces = [\"eth0\"]\nmetrics.page = false", "metrics.page", "metrics.page: true → false"),
            (
                "interfaces = [\"eth0\"]\nstatistics.heavy_client_share = 0.25",
                "statistics.heavy_client_share",
                "statistics.heavy_client_share: 0.5 → 0.25",
            ),
            (
                "interfaces = [\"eth0\"]\nstatistics.sample_interval = 7",
                "statistics.sample_interval",
                "statistics.sample_interval: 1024 → 7",
            ),
        ] {
            let differences = settings.differences(&config(text));
            let expected = Differences { refused: Vec::new(), changed: vec![changed], lines: vec![line.to_owned()] };
            assert_eq!(differences, expected, "{text}");
        }
        for (text, key) in [
            ("state_file = \"/other.json\"", "state_file cannot change"),
            ("control.socket = \"/other.sock\"", "control.socket cannot change"),
            ("client_table.capacity = 5", "client_table.capacity cannot change"),
            ("fleet = { name = \"a\", endpoints = [\"https://192.0.2.1:2379\"] }", "fleet cannot change"),
            ("hash.key = \"hex:000102030405060708090a0b0c0d0e0f\"", "hash.key cannot change"),
        ] {
            let differences = settings.differences(&config(&format!("{base}\n{text}")));
            assert_eq!(differences.changed.len() + differences.lines.len(), 0, "{text}");
            assert!(differences.refused.len() == 1 && differences.refused[0].starts_with(key), "{differences:?}");
        }
        assert!(settings.differences(&config("")).refused[0].contains("interfaces is empty"));
    }

    #[test]
    fn when_the_listener_for_other_machines_comes_changes_or_goes_then_each_key_is_reported() {
        let with = |changed: &str| {
            let mut all = vec![("listen", "\"127.0.0.1:9661\""), ("cert", "\"/cert\""), ("key", "\"/key\"")];
            all.extend([("client_ca", "\"/ca\""), ("roles", "{ a = \"read\" }")]);
            let (key, value) = changed.split_once(" = ").unwrap_or_default();
            let lines = all.iter().map(|&(of, was)| format!("{of} = {}\n", if of == key { value } else { was }));
            config(&format!("interfaces = [\"eth0\"]\n[control]\n{}", lines.collect::<String>()))
        };
        let none = config("interfaces = [\"eth0\"]");
        let settings = Settings::of(&with(""));
        assert_eq!(settings.differences(&with("")), Differences::default());
        assert_eq!(Settings::of(&none).differences(&with("")).lines, ["control.listen: off → 127.0.0.1:9661"]);
        assert_eq!(settings.differences(&none).lines, ["control.listen: 127.0.0.1:9661 → off"]);
        for (changed, line) in [
            ("listen = \"127.0.0.1:9999\"", "control.listen: 127.0.0.1:9661 → 127.0.0.1:9999"),
            ("cert = \"/other\"", "control.cert: /cert → /other"),
            ("key = \"/other\"", "control.key: /key → /other"),
            ("client_ca = \"/other\"", "control.client_ca: /ca → /other"),
            ("roles = { a = \"all\" }", "control.roles: a read → a all"),
        ] {
            assert_eq!(settings.differences(&with(changed)).lines, [line]);
        }
    }

    #[test]
    fn when_a_key_of_a_fleet_changes_then_it_is_refused() {
        let fleet = |keys: &str| {
            let mut all = vec![("name", "\"a\""), ("endpoints", "[\"https://192.0.2.1:2379\"]")];
            all.extend([("cert", "\"/cert\""), ("key", "\"/key\"")]);
            let (changed, value) = keys.split_once(" = ").unwrap_or_default();
            all.retain(|(key, _)| *key != changed);
            let lines = all.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
            let changed = if changed.is_empty() { String::new() } else { format!("{changed} = {value}\n") };
            config(&format!("interfaces = [\"eth0\"]\n[fleet]\n{lines}{changed}"))
        };
        let settings = Settings::of(&fleet(""));
        assert_eq!(settings.differences(&fleet("")), Differences::default());
        for line in [
            "name = \"b\"",
            "member = \"lb1\"",
            "endpoints = [\"https://192.0.2.1:2380\"]",
            "ca = \"/ca\"",
            "cert = \"/other\"",
            "key = \"/other\"",
            "lease = \"7s\"",
            "share_clients = false",
            "when_alone = \"withdraw\"",
            "linger = \"1s\"",
        ] {
            let key = line.split(' ').next().unwrap_or_default();
            let refused = settings.differences(&fleet(line)).refused;
            assert!(refused.len() == 1 && refused[0].starts_with(&format!("fleet.{key} cannot change")), "{refused:?}");
        }
        assert!(settings.differences(&config("interfaces = [\"eth0\"]")).refused[0].starts_with("fleet cannot change"));
    }

    #[test]
    fn when_the_command_line_names_interfaces_then_they_stay() {
        let mut settings = Settings::of(&config(""));
        settings.name_interfaces(vec!["eth7".to_owned()]);
        let differences = settings.differences(&config("interfaces = [\"eth0\"]"));
        assert_eq!((differences.refused.len(), differences.changed.len()), (0, 0));
        assert_eq!(differences.lines, ["interfaces: the file now says eth0; eth7 stay, by the command line"]);
        assert_eq!(settings.interfaces(), ["eth7"]);
    }
}
