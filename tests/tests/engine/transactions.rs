//! Tests of transactions and reads, and of the reports of watches about transactions.

use balancer_etcd::prefix_of;
use balancer_fleet::engine::{Answer, Condition, Entry, Request, Revision, Write};

use crate::lab::{Lab, keys, put, put_leased};

#[test]
fn when_a_transaction_is_made_then_it_is_whole_and_seen_whole() {
    Lab::new(1).run(async |lab| {
        let (mut a, mut b) = (lab.join(5).await, lab.join(5).await);
        let absent = Condition::Absent("live/a".to_owned());
        let writes = vec![put("live/a", "1"), put("live/b", "2"), put("bulk/c", "3")];
        let Answer::Made(first) = a.transaction(vec![absent.clone()], writes).await else { panic!("not made") };

        let entry = |key: &str, value: &str, created, modified| Entry {
            key: key.to_owned(),
            value: value.into(),
            created,
            modified,
        };
        let seen = b.changed().await;
        assert_eq!(seen, (first, vec![entry("live/a", "1", first, first), entry("live/b", "2", first, first)], vec![]));

        let again = a.transaction(vec![absent], vec![put("live/b", "lost")]).await;
        assert_eq!(again, Answer::Refused);
        let conditions = vec![
            Condition::Created("live/a".to_owned(), first),
            Condition::Modified("live/b".to_owned(), first),
            Condition::Absent("live/d".to_owned()),
        ];
        let writes = vec![put("live/a", "4"), Write::Delete("live/b".to_owned())];
        let Answer::Made(second) = a.transaction(conditions.clone(), writes).await else { panic!("not made") };
        assert!(second > first);
        assert_eq!(b.changed().await, (second, vec![entry("live/a", "4", first, second)], vec!["live/b".to_owned()]));
        for condition in [
            Condition::Modified("live/a".to_owned(), first),
            Condition::Created("live/a".to_owned(), second),
            Condition::Modified("live/b".to_owned(), first),
            Condition::Created("live/nothing".to_owned(), Revision(1)),
        ] {
            assert_eq!(a.transaction(vec![condition.clone()], vec![]).await, Answer::Refused, "{condition:?}");
        }

        a.made(vec![put("bulk/c/1", "x"), put("bulk/c/2", "y"), put("bulk/d", "z")]).await;
        assert_eq!(keys(&a.read("bulk/").await), ["bulk/c", "bulk/c/1", "bulk/c/2", "bulk/d"]);
        assert_eq!(keys(&a.read("bulk/c/").await), ["bulk/c/1", "bulk/c/2"]);
        a.made(vec![Write::DeletePrefix("bulk/c".to_owned())]).await;
        assert_eq!(keys(&b.read("bulk/").await), ["bulk/d"]);

        let mut late = lab.join(5).await;
        late.made(vec![put("live/e", "")]).await;
        assert_eq!(keys(&b.changed().await.1), ["live/e"], "what is not below live/ is not watched");
    });
}

#[test]
fn when_requests_are_sent_then_they_are_answered_in_order() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(5).await;
        let asked: Vec<_> = (0..100)
            .map(|number| {
                driver.ask(|ticket| match number % 3 {
                    0 => Request::Read { ticket, prefix: "bulk/".to_owned() },
                    _ => Request::Transaction {
                        ticket,
                        conditions: Vec::new(),
                        writes: vec![put(&format!("bulk/{number}"), "")],
                    },
                })
            })
            .collect();
        let mut answered = Vec::new();
        let mut known = 0;
        while answered.len() < asked.len() {
            let balancer_fleet::engine::News::Answered(ticket, answer) = driver.next().await else {
                panic!("no answer")
            };
            match answer {
                Answer::Made(_) => known += 1,
                Answer::Read(entries) => assert_eq!(entries.len(), known, "each sees what was asked before it"),
                other => panic!("{other:?}"),
            }
            answered.push(ticket);
        }
        assert_eq!(answered, asked);
    });
}

#[test]
fn when_etcd_refuses_a_request_then_the_answer_says_so_and_nothing_else_happens() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(5).await;
        let answer = driver.transaction(vec![], vec![put("live/a", vec![0; 1_600_000])]).await;
        assert_eq!(answer, Answer::Denied("etcd answers: request is too large".to_owned()));
        let answer = driver.transaction(vec![], vec![put("live/a", "1"), put("live/a", "2")]).await;
        assert_eq!(answer, Answer::Denied("etcd answers: duplicate key given in txn request".to_owned()));
        driver.made(vec![put("live/a", "3")]).await;
        assert_eq!(driver.engine.facts.borrow().denial, None, "other writes are taken");
    });
}

#[test]
fn when_a_holder_leaves_then_its_leased_keys_go_and_others_stay() {
    Lab::new(1).run(async |lab| {
        let (mut a, mut b) = (lab.join(60).await, lab.join(60).await);
        a.made(vec![put_leased("live/member/a"), put("live/stays", "")]).await;
        assert_eq!(keys(&b.changed().await.1), ["live/member/a", "live/stays"]);
        a.engine.stop().await;
        let (_, put, deleted) = b.changed().await;
        assert_eq!((keys(&put), deleted), (vec![], vec!["live/member/a".to_owned()]), "the lease is revoked at once");
        assert_eq!(keys(&lab.join(60).await.read("live/").await), ["live/stays"]);
    });
}

#[test]
fn when_fleets_share_an_etcd_then_they_do_not_see_each_other() {
    Lab::new(1).run(async |lab| {
        let mut one = lab.join(5).await;
        let mut settings = lab.settings(5);
        settings.prefix = prefix_of("site10");
        let mut other = crate::lab::Driver::new(settings);
        other.joined().await;
        one.made(vec![put("live/one", "")]).await;
        other.made(vec![put("live/other", ""), put("bulk/other", "")]).await;
        one.made(vec![put("live/two", "")]).await;
        assert_eq!(keys(&one.read("").await), ["live/one", "live/two"]);
        assert_eq!(keys(&other.read("").await), ["bulk/other", "live/other"]);
        let mut watcher = lab.join(5).await;
        other.made(vec![put("live/other", "again")]).await;
        one.made(vec![put("live/one", "again")]).await;
        assert_eq!(keys(&watcher.changed().await.1), ["live/one"]);
        let facts = other.engine.facts.borrow().clone();
        assert!(facts.reachable && facts.trouble.is_none(), "{facts:?}");
        assert_eq!((facts.version.as_str(), facts.leader), ("3.4.23", facts.member));
        assert!(facts.database_bytes > 0 && other.engine.traffic.sent() > 0 && other.engine.traffic.received() > 0);
    });
}
