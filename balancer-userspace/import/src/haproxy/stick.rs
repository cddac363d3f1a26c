//! Reads HAProxy's `stick-table` and `stick on`.

use super::{parse::Line, server::time};
use crate::{address::mask, notes::Conversion, service::Service};

const ADDRESS_ALONE: &str =
    "clients are remembered by their address alone; keep HAProxy as the backend where another key decides";

/// The lines `stick match src` and `stick store-request src`, which together are `stick on src`.
#[derive(Default)]
pub(super) struct Halves {
    matched: Option<Line>,
    stored: Option<Line>,
}

impl Halves {
    /// Makes the client's prefix of both lines, or adds a note about the only one.
    pub(super) fn finish(self, conversion: &mut Conversion, service: &mut Service) {
        match (self.matched, self.stored) {
            (Some(_), Some(_)) => service.prefix = Some((32, 128)),
            (Some(line), None) | (None, Some(line)) => {
                let why = "this balancer both looks clients up and remembers them; HAProxy does only one of the two \
                           with this table";
                conversion.needs_you(&line.place, line.text(), why);
            }
            (None, None) => {}
        }
    }
}

pub(super) fn stick_table(conversion: &mut Conversion, service: &mut Service, line: &Line) {
    let mut words = line.after(1).iter().map(String::as_str);
    while let Some(word) = words.next() {
        let value = if word == "nopurge" { "" } else { words.next().unwrap_or_default() };
        let directive = format!("stick-table {word} {value}");
        match (word, value) {
            ("type", "ip" | "ipv6") | ("nopurge", _) => {}
            ("size", _) => {
                let why = "`[client_table] capacity` is for all services; nothing to do below 262144";
                conversion.not_needed(&line.place, directive, why);
            }
            ("expire", value) => match time(value) {
                Some(ms) => service.remember = Some(ms.div_ceil(1000)),
                None => conversion.needs_you(&line.place, directive, "this is no time; write `remember`"),
            },
            ("peers", _) => {
                conversion.needs_you(&line.place, directive, "several balancers share clients by `[fleet]`");
            }
            _ => conversion.needs_you(
                &line.place,
                directive,
                "clients are remembered by their address alone; `balancer stats` has what is counted",
            ),
        }
    }
}

/// Reads a line `stick on src`, also with a prefix length, as in `stick on src,ipmask(24,64)`.
pub(super) fn stick(conversion: &mut Conversion, service: &mut Service, halves: &mut Halves, line: &Line) {
    let key = line.word(2);
    let half = match line.word(1) {
        "match" => Some(&mut halves.matched),
        "store-request" => Some(&mut halves.stored),
        _ => None,
    };
    if let Some(half) = half.filter(|half| half.is_none() && key == "src" && line.words.len() == 3) {
        *half = Some(line.clone());
        return;
    }
    let masks = key.strip_prefix("src,ipmask(").and_then(|rest| rest.strip_suffix(')'));
    let prefix = match masks.map(|masks| masks.split_once(',').unwrap_or((masks, "128"))) {
        None if key == "src" => Some((32, 128)),
        None => None,
        Some((v4, v6)) => length(v4).filter(|v4| *v4 <= 32).zip(length(v6)),
    };
    match prefix {
        Some(prefix) if line.word(1) == "on" && line.words.len() == 3 => service.prefix = Some(prefix),
        _ => conversion.needs_you(&line.place, line.text(), ADDRESS_ALONE),
    }
}

/// The prefix length that corresponds to a mask, which may be in dotted notation.
fn length(text: &str) -> Option<u8> {
    let (v4, v6) = mask(text)?;
    Some(if text.contains('.') { v4 } else { v6 })
}
