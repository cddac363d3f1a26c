//! Reads HAProxy's `tcp-check`, a script of bytes to send and of answers to expect.

use super::parse::Line;
use crate::{
    notes::Conversion,
    service::{CheckKind, Expect},
};

const EXEC: &str = "a check of type `tcp` sends bytes and looks for others in the answer; use a check of type `exec` for \
                    more. Until then, only whether the port opens is checked";
const NO_ANSWER: &str = "the script expects no answer, so only whether the port opens is checked; write `send` and \
                         `expect` of the check";
const AT_ONCE: &str = "the check sends all texts of the script at once, without waiting for answers between them; \
                       check that the server accepts this";

/// A script of `tcp-check` lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    send: Vec<u8>,
    /// The number of times that the script waits for an answer and then sends more.
    turns: usize,
    waits: bool,
    expect: Vec<Answer>,
    /// Whether a step of the script has no counterpart.
    is_refused: bool,
    last: Option<Line>,
}

#[derive(Clone, Debug)]
enum Answer {
    Text(Vec<u8>),
    Regex(String),
}

impl Script {
    /// The script of `option redis-check`.
    pub(super) fn of_redis() -> Self {
        let expect = vec![Answer::Text(b"+PONG".to_vec())];
        Self { send: b"PING\r\n".to_vec(), expect, ..Self::default() }
    }

    /// The script of `option smtpchk`, as far as a check can do it: the server greets.
    pub(super) fn of_smtp(conversion: &mut Conversion, line: &Line) -> Self {
        let why = "the check reads the server's greeting and sends no HELO; use a check of type `exec` for more";
        conversion.needs_you(&line.place, line.text(), why);
        Self { expect: vec![Answer::Text(b"220".to_vec())], ..Self::default() }
    }

    /// Reads a line `tcp-check …`.
    pub(super) fn read(&mut self, conversion: &mut Conversion, line: &Line) {
        self.last = Some(line.clone());
        let words: Vec<&str> = line.after(1).iter().map(String::as_str).collect();
        let understood = match words.as_slice() {
            ["connect"] | ["comment", ..] => true,
            ["send", text] => self.say(text.as_bytes().to_vec()),
            ["send-binary", digits] => bytes(digits).is_some_and(|bytes| self.say(bytes)),
            ["expect", "string", text] if !text.is_empty() => self.wait(Answer::Text(text.as_bytes().to_vec())),
            ["expect", "binary", digits] => {
                bytes(digits).filter(|bytes| !bytes.is_empty()).is_some_and(|bytes| self.wait(Answer::Text(bytes)))
            }
            ["expect", "rstring", pattern] => self.wait(Answer::Regex((*pattern).to_owned())),
            _ => false,
        };
        if !understood {
            self.is_refused = true;
            // What a script sends may be a password, which no note shows.
            let directive =
                if line.word(1).starts_with("send") { format!("tcp-check {}", line.word(1)) } else { line.text() };
            conversion.needs_you(&line.place, directive, EXEC);
        }
    }

    fn say(&mut self, bytes: Vec<u8>) -> bool {
        self.turns += usize::from(std::mem::take(&mut self.waits));
        self.send.extend(bytes);
        true
    }

    fn wait(&mut self, answer: Answer) -> bool {
        self.waits = true;
        self.expect.push(answer);
        true
    }

    /// The check that the script stands for; a check that only connects, with a note, if it has no counterpart.
    pub(super) fn kind(&self, conversion: &mut Conversion) -> CheckKind {
        let mut tell = |why| {
            if let Some(line) = &self.last {
                conversion.needs_you(&line.place, "tcp-check", why);
            }
        };
        let expect = match self.expect.as_slice() {
            _ if self.is_refused => return CheckKind::Tcp,
            [] if self.send.is_empty() => return CheckKind::Tcp,
            [] => {
                tell(NO_ANSWER);
                return CheckKind::Tcp;
            }
            [Answer::Text(bytes)] => Expect::Text(payload(bytes)),
            [Answer::Regex(pattern)] => Expect::Regex(pattern.clone()),
            several => Expect::Regex(in_this_order(several)),
        };
        if self.turns > 0 {
            tell(AT_ONCE);
        }
        CheckKind::Talk { send: (!self.send.is_empty()).then(|| payload(&self.send)), expect }
    }
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok()).collect()
}

/// Writes bytes in the configuration's notation: as text, or as `hex:` and digits.
fn payload(bytes: &[u8]) -> String {
    const HEX: &str = "hex:";
    match str::from_utf8(bytes) {
        Ok(text) if !text.starts_with(HEX) => text.to_owned(),
        Ok(_) | Err(_) => bytes.iter().fold(HEX.to_owned(), |text, byte| text + &format!("{byte:02x}")),
    }
}

/// An expression that matches if the answers arrive in this order.
fn in_this_order(answers: &[Answer]) -> String {
    let each = answers.iter().map(|answer| match answer {
        Answer::Text(bytes) => escaped(bytes),
        Answer::Regex(pattern) => format!("(?:{pattern})"),
    });
    format!("(?s){}", each.collect::<Vec<_>>().join(".*"))
}

/// An expression that matches exactly these bytes.
fn escaped(bytes: &[u8]) -> String {
    let Ok(text) = str::from_utf8(bytes) else {
        return bytes.iter().fold("(?-u:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")) + ")";
    };
    let mut escaped = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() && !"-_:;,'\"!%/<>=@`".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_bytes_are_no_text_then_they_are_written_as_digits() {
        assert_eq!(payload(b"PING\r\n"), "PING\r\n");
        assert_eq!(payload(&[0xff, 0x00]), "hex:ff00");
        assert_eq!(payload(b"hex:00"), "hex:6865783a3030");
        assert_eq!(bytes("ff0g"), None);
        assert_eq!(bytes("ff0"), None);
        assert_eq!(bytes("FF00"), Some(vec![0xff, 0]));
    }

    #[test]
    fn when_several_answers_are_expected_then_they_come_in_this_order() {
        let answers = [Answer::Text(b"+OK".to_vec()), Answer::Regex("role:(master|x)".to_owned())];
        assert_eq!(in_this_order(&answers), "(?s)\\+OK.*(?:role:(master|x))");
        assert_eq!(escaped(&[0xff]), "(?-u:\\xff)");
    }
}
