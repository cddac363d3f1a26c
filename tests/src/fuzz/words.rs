//! Fuzzes the texts that users write: durations, addresses, listeners, prefixes, rules and names.

use std::fmt::Debug;

use balancer_api::model::SetRule;
use balancer_config::{
    config::{Protocol, StatusRanges},
    listeners::Listener,
    value,
};

/// Parses `bytes` as each kind of text, if `bytes` are valid UTF-8.
pub fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    read(text, value::duration, |duration| humantime::format_duration(*duration).to_string());
    read(text, str::parse::<Listener>, Listener::to_string);
    read(text, value::prefix, ToString::to_string);
    read(text, value::backend_name, ToString::to_string);
    read(text, value::interface, Clone::clone);
    read(text, value::name, Clone::clone);
    read(text, value::group, Clone::clone);
    read(text, value::service_address, |address| Listener::at(*address, Protocol::Tcp).socket().to_string());
    let whole = |error: String| assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    let _ = value::address(text).map_err(whole);
    let _ = value::ipv6(text).map_err(whole);
    let _ = value::listen_address(text).map_err(whole);
    let _ = text.parse::<StatusRanges>().map_err(whole);
    let _ = value::absolute_path(text).map_err(whole);
    let _ = value::socket_path(text).map_err(whole);
    // A key is secret, so the error must be the same for all invalid keys.
    let _ = value::hash_key(text).map_err(|error| assert_eq!(Err(error), value::hash_key("")));
    if let Ok(rule) = serde_json::from_str::<SetRule>(text) {
        let again = serde_json::to_string(&rule).map(|text| serde_json::from_str::<SetRule>(&text).ok());
        assert_eq!(again.ok().flatten(), Some(rule));
    }
}

/// Checks that writing and parsing a valid value does not change the value, and that the error for any other text is
/// one line.
fn read<T: Debug + PartialEq>(text: &str, parse: impl Fn(&str) -> Result<T, String>, write: impl Fn(&T) -> String) {
    match parse(text) {
        Ok(value) => assert_eq!(parse(&write(&value)).as_ref(), Ok(&value), "{text:?} is written {:?}", write(&value)),
        Err(error) => assert!(!error.is_empty() && !error.contains('\n'), "{error:?}"),
    }
}
