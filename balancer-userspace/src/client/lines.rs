//! Parses lines that list known clients, in the format `address backend [age]` or in the format of HAProxy's `show
//! table`.

use std::net::IpAddr;

use balancer_api::model::ImportClient;
use balancer_config::value;

use super::backends::Backends;

/// Parses the clients in `text`, which is from the file `file`.
///
/// # Errors
/// Fails with the file name and line number of the first bad line, and with the fault of that line.
pub(super) fn read(file: &str, text: &str, backends: &Backends) -> Result<Vec<ImportClient>, String> {
    let mut clients = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let client = if line.contains("key=") { of_haproxy(line, backends) } else { of_own(line, backends) };
        clients.extend(client.map_err(|error| format!("{file}:{number}: {error}"))?);
    }
    Ok(clients)
}

fn address(text: &str) -> Result<IpAddr, String> {
    // A line of an export may name a prefix by its first address.
    let address = text.parse::<IpAddr>().map_err(|_| format!("{} is not an IP address", value::quoted(text)))?;
    Ok(address.to_canonical())
}

fn of_own(line: &str, backends: &Backends) -> Result<Option<ImportClient>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (client, backend, age) = match *without_earlier_servers(&words) {
        [client, backend] => (client, backend, None),
        [client, backend, age] => (client, backend, Some(value::duration(age)?)),
        _ => {
            return Err(
                "a line is an address, a backend, and perhaps how long ago it was there, such as \"90s\"".to_owned()
            );
        }
    };
    let client = address(client)?;
    // nginx writes a hyphen for a request that went to no server.
    if backend == "-" {
        return Ok(None);
    }
    Ok(Some(ImportClient {
        client,
        backend: backends.called(backend)?.to_owned(),
        age_seconds: age.map(|age| age.as_secs()),
        left_seconds: None,
    }))
}

/// Removes from the words of a line all but the last server of a list as nginx's `$upstream_addr` writes it:
/// `10.0.0.1:80, 10.0.0.2:80 : 10.0.0.3:80`.
fn without_earlier_servers<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let Some((client, mut rest)) = words.split_first() else { return Vec::new() };
    loop {
        rest = match rest {
            [_, ":", more @ ..] => more,
            [first, more @ ..] if first.ends_with(',') => more,
            last => break std::iter::once(*client).chain(last.iter().copied()).collect(),
        }
    }
}

/// Parses a line such as `0x7f…: key=203.0.113.7 use=0 exp=1799000 shard=0 server_id=2 server_key=web2`. The parser
/// skips a client that has no server.
fn of_haproxy(line: &str, backends: &Backends) -> Result<Option<ImportClient>, String> {
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .filter(|text| !text.is_empty())
    };
    let Some(key) = field("key") else { return Err("key= has no value".to_owned()) };
    let number = |name: &str| -> Result<Option<u64>, String> {
        let parsed = field(name).map(str::parse::<u64>).transpose();
        parsed.map_err(|_| format!("{name}= is not a number"))
    };
    let id = number("server_id")?.filter(|&id| id > 0);
    let backend = match (field("server_key"), id) {
        // In stick tables of other types, the value is not the name of a server.
        (Some(name), _) if backends.named(name).is_some() => name.to_owned(),
        (name, Some(id)) => {
            let place = usize::try_from(id).unwrap_or(usize::MAX).wrapping_sub(1);
            match (backends.name_at(place), name) {
                (Some(backend), None) => backend.to_owned(),
                (_, Some(name)) => return backends.called(name).map(|_| None),
                (None, None) => {
                    return Err(format!("there is no server {id}: the service has {} backends", backends.len()));
                }
            }
        }
        (Some(name), None) => backends.called(name)?.to_owned(),
        (None, None) => return Ok(None),
    };
    let left = number("exp")?.map(|milliseconds| milliseconds / 1000);
    Ok(Some(ImportClient { client: address(key)?, backend, age_seconds: None, left_seconds: left }))
}

#[cfg(test)]
mod tests {
    use super::{super::backends::tests::backends as of, *};

    fn backends() -> Backends {
        of(&[("web1", "10.0.0.11:8080"), ("web2", "10.0.0.12:8080"), ("web3", "[fd00::13]:8080")])
    }

    fn client(client: &str, backend: &str, age: Option<u64>, left: Option<u64>) -> ImportClient {
        let client = client.parse().unwrap();
        ImportClient { client, backend: backend.to_owned(), age_seconds: age, left_seconds: left }
    }

    #[test]
    fn when_lines_are_read_then_each_says_where_a_client_is() {
        let text = "# service web\n203.0.113.7 web1 90s\n\n  2001:db8::1\tweb3\n::ffff:203.0.113.8 web2 1h 5m\n";
        assert_eq!(
            read("known", &text.replace(" 5m", ""), &backends()),
            Ok(vec![
                client("203.0.113.7", "web1", Some(90), None),
                client("2001:db8::1", "web3", None, None),
                client("203.0.113.8", "web2", Some(3600), None),
            ])
        );
    }

    #[test]
    fn when_servers_are_written_as_by_nginx_then_the_last_address_names_the_backend() {
        let text = "203.0.113.7 10.0.0.12:8080\n203.0.113.8 10.0.0.12:8080, 10.0.0.11:8080 90s\n\
                    203.0.113.9 10.0.0.11:8080 : [fd00::13]:8080\n203.0.113.10 -\n";
        assert_eq!(
            read("known", text, &backends()),
            Ok(vec![
                client("203.0.113.7", "web2", None, None),
                client("203.0.113.8", "web1", Some(90), None),
                client("203.0.113.9", "web3", None, None),
            ])
        );
    }

    #[test]
    fn when_a_stick_table_is_read_then_names_come_before_numbers_and_what_is_left_stays() {
        let text = "# table: web, type: ip, size:102400, used:4\n\
                    0x55e0c8a0: key=203.0.113.7 use=0 exp=1799123 shard=0 server_id=3 server_key=web1\n\
                    0x55e0c8b0: key=203.0.113.8 use=0 exp=900 server_id=2\n\
                    0x55e0c8c0: key=::ffff:203.0.113.9 use=1 exp=60000 shard=0 server_id=0 server_key=web3\n\
                    0x55e0c8d0: key=203.0.113.10 use=1 exp=60000 shard=0 http_req_rate(10000)=7\n";
        assert_eq!(
            read("table", text, &backends()),
            Ok(vec![
                client("203.0.113.7", "web1", None, Some(1799)),
                client("203.0.113.8", "web2", None, Some(0)),
                client("203.0.113.9", "web3", None, Some(60)),
            ])
        );
    }

    #[test]
    fn when_a_line_is_wrong_then_its_number_is_told_and_why() {
        for (line, said) in [
            ("203.0.113.7", "a line is an address"),
            ("203.0.113.7 web1 90s more", "a line is an address"),
            ("203.0.113 web1", "\"203.0.113\" is not an IP address"),
            ("203.0.113.7 web4", "there is no backend \"web4\"; did you mean \"web1\"?"),
            ("203.0.113.7 10.0.0.4:8080", "there is no backend \"10.0.0.4:8080\"; they are: web1 (10.0.0.11:8080), "),
            ("203.0.113.7 10.0.0.11:8080, 10.0.0.4:8080", "there is no backend \"10.0.0.4:8080\"; "),
            ("203.0.113.7 web1 soon", "soon"),
            ("0x1: key= server_id=1", "key= has no value"),
            ("0x1: key=203.0.113.7 server_id=4", "there is no server 4: the service has 3 backends"),
            ("0x1: key=203.0.113.7 server_id=x", "server_id= is not a number"),
            ("0x1: key=name server_id=1", "\"name\" is not an IP address"),
            ("0x1: key=203.0.113.7 server_id=1 server_key=app1", "there is no backend \"app1\""),
        ] {
            let error = read("clients", &format!("203.0.113.1 web1\n{line}\n"), &backends()).unwrap_err();
            assert!(error.starts_with("clients:2: ") && error.contains(said), "{line}: {error}");
        }
    }
}
