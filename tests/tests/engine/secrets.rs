//! Tests of TLS: trust between server and driver, and error messages.

use std::fs;

use balancer_etcd::Settings;
use balancer_testkit::etcd::{Certificates, Options};

use crate::lab::{Driver, Lab, address, put};

fn lab() -> Lab {
    Lab::with(1, &Options { tls: true, ..Options::default() })
}

fn secured(lab: &Lab) -> Settings {
    let own = lab.cluster.certificates().unwrap().clone();
    Settings { ca: Some(own.ca), cert: Some(own.cert), key: Some(own.key), ..lab.settings(5) }
}

#[test]
fn when_certificates_are_right_then_the_driver_connects() {
    let mut lab = lab();
    lab.run(async |lab| {
        let mut driver = Driver::new(secured(lab));
        driver.joined().await;
        driver.made(vec![put("live/a", vec![0; 500_000])]).await;
        driver.engine.stop().await;
    });
}

#[test]
fn when_certificates_are_wrong_then_the_error_says_why() {
    let mut lab = lab();
    lab.run(async |lab| {
        let elsewhere = tempfile::tempdir().unwrap();
        let strangers = Certificates::make(elsewhere.path(), &[address(0)]).unwrap();
        let garbage = elsewhere.path().join("garbage.pem");
        fs::write(&garbage, "-----BEGIN NOTHING-----\n").unwrap();
        let own = secured(lab);
        let missing = elsewhere.path().join("missing.pem");
        let refused = "etcd refuses this member's certificate, or the lack of one";
        let cases = [
            (Settings { ca: Some(strangers.ca.clone()), ..own.clone() }, "etcd's certificate is not signed by"),
            (Settings { cert: None, key: None, ..own.clone() }, refused),
            (Settings { cert: Some(strangers.cert), key: Some(strangers.key), ..own.clone() }, refused),
            (Settings { ca: Some(missing), ..own.clone() }, "missing.pem: No such file or directory"),
            (Settings { cert: Some(garbage.clone()), ..own.clone() }, "garbage.pem: "),
            (Settings { key: Some(garbage), ..own.clone() }, "garbage.pem: no private key"),
            (Settings { key: own.cert.clone(), ..own.clone() }, "client.pem: no private key"),
            (Settings { endpoints: vec!["http://127.0.0.1:2379".to_owned()], ..own.clone() }, "if etcd speaks TLS"),
            (Settings { endpoints: vec!["https://127.0.0.2:2379".to_owned()], ..own.clone() }, "Connection refused"),
            (Settings { endpoints: vec!["https://localhost:2379".to_owned()], ..own.clone() }, "for another name"),
            (Settings { endpoints: vec!["https://127.0.0.1:2380".to_owned()], ..own.clone() }, "does not speak TLS"),
        ];
        for (settings, words) in cases {
            let mut driver = Driver::new(settings);
            driver.trouble(words).await;
            println!("{}", driver.engine.facts.borrow().trouble.clone().unwrap());
            assert!(!driver.engine.facts.borrow().reachable);
            driver.engine.stop().await;
        }
    });
}

#[test]
fn when_files_are_corrected_then_the_driver_reads_them_without_a_restart() {
    let mut lab = lab();
    lab.run(async |lab| {
        let own = secured(lab);
        let directory = tempfile::tempdir().unwrap();
        let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        let settings = Settings { cert: Some(cert.clone()), key: Some(key.clone()), ..own.clone() };
        let mut driver = Driver::new(settings);
        driver.trouble("No such file").await;
        fs::copy(own.cert.unwrap(), cert).unwrap();
        fs::copy(own.key.unwrap(), key).unwrap();
        driver.joined().await;
    });
}
