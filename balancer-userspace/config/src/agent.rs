//! Agents: programs on the backends' machines that report how much work the backends can take, in HAProxy's agent-check
//! protocol.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{states::Admin, value::quoted};

/// The maximum length of an agent's answer in bytes, the same as for HAProxy's agents.
pub const MAX_ANSWER: usize = 1024;
/// The minimum change of a weight that takes effect, because each change makes a new table; a change to 0% or 100%
/// always takes effect.
const STEP: u8 = 5;
const WORDS: &str =
    "\"75%\", \"up\", \"ready\", \"drain\", \"maint\", \"down\", \"fail\", \"failed\", \"stopped\" and \"maxconn:N\"";

/// How the balancer queries the agents of a service's backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentConfig {
    /// The TCP port of the agents; each agent has the address of its backend.
    pub port: u16,
    /// The time between the starts of two queries of an agent.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

/// The combined reports that a backend's agent has sent so far. An agent may only reduce the load of its backend, and
/// later restore the load that it has reduced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The percentage of the configured weight that is in effect because of the reports; at most 100.
    pub percent: u8,
    /// The administrative state that the agent requests.
    pub admin: Admin,
    /// The reason by which the agent declares the backend down, which may be empty; `None`: the agent does not declare
    /// the backend down.
    pub down: Option<String>,
}

impl Default for Said {
    fn default() -> Self {
        Self { percent: 100, admin: Admin::Ready, down: None }
    }
}

impl Said {
    /// Whether the agent's reports reduce nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the combined reports after another answer; values that the answer omits stay unchanged.
    #[must_use]
    pub fn after(&self, answer: &Answer) -> Self {
        let percent = answer.percent.filter(|&percent| {
            matches!(percent, 0 | 100) || self.percent == 0 || percent.abs_diff(self.percent) >= STEP
        });
        Self {
            percent: percent.unwrap_or(self.percent),
            admin: answer.admin.unwrap_or(self.admin),
            down: answer.down.clone().unwrap_or_else(|| self.down.clone()),
        }
    }

    /// Returns the reduced `weight`, which is zero only if the percentage is 0.
    #[must_use]
    pub fn weight(&self, weight: u16) -> u16 {
        let left = u32::from(weight) * u32::from(self.percent) / 100;
        let least = u32::from(weight > 0 && self.percent > 0);
        u16::try_from(left.max(least)).unwrap_or(weight)
    }

    /// Returns the administrative state that results from the operator's state `admin` and from the agent's state.
    #[must_use]
    pub const fn admin(&self, admin: Admin) -> Admin {
        self.admin.or_stricter(admin)
    }
}

/// Formats the reports as `75%, drain`, or as `100%` if they reduce nothing.
impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percent)?;
        match self.admin {
            Admin::Ready => {}
            Admin::Drain | Admin::Maint => write!(f, ", {}", self.admin.word())?,
        }
        match self.down.as_deref() {
            None => Ok(()),
            Some("") => write!(f, ", down"),
            Some(why) => write!(f, ", down ({why})"),
        }
    }
}

/// A single answer that an agent has sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    percent: Option<u8>,
    admin: Option<Admin>,
    down: Option<Option<String>>,
}

impl Answer {
    /// Parses the first line of an agent's answer: words of HAProxy's agent-check protocol, separated by white space or
    /// commas. The parser reduces a percentage above 100% to 100%. The parser accepts and ignores `maxconn:N`. If two
    /// words contradict each other, the later word takes effect.
    ///
    /// # Errors
    /// Fails if the line contains no word that the protocol defines.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let line = text.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let (words, why) = line.split_once('#').map_or((&*line, ""), |(words, why)| (words, why.trim()));
        let (mut answer, mut known) = (Self::default(), false);
        for word in words.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
            known |= answer.take(&word.to_ascii_lowercase(), why);
        }
        if known { Ok(answer) } else { Err(format!("says {}, which has none of the words {WORDS}", quoted(&line))) }
    }

    /// Applies one word of the answer. Returns whether the protocol defines the word.
    fn take(&mut self, word: &str, why: &str) -> bool {
        match word {
            "up" => self.down = Some(None),
            "down" | "fail" | "failed" | "stopped" => {
                let printable = why.chars().filter(|character| !character.is_control());
                self.down = Some(Some(printable.take(80).collect()));
            }
            "ready" => self.admin = Some(Admin::Ready),
            "drain" => self.admin = Some(Admin::Drain),
            "maint" => self.admin = Some(Admin::Maint),
            _ => {
                let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                if let Some(percent) = word.strip_suffix('%').filter(|text| is_number(text)) {
                    self.percent = Some(percent.parse().map_or(100, |percent: u8| percent.min(100)));
                } else {
                    return word.strip_prefix("maxconn:").is_some_and(is_number);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(answers: &[&str]) -> String {
        let after = |said: Said, answer: &&str| said.after(&Answer::parse(answer.as_bytes()).unwrap());
        answers.iter().fold(Said::default(), after).to_string()
    }

    #[test]
    fn when_an_agent_uses_a_word_of_the_protocol_then_it_is_understood() {
        for (answer, shown) in [
            ("75%\n", "75%"),
            ("75%\r\nup\n", "75%"),
            ("0%", "0%"),
            ("250%", "100%"),
            ("99999999999999999999%", "100%"),
            ("drain", "100%, drain"),
            ("MAINT\n", "100%, maint"),
            ("down", "100%, down"),
            ("fail\n", "100%, down"),
            ("failed,50%", "50%, down"),
            ("stopped#deploy of v2\n", "100%, down (deploy of v2)"),
            ("down #out of\u{7} disk\n", "100%, down (out of disk)"),
            ("up ready\t40% maxconn:30\n", "40%"),
            ("maxconn:30\n", "100%"),
            ("50% load:3", "50%"),
        ] {
            assert_eq!(said(&[answer]), shown, "{answer:?}");
        }
    }

    #[test]
    fn when_no_word_is_of_the_protocol_then_the_answer_is_refused() {
        for answer in ["", "\n", "HTTP/1.1 400 Bad Request\r\n", "%", "-5%", "5.5%", "maxconn:", "# up", "\u{0}"] {
            let error = Answer::parse(answer.as_bytes()).unwrap_err();
            assert!(error.starts_with("says \"") && error.contains("none of the words"), "{error}");
        }
        assert!(Answer::parse(b"\xff\xfe").is_err());
    }

    #[test]
    fn when_an_answer_leaves_something_out_then_that_stays_as_it_was() {
        assert_eq!(said(&["drain 50%", "down", "up"]), "50%, drain");
        assert_eq!(said(&["drain 50%", "ready"]), "50%");
        assert_eq!(said(&["down", "100%"]), "100%, down");
    }

    #[test]
    fn when_a_weight_changes_by_a_little_then_it_stays() {
        assert_eq!(said(&["50%", "53%"]), "50%");
        assert_eq!(said(&["50%", "55%"]), "55%");
        assert_eq!(said(&["98%", "100%"]), "98%".replace("98", "100"));
        assert_eq!(said(&["3%", "0%"]), "0%");
        assert_eq!(said(&["0%", "3%"]), "3%");
    }

    #[test]
    fn when_an_agent_and_an_operator_disagree_then_the_lesser_counts() {
        let of = |answer: &str| Said::default().after(&Answer::parse(answer.as_bytes()).unwrap());
        assert_eq!(of("drain").admin(Admin::Maint), Admin::Maint);
        assert_eq!(of("ready").admin(Admin::Drain), Admin::Drain);
        assert_eq!(of("maint").admin(Admin::Ready), Admin::Maint);
        assert_eq!([of("50%").weight(1), of("0%").weight(9), of("75%").weight(0)], [1, 0, 0]);
        assert_eq!([of("75%").weight(100), of("100%").weight(65_535)], [75, 65_535]);
    }
}
