//! Tests of the driver with etcd servers that die, freeze and return, and with compacted histories.

mod release;

use std::collections::BTreeMap;

use balancer_etcd::Settings;
use balancer_fleet::engine::{Answer, News, Request, Revision};

use crate::lab::{Driver, Lab, address, keys, put, put_leased};

/// Creates a driver that knows only one endpoint.
fn at(lab: &Lab, index: usize, lease: u64) -> Driver {
    Driver::new(Settings { endpoints: vec![lab.cluster.endpoints()[index].clone()], ..lab.settings(lease) })
}

/// The changes that a watcher has received. The watcher must receive each revision once and in order.
#[derive(Default)]
struct Seen(BTreeMap<Revision, String>);

impl Seen {
    fn take(&mut self, news: News) {
        let News::Changed { revision, mut put, deleted } = news else { panic!("{news:?}") };
        assert_eq!(deleted, [""; 0]);
        let entry = put.pop().unwrap();
        assert_eq!((put.len(), entry.key.as_str()), (0, "live/counter"), "one write in each revision");
        let last = self.0.last_key_value().map(|(&revision, _)| revision);
        assert!(last < Some(revision), "{revision:?} after {last:?}");
        self.0.insert(revision, String::from_utf8(entry.value).unwrap());
    }
}

#[test]
fn when_members_die_and_freeze_then_every_change_is_seen_once_and_in_order() {
    Lab::new(3).run(async |lab| {
        let mut writer = lab.join(15).await;
        writer.made(vec![put_leased("live/writer")]).await;
        // Each endpoint has one watcher, so that the failure of an endpoint affects one watcher.
        let mut watchers = Vec::new();
        for index in 0..3 {
            let mut endpoints = lab.cluster.endpoints();
            endpoints.rotate_left(index);
            let mut watcher = Driver::new(Settings { endpoints, ..lab.settings(15) });
            assert_eq!(keys(&watcher.joined().await.1), ["live/writer"]);
            watchers.push((watcher, Seen::default()));
        }
        let mut made = BTreeMap::new();
        let mut unknown = 0;
        for round in [0, 4] {
            let member = round % 3;
            for number in 0..60 {
                match number {
                    20 if round < 3 => lab.cluster.kill(member).unwrap(),
                    20 => lab.cluster.freeze(member).unwrap(),
                    50 if round < 3 => lab.start_member(u8::try_from(member).unwrap()),
                    50 => lab.cluster.thaw(member).unwrap(),
                    _ => {}
                }
                let value = format!("{round}/{number}");
                match writer.transaction(vec![], vec![put("live/counter", value.clone())]).await {
                    Answer::Made(revision) => drop(made.insert(revision, value)),
                    Answer::Unknown(_) => unknown += 1,
                    other => panic!("{other:?}"),
                }
            }
            lab.cluster.wait_until_well(&lab.namespace, address(u8::try_from(member).unwrap())).unwrap();
        }
        let last = writer.made(vec![put("live/counter", "last")]).await;
        made.insert(last, "last".to_owned());
        for (watcher, seen) in &mut watchers {
            while !seen.0.contains_key(&last) {
                let news = watcher.next().await;
                seen.take(news);
            }
            for (revision, value) in &made {
                assert_eq!(seen.0.get(revision), Some(value), "{revision:?}");
            }
        }
        let (first, others) = watchers.split_first().unwrap();
        assert!(others.iter().all(|other| other.1.0 == first.1.0), "all have seen the same");
        println!("{} changes seen by all three, {unknown} transactions without an answer", first.1.0.len());
    });
}

#[test]
fn when_an_endpoint_fails_then_the_session_goes_on_at_another() {
    Lab::new(3).run(async |lab| {
        let mut driver = lab.join(30).await;
        driver.made(vec![put_leased("live/mine")]).await;
        for fault in ["killed", "frozen"] {
            let endpoint = driver.engine.facts.borrow().endpoint.clone().unwrap();
            let member = lab.cluster.endpoints().iter().position(|known| *known == endpoint).unwrap();
            match fault {
                "killed" => lab.cluster.kill(member).unwrap(),
                _ => lab.cluster.freeze(member).unwrap(),
            }
            let moved = driver.engine.facts.clone();
            tokio::time::timeout(crate::lab::PATIENCE, async {
                let mut moved = moved;
                moved.wait_for(|facts| facts.reachable && facts.endpoint.as_ref() != Some(&endpoint)).await.map(drop)
            })
            .await
            .unwrap()
            .unwrap();
            // The etcd servers may still be electing a leader.
            while !matches!(driver.transaction(vec![], vec![put("live/other", fault)]).await, Answer::Made(_)) {}
            match fault {
                "killed" => lab.start_member(u8::try_from(member).unwrap()),
                _ => lab.cluster.thaw(member).unwrap(),
            }
        }
        assert_eq!(keys(&driver.read("live/").await), ["live/mine", "live/other"], "the lease was kept");
    });
}

#[test]
fn when_a_watcher_has_seen_a_compacted_history_then_nothing_is_lost() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(60).await;
        for value in ["1", "2"] {
            driver.made(vec![put("live/a", value)]).await;
        }
        let asked = driver.ask(|ticket| Request::Transaction {
            ticket,
            conditions: Vec::new(),
            writes: vec![put("live/a", "3")],
        });
        let (mut answered, mut seen) = (false, false);
        while !(answered && seen) {
            match driver.next().await {
                News::Answered(ticket, Answer::Made(_)) if ticket == asked => answered = true,
                News::Changed { put, .. } => seen |= put.iter().any(|entry| entry.value == b"3"),
                other => panic!("{other:?}"),
            }
        }
        let last = driver.made(vec![put("bulk/a", "")]).await;
        lab.etcdctl(0, &["compaction", &last.0.to_string()]);
        lab.cluster.kill(0).unwrap();
        lab.start_member(0);
        while !matches!(driver.transaction(vec![], vec![put("live/b", "")]).await, Answer::Made(_)) {}
        assert_eq!(keys(&driver.read("live/").await), ["live/a", "live/b"]);
    });
}

#[test]
fn when_there_is_no_majority_then_requests_end_unknown_and_the_session_is_lost() {
    Lab::new(3).run(async |lab| {
        let mut driver = at(lab, 0, 3);
        driver.joined().await;
        lab.cluster.kill(1).unwrap();
        lab.cluster.kill(2).unwrap();
        let asked = driver.ask(|ticket| Request::Transaction {
            ticket,
            conditions: Vec::new(),
            writes: vec![put("live/a", "")],
        });
        let mut unknown = false;
        loop {
            match driver.next().await {
                News::Answered(ticket, Answer::Unknown(_)) => unknown = ticket == asked,
                News::Lost { reason } => {
                    assert!(reason.starts_with("the lease is not certain any more"), "{reason}");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        println!("answered before the loss: {unknown}");
        lab.cluster.start_member(1, &lab.namespace).unwrap();
        lab.start_member(2);
        driver.joined().await;
    });
}
