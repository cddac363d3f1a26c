//! Handles directives of nginx's configuration that do not affect where connections go.

use crate::{
    notes::{
        Answer::{NeedsYou, NotNeeded, Own},
        BEHIND_A_PROXY, Conversion, NO_HEADER,
    },
    tree::Directive,
};

pub(super) const BEHIND: &str = "this is layer 7, which this balancer does not do; to keep it, run nginx on several machines and make them the backends";

/// The directives of layer 7, which the balancer does not need. A name in this list also stands for all names that
/// begin with this name and `_`.
const LAYER_7: [&str; 34] = [
    "location",
    "limit_except",
    "sub_filter",
    "rewrite",
    "return",
    "if",
    "auth_basic",
    "auth_request",
    "auth_jwt",
    "proxy_cache",
    "proxy_set_header",
    "proxy_hide_header",
    "proxy_method",
    "proxy_ssl",
    "proxy_redirect",
    "proxy_cookie",
    "proxy_intercept_errors",
    "add_header",
    "error_page",
    "limit_req",
    "limit_conn",
    "limit_rate",
    "sticky",
    "root",
    "alias",
    "index",
    "try_files",
    "fastcgi_pass",
    "grpc_pass",
    "uwsgi_pass",
    "scgi_pass",
    "memcached_pass",
    "split_clients",
    "mirror",
];

/// Adds a note about a directive that does not affect where connections go.
pub(super) fn other(conversion: &mut Conversion, directive: &Directive) {
    let name = directive.name();
    let is = |of: &&str| name.strip_prefix(*of).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    let answer = match (name, directive.argument().to_ascii_lowercase().as_str()) {
        ("gzip" | "brotli", "on") => NeedsYou("responses are not compressed any more; let the backends do it"),
        ("proxy_set_header", "host") => {
            NotNeeded("requests pass unchanged, with the name that the client asked for; nothing to do")
        }
        ("proxy_set_header", "connection" | "upgrade") => NotNeeded("connections pass unchanged; nothing to do"),
        (
            "proxy_set_header",
            "x-real-ip" | "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "forwarded",
        ) => NeedsYou(NO_HEADER),
        ("access_log", argument) if argument != "off" => NotNeeded(
            "requests are not logged here; with nat, the backends see the clients' own addresses and can log them",
        ),
        ("allow" | "deny" | "geo", _) => {
            NeedsYou("clients are turned away by rules, `balancer rule add SVC CIDR deny`")
        }
        ("set_real_ip_from" | "real_ip_header", _) => NeedsYou(BEHIND_A_PROXY),
        ("map", "$http_upgrade") => NotNeeded("connections pass unchanged; nothing to do"),
        ("map", _) => NeedsYou(BEHIND),
        (name, _) if name.starts_with("ssl_") => {
            NotNeeded("it matters where a `listen` has ssl, which is named if there is one")
        }
        _ if LAYER_7.iter().any(is) => NeedsYou(BEHIND),
        _ => Own,
    };
    conversion.tell(&directive.place, directive.text(), answer);
}
