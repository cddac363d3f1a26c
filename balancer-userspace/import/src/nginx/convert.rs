//! Makes services from nginx's `server` blocks.

use std::collections::BTreeMap;

use super::{
    dump,
    listen::listen,
    other::{BEHIND, other},
    parse::Reader,
    upstream::fill,
};
use crate::{
    Include,
    address::{host, refusal, split},
    error::NotUnderstood,
    notes::Conversion,
    place::named,
    service::{Backend, Check, Listener, Service},
    tree::Directive,
};

type Upstreams<'a> = BTreeMap<&'a str, &'a Directive>;

pub(crate) fn convert(
    conversion: &mut Conversion,
    files: &[(String, String)],
    include: Include<'_>,
) -> Result<(), NotUnderstood> {
    let mut top = Vec::new();
    for (name, text) in files {
        let dumped = dump::files(text);
        let mut from_dump = |main: &str, pattern: &str| dump::included(&dumped, main, pattern);
        let (file, name, text, include): (_, _, _, Include<'_>) = match dumped.first() {
            Some((main, text)) => (Some(main.as_str().into()), main, text, &mut from_dump),
            None => (named(files, name), name, text, &mut *include),
        };
        let mut reader = Reader { include, main: name.clone(), files: 0, unread: Vec::new() };
        top.append(&mut reader.read(file, text, 0)?);
        for (place, directive, why) in &reader.unread {
            conversion.needs_you(place, directive, format!("{why}; name the file on the command line as well"));
        }
    }
    for directive in &top {
        match directive.name() {
            "http" | "stream" => context(conversion, directive.children(), directive.name() == "stream"),
            // The text may be a single file from the directory conf.d.
            "upstream" | "server" => {}
            "events" => directive.children().iter().for_each(|each| other(conversion, each)),
            _ => other(conversion, directive),
        }
    }
    if top.iter().any(|directive| directive.name() == "server") {
        let bare: Vec<_> = top.into_iter().filter(|one| ["upstream", "server"].contains(&one.name())).collect();
        let passes =
            |one: &Directive| one.name() == "server" && one.children().iter().any(|each| each.name() == "proxy_pass");
        // In an `http` context, `proxy_pass` occurs in a location and has a URL scheme.
        context(conversion, &bare, bare.iter().any(passes));
    }
    Ok(())
}

fn context(conversion: &mut Conversion, directives: &[Directive], stream: bool) {
    let all = |name: &'static str| directives.iter().filter(move |directive| directive.name() == name);
    let upstreams: Upstreams<'_> = all("upstream").map(|one| (one.argument(), one)).collect();
    let mut used = Vec::new();
    for each in all("server") {
        conversion.has_candidates = true;
        used.extend(server(conversion, each, &upstreams, stream));
    }
    for (name, upstream) in &upstreams {
        if !used.contains(name) {
            let why = "no server could be converted that passes to it alone; add a service for it by hand";
            conversion.needs_you(&upstream.place, format!("upstream {name}"), why);
        }
    }
    for each in directives.iter().filter(|one| !["upstream", "server"].contains(&one.name())) {
        other(conversion, each);
    }
}

/// The addresses on which an nginx server listens, and its target.
#[derive(Default)]
struct Parts<'a> {
    listeners: Vec<Listener>,
    passes: Vec<&'a Directive>,
    listens: bool,
}

fn parts<'a>(conversion: &mut Conversion, server: &'a Directive) -> Parts<'a> {
    let mut parts = Parts::default();
    let passes_in = |one: &Directive| one.children().iter().any(|each| each.name() == "proxy_pass");
    let passes = passes_in(server) || server.children().iter().any(passes_in);
    for each in server.children() {
        match each.name() {
            "listen" if !passes => {
                parts.listens = true;
                conversion.not_needed(&each.place, each.text(), "its server passes to no other one, see there");
            }
            "listen" => {
                parts.listens = true;
                parts.listeners.extend(listen(conversion, each));
            }
            "proxy_pass" => parts.passes.push(each),
            "location" => {
                let before = parts.passes.len();
                for one in each.children() {
                    if one.name() == "proxy_pass" {
                        parts.passes.push(one);
                    } else {
                        other(conversion, one);
                    }
                }
                if parts.passes.len() == before || each.argument() != "/" || each.words.len() > 2 {
                    conversion.needs_you(&each.place, each.text(), BEHIND);
                }
            }
            "server_name" if each.arguments().iter().all(|name| name == "_" || name.is_empty()) => {}
            "server_name" => conversion.not_needed(
                &each.place,
                each.text(),
                "clients of every name that come to the address are steered; nothing to do",
            ),
            "proxy_protocol" if each.argument() != "on" => {}
            "proxy_protocol" => conversion.needs_you(
                &each.place,
                each.text(),
                "the backends would see no PROXY line, and with nat the client's own address; switch it off at the backends",
            ),
            _ => other(conversion, each),
        }
    }
    parts
}

/// The host in a URL, or the name of an upstream.
fn target(pass: &Directive) -> &str {
    let url = pass.argument();
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// Converts one nginx server, and returns the name of the upstream that the server uses.
fn server<'a>(
    conversion: &mut Conversion,
    server: &Directive,
    upstreams: &Upstreams<'a>,
    stream: bool,
) -> Option<&'a str> {
    let Parts { mut listeners, passes, listens } = parts(conversion, server);
    if !listens && !stream && !passes.is_empty() {
        let default = Directive { place: server.place.clone(), words: vec!["listen".into(), "80".into()], block: None };
        listeners = listen(conversion, &default);
    }
    let mut targets: Vec<_> = passes.iter().map(|pass| target(pass)).collect();
    targets.dedup();
    let ([target], Some(pass)) = (targets.as_slice(), passes.first()) else {
        let why =
            if targets.is_empty() { "it passes to no other server" } else { "it chooses the server by the request" };
        conversion.needs_you(&server.place, "server", format!("{why}; {BEHIND}"));
        return None;
    };
    if listeners.is_empty() {
        conversion.not_needed(&server.place, "server", "none of its listeners could be converted; see its `listen`");
        return None;
    }
    if pass.argument().starts_with("https://") {
        conversion.needs_you(&pass.place, pass.text(), format!("nginx encrypts towards the backends; {BEHIND}"));
        return None;
    }
    if target.contains('$') {
        conversion.needs_you(&pass.place, pass.text(), format!("it chooses the server by the request; {BEHIND}"));
        return None;
    }
    for pass in &passes {
        if pass
            .argument()
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('/'))
            .is_some_and(|(_, path)| !path.is_empty())
        {
            conversion.needs_you(&pass.place, pass.text(), format!("it changes the path of requests; {BEHIND}"));
        }
    }
    let udp = listeners.iter().any(|listener| listener.udp);
    let mut service = Service::new(&server.place, *target);
    service.listeners = listeners;
    let found = upstreams.get_key_value(*target);
    match found {
        Some((_, upstream)) => fill(conversion, &mut service, upstream, stream, udp),
        None => service.backends.push(single(conversion, pass, target, stream, udp)?),
    }
    conversion.add(service);
    found.map(|(name, _)| *name)
}

/// Makes the backend for a `proxy_pass` that names no upstream.
fn single(conversion: &mut Conversion, pass: &Directive, target: &str, stream: bool, udp: bool) -> Option<Backend> {
    let port = (split(target).1.is_none() && !stream).then_some(80);
    let Some((host, own)) = host(target) else {
        conversion.needs_you(&pass.place, pass.text(), refusal(target));
        return None;
    };
    Some(Backend {
        place: pass.place.clone(),
        name: format!("server-{}", pass.place.line),
        host,
        port: own.or(port),
        weight: None,
        backup: false,
        disabled: false,
        check: (!udp).then(Check::default),
    })
}
