//! Handles lines of HAProxy's configuration that do not affect where connections go.

use super::parse::Line;
use crate::notes::{BEHIND_A_PROXY, Conversion, NO_HEADER};

pub(super) const BEHIND: &str = "this is layer 7, which this balancer does not do; to keep it, run HAProxy on several machines and make them the backends";
pub(super) const OWN: &str = "it concerns HAProxy's own process or connections; nothing to do";

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
    let why = if option.ends_with("-check") || option == "smtpchk" || word == "tcp-check" {
        Err("checks are tcp, http, https, grpc, udp, dns or exec; use a check of type `exec`")
    } else if ["forwardfor", "originalto"].contains(&option) {
        Err(NO_HEADER)
    } else if option == "allbackups" {
        Ok("all backups share the clients here as well; nothing to do")
    } else if option == "persist" {
        Err("it has no counterpart; `when_all_down` says what happens without a backend")
    } else if word.starts_with('.') {
        Err("conditions are not looked at; take away what is not for this machine")
    } else if word == "source" {
        Err("with nat, backends see the clients' own addresses; let them accept these")
    } else if line.words.iter().any(|word| FROM_A_PROXY.contains(&word.as_str())) {
        Err(BEHIND_A_PROXY)
    } else if LAYER_7.contains(&word) {
        Err(BEHIND)
    } else if OF_ITSELF.contains(&word) {
        Ok(OWN)
    } else {
        Err("it has no counterpart; look whether it matters")
    };
    match why {
        Ok(why) => conversion.not_needed(&line.place, line.text(), why),
        Err(why) => conversion.needs_you(&line.place, line.text(), why),
    }
}
