//! Handles lines of HAProxy's configuration that do not affect where connections go.

use super::parse::Line;
use crate::notes::{
    Answer::{NeedsYou, NotNeeded, Own},
    BEHIND_A_PROXY, Conversion, NO_HEADER,
};

pub(super) const BEHIND: &str = "this is layer 7, which this balancer does not do; to keep it, run HAProxy on several machines and make them the backends";

const LAYER_7: [&str; 22] = [
    "acl",
    "http-request",
    "http-response",
    "http-after-response",
    "http-error",
    "cookie",
    "appsession",
    "redirect",
    "use-server",
    "tcp-request",
    "tcp-response",
    "reqrep",
    "rspadd",
    "compression",
    "errorfiles",
    "errorloc",
    "filter",
    "force-persist",
    "ignore-persist",
    "http-reuse",
    "monitor-uri",
    "use_backend",
];

const OF_ITSELF: [&str; 24] = [
    "mode",
    "timeout",
    "maxconn",
    "log",
    "option",
    "no",
    "retries",
    "description",
    "bind-process",
    "fullconn",
    "log-format",
    "log-format-sd",
    "log-tag",
    "backlog",
    "unique-id-format",
    "load-server-state-from-file",
    "id",
    "email-alert",
    "enabled",
    "errorfile",
    "capture",
    "stats",
    "rate-limit",
    "hash-balance-factor",
];

/// The actions of `tcp-request` and `http-request` that take the client's address from a proxy before HAProxy.
const FROM_A_PROXY: [&str; 3] = ["set-src", "expect-proxy", "expect-netscaler-cip"];

pub(super) fn other(conversion: &mut Conversion, line: &Line) {
    let word = line.word(0);
    let option = if word == "option" { line.word(1) } else { "" };
    let answer = if option.ends_with("-check") || word == "tcp-check" {
        NeedsYou(
            "checks are tcp, http, https, grpc, udp, dns or exec; use a check of type `exec`. Until then, only whether the port opens is checked",
        )
    } else if ["forwardfor", "originalto"].contains(&option) {
        NeedsYou(NO_HEADER)
    } else if option == "allbackups" {
        NotNeeded("all backups share the clients here as well; nothing to do")
    } else if option == "persist" {
        NeedsYou("it has no counterpart; `when_all_down` says what happens without a backend")
    } else if word.starts_with('.') {
        NeedsYou("conditions are ignored; remove the lines that are not for this machine")
    } else if word == "source" {
        NeedsYou("with nat, backends see the clients' own addresses; let them accept these")
    } else if line.words.iter().any(|word| FROM_A_PROXY.contains(&word.as_str())) {
        NeedsYou(BEHIND_A_PROXY)
    } else if LAYER_7.contains(&word) {
        NeedsYou(BEHIND)
    } else if OF_ITSELF.contains(&word) {
        Own
    } else {
        NeedsYou("this balancer has no counterpart; check whether you need it")
    };
    conversion.tell(&line.place, line.text(), answer);
}
