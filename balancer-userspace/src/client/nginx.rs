//! Reads from an access log of nginx which server each client was at last.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use balancer_api::model::ImportClient;
use balancer_config::words::counted;
use balancer_simulate::{
    format::{self, Format, Reader},
    time,
};

use super::backends::{Backends, last_of_list};

/// The number of lines from which the format is guessed.
const GUESSED_FROM: usize = 1000;
/// The fields of JSON logs that may contain the servers.
const JSON_FIELDS: [&str; 3] = ["upstream_addr", "upstream", "upstream_address"];
const UPSTREAM: &str = "upstream_addr";

/// The clients of a log, and a remark about lines that name no backend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clients {
    pub(super) clients: Vec<ImportClient>,
    pub(super) remark: Option<String>,
}

/// The format of a log, as in nginx's `log_format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFormat(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(String),
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (before, after) = rest.split_once('$').map_or((rest, None), |(before, after)| (before, Some(after)));
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let Some(after) = after else { break };
            let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let (name, more) = braced.unwrap_or_else(|| {
                after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()))
            });
            pieces.push(Piece::Variable(name.to_owned()));
            rest = more;
        }
        let has = |wanted: &str| pieces.iter().any(|piece| matches!(piece, Piece::Variable(name) if name == wanted));
        if !has(UPSTREAM) || !has("remote_addr") && !has("realip_remote_addr") {
            return Err("this is no format of nginx's `log_format` with $remote_addr and $upstream_addr".to_owned());
        }
        Ok(Self(pieces))
    }
}

impl LogFormat {
    /// The values of the variables in a line; `None` if the line has another format.
    fn values<'a>(&self, line: &'a str) -> Option<BTreeMap<&str, &'a str>> {
        let mut values = BTreeMap::new();
        let mut rest = line;
        let mut pieces = self.0.iter().peekable();
        while let Some(piece) = pieces.next() {
            match piece {
                Piece::Text(text) => rest = rest.strip_prefix(text.as_str())?,
                Piece::Variable(name) => {
                    let end = match pieces.peek() {
                        Some(Piece::Text(text)) => rest.find(text.as_str())?,
                        Some(Piece::Variable(_)) => return None,
                        None => rest.len(),
                    };
                    let (value, more) = rest.split_at_checked(end)?;
                    values.insert(name.as_str(), value);
                    rest = more;
                }
            }
        }
        Some(values)
    }
}

/// What a line says: the client, the time, and the servers as `$upstream_addr` writes them.
struct Row<'a> {
    client: IpAddr,
    at: Option<i64>,
    upstream: &'a str,
}

/// How to read the lines of a log.
enum How<'a> {
    Given(&'a LogFormat),
    /// The servers are in this field of lines that otherwise have nginx's usual format.
    Field(usize),
    Json(String),
}

impl How<'_> {
    fn row<'a>(&self, line: &'a str, reader: &mut Reader) -> Option<Row<'a>> {
        match self {
            Self::Given(format) => {
                let values = format.values(line)?;
                // With `real_ip_header`, `$remote_addr` is not the address that packets carry.
                let client = values.get("realip_remote_addr").or(values.get("remote_addr"))?.parse().ok()?;
                let at = ["time_iso8601", "time_local", "msec"].iter().find_map(|name| moment(values.get(name)?));
                Some(Row { client, at, upstream: values.get(UPSTREAM)? })
            }
            Self::Field(place) => {
                let hit = reader.read(line.as_bytes())?;
                Some(Row { client: hit.address, at: hit.at, upstream: servers(line, *place)? })
            }
            Self::Json(_) => None,
        }
    }
}

fn moment(text: &str) -> Option<i64> {
    let number = || text.split('.').next()?.parse().ok();
    time::rfc3339(text.as_bytes()).or_else(|| time::local(text.as_bytes())).or_else(number)
}

/// Splits a line into fields: words, texts in quotes, and times in brackets, each with its position in the line.
fn fields(line: &str) -> Vec<(usize, &str)> {
    let mut fields = Vec::new();
    let mut rest = line.char_indices().peekable();
    while let Some(&(start, c)) = rest.peek() {
        if c == ' ' {
            rest.next();
            continue;
        }
        let (mut closing, mut end) = (None, line.len());
        for (at, c) in rest.by_ref() {
            match (closing, c) {
                (Some(close), c) if c == close => closing = None,
                (None, '"') => closing = Some('"'),
                (None, '[') if at == start => closing = Some(']'),
                (None, ' ') => {
                    end = at;
                    break;
                }
                (Some(_) | None, _) => {}
            }
        }
        fields.extend(line.get(start..end).map(|field| (start, field)));
    }
    fields
}

/// The text of a field without its name and quotes, as in `upstream="10.0.0.1:80"`.
fn bare(field: &str) -> &str {
    let value = field.split_once('=').map_or(field, |(_, value)| value);
    value.trim_matches('"').trim_end_matches(',')
}

/// The servers that the field at `place` of a line begins to list.
fn servers(line: &str, place: usize) -> Option<&str> {
    let fields = fields(line);
    let (start, first) = *fields.get(place)?;
    if first.contains('"') {
        return Some(first.split_once('=').map_or(first, |(_, value)| value).trim_matches('"'));
    }
    let mut end = start + first.len();
    let mut before = first;
    for (at, field) in fields.into_iter().skip(place + 1) {
        if !before.ends_with(',') && before != ":" && field != ":" {
            break;
        }
        (end, before) = (at + field.len(), field);
    }
    let list = line.get(start..end)?;
    Some(list.split_once('=').map_or(list, |(_, value)| value))
}

/// Finds out how to read a log: which field most often names a backend.
fn guess<'a>(lines: &[&str], backends: &Backends) -> Option<(How<'a>, Format)> {
    let format = format::guess(lines)?;
    if let Format::Json(_) = &format {
        let has = |field: &&&str| lines.iter().any(|line| json(line, field).is_some());
        return JSON_FIELDS.iter().find(has).map(|field| (How::Json((*field).to_owned()), format));
    }
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for line in lines {
        for (place, (_, field)) in fields(line).into_iter().enumerate() {
            if backends.at(last_of_list(bare(field))).is_some() {
                *counts.entry(place).or_default() += 1;
            }
        }
    }
    // Of fields with the same count, the first one wins.
    let (place, _) = counts.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most })?;
    Some((How::Field(place), format))
}

/// The text in a field of a JSON object.
fn json(line: &str, field: &str) -> Option<String> {
    let object: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(object.get(field)?.as_str()?.to_owned())
}

/// Reads the log `file`. Each client is at the server of its last request.
///
/// # Errors
/// Fails if no line names a backend of the service.
pub(super) fn read(
    file: &str,
    text: &str,
    (service, backends): (&str, &Backends),
    format: Option<&LogFormat>,
) -> Result<Clients, String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let first: Vec<&str> = lines.iter().take(GUESSED_FROM).copied().collect();
    let (how, of_lines) = match format {
        Some(format) => (How::Given(format), Format::Combined),
        None => guess(&first, backends).ok_or_else(|| {
            format!(
                "{file}: no line names a backend of service {service}; let nginx log $upstream_addr, or give the log's format: \
                 --format '$remote_addr … $upstream_addr'"
            )
        })?,
    };
    let mut reader = Reader::new(of_lines);
    let mut last: BTreeMap<IpAddr, (&str, Option<i64>)> = BTreeMap::new();
    let (mut end, mut unread, mut elsewhere) = (None, 0, None::<(usize, String)>);
    for line in &lines {
        let of_json = match &how {
            How::Json(field) => json(line, field),
            How::Given(_) | How::Field(_) => None,
        };
        let row = match (&how, &of_json) {
            (How::Json(_), Some(upstream)) => {
                reader.read(line.as_bytes()).map(|hit| Row { client: hit.address, at: hit.at, upstream })
            }
            (how, _) => how.row(line, &mut reader),
        };
        let Some(Row { client, at, upstream }) = row else {
            unread += 1;
            continue;
        };
        end = end.max(at);
        let server = last_of_list(upstream);
        if let Some(backend) = backends.at(server) {
            last.insert(client.to_canonical(), (backend, at));
        } else if server != "-" && !server.is_empty() {
            elsewhere.get_or_insert_with(|| (0, server.to_owned())).0 += 1;
        }
    }
    if last.is_empty() {
        let named = elsewhere.map_or_else(String::new, |(_, server)| format!(", but {server:?} for example"));
        return Err(format!("{file}: no line names a backend of service {service}{named}; nothing was changed"));
    }
    let clients = last.into_iter().map(|(client, (backend, at))| ImportClient {
        client,
        backend: backend.to_owned(),
        age_seconds: end.zip(at).and_then(|(end, at)| u64::try_from(end - at).ok()),
        left_seconds: None,
    });
    Ok(Clients { clients: clients.collect(), remark: remark(file, unread, elsewhere) })
}

fn remark(file: &str, unread: usize, elsewhere: Option<(usize, String)>) -> Option<String> {
    let other = elsewhere.map(|(count, server)| {
        format!("{} of servers that are no backends of the service, such as {server:?}", counted(count, "line"))
    });
    let unread = (unread > 0).then(|| format!("{} of another format", counted(unread, "line")));
    let parts: Vec<String> = other.into_iter().chain(unread).collect();
    (!parts.is_empty()).then(|| format!("{file}: left out: {}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::{super::backends::tests::backends, *};

    fn read_log(text: &str, format: Option<&str>) -> Result<Clients, String> {
        let all = backends(&[("web1", "10.0.0.11:8080"), ("web2", "10.0.0.12:8080")]);
        let format = format.map(|format| format.parse::<LogFormat>().unwrap());
        read("access.log", text, ("web", &all), format.as_ref())
    }

    fn places(text: &str, format: Option<&str>) -> Vec<(String, String, Option<u64>)> {
        let read = read_log(text, format).unwrap();
        let place = |one: ImportClient| (one.client.to_string(), one.backend, one.age_seconds);
        read.clients.into_iter().map(place).collect()
    }

    fn place(client: &str, backend: &str, age: u64) -> (String, String, Option<u64>) {
        (client.to_owned(), backend.to_owned(), Some(age))
    }

    /// A line in the combined format, with more text at its end.
    fn line(client: &str, time: &str, agent: &str, more: &str) -> String {
        format!("{client} - - [10/Oct/2000:{time} +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"{agent}\"{more}\n")
    }

    #[test]
    fn when_a_log_names_servers_then_each_client_is_at_the_server_of_its_last_request() {
        let log = |quote: &str, name: &str| {
            [
                line("203.0.113.7", "12:00:00", "curl", &format!(" {name}{quote}10.0.0.11:8080{quote} 0.001")),
                line(
                    "203.0.113.7",
                    "12:01:00",
                    "curl",
                    &format!(" {name}{quote}10.0.0.11:8080, 10.0.0.12:8080{quote} 0.1"),
                ),
                line("203.0.113.8", "12:01:30", "curl", &format!(" {name}{quote}-{quote} 0.1")),
                line(
                    "2001:db8::8",
                    "12:02:00",
                    "10.0.0.12:8080",
                    &format!(" {name}{quote}10.0.0.12:8080 : 10.0.0.11:8080{quote} 0.1"),
                ),
            ]
            .concat()
        };
        let expected = [place("203.0.113.7", "web2", 60), place("2001:db8::8", "web1", 0)];
        for (quote, name) in [("", ""), ("\"", ""), ("", "upstream="), ("\"", "upstream=")] {
            assert_eq!(places(&log(quote, name), None), expected, "{quote}{name}");
        }
    }

    #[test]
    fn when_the_format_is_given_then_any_line_of_it_is_read() {
        let format = "$realip_remote_addr|$remote_addr|${time_iso8601}|$upstream_addr|$request";
        let log = "192.0.2.1|203.0.113.7|2000-10-10T12:00:00+00:00|10.0.0.11:8080|GET /|10.0.0.12:8080\n\
                   192.0.2.2|203.0.113.7|2000-10-10T12:00:30+00:00|10.0.0.11:8080, 10.0.0.12:8080|GET /\nnoise\n";
        assert_eq!(places(log, Some(format)), [place("192.0.2.1", "web1", 30), place("192.0.2.2", "web2", 0)]);
        let remark = read_log(log, Some(format)).unwrap().remark;
        assert_eq!(remark.as_deref(), Some("access.log: left out: 1 line of another format"));
        for wrong in ["", "$remote_addr", "$upstream_addr", "combined"] {
            assert!(wrong.parse::<LogFormat>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn when_a_log_is_json_then_its_field_names_the_servers() {
        let log = "{\"remote_addr\":\"203.0.113.7\",\"time_iso8601\":\"2000-10-10T12:00:00+00:00\",\"upstream_addr\":\"10.0.0.12:8080\"}\n\
                   {\"remote_addr\":\"203.0.113.8\",\"time_iso8601\":\"2000-10-10T12:00:09+00:00\",\"upstream_addr\":\"10.0.0.11:8080\"}\n";
        assert_eq!(places(log, None), [place("203.0.113.7", "web2", 9), place("203.0.113.8", "web1", 0)]);
    }

    #[test]
    fn when_no_line_names_a_backend_then_it_is_said_what_is_missing() {
        let without = read_log(&line("203.0.113.7", "12:00:00", "curl", ""), None).unwrap_err();
        assert!(without.contains("let nginx log $upstream_addr"), "{without}");
        let format = Some("$remote_addr $upstream_addr");
        let other = read_log("203.0.113.7 10.9.9.9:80\n", format).unwrap_err();
        assert!(other.contains("no line names a backend of service web, but \"10.9.9.9:80\" for example"), "{other}");
        let both = read_log("203.0.113.7 10.9.9.9:80\n203.0.113.8 10.0.0.11:8080\n", format).unwrap();
        let wanted =
            "access.log: left out: 1 line of servers that are no backends of the service, such as \"10.9.9.9:80\"";
        assert_eq!(both.remark.as_deref(), Some(wanted));
    }
}
