//! Makes services from nginx's `server` blocks.

use std::collections::BTreeMap;

use super::{
    block::{Block, Listeners, Target},
    dump,
    idle::idle,
    listen::{listen, read},
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
    // The text may be a single file from the directory conf.d. In an `http` context, `proxy_pass` occurs in a location.
    let is_bare = |one: &&Directive| ["upstream", "server"].contains(&one.name());
    let passes =
        |one: &Directive| one.name() == "server" && one.children().iter().any(|each| each.name() == "proxy_pass");
    let bare_stream = top.iter().filter(is_bare).any(passes);
    let (mut http, mut stream) = (Vec::new(), Vec::new());
    for directive in &top {
        match directive.name() {
            "http" => http.extend(directive.children()),
            "stream" => stream.extend(directive.children()),
            "upstream" | "server" if bare_stream => stream.push(directive),
            "upstream" | "server" => http.push(directive),
            "events" => directive.children().iter().for_each(|each| other(conversion, each)),
            _ => other(conversion, directive),
        }
    }
    context(conversion, &http, false);
    context(conversion, &stream, true);
    Ok(())
}

fn context(conversion: &mut Conversion, directives: &[&Directive], stream: bool) {
    let all = |name: &'static str| directives.iter().copied().filter(move |directive| directive.name() == name);
    let upstreams: Upstreams<'_> = all("upstream").map(|one| (one.argument(), one)).collect();
    let mut blocks = Vec::new();
    for each in all("server") {
        conversion.has_candidates = true;
        blocks.push(block(conversion, each, &upstreams, stream));
    }
    let all_listeners = Listeners::of(&blocks);
    let mut used = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let Some(target) = block.target else { continue };
        let listeners = all_listeners.kept(conversion, &blocks, index);
        if !listeners.is_empty() {
            let idle = idle(directives, block.server, stream);
            used.extend(service(conversion, block.server, target, (listeners, idle), &upstreams, stream));
        }
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

/// All directives `proxy_pass` in a block and in the blocks inside it.
fn passes(block: &Directive) -> Vec<&Directive> {
    let of = |each| if Directive::name(each) == "proxy_pass" { vec![each] } else { passes(each) };
    block.children().iter().flat_map(of).collect()
}

/// Reads a `server` block: its listeners, and its only target if the block can be converted.
fn block<'a>(conversion: &mut Conversion, server: &'a Directive, upstreams: &Upstreams<'_>, stream: bool) -> Block<'a> {
    let passes = passes(server);
    let mut listens = Vec::new();
    for each in server.children() {
        match each.name() {
            "listen" => listens.extend(listen(conversion, each, !passes.is_empty())),
            "proxy_pass" => {}
            "location" => location(conversion, each),
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
    if !stream && !server.children().iter().any(|each| each.name() == "listen") {
        let default = Directive { place: server.place.clone(), words: vec!["listen".into(), "80".into()], block: None };
        listens.extend(read(&default));
    }
    let target = only_target(conversion, server, &passes, upstreams);
    Block { server, listens, target }
}

fn location(conversion: &mut Conversion, location: &Directive) {
    for each in location.children().iter().filter(|each| each.name() != "proxy_pass") {
        other(conversion, each);
    }
    if passes(location).is_empty() || location.argument() != "/" || location.words.len() > 2 {
        conversion.needs_you(&location.place, location.text(), BEHIND);
    }
}

/// The only target of a `server` block; `None` if the block cannot be converted, with a note about the reason.
fn only_target<'a>(
    conversion: &mut Conversion,
    server: &Directive,
    passes: &[&'a Directive],
    upstreams: &Upstreams<'_>,
) -> Option<Target<'a>> {
    let mut names: Vec<_> = passes.iter().map(|pass| target(pass)).collect();
    names.sort_unstable();
    names.dedup();
    let ([name], Some(pass)) = (names.as_slice(), passes.first()) else {
        let why =
            if names.is_empty() { "it passes to no other server" } else { "it chooses the server by the request" };
        conversion.needs_you(&server.place, "server", format!("{why}; {BEHIND}"));
        return None;
    };
    let encrypted = passes.iter().find(|pass| pass.argument().starts_with("https://"));
    let why = if let Some(encrypted) = encrypted {
        conversion.needs_you(
            &encrypted.place,
            encrypted.text(),
            format!("nginx encrypts towards the backends; {BEHIND}"),
        );
        return None;
    } else if name.contains('$') {
        format!("it chooses the server by the request; {BEHIND}")
    } else if !upstreams.contains_key(name) && host(name).is_none() {
        refusal(name).to_owned()
    } else {
        for pass in passes.iter().filter(|pass| changes_path(pass)) {
            conversion.needs_you(&pass.place, pass.text(), format!("it changes the path of requests; {BEHIND}"));
        }
        return Some(Target { name, pass });
    };
    conversion.needs_you(&pass.place, pass.text(), why);
    None
}

fn changes_path(pass: &Directive) -> bool {
    let path = pass.argument().split_once("://").and_then(|(_, rest)| rest.split_once('/'));
    path.is_some_and(|(_, path)| !path.is_empty())
}

/// The host in a URL, or the name of an upstream.
fn target(pass: &Directive) -> &str {
    let url = pass.argument();
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// Adds the service for a `server` block, and returns the name of the upstream that the block uses.
fn service<'a>(
    conversion: &mut Conversion,
    server: &Directive,
    Target { name, pass }: Target<'_>,
    (listeners, idle_ms): (Vec<Listener>, Option<u64>),
    upstreams: &Upstreams<'a>,
    stream: bool,
) -> Option<&'a str> {
    let udp = listeners.iter().any(|listener| listener.udp);
    let mut service = Service::new(&server.place, name);
    (service.listeners, service.idle_ms) = (listeners, idle_ms);
    let found = upstreams.get_key_value(name);
    match found {
        Some((_, upstream)) => fill(conversion, &mut service, upstream, stream, udp),
        None => service.backends.push(single(pass, name, stream, udp)?),
    }
    conversion.add(service);
    found.map(|(name, _)| *name)
}

/// Makes the backend for a `proxy_pass` that names no upstream.
fn single(pass: &Directive, target: &str, stream: bool, udp: bool) -> Option<Backend> {
    let port = (split(target).1.is_none() && !stream).then_some(80);
    let (host, own) = host(target)?;
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
