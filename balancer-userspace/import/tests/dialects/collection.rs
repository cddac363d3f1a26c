//! Converts configurations in the manner of real ones, and compares each result, with its comments, with the file
//! beside it. The table says for each which lines need the reader.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use balancer_import::Dialect;

use crate::support::{checked, try_convert};

/// For each configuration: its name, the addresses that replace those of listeners on every address, the summary, and
/// the lines that need the reader.
type Case = (&'static str, &'static [&'static str], &'static str, &'static [usize]);

const CASES: [Case; 24] = [
    ("behind-a-proxy.nginx", &[], "1 service, 2 backends; 2 directives need you", &[2, 3]),
    ("dns.nginx", &[], "2 services, 4 backends; 1 directive needs you", &[6]),
    ("docker.nginx", &["198.51.100.10"], "1 service, 2 backends; 4 directives need you", &[4, 5, 6, 13]),
    ("dpvs.ipvsadm", &[], "1 service, 2 backends; 1 directive needs you", &[1]),
    ("dpvs.keepalived", &[], "1 service, 2 backends; 4 directives need you", &[15, 19, 22, 31]),
    ("dual-stack.haproxy", &["198.51.100.10", "2001:db8::10"], "1 service, 2 backends; 0 directives need you", &[]),
    (
        "exchange.haproxy",
        &[],
        "2 services, 4 backends; 11 directives need you",
        &[7, 10, 11, 12, 13, 16, 22, 30, 38, 39, 40],
    ),
    ("ftp.haproxy", &[], "1 service, 2 backends; 0 directives need you", &[]),
    ("fwmark.keepalived", &[], "0 services, 0 backends; 1 directive needs you", &[1]),
    ("galera.haproxy", &[], "2 services, 6 backends; 4 directives need you", &[16, 19, 23, 24]),
    ("kube-proxy.ipvsadm", &[], "3 services, 5 backends; 0 directives need you", &[]),
    ("ldap.haproxy", &[], "2 services, 4 backends; 3 directives need you", &[9, 15, 16]),
    ("mixed-checks.haproxy", &[], "1 service, 4 backends; 0 directives need you", &[]),
    ("mqtt.nginx", &[], "1 service, 3 backends; 1 directive needs you", &[21]),
    ("openshift.haproxy", &["198.51.100.10"], "4 services, 12 backends; 0 directives need you", &[]),
    ("patroni.haproxy", &[], "2 services, 6 backends; 5 directives need you", &[23, 24, 25, 26, 33]),
    ("rabbitmq.haproxy", &[], "2 services, 6 backends; 0 directives need you", &[]),
    ("redis-sentinel.haproxy", &[], "1 service, 2 backends; 1 directive needs you", &[21]),
    ("resolvers.keepalived", &[], "1 service, 2 backends; 0 directives need you", &[]),
    ("sticky-peers.haproxy", &[], "1 service, 2 backends; 2 directives need you", &[1, 13]),
    ("two-arms.haproxy", &[], "2 services, 4 backends; 0 directives need you", &[]),
    ("two-instances.keepalived", &[], "2 services, 3 backends; 5 directives need you", &[20, 36, 47, 75, 77]),
    ("two-sites.nginx", &[], "1 service, 1 backend; 4 directives need you", &[2, 4, 8, 11]),
    ("websockets.nginx", &["198.51.100.10", "2001:db8::10"], "1 service, 2 backends; 0 directives need you", &[]),
];

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/collection")
}

/// `UPDATE_SAMPLES=1` makes the test write the expected results: read the differences before you commit the files.
#[test]
fn when_configurations_like_real_ones_are_converted_then_results_and_notes_are_those_that_were_read() {
    let mut wrong = Vec::new();
    for (name, addresses, summary, lines) in CASES {
        let path = directory().join(name);
        let dialect: Dialect = path.extension().unwrap().to_str().unwrap().parse().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(Dialect::guess(&text), Some(dialect), "{name}");
        let conversion = try_convert(dialect, name, &text, addresses).unwrap();
        let of_reader: BTreeSet<usize> = conversion
            .for_the_terminal(name)
            .iter()
            .map(|line| line.split(':').nth(1).unwrap().parse().unwrap())
            .collect();
        let result = checked(&conversion);
        let expected = directory().join(format!("{name}.toml"));
        if env::var_os("UPDATE_SAMPLES").is_some() {
            fs::write(&expected, &result).unwrap();
        }
        let found = (conversion.summary(), of_reader.into_iter().collect::<Vec<_>>());
        if found != (summary.to_owned(), lines.to_vec()) {
            wrong.push(format!("{name}: {found:?}"));
        }
        assert_eq!(result, fs::read_to_string(&expected).unwrap(), "{}", expected.display());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(files.filter(|path| path.extension().unwrap() != "toml").count(), CASES.len());
}
