//! The keys of checks of type `tcp` that read an answer.

use std::fmt::Write as _;

use regex::bytes::Regex;

use super::{Keys, http::pattern};
use crate::{
    config::{BodyTest, Payload, Talk},
    file::{findings::Findings, section::Section},
};

/// Returns the bytes that a check sends and the answer that it expects; `None`: the check only connects.
pub(super) fn talk(send: Option<Payload>, expect: Option<BodyTest>) -> Option<Talk> {
    if send.as_ref().is_none_or(|send| send.0.is_empty()) && expect.is_none() {
        return None;
    }
    Some(Talk { send: send.unwrap_or_else(|| Payload(Vec::new())), expect })
}

/// Reads the keys of a check of type `tcp`. The function adds errors to `findings`.
pub(super) fn tcp(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    let send = section.text("send", findings, |text| text.parse::<Payload>());
    let bytes = section.text("expect", findings, expected);
    let regex = section.text("expect_regex", findings, pattern);
    if let (Some(_), Some(regex)) = (&bytes, &regex) {
        findings.error(regex.at, "expect_regex is given, and expect as well; remove one of them".to_owned());
    }
    keys.send = send.map(|send| send.value).or(keys.send.take());
    let regex = regex.map(|regex| BodyTest::Matches(regex.value));
    keys.answer = regex.or(bytes.map(|bytes| bytes.value)).or(keys.answer.take());
}

/// Parses the bytes that an answer must contain, as text or as `hex:` and digits.
fn expected(text: &str) -> Result<BodyTest, String> {
    let Payload(bytes) = text.parse()?;
    if bytes.is_empty() {
        return Err("expect is empty; leave it out if any answer counts".to_owned());
    }
    String::from_utf8(bytes).map(BodyTest::Contains).or_else(|error| {
        let mut exact = "(?s-u)".to_owned();
        for byte in error.as_bytes() {
            let _ = write!(exact, "\\x{byte:02x}");
        }
        Regex::new(&exact).map(BodyTest::Matches).map_err(|error| error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_expected_bytes_are_no_text_then_an_expression_finds_them() {
        assert_eq!(expected("+PONG"), Ok(BodyTest::Contains("+PONG".to_owned())));
        let Ok(BodyTest::Matches(exact)) = expected("hex:ff0a") else { panic!("no expression") };
        assert!(exact.is_match(b"\x00\xff\n") && !exact.is_match(b"\xfe\n"));
        assert!(expected("").is_err() && expected("hex:f").is_err());
    }
}
