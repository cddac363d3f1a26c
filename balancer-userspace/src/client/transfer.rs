//! The commands `balancer client import` and `balancer client export`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, IsTerminal as _, Read as _},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use balancer_api::{
    client::Client,
    model::{ImportClient, ImportedView, KnownClientView, KnownClientsView, MAX_IMPORTED},
};
use balancer_config::words::{counted, grouped};
use balancer_control::search;
use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net};

use super::{
    backends::Backends,
    haproxy, lines,
    nginx::{self, LogFormat},
};
use crate::{Failure, output};

/// The maximum size of an imported file in bytes.
const MOST: u64 = 1 << 30;

/// The program from which clients are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum From {
    Nginx,
    Haproxy,
}

/// A file that says which clients are at which servers.
pub(super) struct Source {
    file: PathBuf,
    kind: Kind,
}

enum Kind {
    Lines,
    Log(Option<LogFormat>),
    Table(Option<String>),
}

impl Source {
    pub(super) fn of(
        file: PathBuf,
        from: Option<From>,
        format: Option<LogFormat>,
        table: Option<String>,
    ) -> Result<Self, Failure> {
        let kind = match (from, format, table) {
            (None, None, None) => Kind::Lines,
            (Some(From::Nginx), format, None) => Kind::Log(format),
            (Some(From::Haproxy), None, table) => Kind::Table(table),
            (_, Some(_), _) => return Err(Failure::Usage("--format is for --from nginx".to_owned())),
            (_, _, Some(_)) => return Err(Failure::Usage("--table is for --from haproxy".to_owned())),
        };
        Ok(Self { file, kind })
    }

    fn clients(&self, service: &str, backends: &Backends) -> Result<Vec<ImportClient>, Failure> {
        let name = self.file.display().to_string();
        let lines = |text: &str| lines::read(&name, text, backends).map_err(|error| anyhow!(error).into());
        match &self.kind {
            Kind::Log(format) => {
                let text = String::from_utf8_lossy(&bytes(&self.file)?).into_owned();
                let read = nginx::read(&name, &text, (service, backends), format.as_ref());
                let read = read.map_err(|error| anyhow!(error))?;
                if let Some(remark) = read.remark {
                    eprintln!("{remark}");
                }
                Ok(read.clients)
            }
            Kind::Table(table) if haproxy::is_socket(&self.file) => {
                lines(&haproxy::table(&self.file, table.as_deref().unwrap_or(service), MOST)?)
            }
            Kind::Table(Some(_)) => {
                Err(Failure::Usage(format!("--table needs HAProxy's socket, and {name} is no socket")))
            }
            Kind::Lines if haproxy::is_socket(&self.file) => {
                Err(Failure::Usage(format!("{name} is a socket; give --from haproxy if it is HAProxy's")))
            }
            Kind::Lines | Kind::Table(None) => lines(&read(&self.file)?),
        }
    }
}

/// Imports clients: makes the service remember the clients that a file lists.
pub(super) async fn import(
    client: &Client,
    service: &str,
    source: &Source,
    overwrite: bool,
    json: bool,
) -> Result<(), Failure> {
    let backends = Backends::of(client.service(service).await?.backends);
    let clients = source.clients(service, &backends)?;
    if clients.is_empty() {
        return Err(anyhow!("{}: no line says where a client is; nothing was changed", source.file.display()).into());
    }
    let mut sum = ImportedView::default();
    for part in clients.chunks(MAX_IMPORTED) {
        let ImportedView { new, known, moved, served, expired, full, strangers, .. } =
            client.import_clients(service, part.to_vec(), overwrite).await?;
        sum.new += new;
        sum.known += known;
        sum.moved += moved;
        sum.served += served;
        sum.expired += expired;
        sum.full += full;
        sum.strangers += strangers;
    }
    sum.message = told(service, &sum);
    if json {
        return Ok(output::print_json(&sum)?);
    }
    Ok(output::print(&format!("{}\n", sum.message))?)
}

fn read(file: &Path) -> Result<String, Failure> {
    Ok(String::from_utf8(bytes(file)?).map_err(|_| anyhow!("{} is not a text", file.display()))?)
}

fn bytes(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let done = if file == Path::new("-") {
        io::stdin().lock().take(MOST).read_to_end(&mut bytes)
    } else {
        fs::File::open(file).and_then(|open| open.take(MOST).read_to_end(&mut bytes))
    };
    done.with_context(|| format!("reading {}", file.display()))?;
    Ok(bytes)
}

fn told(service: &str, sum: &ImportedView) -> String {
    let taken = sum.new + sum.known + sum.moved;
    let mut text = format!("service {service}: {} known from the file", counted(taken as usize, "client"));
    for (count, what) in [
        (sum.known, "known there before"),
        (sum.moved, "known at another backend before"),
        (sum.served, "left where this balancer serves them (--overwrite records them as well)"),
        (sum.expired, "too old for remember"),
        (sum.full, "without room: see [client_table] capacity"),
        (sum.strangers, "of a family that the service has no listener of"),
    ] {
        if count > 0 {
            let _ = write!(text, "; {} {what}", grouped(count));
        }
    }
    text
}

/// The maximum number of requests that one export makes.
const MOST_PARTS: u128 = 1 << 18;

/// Splits prefixes into smaller prefixes, each of which contains at most as many clients as one request may search.
/// `prefix` returns the client prefix length for a prefix.
fn parts(within: &[IpNet], prefix: impl Fn(IpNet) -> u8) -> Result<Vec<IpNet>, String> {
    let mut all = Vec::new();
    for &net in within {
        let clients = search::count(net, prefix(net));
        if clients / search::MOST > MOST_PARTS {
            return Err(format!("{net} holds too many clients to look at; name smaller prefixes"));
        }
        let doublings = clients.div_ceil(search::MOST).next_power_of_two().ilog2() as u8;
        all.extend(net.subnets(net.prefix_len() + doublings).into_iter().flatten());
    }
    Ok(all)
}

/// Returns prefixes that contain all IPv4 addresses that a client may have. IPv6 has too many addresses for an
/// exhaustive search.
fn everywhere() -> Vec<IpNet> {
    // No client has an address in 0.0.0.0/8, 127.0.0.0/8 or 224.0.0.0/3.
    let nets = (1..=223u8).filter(|&first| first != 127);
    let nets: Vec<Ipv4Net> = nets.filter_map(|first| Ipv4Net::new(Ipv4Addr::new(first, 0, 0, 0), 8).ok()).collect();
    Ipv4Net::aggregate(&nets).into_iter().map(IpNet::V4).collect()
}

/// Exports clients: writes the known clients with their backends.
pub(super) async fn export(
    client: &Client,
    service: &str,
    within: Vec<IpNet>,
    file: Option<PathBuf>,
) -> Result<(), Failure> {
    let within = if within.is_empty() { everywhere() } else { within };
    let KnownClientsView { known_clients: mut all, prefix_v4, prefix_v6, .. } =
        client.export_clients(service, &[]).await?;
    let prefix = |net: IpNet| if net.addr().is_ipv4() { prefix_v4 } else { prefix_v6 };
    let parts = parts(&within, prefix).map_err(|error| anyhow!(error))?;
    let mut found: BTreeMap<IpAddr, KnownClientView> = BTreeMap::new();
    let shows = io::stderr().is_terminal();
    for (index, part) in parts.iter().enumerate() {
        let known = client.export_clients(service, std::slice::from_ref(part)).await?;
        all = known.known_clients;
        found.extend(known.clients.into_iter().map(|client| (client.client, client)));
        if shows {
            eprint!(
                "\r{} of {} known clients found, {}%",
                grouped(found.len() as u64),
                grouped(all),
                100 * (index + 1) / parts.len()
            );
        }
        if found.len() as u64 >= all {
            break;
        }
    }
    if shows {
        eprintln!();
    }
    let mut text = format!("# service {service}: address, backend, how long ago it was there\n");
    for KnownClientView { client, backend, age_seconds } in found.values() {
        let _ = writeln!(text, "{client} {backend} {age_seconds}s");
    }
    match file {
        Some(file) => fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?,
        None => output::print(&text)?,
    }
    let missing = all.saturating_sub(found.len() as u64);
    if missing > 0 {
        eprintln!(
            "{} left out, because the search covers other prefixes: name theirs with --within, such as 2001:db8::/40",
            counted(missing as usize, "known client")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_much_is_searched_then_each_request_looks_at_no_more_than_it_may() {
        let all = everywhere();
        assert!(all.iter().all(|net| !net.contains(&"127.0.0.1".parse::<IpAddr>().unwrap())), "{all:?}");
        let parts = parts(&all, |_| 32).unwrap();
        assert!(parts.iter().all(|&part| search::count(part, 32) <= search::MOST), "{parts:?}");
        let looked_at: u128 = parts.iter().map(|&part| search::count(part, 32)).sum();
        assert_eq!(looked_at, 222 << 24);
        let v6 = ["2001:db8::/32".parse::<IpNet>().unwrap()];
        assert_eq!(super::parts(&v6, |_| 64).unwrap().len(), 256);
        assert!(super::parts(&v6, |_| 128).unwrap_err().contains("name smaller prefixes"));
    }
}
