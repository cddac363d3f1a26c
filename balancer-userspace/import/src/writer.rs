//! Writes the result of a conversion in the balancer's configuration format.

use std::{collections::BTreeSet, fmt::Write as _};

use balancer_config::file::check::without_port;

use crate::{
    address::shown,
    notes::Conversion,
    service::{Backend, Check, CheckKind, Expect, Forwarding, Http, Listener, Records, Service, Tls},
};

const NAT: &str = "\
# nat: replies must come back through this machine, so the backends' route to the clients has to lead here. Backends see
# the clients' own addresses, and no header or PROXY line from this balancer.
";
const SNAT: &str = "\
# snat: as behind a proxy, the backends need no route through this machine, may have addresses of another family than
# clients, and see this machine's address, but no header or PROXY line.
";
const DSR: &str = "# dsr: each backend has the service's address on an interface that answers no ARP, as with IPVS.\n";
const TUNNEL: &str = "# Each backend needs a tunnel interface with the service's address, as with IPVS.\n";
const WAITING: &str = "# This service lacks addresses, see above. Put them in, and take each `# ` away.\n";

/// The file that contains the system's root certificates on most distributions.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The balancer's defaults for checks, and the shortest time that it accepts.
const INTERVAL_MS: u64 = 2000;
const TIMEOUT_MS: u64 = 1000;
const SHORTEST_MS: u64 = 100;

const DAY_MS: u64 = 86_400_000;
const YEAR: u64 = 31_536_000;

/// A backend's own check, with a value for each key that the backend would otherwise inherit from the service's check.
fn differing(check: &Check, common: Option<&Check>, backend: &Backend, service: &Service) -> Check {
    let mut whole = whole(check);
    let interval = whole.interval_ms.unwrap_or(INTERVAL_MS);
    if common.is_some_and(|common| common.timeout_ms.is_some()) {
        whole.timeout_ms.get_or_insert(TIMEOUT_MS.min(interval));
    }
    if common.is_some_and(|common| common.fast_ms.is_some()) {
        whole.fast_ms.get_or_insert((interval / 4).max(SHORTEST_MS));
    }
    let common_port = common.and_then(|common| common.port);
    let listener = service.listeners.first().map(|listener| listener.first);
    whole.port = whole.port.or_else(|| common_port.and(backend.port.or(listener)));
    if let (CheckKind::Talk { send, .. }, Some(CheckKind::Talk { send: Some(_), .. })) =
        (&mut whole.kind, common.map(|common| &common.kind))
    {
        send.get_or_insert_default();
    }
    if let (CheckKind::Http(own), Some(CheckKind::Http(common))) = (&mut whole.kind, common.map(|common| &common.kind))
    {
        if common.host.is_some() {
            own.host.get_or_insert_with(|| backend.host.shown(backend.port));
        }
        if common.body_regex.is_some() {
            own.body_regex.get_or_insert_default();
        }
        if common.headers.is_some() {
            own.headers.get_or_insert_default();
        }
        if common.http2.is_some() {
            own.http2.get_or_insert(false);
        }
        if let (Some(tls), Some(of_common)) = (&mut own.tls, &common.tls) {
            differing_tls(tls, of_common, own.host.as_deref(), &backend.host.shown(None));
        }
    }
    whole
}

/// Sets the TLS values that a backend's check would otherwise inherit.
fn differing_tls(own: &mut Tls, common: &Tls, host: Option<&str>, address: &str) {
    if common.sni.is_some() {
        own.sni.get_or_insert_with(|| host.map_or(address, without_port).to_owned());
    }
    if common.verify == Some(true) {
        own.verify.get_or_insert(false);
    }
    if common.ca_file.is_some() && own.verify == Some(true) {
        own.ca_file.get_or_insert_with(|| SYSTEM_ROOTS.to_owned());
    }
}

impl Conversion {
    /// Returns the line that names the interfaces, or tells the user to name them.
    fn interfaces(&self) -> String {
        let is_translated = |each: &Service| matches!(each.forwarding, Forwarding::Nat | Forwarding::Snat);
        let (both, why) = if self.services.iter().chain(&self.waiting).any(is_translated) {
            (
                "\"eth0\", \"eth1\"",
                "the side where clients' packets come in, and the backends' side, where replies come in",
            )
        } else {
            ("\"eth0\"", "where clients' packets come in")
        };
        match &*self.interfaces {
            [] => format!("# interfaces = [{both}]   # {why}; `import --here` finds them\n"),
            found => {
                let found: Vec<_> = found.iter().map(|name| quoted(name)).collect();
                format!("interfaces = [{}]   # {why}\n", found.join(", "))
            }
        }
    }

    /// Names the interfaces of this machine in the result.
    pub fn name_interfaces(&mut self, interfaces: Vec<String>) {
        self.interfaces = interfaces;
    }

    /// Returns the configuration with comments, in TOML.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut text =
            String::from("# Check this file with `balancer check`, and read the comments before it is used.\n");
        text += &self.interfaces();
        if !self.notes.is_empty() {
            text.push('\n');
        }
        text += &self.comments();
        let mut said = BTreeSet::new();
        for each in &self.services {
            text.push('\n');
            if said.insert(each.forwarding) {
                text.push_str(about(each.forwarding));
            }
            service(&mut text, each);
        }
        for each in &self.waiting {
            text.push('\n');
            if said.insert(each.forwarding) {
                text.push_str(about(each.forwarding));
            }
            text.push_str(WAITING);
            let mut lacking = String::new();
            service(&mut lacking, each);
            for line in lacking.lines() {
                let _ = writeln!(text, "{}", format!("# {line}").trim_end());
            }
        }
        text
    }
}

/// Returns a configuration file that contains only this service.
pub(crate) fn alone(each: &Service) -> String {
    let mut text = String::new();
    service(&mut text, each);
    text
}

/// A comment about what this forwarding mode requires of backends.
fn about(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Nat => NAT,
        Forwarding::Snat => SNAT,
        Forwarding::Dsr => DSR,
        Forwarding::Ipip | Forwarding::Gue => TUNNEL,
    }
}

/// Formats a time in the largest unit that gives a whole number.
fn duration(ms: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
    let whole = units.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
    whole.map_or_else(|| "0s".to_owned(), |(unit, name)| format!("{}{name}", ms / unit))
}

fn service(text: &mut String, service: &Service) {
    let forwarding = match service.forwarding {
        Forwarding::Nat => "nat",
        Forwarding::Snat => "snat",
        Forwarding::Dsr => "dsr",
        Forwarding::Ipip => "ipip",
        Forwarding::Gue => "gue",
    };
    let _ = write!(text, "[[service]]\nname = {}\n", quoted(&service.name));
    let listeners: Vec<_> = service.listeners.iter().map(|each| quoted(&listener(each))).collect();
    let _ = writeln!(text, "listen = [{}]\nforwarding = \"{forwarding}\"", listeners.join(", "));
    if let Some((v4, v6)) = service.prefix {
        let _ = writeln!(text, "client_prefix = {{ v4 = {v4}, v6 = {v6} }}");
    }
    if let Some(seconds) = service.remember {
        let _ = writeln!(text, "remember = \"{}\"", duration(1000 * seconds.min(YEAR)));
    }
    if service.forwarding == Forwarding::Snat {
        snat(text, service);
    }
    if let Some((port, ms)) = service.agent {
        let interval = duration(ms.clamp(1000, DAY_MS));
        let _ = writeln!(text, "agent = {{ port = {port}, interval = \"{interval}\" }}");
    }
    if service.start_down {
        text.push_str("start_down = true\n");
    }
    if service.moves_after_wrong_answers() {
        text.push_str("on_failure = { soft = \"move\" }   # as before, clients leave a server whose check fails\n");
    }
    let check = service.check();
    text.push_str("\n  [service.check]\n");
    if let Some(about) = service.about_check {
        let _ = writeln!(text, "  # {about}");
    }
    for (key, value) in check.map_or_else(|| vec![("type", quoted("none"))], keys) {
        let _ = writeln!(text, "  {key} = {value}");
    }
    let weighted = service.backends.iter().any(|backend| backend.weight.is_some());
    for each in &service.backends {
        backend(text, service, each, weighted);
        let own = if each.check.as_ref() == check {
            continue;
        } else {
            each.check
                .as_ref()
                .map_or_else(|| vec![("type", quoted("none"))], |own| keys(&differing(own, check, each, service)))
        };
        let own: Vec<_> = own.into_iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let _ = writeln!(text, "  check = {{ {} }}", own.join(", "));
    }
    for list in &service.discover {
        discover(text, &list.records);
    }
}

/// Writes the settings that only `snat` has.
fn snat(text: &mut String, service: &Service) {
    if !service.seen_as.is_empty() {
        let addresses: Vec<_> = service.seen_as.iter().map(|address| quoted(&address.to_string())).collect();
        let _ = writeln!(text, "snat = {{ addresses = [{}] }}", addresses.join(", "));
    }
    let Some(ms) = service.idle_ms else {
        text.push_str(
            "# idle = { tcp = \"15m\" }   # the default: a connection without packets for that long is forgotten\n",
        );
        return;
    };
    let time = quoted(&duration(ms.div_ceil(1000).clamp(1, DAY_MS / 1000) * 1000));
    let of = |udp: bool| service.listeners.iter().any(|listener| listener.udp == udp);
    let keys = [(of(false), "tcp"), (of(true), "udp")].into_iter().filter(|(has, _)| *has);
    let keys: Vec<_> = keys.map(|(_, key)| format!("{key} = {time}")).collect();
    let _ =
        writeln!(text, "idle = {{ {} }}   # as before, the time after which a silent connection ends", keys.join(", "));
}

fn discover(text: &mut String, records: &Records) {
    text.push_str("\n  [[service.discover]]\n");
    match records {
        Records::Services(name) => {
            let _ = writeln!(text, "  dns = {}", quoted(name));
        }
        Records::Addresses(name, port) => {
            let _ = writeln!(text, "  dns_a = {}", quoted(name));
            if let Some(port) = port {
                let _ = writeln!(text, "  port = {port}");
            }
        }
    }
}

/// Returns the check with all keys set, so that it inherits no key.
fn whole(check: &Check) -> Check {
    let mut whole = check.clone();
    whole.interval_ms = whole.interval_ms.or(Some(INTERVAL_MS));
    whole.fall = whole.fall.or(Some(3));
    whole.rise = whole.rise.or(Some(2));
    if let CheckKind::Http(http) = &mut whole.kind {
        http.method.get_or_insert_with(|| "GET".to_owned());
        http.path.get_or_insert_with(|| "/".to_owned());
        http.status.get_or_insert_with(|| "200-399".to_owned());
    }
    whole
}

fn http_keys(http: &Http, mut key: impl FnMut(&'static str, Option<String>)) {
    let string = |value: &Option<String>| value.as_deref().map(quoted);
    key("method", string(&http.method));
    key("path", string(&http.path));
    key("host", string(&http.host));
    key("headers", http.headers.as_deref().map(headers));
    key("expect_status", string(&http.status));
    key("expect_body_regex", string(&http.body_regex));
    key("http2", http.http2.map(|http2| http2.to_string()));
    if let Some(Tls { verify, ca_file, sni, client_cert }) = &http.tls {
        key("tls_verify", verify.map(|verify| verify.to_string()));
        key("ca_file", string(ca_file));
        key("sni", string(sni));
        key("client_cert", string(client_cert));
    }
}

fn headers(headers: &[(String, String)]) -> String {
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
    if headers.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", headers.join(", ")) }
}

/// The keys of a check in the configuration format, with their values.
fn keys(check: &Check) -> Vec<(&'static str, String)> {
    let mut keys = Vec::new();
    let mut key = |name: &'static str, value: Option<String>| keys.extend(value.map(|value| (name, value)));
    let kind = match &check.kind {
        CheckKind::Tcp | CheckKind::Talk { .. } => "tcp",
        CheckKind::Udp { .. } => "udp",
        CheckKind::Dns { .. } => "dns",
        CheckKind::Http(http) if http.tls.is_some() => "https",
        CheckKind::Http(_) => "http",
        CheckKind::Exec { .. } => "exec",
    };
    let interval = check.interval_ms.map(|ms| ms.clamp(100, DAY_MS));
    let within = |ms: u64| ms.clamp(100, interval.unwrap_or(2000));
    let time = |ms: u64| quoted(&duration(ms));
    key("type", Some(quoted(kind)));
    key("interval", interval.map(time));
    key("timeout", check.timeout_ms.map(within).map(time));
    key("fast_interval", check.fast_ms.map(within).map(time));
    key("fall", check.fall.map(|fall| fall.clamp(1, 1000).to_string()));
    key("rise", check.rise.map(|rise| rise.clamp(1, 1000).to_string()));
    key("port", check.port.filter(|port| *port != 0).map(|port| port.to_string()));
    match &check.kind {
        CheckKind::Tcp => {}
        CheckKind::Talk { send, expect } => {
            key("send", send.as_deref().map(quoted));
            match expect {
                Expect::Text(text) => key("expect", Some(quoted(text))),
                Expect::Regex(pattern) => key("expect_regex", Some(quoted(pattern))),
            }
        }
        CheckKind::Udp { send, expect } => {
            key("send", Some(quoted(send)));
            key("expect", expect.as_deref().map(quoted));
        }
        CheckKind::Dns { name, record } => {
            key("name", name.as_deref().map(quoted));
            key("record", record.as_deref().map(quoted));
        }
        CheckKind::Http(http) => http_keys(http, key),
        CheckKind::Exec { command, user } => {
            let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
            key("command", Some(format!("[{}]", words.join(", "))));
            key("user", user.as_deref().map(quoted));
        }
    }
    keys
}

fn backend(text: &mut String, service: &Service, backend: &Backend, weighted: bool) {
    let _ = writeln!(text, "\n  [[service.backend]]\n  name = {}", quoted(&backend.name));
    let _ = writeln!(text, "  address = {}", quoted(&backend.host.shown(backend.port)));
    if backend.disabled {
        let _ = writeln!(
            text,
            "  weight = 0   # it was out of service; also `balancer backend maint {}/{}` stops its checks",
            service.name, backend.name
        );
    } else if weighted {
        let _ = writeln!(text, "  weight = {}", backend.weight.unwrap_or(1));
    }
    if backend.backup {
        text.push_str("  backup = true\n");
    }
}

/// Formats a listener in the notation of the configuration file.
pub(crate) fn listener(listener: &Listener) -> String {
    let mut text = if listener.address.is_unspecified() {
        let host = if listener.address.is_ipv4() { "ADDRESS" } else { "[ADDRESS]" };
        if listener.first == 0 { format!("{host}:PORT") } else { format!("{host}:{}", listener.first) }
    } else {
        shown(listener.address, Some(listener.first))
    };
    if listener.last != listener.first {
        let _ = write!(text, "-{}", listener.last);
    }
    if listener.udp {
        text.push_str("/udp");
    }
    text
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
