//! A copy of 256 MiB and a slow reader, for which a landing has no time.

use std::time::Duration;

use balancer_fleet::engine::{LONGEST_VALUE, Request};
use balancer_testkit::namespace::run;

use crate::lab::{Lab, keys, put, put_leased};

#[test]
fn when_there_is_more_than_a_copy_may_hold_then_the_read_fails() {
    Lab::new(1).run(async |lab| {
        let mut driver = lab.join(30).await;
        let mut watcher = lab.join(30).await;
        let write = |number: usize| put(&format!("live/{number}"), vec![1; LONGEST_VALUE]);
        for number in 0..255 {
            driver.made(vec![write(number)]).await;
        }
        // The driver also watches the keys of this transaction, so the driver may lose its session before it receives
        // the answer.
        driver.ask(|ticket| Request::Transaction { ticket, conditions: Vec::new(), writes: vec![write(255)] });
        assert_eq!(watcher.lost().await, "more than 256 MiB below live/");
        watcher.trouble("more than 256 MiB below /balancer/site1/live/").await;
        drop(driver);
        let mut mending = lab.cluster.client(&lab.namespace, crate::lab::address(0));
        run(mending.args(["del", "--prefix", "/balancer/site1/live/1"])).unwrap();
        assert!(watcher.joined().await.1.len() < 256);
    });
}

#[test]
fn when_a_reader_is_slow_then_it_keeps_its_lease_and_misses_nothing() {
    Lab::new(1).run(async |lab| {
        let mut slow = lab.join(3).await;
        slow.made(vec![put_leased("live/slow")]).await;
        let mut driver = lab.join(10).await;
        // 3,000 changes are more than queues and flow-control windows can hold.
        let changes = 3000_usize;
        for number in 0..changes {
            driver.made(vec![put("live/counter", vec![u8::try_from(number % 251).unwrap(); 4000])]).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(keys(&driver.read("live/slow").await), ["live/slow"]);
        let mut next = 0;
        while next < changes {
            let (_, put, _) = slow.changed().await;
            if put[0].key == "live/counter" {
                assert_eq!(usize::from(put[0].value[0]), next % 251);
                next += 1;
            }
        }
    });
}
