//! Writes the balancer's configuration.

use std::fmt::Write as _;

use crate::{
    address::shown,
    service::{Backend, Check, CheckKind, Conversion, Forwarding, Listener, Service},
};

const NAT: &str = "\
# nat: replies must come back through this machine, so the backends' route to the clients has to lead here. Backends see
# the clients' own addresses, and no header or PROXY line from this balancer.
";
const DSR: &str = "# dsr: each backend has the service's address on an interface that answers no ARP, as with IPVS.\n";
const TUNNEL: &str = "# Each backend needs a tunnel interface with the service's address, as with IPVS.\n";

impl Conversion {
    /// The configuration, with comments.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut text =
            String::from("# Check this file with `balancer check`, and read the comments before it is used.\n");
        text += "# interfaces = [\"eth0\"]   # name the interface that clients' packets come in through\n";
        if !self.notes().is_empty() {
            text.push('\n');
        }
        for note in self.notes() {
            let line = format!("# not converted ({}): {}: {}", note.place, note.directive, note.why);
            text += &line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
            text.push('\n');
        }
        for each in self.services() {
            service(&mut text, each);
        }
        text
    }
}

/// A file with one service.
pub(crate) fn alone(each: &Service) -> String {
    let mut text = String::new();
    service(&mut text, each);
    text
}

fn service(text: &mut String, service: &Service) {
    let (forwarding, comment) = match service.forwarding {
        Forwarding::Nat => ("nat", NAT),
        Forwarding::Dsr => ("dsr", DSR),
        Forwarding::Ipip => ("ipip", TUNNEL),
        Forwarding::Gue => ("gue", TUNNEL),
    };
    let _ = write!(text, "\n{comment}[[service]]\nname = {}\n", quoted(&service.name));
    let listeners: Vec<_> = service.listeners.iter().map(|each| quoted(&listener(each))).collect();
    let _ = writeln!(text, "listen = [{}]\nforwarding = \"{forwarding}\"", listeners.join(", "));
    if let Some((v4, v6)) = service.prefix {
        let _ = writeln!(text, "client_prefix = {{ v4 = {v4}, v6 = {v6} }}");
    }
    if let Some(seconds) = service.remember {
        let _ = writeln!(text, "remember = \"{}s\"", seconds.min(31_536_000));
    }
    if let Some(check) = &service.check {
        write_check(text, check);
    }
    let is_checked = service.check.as_ref().is_some_and(|check| check.kind != CheckKind::None);
    let weighted = service.backends.iter().any(|backend| backend.weight.is_some());
    for each in &service.backends {
        backend(text, service, each, weighted, is_checked);
    }
}

fn write_check(text: &mut String, check: &Check) {
    text.push_str("\n  [service.check]\n");
    let mut key = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "  {name} = {value}");
        }
    };
    let kind = match &check.kind {
        CheckKind::None => return key("type", Some(quoted("none"))),
        CheckKind::Tcp => "tcp",
        CheckKind::Http { https, .. } => {
            if *https {
                "https"
            } else {
                "http"
            }
        }
    };
    key("type", Some(quoted(kind)));
    key("interval", check.interval_ms.map(|ms| quoted(&format!("{}ms", ms.clamp(100, 86_400_000)))));
    key("fall", check.fall.map(|fall| fall.clamp(1, 1000).to_string()));
    key("rise", check.rise.map(|rise| rise.clamp(1, 1000).to_string()));
    key("port", check.port.filter(|port| *port != 0).map(|port| port.to_string()));
    if let CheckKind::Http { method, path, host, status, .. } = &check.kind {
        let string = |value: &Option<String>| value.as_deref().map(quoted);
        key("method", string(method));
        key("path", string(path));
        key("host", string(host));
        key("expect_status", string(status));
    }
}

fn backend(text: &mut String, service: &Service, backend: &Backend, weighted: bool, is_checked: bool) {
    let _ = writeln!(text, "\n  [[service.backend]]\n  name = {}", quoted(&backend.name));
    let _ = writeln!(text, "  address = {}", quoted(&shown(backend.address, backend.port)));
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
    if is_checked && !backend.checked {
        text.push_str("  check = { type = \"none\" }\n");
    }
}

/// A listener as the file has it.
pub(crate) fn listener(listener: &Listener) -> String {
    let mut text = shown(listener.address, Some(listener.first));
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
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
