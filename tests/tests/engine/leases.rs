//! Leases that run out, and sessions that end with them.

use std::{thread, time::Duration};

use balancer_engine::Unsent;
use balancer_fleet::engine::{News, Request, Ticket};

use crate::lab::{Lab, keys, put, put_leased};

#[test]
fn a_process_that_was_stopped_for_longer_than_its_lease_begins_anew() {
    Lab::new(1).standing_still().run(async |lab| {
        let mut driver = lab.join(2).await;
        driver.made(vec![put_leased("live/mine"), put("live/stays", "")]).await;
        let asked = driver.ask(|ticket| Request::Read { ticket, prefix: "bulk/".to_owned() });
        // The driver runs in this thread.
        thread::sleep(Duration::from_secs(6));
        let reason = loop {
            match driver.next().await {
                News::Changed { .. } => {}
                News::Lost { reason } => break reason,
                other => panic!("{other:?}"),
            }
        };
        assert!(reason.starts_with("the lease is not certain any more"), "{reason}");
        let request = Request::Read { ticket: Ticket(0), prefix: "bulk/".to_owned() };
        assert!(matches!(driver.engine.requests.send(request), Err(Unsent::NoSession(_))));
        let (_, entries) = driver.joined().await;
        assert_eq!(keys(&entries), ["live/stays"]);
        let next = driver.ask(|ticket| Request::Read { ticket, prefix: "bulk/".to_owned() });
        let News::Answered(answered, _) = driver.next().await else { panic!("no answer") };
        assert!(answered == next && answered != asked, "a request of the old session has no answer");
    });
}

#[test]
fn a_lease_that_somebody_revokes_is_noticed() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(3).await;
        driver.made(vec![put_leased("live/mine")]).await;
        let leases = lab.etcdctl(0, &["lease", "list"]);
        lab.etcdctl(0, &["lease", "revoke", leases.lines().last().unwrap()]);
        assert_eq!(driver.lost().await, "the lease has run out");
        assert_eq!(driver.joined().await.1, []);
        driver.made(vec![put_leased("live/mine")]).await;
    });
}

#[test]
fn a_leased_write_under_a_lease_that_is_gone_ends_the_session() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(60).await;
        let leases = lab.etcdctl(0, &["lease", "list"]);
        lab.etcdctl(0, &["lease", "revoke", leases.lines().last().unwrap()]);
        driver.ask(|ticket| Request::Transaction {
            ticket,
            conditions: Vec::new(),
            writes: vec![put_leased("live/mine"), put("live/other", "")],
        });
        assert_eq!(driver.lost().await, "the lease has run out");
        assert_eq!(driver.joined().await.1, []);
    });
}

#[test]
fn an_etcd_that_is_frozen_for_longer_than_the_lease_costs_the_session() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(3).await;
        driver.made(vec![put_leased("live/mine"), put("live/stays", "")]).await;
        lab.cluster.freeze(0).unwrap();
        let reason = driver.lost().await;
        assert!(reason.starts_with("the lease is not certain any more"), "{reason}");
        assert!(!driver.engine.facts.borrow().reachable);
        driver.trouble("no answer within").await;
        lab.cluster.thaw(0).unwrap();
        let (_, entries) = driver.joined().await;
        assert_eq!(keys(&entries), ["live/stays"], "the old lease is revoked, if it has not run out");
    });
}
