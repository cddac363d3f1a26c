//! DNS queries to a server in the test's process.

use std::net::SocketAddr;

use hickory_resolver::proto::{
    op::{Message, OpCode},
    rr::{
        Record,
        rdata::{A, CNAME, SRV},
    },
};
use tokio::net::UdpSocket;

use super::*;

/// The records of a name and a type, with the response code.
type Zone = fn(&str, RecordType) -> (ResponseCode, Vec<(&'static str, RData)>);

fn host(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// Starts a server that answers queries from `zone`.
async fn serve(zone: Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let question = query.queries[0].clone();
            let (code, records) = zone(&question.name().to_ascii(), question.query_type());
            let mut answer = Message::response(query.id, OpCode::Query);
            answer.metadata.response_code = code;
            answer.add_query(question);
            answer.add_answers(records.into_iter().map(|(owner, data)| Record::from_rdata(host(owner), 60, data)));
            socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    address
}

async fn ask(records: Records, zone: Zone) -> Result<Vec<String>, String> {
    let dns = DnsSource { records, name: "web.internal".to_owned(), family: None, servers: vec![serve(zone).await] };
    let answer = Asker::new(dns, [Family::V4].into()).ask().await?;
    let shown = |target: Target| format!("{} {:?} {:?}", target.name, target.addresses, target.port);
    Ok(answer.targets.into_iter().map(shown).collect())
}

fn alias(to: &str) -> RData {
    RData::CNAME(CNAME(host(to)))
}

fn service() -> RData {
    RData::SRV(SRV::new(10, 5, 8080, host("web1.internal.")))
}

fn address() -> RData {
    RData::A(A::new(10, 0, 0, 1))
}

#[tokio::test]
async fn when_srv_records_are_behind_cname_records_then_the_query_follows_them() {
    let expected = Ok(vec!["web1.internal [10.0.0.1] Some(8080)".to_owned()]);
    // The server follows the CNAME record itself.
    let whole = ask(Records::Services, |name, kind| {
        let records = match (name, kind) {
            ("web.internal.", RecordType::SRV) => {
                vec![("web.internal.", alias("a.internal.")), ("a.internal.", service())]
            }
            ("a.internal.", RecordType::SRV) => vec![("a.internal.", service())],
            ("web.internal.", RecordType::CNAME) => vec![("web.internal.", alias("a.internal."))],
            ("web1.internal.", RecordType::A) => vec![("web1.internal.", address())],
            _ => Vec::new(),
        };
        (ResponseCode::NoError, records)
    });
    assert_eq!(whole.await, expected);
    // The server leaves it to its client to follow two of them.
    let in_steps = ask(Records::Services, |name, kind| {
        let records = match (name, kind) {
            ("web.internal.", _) => vec![("web.internal.", alias("a.internal."))],
            ("a.internal.", _) => vec![("a.internal.", alias("b.internal."))],
            ("b.internal.", RecordType::SRV) => vec![("b.internal.", service())],
            ("web1.internal.", RecordType::A) => vec![("web1.internal.", address())],
            _ => Vec::new(),
        };
        (ResponseCode::NoError, records)
    });
    assert_eq!(in_steps.await, expected);
    let endless =
        ask(Records::Services, |_, _| (ResponseCode::NoError, vec![("web.internal.", alias("web.internal."))]));
    let told = endless.await.unwrap_err();
    assert!(told.contains("more than 8 CNAME records"), "{told}");
}

#[tokio::test]
async fn when_nxdomain_carries_records_then_the_records_do_not_count() {
    for records in [Records::Addresses { port: Some(80) }, Records::Services] {
        let answer = ask(records, |_, kind| {
            let data = if kind == RecordType::SRV { service() } else { address() };
            (ResponseCode::NXDomain, vec![("web.internal.", data)])
        });
        let told = answer.await.unwrap_err();
        assert!(told.contains("the name does not exist (NXDOMAIN)"), "{told}");
    }
}
