//! Reads a TOML table, one key after the other. If the code has read all known keys, each remaining key is unknown.

use std::collections::BTreeMap;

use toml::de::{DeInteger, DeTable, DeValue};

use super::findings::Findings;
use crate::value;

/// A value, with its position in the text of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Located<T> {
    pub(super) at: usize,
    pub(super) value: T,
}

/// The value `true` or `false`, or another value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Either<T> {
    Boolean(bool),
    Text(T),
}

/// A text in the configuration, or the name of a file that contains the text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given<'a> {
    Text(&'a str),
    File(&'a str),
}

/// A table of the configuration file. If a value has the wrong type or wrong content, a getter reports the error and
/// returns `None`, as for a missing key.
#[derive(Debug)]
pub(super) struct Section<'i> {
    title: &'static str,
    /// The position at which the table starts.
    pub(super) at: usize,
    entries: DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'i> Section<'i> {
    pub(super) fn new(title: &'static str, at: usize, entries: DeTable<'i>) -> Self {
        Self { title, at, entries, known: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<Located<DeValue<'i>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let value = self.entries.remove(key)?;
        Some(Located { at: value.span().start, value: value.into_inner() })
    }

    /// Reads the value of `key` with `pick`; an error of `pick` is the whole message.
    fn get<T>(
        &mut self,
        key: &'static str,
        findings: &mut Findings<'_>,
        pick: impl FnOnce(DeValue<'i>) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let Located { at, value } = self.take(key)?;
        match pick(value) {
            Ok(value) => Some(Located { at, value }),
            Err(error) => {
                findings.error(at, error);
                None
            }
        }
    }

    /// Whether the table has `key` and no getter has read it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Reports `key` as missing if the table does not have it; `hint` shows how to write the key.
    pub(super) fn require(&self, key: &str, hint: &str, findings: &mut Findings<'_>) {
        if !self.has(key) {
            findings.error(self.at, format!("{} has no {key:?}; add {hint}", self.title));
        }
    }

    /// Reads a string with `parse`; an error of `parse` is the whole message.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        findings: &mut Findings<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        self.get(key, findings, |value| {
            let DeValue::String(text) = &value else { return Err(wrong_type(key, "a string in quotes", &value)) };
            parse(text)
        })
    }

    /// Reads a whole number between `low` and `high`.
    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        findings: &mut Findings<'_>,
        (low, high): (i64, i64),
    ) -> Option<Located<T>> {
        self.get(key, findings, |value| {
            let DeValue::Integer(integer) = &value else {
                return Err(wrong_type(key, &format!("a whole number from {low} to {high}"), &value));
            };
            whole(key, integer, (low, high))
        })
    }

    /// Reads a whole number within bounds, or one of the given words.
    pub(super) fn integer_or<T: From<u32> + Copy>(
        &mut self,
        key: &'static str,
        findings: &mut Findings<'_>,
        (low, high): (u32, u32),
        words: &[(&str, T)],
    ) -> Option<Located<T>> {
        self.get(key, findings, |value| match &value {
            DeValue::Integer(integer) => whole::<u32>(key, integer, (low.into(), high.into())).map(T::from),
            DeValue::String(text) => value::word(key, text, words),
            DeValue::Boolean(_) | DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                let words: String = words.iter().map(|(word, _)| format!(" or {word:?}")).collect();
                Err(wrong_type(key, &format!("a whole number from {low} to {high}{words}"), &value))
            }
        })
    }

    /// Reads a whole number within bounds, or reads a string with `parse`; `wanted` describes the valid values.
    pub(super) fn integer_or_text<T: From<u32>>(
        &mut self,
        key: &'static str,
        wanted: &str,
        findings: &mut Findings<'_>,
        bounds: (i64, i64),
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        self.get(key, findings, |value| match &value {
            DeValue::Integer(integer) => whole::<u32>(key, integer, bounds).map(T::from),
            DeValue::String(text) => parse(text),
            DeValue::Boolean(_) | DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                Err(wrong_type(key, wanted, &value))
            }
        })
    }

    /// Whether the value of `key` is a table that no getter has read.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|value| matches!(value.get_ref(), DeValue::Table(_)))
    }

    /// Reads a number between 0 and 1.
    pub(super) fn part(&mut self, key: &'static str, findings: &mut Findings<'_>) -> Option<Located<f64>> {
        self.number(key, findings, (0.0, 1.0), "0.5")
    }

    /// Reads a number between `low` and `high`; messages show `example` as a valid number.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        findings: &mut Findings<'_>,
        (low, high): (f64, f64),
        example: &str,
    ) -> Option<Located<f64>> {
        self.get(key, findings, |value| {
            let number = match &value {
                DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
                DeValue::Integer(integer) => {
                    i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|number| number as f64)
                }
                DeValue::String(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_)
                | DeValue::Table(_) => {
                    return Err(wrong_type(key, &format!("a number from {low} to {high}, such as {example}"), &value));
                }
            };
            number
                .filter(|number| (low..=high).contains(number))
                .ok_or_else(|| format!("{key} is out of range; give {low} to {high}, such as {example}"))
        })
    }

    /// Reads a boolean, which is `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, findings: &mut Findings<'_>) -> Option<bool> {
        let boolean = self.get(key, findings, |value| match value.as_bool() {
            Some(boolean) => Ok(boolean),
            None => Err(wrong_type(key, "true or false", &value)),
        });
        boolean.map(|boolean| boolean.value)
    }

    /// Reads `true` or `false`, or reads a string with `parse`; `wanted` describes the valid values.
    pub(super) fn boolean_or<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        findings: &mut Findings<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Either<T>> {
        let either = self.get(key, findings, |value| match &value {
            DeValue::Boolean(boolean) => Ok(Either::Boolean(*boolean)),
            DeValue::String(text) => parse(text).map(Either::Text),
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                Err(wrong_type(key, wanted, &value))
            }
        });
        either.map(|either| either.value)
    }

    /// Reads the table that is the value of `key`; messages call the table `title` and show `example` as a valid table.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        title: &'static str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Section<'i>> {
        let table = self.get(key, findings, |value| {
            let DeValue::Table(entries) = value else {
                return Err(wrong_type(key, &format!("a table such as {example}"), &value));
            };
            Ok(entries)
        });
        table.map(|Located { at, value }| Section::new(title, at, value))
    }

    /// Reads the table that is the value of `key`, and whose entries are texts or `{ file = "…" }`. The entries may be
    /// secrets, so no message contains an entry's text. If `parse` rejects an entry, it returns the reason, which is
    /// the whole message.
    pub(super) fn texts_or_files<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        findings: &mut Findings<'_>,
        parse: impl Fn(&str, Given<'_>) -> Result<T, String>,
    ) -> Option<Vec<Located<T>>> {
        let entries = self.get(key, findings, |value| {
            let DeValue::Table(entries) = value else { return Err(format!("{key} is no table; give {wanted}")) };
            Ok(entries)
        })?;
        let mut parsed = Vec::with_capacity(entries.value.len());
        for (name, value) in &entries.value {
            let value = value.get_ref();
            let file = || value.as_table().filter(|table| table.len() == 1)?.get("file")?.get_ref().as_str();
            let given = value.as_str().map(Given::Text).or_else(|| file().map(Given::File));
            let at = name.span().start;
            let wrong =
                || format!("{} in {key} is neither text nor a file; give {wanted}", value::quoted(name.get_ref()));
            match given.ok_or_else(wrong).and_then(|given| parse(name.get_ref(), given)) {
                Ok(value) => parsed.push(Located { at, value }),
                Err(error) => findings.error(at, error),
            }
        }
        Some(parsed)
    }

    /// Reads the elements of the array in `key` with `pick`; `wanted` describes a valid element.
    fn array<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        findings: &mut Findings<'_>,
        mut pick: impl FnMut(usize, DeValue<'i>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let elements = self.get(key, findings, |value| {
            let DeValue::Array(elements) = value else { return Err(wrong_type(key, wanted, &value)) };
            Ok(elements)
        })?;
        let mut picked = Vec::with_capacity(elements.value.len());
        for element in elements.value {
            let at = element.span().start;
            match pick(at, element.into_inner()) {
                Ok(element) => picked.push(element),
                Err(error) => findings.error(at, error),
            }
        }
        Some(picked)
    }

    /// Reads a list of strings, each with `parse`.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        findings: &mut Findings<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Located<T>>> {
        self.array(key, wanted, findings, |at, value| {
            let DeValue::String(text) = &value else { return Err(wrong_type(key, wanted, &value)) };
            Ok(Located { at, value: parse(text)? })
        })
    }

    /// Reads one string or a list of strings, each with `parse`.
    pub(super) fn text_or_texts<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        findings: &mut Findings<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Located<T>>> {
        match self.entries.get(key).map(|value| value.get_ref()) {
            Some(DeValue::String(_)) => self.text(key, findings, parse).map(|only| vec![only]),
            _ => self.texts(key, wanted, findings, parse),
        }
    }

    /// Reads the tables that have the heading `title`, such as `[[service]]`.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        title: &'static str,
        findings: &mut Findings<'_>,
    ) -> Option<Vec<Section<'i>>> {
        let wanted = format!("a list of tables, each headed {title}");
        self.array(key, &wanted, findings, |at, value| {
            let DeValue::Table(entries) = value else { return Err(wrong_type(key, &wanted, &value)) };
            Ok(Section::new(title, at, entries))
        })
    }

    /// Reads all remaining entries of the table; their keys and their values are ports.
    pub(super) fn ports(mut self, findings: &mut Findings<'_>) -> BTreeMap<u16, u16> {
        let mut ports = BTreeMap::new();
        for (key, value) in std::mem::take(&mut self.entries) {
            let (at, name) = (key.span().start, key.into_inner());
            let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
            let to = value.get_ref().as_integer().and_then(|integer| port(integer.as_str()));
            match port(&name).zip(to) {
                Some((from, to)) => drop(ports.insert(from, to)),
                None => findings.error(
                    at,
                    format!("{} has an entry that is not PORT = PORT; write {} ", self.title, "{ 80 = 8080 }")
                        .trim_end()
                        .to_owned(),
                ),
            }
        }
        ports
    }

    /// Rejects a key that has no meaning in this table; `why` is the rest of the message.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str, findings: &mut Findings<'_>) {
        if let Some(Located { at, .. }) = self.take(key) {
            findings.error(at, format!("{key:?} {why}"));
        }
    }

    /// Marks a known key as read, although its value is not used.
    pub(super) fn skip(&mut self, key: &'static str) {
        self.take(key);
    }

    /// Whether every key of the table has been read.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reports every key of the table that was not read.
    pub(super) fn finish(self, findings: &mut Findings<'_>) {
        for key in self.entries.keys() {
            let unknown = key.get_ref();
            let hint = value::hint(unknown, &self.known, "known keys");
            findings
                .error(key.span().start, format!("unknown key {} in {}; {hint}", value::quoted(unknown), self.title));
        }
    }
}

/// Converts a value to a number between `low` and `high`.
fn whole<T: TryFrom<i64>>(key: &str, integer: &DeInteger<'_>, (low, high): (i64, i64)) -> Result<T, String> {
    i64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| (low..=high).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{key} = {integer} is out of range; give {low} to {high}"))
}

fn wrong_type(key: &str, wanted: &str, found: &DeValue<'_>) -> String {
    let found = match found {
        DeValue::String(text) => format!("the string {}", value::quoted(text)),
        DeValue::Integer(integer) => format!("the number {integer}"),
        DeValue::Float(float) => format!("the number {float}"),
        DeValue::Boolean(boolean) => format!("{boolean}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    format!("{key} is {found}; give {wanted}")
}
