//! Reads the key `check = { … }` of a service or backend.

mod grpc;
mod http;
mod tcp;
mod tls;

use std::{path::PathBuf, time::Duration};

use nix::unistd::User;

use super::{
    findings::Findings,
    section::{Located, Section},
};
use crate::{
    config::{
        BodyTest, CheckConfig, CheckKind, ClientFiles, DnsCheck, DnsName, ExecCheck, GrpcCheck, Header, HttpCheck,
        Payload, Rcode, Record, StatusRanges, Tls, UdpCheck, Via,
    },
    value,
};

pub use self::http::without_port;

const MIN_TIME: Duration = Duration::from_millis(100);
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);
const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(1);
/// The default fast interval is the interval divided by this number.
const FAST: u32 = 4;
const FALL: u32 = 3;
const RISE: u32 = 2;
const MAX_COUNT: i64 = 1000;
const MAX_ARGUMENTS: usize = 64;
const MAX_ARGUMENT: usize = 4096;

/// The keys that a check may have, by the type of check to which they belong.
const TIMING: [&str; 6] = ["interval", "timeout", "fast_interval", "passive", "fall", "rise"];
const VIA: [(&str, Via); 2] = [("backend", Via::Backend), ("service", Via::Service)];
const HTTP: [&str; 6] = ["http2", "method", "path", "expect_status", "expect_body", "expect_body_regex"];
const REQUEST: [&str; 2] = ["host", "headers"];
const TLS: [&str; 5] = ["tls_verify", "ca_file", "sni", "client_cert", "client_key"];
const GRPC: [&str; 1] = ["service"];
const TALK: [&str; 2] = ["send", "expect"];
const TCP: [&str; 1] = ["expect_regex"];
const DNS: [&str; 3] = ["name", "record", "expect_rcode"];
const EXEC: [&str; 2] = ["command", "user"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Tcp,
    Http,
    Https,
    Grpc,
    Grpcs,
    Udp,
    Dns,
    Exec,
    None,
}

impl Type {
    const WORDS: [(&'static str, Self); 9] = [
        ("tcp", Self::Tcp),
        ("http", Self::Http),
        ("https", Self::Https),
        ("grpc", Self::Grpc),
        ("grpcs", Self::Grpcs),
        ("udp", Self::Udp),
        ("dns", Self::Dns),
        ("exec", Self::Exec),
        ("none", Self::None),
    ];

    fn word(self) -> &'static str {
        Self::WORDS.into_iter().find(|&(_, kind)| kind == self).map_or("", |(word, _)| word)
    }

    const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    const fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }

    const fn is_secure(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }

    const fn connects(self) -> bool {
        matches!(self, Self::Tcp) || self.is_http() || self.is_grpc()
    }

    /// Whether a check of this type inherits all keys from a check of the other type.
    fn takes_all(self, other: Self) -> bool {
        self == other || self.is_http() && other.is_http() || self.is_grpc() && other.is_grpc()
    }
}

/// The keys of a check that the file contains.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    kind: Type,
    via: Option<Via>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    fast_interval: Option<Duration>,
    passive: Option<bool>,
    fall: Option<u32>,
    rise: Option<u32>,
    port: Option<u16>,
    http2: Option<bool>,
    method: Option<String>,
    path: Option<String>,
    service: Option<String>,
    host: Option<String>,
    expect_status: Option<StatusRanges>,
    expect_body: Option<BodyTest>,
    headers: Option<Vec<Header>>,
    tls_verify: Option<bool>,
    ca_file: Option<PathBuf>,
    sni: Option<String>,
    client: Option<ClientFiles>,
    send: Option<Payload>,
    expect: Option<Payload>,
    /// The answer that a check of type `tcp` expects.
    answer: Option<BodyTest>,
    name: Option<DnsName>,
    record: Option<Record>,
    expect_rcode: Option<Vec<Rcode>>,
    command: Option<Vec<String>>,
    user: Option<String>,
}

impl Keys {
    const fn of(kind: Type) -> Self {
        Self {
            kind,
            via: None,
            interval: None,
            timeout: None,
            fast_interval: None,
            passive: None,
            fall: None,
            rise: None,
            port: None,
            http2: None,
            method: None,
            path: None,
            service: None,
            host: None,
            expect_status: None,
            expect_body: None,
            headers: None,
            tls_verify: None,
            ca_file: None,
            sni: None,
            client: None,
            send: None,
            expect: None,
            answer: None,
            name: None,
            record: None,
            expect_rcode: None,
            command: None,
            user: None,
        }
    }

    /// The keys of a service's check if the file contains no check.
    pub(super) const fn implied(connects: bool) -> Self {
        Self::of(if connects { Type::Tcp } else { Type::None })
    }

    /// Those of these keys that a check of type `kind` inherits: the keys of its own type, and in any case the times
    /// and counts.
    fn inherited(&self, kind: Type) -> Self {
        if kind == Type::None || self.kind == Type::None {
            return Self::of(kind);
        }
        if kind.takes_all(self.kind) {
            return Self { kind, ..self.clone() };
        }
        let Self { interval, timeout, fast_interval, passive, fall, rise, .. } = *self;
        let via = self.via.filter(|_| kind.connects());
        Self { via, interval, timeout, fast_interval, passive, fall, rise, ..Self::of(kind) }
    }

    /// Whether the check connects to the backends' own addresses because the file does not choose a path.
    pub(super) const fn goes_past_the_service(&self) -> bool {
        self.kind.connects() && self.via.is_none() && self.port.is_none()
    }

    /// Whether the check uses HTTP/2.
    fn speaks_http2(&self) -> bool {
        self.kind.is_grpc() || self.kind.is_http() && self.http2.unwrap_or(false)
    }

    /// The check, with default values for keys that the file does not contain.
    pub(super) fn config(self) -> CheckConfig {
        let interval = self.interval.unwrap_or(INTERVAL);
        let fast = (interval / FAST).max(MIN_TIME).min(interval);
        let tls = self.kind.is_secure().then_some(Tls {
            verify: self.tls_verify.unwrap_or(false),
            ca_file: self.ca_file,
            sni: self.sni,
            client: self.client,
        });
        CheckConfig {
            via: self.via.unwrap_or_default(),
            interval,
            timeout: self.timeout.unwrap_or(TIMEOUT.min(interval)),
            fast_interval: self.fast_interval.unwrap_or(fast),
            passive: self.passive.unwrap_or_else(CheckConfig::passive_by_default),
            fall: self.fall.unwrap_or(FALL),
            rise: self.rise.unwrap_or(RISE),
            kind: match self.kind {
                Type::None => CheckKind::None,
                Type::Tcp => CheckKind::Tcp { port: self.port, talk: tcp::talk(self.send, self.answer) },
                Type::Udp => CheckKind::Udp(UdpCheck {
                    port: self.port,
                    send: self.send.unwrap_or_else(|| Payload(Vec::new())),
                    expect: self.expect,
                }),
                Type::Dns => CheckKind::Dns(DnsCheck {
                    port: self.port,
                    name: self.name.unwrap_or_else(DnsName::root),
                    record: self.record.unwrap_or(Record::Soa),
                    expect_rcode: self.expect_rcode.unwrap_or_else(|| vec![Rcode::NoError]),
                }),
                Type::Exec => CheckKind::Exec(ExecCheck {
                    port: self.port,
                    command: self.command.unwrap_or_default(),
                    user: self.user.unwrap_or_else(ExecCheck::default_user),
                }),
                Type::Http | Type::Https => CheckKind::Http(HttpCheck {
                    port: self.port,
                    tls,
                    http2: self.http2.unwrap_or(false),
                    method: self.method.unwrap_or_else(|| "GET".to_owned()),
                    path: self.path.unwrap_or_else(|| "/".to_owned()),
                    host: self.host,
                    headers: self.headers.unwrap_or_default(),
                    expect_status: self.expect_status.unwrap_or_else(|| StatusRanges(vec![(200, 399)])),
                    expect_body: self.expect_body,
                }),
                Type::Grpc | Type::Grpcs => CheckKind::Grpc(GrpcCheck {
                    port: self.port,
                    tls,
                    service: self.service.unwrap_or_default(),
                    host: self.host,
                    headers: self.headers.unwrap_or_default(),
                }),
            },
        }
    }
}

/// Reads a check; the keys of a backend's own check override the keys in `service`. `None` if the check is invalid. The
/// function adds errors to `findings`.
pub(super) fn check(
    mut section: Section<'_>,
    service: Option<&Keys>,
    findings: &mut Findings<'_>,
) -> Option<(Keys, Located<CheckConfig>)> {
    let at = section.at;
    let kind = match service {
        _ if section.has("type") => {
            section.text("type", findings, |text| value::word("type", text, &Type::WORDS))?.value
        }
        Some(service) => service.kind,
        None => {
            untyped(section, findings);
            return None;
        }
    };
    refuse_foreign(&mut section, kind, findings);
    let mut keys = service.map_or_else(|| Keys::of(kind), |service| service.inherited(kind));
    times(&mut section, &mut keys, findings);
    let via = section.text("via", findings, |text| value::word("via", text, &VIA));
    keys.via = via.map(|via| via.value).or(keys.via);
    let port = section.integer("port", findings, (1, 65_535));
    keys.port = port.map(|port| port.value).or(keys.port);
    match kind {
        Type::None => {}
        Type::Tcp => tcp::tcp(&mut section, &mut keys, findings),
        Type::Http | Type::Https => http::http(&mut section, &mut keys, findings),
        Type::Grpc | Type::Grpcs => grpc::grpc(&mut section, &mut keys, findings),
        Type::Udp => udp(&mut section, &mut keys, findings),
        Type::Dns => dns(&mut section, &mut keys, findings),
        Type::Exec => {
            if keys.command.is_none() {
                section.require("command", "command = [\"/usr/lib/check\", \"--fast\"]", findings);
            }
            keys.command = command(&mut section, findings).or(keys.command);
            keys.user = user(&mut section, keys.user, findings);
        }
    }
    section.finish(findings);
    Some((keys.clone(), Located { at, value: keys.config() }))
}

/// Reports that a check has no type; if the check contains misspelt keys, reports these keys, because one of them may
/// be the type.
fn untyped(mut section: Section<'_>, findings: &mut Findings<'_>) {
    for keys in [&TIMING[..], &HTTP, &REQUEST, &TLS, &GRPC, &TALK, &TCP, &DNS, &EXEC, &["type", "via", "port"]] {
        keys.iter().for_each(|key| section.skip(key));
    }
    if section.is_empty() {
        section.require(
            "type",
            "type = \"tcp\", \"http\", \"https\", \"grpc\", \"grpcs\", \"udp\", \"dns\", \"exec\" or \"none\"",
            findings,
        );
    }
    section.finish(findings);
}

/// Reports keys that belong to other types of checks.
fn refuse_foreign(section: &mut Section<'_>, kind: Type, findings: &mut Findings<'_>) {
    let mut refuse_all = |keys: &[&'static str]| {
        for key in keys {
            let why = format!("means nothing to a check of type {:?}; remove it", kind.word());
            section.refuse(key, &why, findings);
        }
    };
    if kind == Type::None {
        refuse_all(&TIMING);
        refuse_all(&["port"]);
    }
    if !kind.is_http() {
        refuse_all(&HTTP);
    }
    if !kind.is_http() && !kind.is_grpc() {
        refuse_all(&REQUEST);
    }
    if !kind.is_secure() {
        refuse_all(&TLS);
    }
    if !kind.is_grpc() {
        refuse_all(&GRPC);
    }
    if !matches!(kind, Type::Tcp | Type::Udp) {
        refuse_all(&TALK);
    }
    if kind != Type::Tcp {
        refuse_all(&TCP);
    }
    if kind != Type::Dns {
        refuse_all(&DNS);
    }
    if kind != Type::Exec {
        refuse_all(&EXEC);
    }
    match kind {
        Type::Tcp | Type::Http | Type::Https | Type::Grpc | Type::Grpcs => {}
        Type::Exec | Type::None => refuse_all(&["via"]),
        Type::Udp | Type::Dns => {
            let why = format!(
                "is for checks over TCP; remove it: a check of type {:?} goes to the backend's own address",
                kind.word()
            );
            section.refuse("via", &why, findings);
        }
    }
}

fn times(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    let interval = section.text("interval", findings, |text| time("interval", text));
    let timeout = section.text("timeout", findings, |text| time("timeout", text));
    let fast_interval = section.text("fast_interval", findings, |text| time("fast_interval", text));
    let fall = section.integer("fall", findings, (1, MAX_COUNT));
    let rise = section.integer("rise", findings, (1, MAX_COUNT));
    keys.passive = section.boolean("passive", findings).or(keys.passive);
    keys.fall = fall.map(|fall| fall.value).or(keys.fall);
    keys.rise = rise.map(|rise| rise.value).or(keys.rise);
    keys.interval = interval.map(|interval| interval.value).or(keys.interval);

    let longest = keys.interval.unwrap_or(INTERVAL);
    let longest_text = humantime::format_duration(longest);
    let times = [("timeout", timeout, &mut keys.timeout), ("fast_interval", fast_interval, &mut keys.fast_interval)];
    for (key, own, merged) in times {
        *merged = own.map(|own| own.value).or(*merged);
        let Some(time) = merged.filter(|&time| time > longest) else { continue };
        let time = humantime::format_duration(time);
        match (own, interval) {
            (None, Some(interval)) => findings.error(
                interval.at,
                format!(
                    "interval = \"{longest_text}\" is shorter than the service's {key}, \"{time}\"; add {key} = \"{longest_text}\""
                ),
            ),
            (own, _) => findings.error(
                own.map_or(section.at, |own| own.at),
                format!("{key} = \"{time}\" is longer than the interval; give at most \"{longest_text}\""),
            ),
        }
    }
}

fn time(key: &str, text: &str) -> Result<Duration, String> {
    let time = value::duration(text)?;
    if !(MIN_TIME..=MAX_TIME).contains(&time) {
        return Err(format!("{key} = {} is out of range; give \"100ms\" to \"24h\"", value::quoted(text)));
    }
    Ok(time)
}

fn udp(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    if keys.send.is_none() {
        section.require("send", "send = \"…\", the text (or \"hex:…\", the bytes) that the server answers", findings);
    }
    let send = section.text("send", findings, |text| text.parse::<Payload>());
    let expect = section.text("expect", findings, |text| match text.parse::<Payload>() {
        Ok(Payload(bytes)) if bytes.is_empty() => Err("expect is empty; leave it out if any answer counts".to_owned()),
        parsed => parsed,
    });
    keys.send = send.map(|send| send.value).or(keys.send.take());
    keys.expect = expect.map(|expect| expect.value).or(keys.expect.take());
}

fn dns(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    const WANTED: &str = "a response code such as \"NOERROR\", or a list of them";
    let at = section.at;
    let name = section.text("name", findings, |text| text.parse::<DnsName>());
    let record = section.text("record", findings, |text| value::word("record", text, &Record::WORDS));
    let parse = |text: &str| value::word("expect_rcode", text, &Rcode::WORDS);
    let codes = section.text_or_texts("expect_rcode", WANTED, findings, parse);
    if codes.as_ref().is_some_and(Vec::is_empty) {
        findings.error(at, format!("expect_rcode is empty; give {WANTED}"));
    }
    let codes = codes.map(|codes| codes.into_iter().map(|code| code.value).collect());
    keys.name = name.map(|name| name.value).or(keys.name.take());
    keys.record = record.map(|record| record.value).or(keys.record);
    keys.expect_rcode = codes.or(keys.expect_rcode.take());
}

fn command(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Vec<String>> {
    const WANTED: &str = "a list of a program and its arguments, such as [\"/usr/lib/check\", \"--fast\"]";
    let at = section.at;
    let command = section.texts("command", WANTED, findings, |text| match text.len() {
        _ if text.contains('\0') => Err("an argument contains a zero byte; remove it".to_owned()),
        0..=MAX_ARGUMENT => Ok(text.to_owned()),
        length => Err(format!("an argument has {length} bytes; give at most {MAX_ARGUMENT}")),
    })?;
    if command.len() > MAX_ARGUMENTS {
        findings.error(at, format!("command has {} words; give at most {MAX_ARGUMENTS}", command.len()));
    }
    if command.first().is_none_or(|program| program.value.is_empty()) {
        findings.error(at, format!("command names no program; give {WANTED}"));
    }
    Some(command.into_iter().map(|argument| argument.value).collect())
}

/// The user account under which the program runs: the account in the check itself, or else the account in the service's
/// check. The user account must exist on this machine.
fn user(section: &mut Section<'_>, service: Option<String>, findings: &mut Findings<'_>) -> Option<String> {
    let own = section.text("user", findings, |text| account(text).map(|()| text.to_owned()));
    if own.is_none()
        && service.is_none()
        && let Err(why) = account(&ExecCheck::default_user())
    {
        findings.error(section.at, format!("{why}; give user = \"NAME\""));
    }
    own.map(|own| own.value).or(service)
}

fn account(name: &str) -> Result<(), String> {
    let given = value::quoted(name);
    match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => Err(format!(
            "user {given} has uid 0, and programs of checks never run as root; give another, such as nobody"
        )),
        Ok(Some(_)) => Ok(()),
        Ok(None) if name.parse::<u32>().is_ok() => {
            Err(format!("there is no user {given} on this machine; give a name instead of a number"))
        }
        Ok(None) => {
            Err(format!("there is no user {given} on this machine; `getent passwd` lists those that there are"))
        }
        Err(error) => Err(format!("cannot look up the user {given}: {}", error.desc())),
    }
}
