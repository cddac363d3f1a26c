//! A history that is compacted while the driver is away, for which a landing has no time.

use super::at;
use crate::lab::{Lab, keys, put, put_leased};

#[test]
fn when_the_history_is_compacted_meanwhile_then_the_session_is_lost() {
    Lab::new(3).run(async |lab| {
        let mut driver = at(lab, 2, 60);
        driver.joined().await;
        driver.made(vec![put_leased("live/mine"), put("live/a", "")]).await;
        lab.cluster.freeze(2).unwrap();
        driver.trouble("no answer").await;
        for value in ["1", "2", "3"] {
            lab.etcdctl(0, &["put", "/balancer/site1/live/b", value]);
        }
        let status = lab.etcdctl(0, &["endpoint", "status", "--write-out=fields"]);
        let revision = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
        lab.etcdctl(0, &["compaction", revision]);
        // The killed server loses the changes that it has not sent to the driver.
        lab.cluster.kill(2).unwrap();
        lab.start_member(2);
        let reason = driver.lost().await;
        assert!(reason.contains("is compacted"), "{reason}");
        let (_, entries) = driver.joined().await;
        assert_eq!(keys(&entries), ["live/a", "live/b"], "the old lease is revoked");
        driver.made(vec![put_leased("live/mine")]).await;
    });
}
