//! Tests of expired leases, and of driver sessions that end with their leases.

use std::{thread, time::Duration};

use balancer_etcd::Unsent;
use balancer_fleet::engine::{News, Request, Ticket};

use crate::lab::{Lab, keys, put, put_leased};

#[test]
fn when_a_process_was_stopped_for_longer_than_its_lease_then_it_begins_again() {
    Lab::new(1).standing_still().run(async |lab| {
        let mut driver = lab.join(2).await;
        driver.made(vec![put_leased("live/mine"), put("live/stays", "")]).await;
        let asked = driver.ask(|ticket| Request::Read { ticket, prefix: "bulk/".to_owned() });
        // The driver runs in the sleeping thread, so the driver stands still during the sleep.
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
fn when_a_lease_is_revoked_then_the_driver_notices() {
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
fn when_a_leased_write_has_an_expired_lease_then_the_session_ends() {
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
fn when_etcd_is_frozen_for_longer_than_the_lease_then_the_session_is_lost() {
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
