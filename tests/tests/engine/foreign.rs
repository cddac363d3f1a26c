//! Tests of writes by other programs below the fleet's keys.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use balancer_etcd::Settings;
use balancer_fleet::engine::{Answer, LONGEST_VALUE, Write};
use balancer_testkit::{
    etcd::{EtcdCluster, Options},
    namespace::{Namespace, join, run},
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use crate::lab::{Driver, Lab, address, keys, put, put_leased};

impl Lab {
    pub(crate) fn put_bytes(&self, key: &[u8], value: &str) {
        let mut command = self.cluster.client(&self.namespace, address(0));
        run(command.arg("put").arg(OsStr::from_bytes(key)).arg(value)).unwrap();
    }

    pub(crate) fn delete_bytes(&self, key: &[u8]) {
        let mut command = self.cluster.client(&self.namespace, address(0));
        run(command.arg("del").arg(OsStr::from_bytes(key))).unwrap();
    }
}

#[test]
fn when_keys_have_no_name_or_values_are_too_large_then_they_are_left_out() {
    let larger = Options { arguments: vec!["--max-request-bytes=90000000".to_owned()], ..Options::default() };
    Lab::with(1, &larger).run(async |lab| {
        let mut writer = lab.join(30).await;
        writer.made(vec![put("live/good", "1"), put("live/long", vec![1; LONGEST_VALUE])]).await;
        let mut watcher = lab.join(30).await;

        lab.put_bytes(b"/balancer/site1/live/\xff\xfe", "no name");
        lab.put_bytes(b"/balancer/site1/live/", "the name alone");
        writer.made(vec![put("live/long", vec![2; LONGEST_VALUE + 1])]).await;
        writer.made(vec![put("live/new", vec![3; LONGEST_VALUE + 1]), put("live/good", "2")]).await;
        lab.delete_bytes(b"/balancer/site1/live/\xff\xfe");
        writer.made(vec![put("live/good", "3")]).await;

        let (_, put_keys, deleted) = watcher.changed().await;
        assert_eq!((keys(&put_keys), deleted.len()), (vec!["live/"], 0));
        let (_, put_keys, deleted) = watcher.changed().await;
        assert_eq!((put_keys.len(), deleted), (0, vec!["live/long".to_owned()]), "as in a copy: it is not there");
        let (_, put_keys, deleted) = watcher.changed().await;
        assert_eq!((keys(&put_keys), deleted), (vec!["live/good"], vec!["live/new".to_owned()]));
        assert_eq!(watcher.changed().await.1[0].value, b"3");
        assert!(watcher.engine.facts.borrow().skipped >= 4);

        lab.put_bytes(b"/balancer/site1/live/\xc3\x28", "no name");
        // The second value is longer than the driver reads at a time, so the driver skips the value.
        writer.made(vec![put("bulk/a", "before"), put("bulk/b", vec![4; 70 << 20]), put("bulk/c", "after")]).await;
        assert_eq!(keys(&writer.read("bulk/").await), ["bulk/a", "bulk/c"]);
        let mut late = Driver::new(lab.settings(30));
        assert_eq!(keys(&late.joined().await.1), ["live/", "live/good"]);
        assert_eq!(late.engine.facts.borrow().skipped, 3);

        writer.made(vec![Write::Delete("live/long".to_owned())]).await;
        assert_eq!(late.changed().await.2, ["live/long"]);
    });
}

#[test]
fn when_servers_are_no_etcd_then_the_driver_skips_them() {
    Lab::new(1).run(async |lab| {
        let says: [&[u8]; 5] = [
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            // The bytes are HTTP/2 frames: settings, an answer without a request, and in the second case an answer that
            // is too long.
            b"\0\0\0\x04\0\0\0\0\0\0\0\x04\0\0\0\0\0\x7f",
            b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\x01\x05\0\0\0\x01",
            &[0xff; 100_000],
        ];
        for words in says {
            let stranger = TcpListener::bind("127.0.0.9:0").await.unwrap();
            let endpoint = format!("http://{}", stranger.local_addr().unwrap());
            let answering = tokio::spawn(async move {
                let mut connections = Vec::new();
                while let Ok((mut stream, _)) = stranger.accept().await {
                    // The driver may close the connection before it has received the bytes.
                    let _ = stream.write_all(words).await;
                    connections.push(stream);
                }
            });
            let alone = Settings { endpoints: vec![endpoint.clone()], ..lab.settings(3) };
            let mut driver = Driver::new(alone);
            driver.trouble(&endpoint).await;
            println!("{}", driver.engine.facts.borrow().trouble.clone().unwrap());
            driver.engine.stop().await;

            let mut endpoints = lab.cluster.endpoints();
            endpoints.push(endpoint);
            Driver::new(Settings { endpoints, ..lab.settings(3) }).joined().await;
            answering.abort();
        }
    });
}

#[test]
fn when_an_endpoint_belongs_to_another_cluster_then_the_driver_does_not_use_it() {
    let mut first = Lab::new(1);
    let second_host = Namespace::new("other").unwrap();
    join((&first.namespace, "there"), (&second_host, "here")).unwrap();
    first.namespace.ip("address add 10.0.0.1/24 dev there").unwrap();
    second_host.ip("address add 10.0.0.2/24 dev here").unwrap();
    // The two clusters differ only in the names and addresses of their members.
    let second = EtcdCluster::start(&[(&second_host, "10.0.0.2".parse().unwrap())], &Options::default()).unwrap();
    first.run(async |lab| {
        let mut endpoints = lab.cluster.endpoints();
        let mut driver = lab.join(20).await;
        driver.made(vec![put_leased("live/mine")]).await;
        driver.engine.stop().await;
        endpoints.extend(second.endpoints());
        let mut driver = loop {
            let mut driver = Driver::new(Settings { endpoints: endpoints.clone(), ..lab.settings(20) });
            driver.joined().await;
            let in_use = driver.engine.facts.borrow().endpoint.clone();
            if in_use.as_ref() == endpoints.first() {
                break driver;
            }
            driver.engine.stop().await;
        };
        driver.made(vec![put_leased("live/mine")]).await;
        lab.cluster.kill(0).unwrap();
        driver.trouble("it belongs to another cluster").await;
        lab.start_member(0);
        while !matches!(driver.transaction(vec![], vec![put("live/other", "")]).await, Answer::Made(_)) {}
        assert_eq!(keys(&driver.read("live/").await), ["live/mine", "live/other"]);
    });
}
