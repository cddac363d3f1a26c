//! Tests of the driver with an etcd that answers but refuses writes.

use balancer_etcd::Settings;
use balancer_fleet::engine::{Answer, Request};
use balancer_testkit::{
    etcd::{CLIENT, Options},
    namespace::run,
};

use crate::lab::{Driver, Lab, address, keys, put, put_leased};

const QUOTA: &str = "--quota-backend-bytes=4194304";

impl Lab {
    /// Writes to etcd until etcd reports that its storage is full.
    fn fill(&self) {
        let value = "x".repeat(100_000);
        let put = |number: usize| {
            let mut put = self.cluster.client(&self.namespace, address(0));
            run(put.args(["put", &format!("/filler/{number}"), &value]))
        };
        let refused = (0..200).find_map(|number| put(number).err()).unwrap();
        assert!(format!("{refused:#}").contains("database space exceeded"), "{refused:#}");
    }

    /// Frees space in etcd as the book describes.
    fn make_room(&self) {
        self.etcdctl(0, &["del", "--prefix", "/filler/"]);
        let status = self.etcdctl(0, &["endpoint", "status", "--write-out=fields"]);
        let revision = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
        self.etcdctl(0, &["compaction", revision]);
        self.etcdctl(0, &["defrag"]);
        self.etcdctl(0, &["alarm", "disarm"]);
    }
}

#[test]
fn when_etcd_is_full_then_writes_are_denied_and_there_is_no_session_until_there_is_room() {
    let options = Options { arguments: vec![QUOTA.to_owned()], ..Options::default() };
    Lab::with(1, &options).run(async |lab| {
        let mut driver = lab.join(2).await;
        driver.made(vec![put_leased("live/mine")]).await;
        lab.fill();
        let denied = driver.transaction(vec![], vec![put("live/a", "1")]).await;
        assert_eq!(denied, Answer::Denied("etcd answers: mvcc: database space exceeded".to_owned()));
        let facts = driver.engine.facts.borrow().clone();
        assert_eq!(facts.denial.as_deref(), Some("etcd answers: mvcc: database space exceeded"));
        assert!(facts.reachable, "it answers");
        let full = |warnings: Vec<String>| warnings.iter().any(|warning| warning.contains("alarm NOSPACE"));
        let heard = driver.engine.facts.wait_for(|facts| full(facts.warnings()));
        tokio::time::timeout(crate::lab::PATIENCE, heard).await.unwrap().unwrap();

        let end = Request::End { reason: "it takes no writes".to_owned() };
        driver.engine.requests.send(end).unwrap();
        assert_eq!(driver.lost().await, "it takes no writes");
        driver.trouble("database space exceeded").await;
        assert!(driver.engine.facts.borrow().reachable, "another server is not looked for");
        let live = lab.etcdctl(0, &["get", "--prefix", "--keys-only", "/balancer/site1/live/"]);
        assert_eq!(live.trim(), "", "what was leased is gone, though nothing can be written");

        lab.make_room();
        let (_, entries) = driver.joined().await;
        assert_eq!(keys(&entries), [""; 0]);
        driver.made(vec![put_leased("live/mine")]).await;
        let facts = driver.engine.facts.borrow().clone();
        assert_eq!((facts.denial, facts.trouble), (None, None));
        let well = driver.engine.facts.wait_for(|facts| !full(facts.warnings()));
        tokio::time::timeout(crate::lab::PATIENCE, well).await.unwrap().unwrap();
    });
}

#[test]
fn when_the_user_may_only_read_then_writes_are_denied_and_the_session_goes_on() {
    let options = Options { tls: true, ..Options::default() };
    Lab::with(1, &options).run(async |lab| {
        let own = lab.cluster.certificates().unwrap().clone();
        let settings = Settings { ca: Some(own.ca), cert: Some(own.cert), key: Some(own.key), ..lab.settings(5) };
        let grant = |lab: &Lab, what: &str| {
            lab.etcdctl(
                0,
                &["--user=root:secret", "role", "grant-permission", "fleet", what, "--prefix=true", "/balancer/"],
            );
        };
        for arguments in
            [&["user", "add", "root:secret"][..], &["user", "grant-role", "root", "root"], &["role", "add", "fleet"]]
        {
            lab.etcdctl(0, arguments);
        }
        lab.etcdctl(0, &["user", "add", CLIENT, "--no-password"]);
        lab.etcdctl(0, &["user", "grant-role", CLIENT, "fleet"]);
        lab.etcdctl(0, &["role", "grant-permission", "fleet", "read", "--prefix=true", "/balancer/"]);
        lab.etcdctl(0, &["auth", "enable"]);
        let mut driver = Driver::new(settings);
        driver.joined().await;
        let denied = driver.transaction(vec![], vec![put_leased("live/mine")]).await;
        assert_eq!(denied, Answer::Denied("etcd answers: permission denied".to_owned()));
        assert_eq!(driver.engine.facts.borrow().denial.as_deref(), Some("etcd answers: permission denied"));
        grant(lab, "readwrite");
        driver.made(vec![put_leased("live/mine")]).await;
        assert_eq!(driver.engine.facts.borrow().denial, None);
    });
}
