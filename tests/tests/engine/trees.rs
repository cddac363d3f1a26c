//! Tests of a follower, which reads keys that other programs write.

use std::time::Duration;

use balancer_etcd::{Settings, Tree, follow};
use balancer_testkit::etcd::{CLIENT, Options};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::lab::{Lab, PATIENCE, address};

/// A follower of the etcd keys below `/services/web/`.
struct Follower(mpsc::Receiver<Result<Tree, String>>);

impl Follower {
    fn new(lab: &Lab, lease: u64) -> Self {
        let settings = Settings { prefix: "/services/web/".to_owned(), ..lab.settings(lease) };
        let (told, trees) = mpsc::channel(1);
        tokio::spawn(follow(settings, told));
        Self(trees)
    }

    /// Waits until the follower's keys and values are exactly the expected ones, in the form `KEY=VALUE`.
    async fn wait_for(&mut self, expected: &[&str]) {
        let mut last = None;
        let arrives = async {
            loop {
                let tree = self.0.recv().await.unwrap();
                if tree.as_ref().is_ok_and(|tree| shown(tree) == expected) {
                    return;
                }
                last = Some(tree.map(|tree| shown(&tree)));
            }
        };
        let arrived = timeout(PATIENCE, arrives).await;
        assert!(arrived.is_ok(), "not {expected:?}, but {last:?}");
    }

    async fn wait_for_error(&mut self, words: &str) {
        let arrives = async { while !self.0.recv().await.unwrap().is_err_and(|error| error.contains(words)) {} };
        assert!(timeout(PATIENCE, arrives).await.is_ok(), "no {words:?}");
    }
}

fn shown(tree: &Tree) -> Vec<String> {
    tree.iter().map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(value))).collect()
}

#[test]
fn when_keys_change_then_the_follower_has_those_below_the_prefix_and_no_others() {
    Lab::new(1).run(async |lab| {
        let put = |key: &str, value: &str| drop(lab.etcdctl(0, &["put", key, value]));
        put("/services/web/a", "1");
        put("/services/web2/x", "foreign");
        let mut follower = Follower::new(lab, 5);
        follower.wait_for(&["a=1"]).await;
        put("/services/web/b/c", "2");
        put("/services/web", "foreign");
        follower.wait_for(&["a=1", "b/c=2"]).await;
        put("/services/web/a", "3");
        follower.wait_for(&["a=3", "b/c=2"]).await;
        lab.etcdctl(0, &["del", "/services/web/", "--prefix"]);
        follower.wait_for(&[]).await;
        assert!(timeout(Duration::from_secs(2), follower.0.recv()).await.is_err(), "nothing is told twice");
    });
}

#[test]
fn when_keys_cannot_be_passed_on_then_that_is_told_until_they_are_gone() {
    Lab::new(1).run(async |lab| {
        lab.etcdctl(0, &["put", "/services/web/a", "1"]);
        let mut follower = Follower::new(lab, 5);
        follower.wait_for(&["a=1"]).await;
        lab.put_bytes(b"/services/web/\xff", "x");
        follower.wait_for_error("has keys that are not UTF-8").await;
        lab.delete_bytes(b"/services/web/\xff");
        lab.etcdctl(0, &["put", "/services/web/b", "2"]);
        follower.wait_for(&["a=1", "b=2"]).await;
    });
}

#[test]
fn when_servers_die_and_freeze_and_compact_their_history_then_the_follower_catches_up() {
    Lab::new(3).run(async |lab| {
        let mut follower = Follower::new(lab, 3);
        follower.wait_for(&[]).await;
        for round in 0..6 {
            let (member, other) = (round % 3, u8::try_from((round + 1) % 3).unwrap());
            if round < 3 {
                lab.cluster.kill(member).unwrap()
            } else {
                lab.cluster.freeze(member).unwrap()
            }
            lab.cluster.wait_until_well(&lab.namespace, address(other)).unwrap();
            lab.etcdctl(other, &["put", "/services/web/a", &round.to_string()]);
            let status = lab.etcdctl(other, &["get", "/services/web/a", "-w", "fields"]);
            let revision = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap().to_owned();
            lab.etcdctl(other, &["compact", &revision]);
            follower.wait_for(&[&format!("a={round}")]).await;
            if round < 3 {
                lab.start_member(u8::try_from(member).unwrap());
            } else {
                lab.cluster.thaw(member).unwrap();
            }
        }
    });
}

#[test]
fn when_no_server_answers_then_that_is_told_and_afterwards_what_has_changed() {
    Lab::new(1).run(async |lab| {
        lab.etcdctl(0, &["put", "/services/web/a", "1"]);
        let mut follower = Follower::new(lab, 3);
        follower.wait_for(&["a=1"]).await;
        lab.cluster.kill(0).unwrap();
        follower.wait_for_error("127.0.0.1").await;
        // A follower that starts while no etcd server answers reports the failure as well.
        let mut other = Follower::new(lab, 3);
        other.wait_for_error("Connection refused").await;
        lab.start_member(0);
        lab.etcdctl(0, &["put", "/services/web/b", "2"]);
        follower.wait_for(&["a=1", "b=2"]).await;
        other.wait_for(&["a=1", "b=2"]).await;
    });
}

#[test]
fn when_a_cluster_is_replaced_by_another_then_the_follower_reads_the_new_one() {
    Lab::new(1).run(async |lab| {
        lab.etcdctl(0, &["put", "/services/web/a", "1"]);
        let mut follower = Follower::new(lab, 2);
        follower.wait_for(&["a=1"]).await;
        lab.cluster.kill(0).unwrap();
        lab.cluster.lose_disks().unwrap();
        // The pause is longer than the time for which the follower waits for the cluster that it knows.
        sleep(Duration::from_secs(4)).await;
        lab.start_member(0);
        lab.etcdctl(0, &["put", "/services/web/b", "2"]);
        follower.wait_for(&["b=2"]).await;
    });
}

#[test]
fn when_etcd_refuses_the_keys_then_that_is_told_until_it_allows_them() {
    let options = Options { tls: true, ..Options::default() };
    Lab::with(1, &options).run(async |lab| {
        let own = lab.cluster.certificates().unwrap().clone();
        for arguments in [
            &["user", "add", "root:secret"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "reader"],
            &["put", "/services/web/a", "1"],
        ] {
            lab.etcdctl(0, arguments);
        }
        lab.etcdctl(0, &["user", "add", CLIENT, "--no-password"]);
        lab.etcdctl(0, &["user", "grant-role", CLIENT, "reader"]);
        lab.etcdctl(0, &["auth", "enable"]);
        let settings = Settings {
            prefix: "/services/web/".to_owned(),
            ca: Some(own.ca),
            cert: Some(own.cert),
            key: Some(own.key),
            ..lab.settings(3)
        };
        let (told, trees) = mpsc::channel(1);
        tokio::spawn(follow(settings, told));
        let mut follower = Follower(trees);
        follower.wait_for_error("etcd answers: permission denied").await;
        let what = ["role", "grant-permission", "reader", "read", "--prefix=true", "/services/web/"];
        lab.etcdctl(0, &[&["--user=root:secret"][..], &what].concat());
        follower.wait_for(&["a=1"]).await;
    });
}
