//! Reads HAProxy's `server`, `server-template` and `default-server`.

use super::parse::Line;
use crate::{
    address::{Host, host, refusal, split},
    notes::Conversion,
    service::{Backend, Check, CheckKind, Discover, Http, Records, Tls},
};

/// Options that `default-server` sets and that a `server` line can change.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    weight: Option<u32>,
    backup: bool,
    disabled: bool,
    is_checked: bool,
    /// Whether connections use TLS, and whether checks use TLS.
    tls: bool,
    check_tls: Option<bool>,
    /// The options about certificates, which have an effect only with TLS.
    verify: Option<bool>,
    ca_file: Option<String>,
    sni: Option<String>,
    check_sni: Option<String>,
    crt: Option<String>,
    /// The protocols of connections and of checks: the protocols that TLS offers, or the protocol that an option sets.
    alpn: Option<String>,
    check_alpn: Option<String>,
    proto: Option<String>,
    check_proto: Option<String>,
    check: Check,
    asks_agent: bool,
    agent_port: Option<u16>,
    agent_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) port: u16,
    pub(super) interval_ms: u64,
}

/// The time between two questions to an agent in HAProxy, in milliseconds.
const AGENT_MS: u64 = 2000;

/// Parses a time as a number of milliseconds. A number without a unit is in milliseconds.
pub(super) fn time(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text.get(digits.len()..)? {
        "us" => return Some(digits.parse::<u64>().ok()? / 1000),
        "" | "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

impl Options {
    /// Reads the options of a line, starting at the word with the index `at`.
    pub(super) fn read(&mut self, conversion: &mut Conversion, line: &Line, at: usize) {
        let mut words = line.after(at).iter().map(String::as_str);
        let label = if at > 1 { format!("{} {}", line.word(0), line.word(1)) } else { line.word(0).to_owned() };
        while let Some(word) = words.next() {
            if self.flag(word) {
                continue;
            }
            let mut value = || words.next().unwrap_or_default();
            match word {
                "weight" | "inter" | "fastinter" | "fall" | "rise" | "port" | "agent-port" | "agent-inter" => {
                    let value = value();
                    if self.number(word, value).is_none() {
                        let why = "the value is not valid; write a number, or a time";
                        conversion.needs_you(&line.place, format!("{label} {word} {value}"), why);
                    }
                }
                "verify" | "ca-file" | "sni" | "check-sni" | "crt" | "alpn" | "check-alpn" | "proto"
                | "check-proto" => {
                    let value = value();
                    if let Err(why) = self.encryption(word, value) {
                        conversion.needs_you(&line.place, format!("{label} {word} {value}"), why);
                    }
                }
                word => {
                    self.tls |= word == "ssl";
                    other(conversion, line, &label, word, value);
                }
            }
        }
    }

    /// Applies an option that has no value; returns `false` for any other word.
    fn flag(&mut self, word: &str) -> bool {
        match word {
            "check" => self.is_checked = true,
            "no-check" => self.is_checked = false,
            "check-ssl" => self.check_tls = Some(true),
            "no-check-ssl" => self.check_tls = Some(false),
            "no-ssl" => self.tls = false,
            "backup" => self.backup = true,
            "no-backup" => self.backup = false,
            "agent-check" => self.asks_agent = true,
            "no-agent-check" => self.asks_agent = false,
            "disabled" => self.disabled = true,
            "enabled" => self.disabled = false,
            _ => return false,
        }
        true
    }

    fn number(&mut self, word: &str, value: &str) -> Option<()> {
        match word {
            "weight" => self.weight = Some(value.parse().ok()?),
            "inter" => self.check.interval_ms = Some(time(value)?),
            "fastinter" => self.check.fast_ms = Some(time(value)?),
            "fall" => self.check.fall = Some(value.parse().ok()?),
            "rise" => self.check.rise = Some(value.parse().ok()?),
            "agent-port" => self.agent_port = Some(value.parse().ok().filter(|port| *port != 0)?),
            "agent-inter" => self.agent_ms = Some(time(value)?),
            _ => self.check.port = Some(value.parse().ok()?),
        }
        Some(())
    }

    /// Reads an option about certificates or protocols. The error explains why the operator has to convert the option
    /// by hand.
    fn encryption(&mut self, word: &str, value: &str) -> Result<(), &'static str> {
        match (word, value) {
            ("verify", "none") => self.verify = Some(false),
            ("verify", "required") => self.verify = Some(true),
            ("verify", _) => return Err("write `tls_verify` of the check"),
            ("ca-file", path) => {
                if path != "@system-ca" && !path.starts_with('/') {
                    return Err("write the whole path of one file as `ca_file` of the check");
                }
                self.ca_file = path.starts_with('/').then(|| path.to_owned());
                // HAProxy verifies certificates unless its configuration disables verification.
                self.verify.get_or_insert(true);
            }
            ("crt", path) if path.starts_with('/') => self.crt = Some(path.to_owned()),
            ("crt", _) => return Err("write the whole path of the file as `client_cert` of the check"),
            ("alpn", names) => self.alpn = Some(names.to_owned()),
            ("check-alpn", names) => self.check_alpn = Some(names.to_owned()),
            ("proto", "h1" | "h2") => self.proto = Some(value.to_owned()),
            ("check-proto", "h1" | "h2") => self.check_proto = Some(value.to_owned()),
            ("proto" | "check-proto", _) => {
                return Err("checks speak HTTP/1.1 or HTTP/2; check whether the server \
                                                        needs something else");
            }
            ("check-sni", name) => self.check_sni = Some(name.to_owned()),
            (_, expression) => match expression.strip_prefix("str(").and_then(|rest| rest.strip_suffix(')')) {
                Some(name) if !name.contains([',', '(', ')']) => self.sni = Some(name.to_owned()),
                _ => return Err("it is taken from the connection; write the name as `sni` of the check"),
            },
        }
        Ok(())
    }

    /// The TLS settings of checks, which are those of connections unless options differ or checks use another port.
    fn check_tls(&self) -> Option<Tls> {
        if !self.check_tls.unwrap_or(self.tls && self.check.port.is_none()) {
            return None;
        }
        let ca_file = self.ca_file.clone().filter(|_| self.verify == Some(true));
        let sni = self.check_sni.clone().or_else(|| self.sni.clone());
        Some(Tls { verify: self.verify, ca_file, sni, client_cert: self.crt.clone() })
    }

    /// Whether checks use only HTTP/2, because the configuration demands it or TLS offers no other protocol.
    fn speaks_http2(&self, over_tls: bool) -> bool {
        let alpn = self.check_alpn.as_ref().or(self.alpn.as_ref()).filter(|_| over_tls);
        match self.check_proto.as_ref().or(self.proto.as_ref()) {
            Some(proto) => proto == "h2",
            None => alpn.is_some_and(|names| names == "h2"),
        }
    }

    fn check(&self) -> Option<Check> {
        let mut check = self.check.clone();
        let tls = self.check_tls();
        let http2 = self.speaks_http2(tls.is_some()).then_some(true);
        if tls.is_some() || http2.is_some() {
            check.kind = CheckKind::Http(Http { tls, http2, ..Http::default() });
        }
        self.is_checked.then_some(check)
    }

    /// The agent of the server; `None` if the server has none, or one without a port, with a note.
    pub(super) fn agent(&self, conversion: &mut Conversion, line: &Line) -> Option<Agent> {
        if !self.asks_agent {
            return None;
        }
        if self.agent_port.is_none() {
            let why = "the agent has no `agent-port`; write the port as `agent = { port = … }` of the service";
            conversion.needs_you(&line.place, format!("{} {} agent-check", line.word(0), line.word(1)), why);
        }
        Some(Agent { port: self.agent_port?, interval_ms: self.agent_ms.unwrap_or(AGENT_MS) })
    }

    fn backend(&self, line: &Line, name: &str, host: Host, port: Option<u16>) -> Backend {
        Backend {
            place: line.place.clone(),
            name: name.to_owned(),
            host,
            port,
            weight: self.weight,
            backup: self.backup,
            disabled: self.disabled,
            check: self.check(),
        }
    }

    /// The list of targets for a `server-template` that has a DNS name.
    pub(super) fn discover(&self, conversion: &mut Conversion, line: &Line) -> Option<Discover> {
        let text = line.word(3);
        let (host, port) = match host(bare(text))? {
            (Host::Named(name), port) if line.word(0) == "server-template" => (name, port),
            _ => return None,
        };
        let label = format!("server-template {}", line.word(1));
        let family = ["ipv4@", "ipv6@"].into_iter().find(|family| text.starts_with(family));
        let ignored = [
            (self.weight.is_some(), "weight", "a name's servers have the weights of its SRV records, otherwise 100"),
            (self.backup, "backup", "a name's servers are backups by the priority of its SRV records"),
            (self.disabled, "disabled", "all servers of the name would serve; remove the `[[service.discover]]`"),
            (family.is_some(), family.unwrap_or_default(), "write `family` in the `[[service.discover]]`"),
        ];
        for (is_set, what, why) in ignored {
            if is_set {
                conversion.needs_you(&line.place, format!("{label} {what}"), why);
            }
        }
        // Like HAProxy, the balancer queries SRV records for names that begin with `_`.
        let records = if host.starts_with('_') { Records::Services(host) } else { Records::Addresses(host, port) };
        Some(Discover { place: line.place.clone(), name: line.word(1).to_owned(), records, check: self.check() })
    }

    /// The backends that a `server` or `server-template` line defines.
    pub(super) fn backends(&self, conversion: &mut Conversion, line: &Line) -> Vec<Backend> {
        let template = line.word(0) == "server-template";
        let names = [&self.sni, &self.check_sni, &self.crt, &self.alpn, &self.check_alpn];
        let of_tls = self.verify.is_some() || names.iter().any(|name| name.is_some());
        if of_tls && self.check_tls().is_none() {
            let why = "its checks are not over TLS, where certificates and names matter; nothing to do";
            conversion.not_needed(&line.place, format!("{} {}", line.word(0), line.word(1)), why);
        }
        let text = line.word(if template { 3 } else { 2 });
        let bare = bare(text);
        // A port such as `:+1000` is relative to the client's port.
        let Some((host, port)) = host(bare) else {
            let names = if template { format!(" for each of {}{}", line.word(1), line.word(2)) } else { String::new() };
            let why = if split(bare).1.is_some_and(|port| port.starts_with(['+', '-'])) {
                "a port relative to the client's is not known here; use `ports`"
            } else {
                refusal(bare)
            };
            conversion.needs_you(&line.place, line.text(), format!("{why}{names}"));
            return Vec::new();
        };
        if !template {
            return vec![self.backend(line, line.word(1), host, port)];
        }
        let (first, last) = line.word(2).split_once('-').unwrap_or(("1", line.word(2)));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && conversion.has_room_for(last - first) => {
                let name = |number| format!("{}{number}", line.word(1));
                (first..=last).map(|number| self.backend(line, &name(number), host.clone(), port)).collect()
            }
            _ => {
                conversion.needs_you(
                    &line.place,
                    line.text(),
                    "this is no number of servers, or they are too many; write 1 to 65534 in all",
                );
                Vec::new()
            }
        }
    }
}

fn bare(address: &str) -> &str {
    address.trim_start_matches("ipv4@").trim_start_matches("ipv6@")
}

fn other<'a>(conversion: &mut Conversion, line: &Line, label: &str, word: &str, mut value: impl FnMut() -> &'a str) {
    let (with_value, why) = match word {
        "cookie" => (
            true,
            "cookies are layer 7, which this balancer does not do; it remembers clients by address, or keep HAProxy as the backend",
        ),
        "ssl" | "send-proxy" | "send-proxy-v2" | "send-proxy-v2-ssl" | "check-send-proxy" => (
            false,
            "nothing is added to or encrypted in connections here; let clients and backends do without it, or keep HAProxy as the backend",
        ),
        "slowstart" => (true, "it is a key of the service here; write `slow_start`"),
        "maxconn" | "minconn" | "maxqueue" => (
            true,
            "connections are not queued; limit a backend's clients by `max_clients`, or with `snat` its connections \
             by `max_connections`",
        ),
        "downinter" => (true, "the interval is the same while a backend is down; check whether you need another one"),
        "verifyhost" => {
            (true, "the certificate must be for the name in `sni` of the check, or in `host`; write it there")
        }
        "resolvers" => {
            (true, "the servers of /etc/resolv.conf are asked; name others as `servers` of the `[[service.discover]]`")
        }
        "source" | "addr" | "on-error" | "on-marked-down" | "on-marked-up" | "observe" | "track" | "agent-addr"
        | "agent-send" | "id" | "init-addr" | "resolve-prefer" | "error-limit" | "redir" | "pool-max-conn"
        | "resolve-opts" | "resolve-net" | "namespace" | "usesrc" | "pool-purge-delay" | "pool-low-conn"
        | "max-reuse" | "ciphers" | "ciphersuites" | "crl-file" | "socks4" | "ws" | "log-proto" | "force-tlsv12"
        | "ssl-min-ver" | "ssl-max-ver" | "tcp-ut" => {
            (!word.starts_with("force-"), "this balancer has no counterpart; check whether you need it")
        }
        _ => (false, "this balancer has no counterpart; check whether you need it"),
    };
    let directive = if with_value { format!("{label} {word} {}", value()) } else { format!("{label} {word}") };
    conversion.needs_you(&line.place, directive, why);
}
