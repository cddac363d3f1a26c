//! Reads the checkers of keepalived's real servers.

use crate::{
    notes::{
        Answer::{NeedsYou, Own},
        Conversion,
    },
    service::{Check, CheckKind, Expect, Http, Tls},
    tree::Directive,
};

const EXEC: &str = "checks are tcp, http, https, grpc, udp, dns or exec; write one that asks the same. Until then, only \
                    whether a TCP port opens is checked";
pub(super) const NOTIFY: &str = "no program is started; read `balancer events --follow`, or let metrics alert";

/// The values that a virtual server sets for its real servers, and that a real server sets for its checkers.
#[derive(Clone, Debug, Default)]
pub(super) struct Defaults {
    delay_loop: Option<u64>,
    connect_timeout: Option<u64>,
    retry: Option<u32>,
    delay_before_retry: Option<u64>,
    host: Option<String>,
    pub(super) alpha: bool,
}

/// Parses seconds, which may have a fraction, as a number of milliseconds.
fn milliseconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    seconds.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(digits.parse().ok()?)
}

/// Whether the directive is switched on: `on`, or without a value.
pub(super) fn is_on(directive: &Directive) -> bool {
    !["off", "false", "no"].contains(&directive.argument())
}

impl Defaults {
    /// Reads a directive that sets a default value; returns `false` for any other directive.
    pub(super) fn read(&mut self, conversion: &mut Conversion, directive: &Directive) -> bool {
        let argument = directive.argument();
        let taken = match directive.name() {
            "delay_loop" => milliseconds(argument).map(|ms| self.delay_loop = Some(ms)),
            "connect_timeout" => milliseconds(argument).map(|ms| self.connect_timeout = Some(ms)),
            "delay_before_retry" => milliseconds(argument).map(|ms| self.delay_before_retry = Some(ms)),
            "retry" | "nb_get_retry" | "nb_sock_retry" => argument.parse().map(|count| self.retry = Some(count)).ok(),
            "virtualhost" => {
                self.host = Some(argument.to_owned());
                Some(())
            }
            "alpha" => {
                self.alpha = is_on(directive);
                Some(())
            }
            _ => return false,
        };
        if taken.is_none() {
            conversion.needs_you(&directive.place, directive.text(), "the value is not valid; write a number");
        }
        true
    }

    /// Makes a check that only connects.
    pub(super) fn connect(&self) -> Check {
        self.check(1, 1000)
    }

    /// Makes a check with keepalived's default values. The default values for retries depend on the checker.
    fn check(&self, retry: u32, delay: u64) -> Check {
        let interval = self.delay_loop.unwrap_or(60_000).max(100);
        Check {
            kind: CheckKind::Tcp,
            interval_ms: Some(interval),
            timeout_ms: Some(self.connect_timeout.unwrap_or(5_000).min(interval)),
            fast_ms: Some(self.delay_before_retry.unwrap_or(delay).min(interval)),
            fall: Some(self.retry.unwrap_or(retry).saturating_add(1)),
            rise: Some(1),
            port: None,
        }
    }
}

pub(super) fn is_checker(name: &str) -> bool {
    name.ends_with("_CHECK") || ["HTTP_GET", "SSL_GET"].contains(&name)
}

/// Converts a checker to a check of the balancer, if there is a corresponding check.
pub(super) fn checker(conversion: &mut Conversion, directive: &Directive, defaults: &Defaults) -> Option<Check> {
    let mut defaults = defaults.clone();
    let rest: Vec<_> = directive.children().iter().filter(|one| !defaults.read(conversion, one)).collect();
    let mut check = match directive.name() {
        "TCP_CHECK" => defaults.connect(),
        "DNS_CHECK" => {
            let value = |name: &str| rest.iter().rfind(|one| one.name() == name).map(|one| one.argument().to_owned());
            let record = value("type").map(|record| record.to_ascii_uppercase());
            Check { kind: CheckKind::Dns { name: value("name"), record }, ..defaults.check(3, 1000) }
        }
        "UDP_CHECK" => Check { kind: udp(conversion, directive, &rest)?, ..defaults.check(1, 1000) },
        "SMTP_CHECK" => {
            let why = "the check reads the server's greeting and sends no HELO; use a check of type `exec` for more";
            conversion.needs_you(&directive.place, directive.name(), why);
            Check {
                kind: CheckKind::Talk { send: None, expect: Expect::Text("220".to_owned()) },
                ..defaults.check(3, 1000)
            }
        }
        name @ ("HTTP_GET" | "SSL_GET") => {
            let mut check = defaults.check(3, 3000);
            check.kind = CheckKind::Http(http(conversion, &rest, name == "SSL_GET", defaults.host.as_ref()));
            check
        }
        "MISC_CHECK" => {
            let mut check = defaults.check(0, 1000);
            (check.kind, check.timeout_ms) = misc(conversion, directive, &rest, check.interval_ms)?;
            check
        }
        _ => {
            conversion.needs_you(&directive.place, directive.name(), EXEC);
            return None;
        }
    };
    for one in rest {
        option(conversion, one, &mut check);
    }
    Some(check)
}

/// Converts a `UDP_CHECK`, if the server must answer: the balancer's check waits for an answer.
fn udp(conversion: &mut Conversion, directive: &Directive, rest: &[&Directive]) -> Option<CheckKind> {
    let value = |name: &str| rest.iter().rfind(|one| one.name() == name).map(|one| one.argument());
    let hex = |digits: &str| format!("hex:{}", digits.replace(' ', ""));
    match (value("payload"), value("require_reply")) {
        (Some(payload), Some(reply)) => {
            let expect = (!reply.is_empty()).then(|| hex(reply));
            Some(CheckKind::Udp { send: hex(payload), expect })
        }
        (_, None) | (None, Some(_)) => {
            let why = "a check needs an answer; write a check of type `udp` that sends a question which servers \
                       answer";
            conversion.needs_you(&directive.place, directive.name(), why);
            None
        }
    }
}

fn option(conversion: &mut Conversion, one: &Directive, check: &mut Check) {
    let answer = match one.name() {
        "url" | "misc_path" | "misc_timeout" | "user" | "name" | "type" | "payload" | "require_reply" => return,
        "connect_port" => match one.argument().parse() {
            Ok(port) => return check.port = Some(port),
            Err(_) => NeedsYou("this is no port; write `port` of the check"),
        },
        "connect_ip" => NeedsYou("the backend's own address is checked; use a check of type `exec`"),
        "misc_dynamic" => NeedsYou("the program does not set weights; `balancer backend weight` does"),
        "bindto" | "bind_if" | "bind_port" | "fwmark" => {
            NeedsYou("the kernel chooses where checks come from; set routes")
        }
        "warmup" | "log_all_failures" | "http_protocol" | "fast_recovery" | "enable_sni" | "tls_compliant" => Own,
        _ => NeedsYou("this balancer has no counterpart; check whether you need it"),
    };
    conversion.tell(&one.place, one.text(), answer);
}

fn http(conversion: &mut Conversion, rest: &[&Directive], https: bool, host: Option<&String>) -> Http {
    let mut http = Http { tls: https.then(Tls::default), host: host.cloned(), ..Http::default() };
    http.method = Some("GET".to_owned());
    http.path = Some("/".to_owned());
    http.status = Some("200-299".to_owned());
    let urls: Vec<_> = rest.iter().filter(|one| one.name() == "url").collect();
    for more in urls.iter().skip(1) {
        let path = more.children().iter().find(|one| one.name() == "path").map_or("", |one| one.argument());
        let why = "a check asks for one page; use a check of type `exec`";
        conversion.needs_you(&more.place, format!("url {{ path {path} }}"), why);
    }
    for one in urls.first().map(|url| url.children()).unwrap_or_default() {
        match one.name() {
            "path" => http.path = Some(one.argument().to_owned()),
            "status_code" => http.status = Some(one.arguments().join(",")),
            "virtualhost" => http.host = Some(one.argument().to_owned()),
            "regex" => http.body_regex = Some(one.argument().to_owned()),
            "digest" => conversion.needs_you(
                &one.place,
                one.text(),
                "checks compute no digests; write a text of the page as `expect_body`",
            ),
            _ => {
                conversion.needs_you(&one.place, one.text(), "write the expression so that `expect_body_regex` does it")
            }
        }
    }
    http
}

/// Reads the program and the timeout of a `MISC_CHECK`.
fn misc(
    conversion: &mut Conversion,
    directive: &Directive,
    rest: &[&Directive],
    interval: Option<u64>,
) -> Option<(CheckKind, Option<u64>)> {
    let named = |name: &str| rest.iter().rev().find(|one| one.name() == name);
    let command: Vec<String> =
        named("misc_path")?.arguments().iter().flat_map(|word| word.split_whitespace()).map(str::to_owned).collect();
    if !command.first().is_some_and(|program| program.starts_with('/')) {
        conversion.needs_you(&directive.place, "misc_path", "write the whole path of the program as `command`");
        return None;
    }
    let user = named("user").map(|user| user.argument().to_owned());
    if let Some(with_group) = named("user").filter(|user| user.arguments().len() > 1) {
        conversion.not_needed(&with_group.place, with_group.text(), "the program runs with the groups of its user");
    }
    let timeout = named("misc_timeout").and_then(|one| milliseconds(one.argument())).or(interval);
    Some((CheckKind::Exec { command, user }, timeout))
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn when_a_time_has_a_fraction_then_it_counts() {
        let cases =
            [("3", Some(3000)), ("2.71828", Some(2718)), ("0.5", Some(500)), ("", None), ("x", None), ("1.x", None)];
        for (text, expected) in cases {
            assert_eq!(milliseconds(text), expected, "{text}");
        }
    }
}
