//! Finds the time after which nginx closes a silent connection.

use crate::tree::Directive;

/// The default of `keepalive_timeout`, in milliseconds: the longest of the defaults about silent connections over HTTP.
const KEEPALIVE_MS: u64 = 75_000;

const OF_HTTP: [&str; 3] = ["proxy_read_timeout", "proxy_send_timeout", "keepalive_timeout"];
const OF_STREAM: [&str; 1] = ["proxy_timeout"];

/// The time in milliseconds after which nginx closes a silent connection of a server: the longest that is in force in
/// the server or one of its locations. `None` if no directive says a time.
pub(super) fn idle(context: &[&Directive], server: &Directive, stream: bool) -> Option<u64> {
    let names = if stream { &OF_STREAM[..] } else { &OF_HTTP };
    let longest = names.iter().filter_map(|name| {
        let own = times(server.children().iter(), name, true);
        own.or_else(|| times(context.iter().copied(), name, false))
    });
    let longest = longest.max()?;
    Some(if stream { longest } else { longest.max(KEEPALIVE_MS) })
}

/// The longest time of the directives with this name, also in blocks inside these if `deep`.
fn times<'a>(directives: impl Iterator<Item = &'a Directive>, name: &str, deep: bool) -> Option<u64> {
    let of = |one: &'a Directive| {
        if one.name() == name {
            time(one.argument())
        } else if deep {
            times(one.children().iter(), name, true)
        } else {
            None
        }
    };
    directives.filter_map(of).max()
}

/// Parses a time such as `75`, `60s` or `1h30m` as a number of milliseconds.
fn time(text: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let scale = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            "M" => 2_592_000_000,
            "y" => 31_536_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(scale)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn when_a_time_has_units_then_they_count() {
        for (text, expected) in [
            ("75", Some(75_000)),
            ("1h30m", Some(5_400_000)),
            ("500ms", Some(500)),
            ("", None),
            ("x", None),
            ("1x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
    }
}
