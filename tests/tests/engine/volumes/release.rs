//! A copy of 256 MiB, for which a landing has no time.

use balancer_fleet::engine::{LONGEST_VALUE, Request};
use balancer_testkit::namespace::run;

use crate::lab::{Lab, put};

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
