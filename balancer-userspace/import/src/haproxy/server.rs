//! `server`, `server-template` and `default-server`.

use super::parse::Line;
use crate::{
    address::{numeric, refusal, split},
    service::{Backend, Check, Conversion},
};

const MOST: usize = 65_534;

/// What `default-server` sets, and a server changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) weight: Option<u32>,
    backup: bool,
    disabled: bool,
    pub(super) check: bool,
    pub(super) timing: Check,
}

/// A time, in milliseconds; without a unit `unit` milliseconds.
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
    /// Reads the options from the word `at` on.
    pub(super) fn read(&mut self, conversion: &mut Conversion, line: &Line, at: usize) {
        let mut words = line.after(at).iter().map(String::as_str);
        let label = if at > 1 { format!("{} {}", line.word(0), line.word(1)) } else { line.word(0).to_owned() };
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            match word {
                "check" => self.check = true,
                "no-check" => self.check = false,
                "backup" => self.backup = true,
                "no-backup" => self.backup = false,
                "disabled" => self.disabled = true,
                "enabled" => self.disabled = false,
                "weight" => self.weight = value().parse().ok(),
                "inter" => self.timing.interval_ms = time(value()),
                "fall" => self.timing.fall = value().parse().ok(),
                "rise" => self.timing.rise = value().parse().ok(),
                "port" => self.timing.port = value().parse().ok(),
                word => other(conversion, line, &label, word, value),
            }
        }
    }

    fn backend(&self, line: &Line, name: &str, address: std::net::IpAddr, port: Option<u16>) -> Backend {
        Backend {
            place: line.place.clone(),
            name: name.to_owned(),
            address,
            port,
            weight: self.weight,
            backup: self.backup,
            disabled: self.disabled,
            checked: self.check,
        }
    }

    /// The backends of a `server` or `server-template`.
    pub(super) fn backends(&self, conversion: &mut Conversion, line: &Line) -> Vec<Backend> {
        let template = line.word(0) == "server-template";
        let text = line.word(if template { 3 } else { 2 });
        let bare = text.trim_start_matches("ipv4@").trim_start_matches("ipv6@");
        // `:+1000` counts from the client's port.
        let Some((address, port)) = numeric(bare) else {
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
            return vec![self.backend(line, line.word(1), address, port)];
        }
        let (first, last) = line.word(2).split_once('-').unwrap_or(("1", line.word(2)));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last - first < MOST => {
                let name = |number| format!("{}{number}", line.word(1));
                (first..=last).map(|number| self.backend(line, &name(number), address, port)).collect()
            }
            _ => {
                conversion.needs_you(&line.place, line.text(), "this is no number of servers; write 1 to 65534");
                Vec::new()
            }
        }
    }
}

fn other<'a>(conversion: &mut Conversion, line: &Line, label: &str, word: &str, mut value: impl FnMut() -> &'a str) {
    let mut tell = |text: String, why: &str| conversion.needs_you(&line.place, format!("{label} {text}"), why);
    match word {
        "cookie" => tell(
            format!("cookie {}", value()),
            "cookies are layer 7, which this balancer does not do; it remembers clients by address, or keep HAProxy as the backend",
        ),
        "ssl" | "send-proxy" | "send-proxy-v2" | "check-ssl" | "send-proxy-v2-ssl" | "ssl-reuse"
        | "check-send-proxy" => {
            tell(
                word.to_owned(),
                "nothing is added to or encrypted in connections here; let clients and backends do without it, or keep HAProxy as the backend",
            );
        }
        "slowstart" => tell(format!("slowstart {}", value()), "it is a key of the service here; write `slow_start`"),
        "maxconn" | "minconn" | "maxqueue" => tell(
            format!("{word} {}", value()),
            "connections are not counted or queued; set the limit in the server itself",
        ),
        "agent-check" => tell(word.to_owned(), "agents are not asked; use a check of type `exec`"),
        "source" | "resolvers" | "addr" | "on-error" | "on-marked-down" | "on-marked-up" | "observe" | "track"
        | "agent-port" | "agent-inter" | "agent-addr" | "agent-send" | "verify" | "ca-file" | "crt" | "sni"
        | "alpn" | "proto" | "id" | "init-addr" | "resolve-prefer" | "error-limit" | "redir" | "fastinter"
        | "downinter" | "pool-max-conn" | "check-sni" | "check-alpn" | "resolve-opts" | "resolve-net" | "namespace"
        | "usesrc" => {
            tell(format!("{word} {}", value()), "it has no counterpart; look whether it matters");
        }
        _ => tell(word.to_owned(), "it has no counterpart; look whether it matters"),
    }
}
