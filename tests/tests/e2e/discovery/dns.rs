//! Tests of backends that the balancer takes from DNS records. The servers `web1` to `web3` run on three hosts, and the
//! name server runs on a fourth host.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use balancer_api::model::{BackendView, ServiceView};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    site::{Settings, Site},
    topology::{Family, Shape, Topology},
};
use serde_json::json;

use super::{CLIENTS, named::Named, reasons, replace, wait_until, web};

const QUESTION: &str = "_http._tcp.web.internal IN SRV";
const SRV_LINES: &str = "discover = [{ dns = \"_http._tcp.web.internal\", servers = [\"SERVER\"], keep = \"0s\" }]";

/// A site that has a name server.
struct Place {
    named: Named,
    site: Site,
}

impl Place {
    /// Starts the site, and a name server with the records that `records` returns. In `service_lines`, the address of
    /// the name server replaces `SERVER`.
    fn start(
        service_lines: &str,
        records: impl Fn(&Topology) -> String,
        adapt: impl FnOnce(&mut Settings, &Topology),
    ) -> Self {
        let mut named = None;
        let site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, topology| {
            let address = topology.backend_address(Family::V4, 3);
            named = Some(Named::start(&topology.backends()[3], address, &records(topology)));
            settings.backends.clear();
            settings.remember = "10m";
            settings.service_lines = service_lines.replace("SERVER", &address.to_string());
            adapt(settings, topology);
            Ok(())
        });
        Self { named: named.unwrap(), site: site.unwrap() }
    }

    /// Replaces the records of the name server.
    fn answer(&mut self, records: &str) {
        self.named.answer(&self.site.topology().backends()[3], records);
    }

    fn fail(&mut self) {
        self.named.fail(&self.site.topology().backends()[3]);
    }

    fn recover(&mut self, records: &str) {
        self.named.recover(&self.site.topology().backends()[3], records);
    }

    fn hosts(&self) -> String {
        hosts(self.site.topology())
    }

    fn homes(&self) -> BTreeMap<u16, String> {
        self.site.homes(Family::V4, CLIENTS).unwrap()
    }

    fn backend(&self, name: &str) -> Option<BackendView> {
        web(&self.site).backends.into_iter().find(|backend| backend.name == name)
    }

    fn admin(&self, name: &str) -> String {
        self.backend(name).map(|backend| backend.admin).unwrap_or_default()
    }

    fn await_reasons(&self, what: &str) {
        let is_so =
            || if what.is_empty() { reasons(&self.site).is_empty() } else { reasons(&self.site).contains(what) };
        wait_until(&format!("{what:?} is told, not {:?}", reasons(&self.site)), is_so);
    }
}

/// Returns the address records of `web1` to `web3`.
fn hosts(topology: &Topology) -> String {
    (1..=3).map(|number| format!("web{number} A {}\n", topology.backend_address(Family::V4, number - 1))).collect()
}

/// Returns the SRV records of the service, from triples `(PRIORITY, WEIGHT, NUMBER)`.
fn services(of: &[(u16, u16, u16)]) -> String {
    let line = |(priority, weight, number): &(u16, u16, u16)| {
        format!("_http._tcp.web SRV {priority} {weight} 8080 web{number}\n")
    };
    of.iter().map(line).collect()
}

fn names(service: &ServiceView) -> Vec<String> {
    let mut names: Vec<String> = service.backends.iter().map(|backend| backend.name.clone()).collect();
    names.sort_unstable();
    names
}

#[test]
fn when_srv_records_change_then_backends_follow_by_their_names_and_what_users_set_stays() {
    let first = |topology: &Topology| services(&[(10, 100, 1), (10, 0, 2)]) + &hosts(topology);
    let mut of = Place::start(SRV_LINES, first, |_, _| {});
    let hosts = of.hosts();
    assert_eq!(
        (names(&web(&of.site)).join(" "), reasons(&of.site)),
        ("web1.internal web2.internal".into(), String::new())
    );
    assert_eq!([1, 2].map(|of_host| of.backend(&format!("web{of_host}.internal")).unwrap().weight), [100, 1]);
    let shown = of.site.cli(&["status"]).unwrap();
    assert!(shown.contains("discovers 2 targets by dns _http._tcp.web.internal"), "{shown}");
    assert_eq!(web(&of.site).discover[0].dns.as_deref(), Some("_http._tcp.web.internal"));
    of.answer(&(services(&[(10, 100, 1), (10, 100, 2)]) + &hosts));
    wait_until("the weight is taken over", || of.backend("web2.internal").unwrap().weight == 100);
    let home = of.homes();
    assert!(["web1", "web2"].iter().all(|name| home.values().any(|home| home == name)), "{home:?}");

    // The name server changes the order of its answers, and the balancer asks every second.
    let generation = web(&of.site).table_generation;
    of.named.await_questions(QUESTION, 5);
    assert_eq!((web(&of.site).table_generation, of.homes()), (generation, home.clone()));

    // A target with a higher priority number becomes a backup, to which the balancer sends no clients.
    of.answer(&(services(&[(20, 100, 3), (10, 100, 2), (10, 100, 1)]) + &hosts));
    wait_until("web3 is there", || of.backend("web3.internal").is_some_and(|backend| backend.backup));
    assert_eq!(of.homes(), home);

    // The new records lack a drained backend: the clients of that backend stay. When the backend returns to the
    // records, it has the same state as before.
    of.site.cli(&["backend", "weight", "web/web2.internal", "7"]).unwrap();
    of.site.cli(&["backend", "drain", "web/web2.internal"]).unwrap();
    let is_told = |of: &Place, what: &str| {
        let line = format!("backend web/web2.internal {what} dns _http._tcp.web.internal");
        wait_until(&line, || of.site.cli(&["events"]).unwrap().contains(&line));
    };
    of.answer(&(services(&[(10, 100, 1)]) + &hosts));
    is_told(&of, "drains before it is removed, it is no longer a target of");
    wait_until("web3, which nobody knows, is removed", || of.backend("web3.internal").is_none());
    assert_eq!(of.homes(), home);
    of.answer(&(services(&[(10, 100, 1), (10, 100, 2), (10, 100, 3)]) + &hosts));
    is_told(&of, "stays, it is a target again of");
    let back = of.backend("web2.internal").unwrap();
    assert_eq!((back.weight, back.admin.as_str(), of.homes()), (7, "drain", home.clone()));
    wait_until("web3 is back", || of.backend("web3.internal").is_some_and(|backend| !backend.backup));
    let output = of.site.output(&["backend", "remove", "web/web2.internal"]).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("backend web/web2.internal is a target of dns _http._tcp.web.internal"), "{told}");

    // Applying another configuration file does not change the weights. `--reset` undoes changes that users made at run
    // time, and restores the weights in the records.
    of.site.apply(|settings| settings.service_lines += "\ndrain = { timeout = \"2s\" }").unwrap();
    assert_eq!((web(&of.site).backends.len(), of.backend("web2.internal").unwrap().weight), (3, 7));
    of.site.cli(&["apply", "--reset", &of.site.config().to_string_lossy()]).unwrap();
    let reset = ["web2.internal", "web3.internal"].map(|name| of.backend(name).unwrap());
    assert_eq!(
        reset.map(|backend| (backend.weight, backend.admin)),
        [(100, "ready".to_owned()), (100, "ready".to_owned())]
    );

    // The drain of a target that the records no longer contain ends at the drain's deadline.
    of.answer(&(services(&[(10, 100, 1), (10, 100, 3)]) + &hosts));
    wait_until("web2 is removed", || of.backend("web2.internal").is_none());
    assert_eq!(reasons(&of.site), "");
    assert!(of.homes().values().all(|home| home != "web2"));
}

#[test]
fn when_dns_says_nothing_or_nonsense_then_the_last_pool_stays_also_after_a_restart() {
    let records = |topology: &Topology| services(&[(10, 100, 1), (10, 100, 2)]) + &hosts(topology);
    let mut of = Place::start(SRV_LINES, records, |_, _| {});
    let (home, all) = (of.homes(), records(of.site.topology()));
    let stays = |of: &Place, home: &BTreeMap<u16, String>| {
        assert_eq!(
            (names(&web(&of.site)).join(" ").as_str(), of.homes()),
            ("web1.internal web2.internal", home.clone())
        );
        assert!(web(&of.site).backends.iter().all(|backend| backend.admin == "ready"));
    };

    // All targets disappear from the records and return.
    of.answer(&of.hosts());
    of.await_reasons("its backends stay as they are: dns _http._tcp.web.internal: the name does not exist (NXDOMAIN)");
    stays(&of, &home);
    of.answer(&format!("_http._tcp.web TXT none\n{}", of.hosts()));
    of.await_reasons("there is no SRV record");
    of.answer(&format!("_http._tcp.web SRV 0 0 0 .\n{}", of.hosts()));
    of.await_reasons("has 0 targets, fewer than min = 1");
    stays(&of, &home);
    of.answer(&all);
    of.await_reasons("");

    // Targets without address records keep their previous addresses.
    of.answer(&services(&[(10, 100, 1), (10, 100, 2)]));
    of.await_reasons("web1.internal has not the addresses that the service needs: the name does not exist (NXDOMAIN)");
    stays(&of, &home);

    // The name server first answers with an error, and later does not answer.
    of.fail();
    of.await_reasons("dns _http._tcp.web.internal: SERVFAIL");
    stays(&of, &home);
    assert!(web(&of.site).discover[0].error.as_ref().is_some_and(|error| error.contains("SERVFAIL")));
    of.recover(&all);
    of.await_reasons("");
    of.named.fall_silent();
    of.await_reasons("dns _http._tcp.web.internal: no answer");
    stays(&of, &home);

    // After a restart, the balancer continues with the last known targets.
    of.site.restart(|_| {}).unwrap();
    assert_eq!(names(&web(&of.site)).join(" "), "web1.internal web2.internal");
    assert_eq!(of.homes().len(), CLIENTS.count());
    of.await_reasons("no answer");
    of.named.speak();
    of.await_reasons("");
    stays(&of, &of.homes());
}

#[test]
fn when_an_answer_does_not_fit_into_a_datagram_then_all_of_it_is_taken_over() {
    const COUNT: u16 = 40;
    let name = |number: u16| format!("web{number:02}-{}", "x".repeat(45));
    let records = move |topology: &Topology| {
        let line = |number: u16| {
            let address = topology.backend_address(Family::V4, number);
            format!("_http._tcp.web SRV 10 100 8080 {name}\n{name} A {address}\n", name = name(number))
        };
        (4..4 + COUNT).map(line).collect()
    };
    // The first name server in the configuration does not answer.
    let lines = SRV_LINES.replace("[\"", "[\"192.0.2.254\", \"");
    let of = Place::start(&lines, records, |settings, _| settings.check = "{ type = \"tcp\" }".to_owned());
    let host = &of.site.topology().backends()[3];
    let cut = of.named.dig(host, &["+ignore", "+notcp", "+bufsize=1232", "_http._tcp.web.internal", "SRV"]);
    assert!(cut.contains("flags: qr aa tc"), "{cut}");
    let service = web(&of.site);
    let expected: Vec<String> = (4..4 + COUNT).map(|number| format!("{}.internal", name(number))).collect();
    assert_eq!((names(&service), reasons(&of.site)), (expected, String::new()));
}

#[test]
fn when_a_name_has_addresses_then_each_is_a_backend_of_the_service_of_its_family_by_the_systems_servers() {
    let records = |topology: &Topology| {
        let both = |number| Family::BOTH.map(|family| topology.backend_address(family, number));
        let [[a, a6], [b, b6]] = [both(0), both(1)];
        format!("web A {a}\nweb A {b}\nweb AAAA {a6}\nweb AAAA {b6}\n")
    };
    let files = tempfile::tempdir().unwrap();
    let (conf, program) = (files.path().join("resolv.conf"), files.path().join("balancer"));
    let lines = "discover = [{ dns_a = \"web.internal\", port = 8080, keep = \"0s\" }]";
    let mut of = Place::start(lines, records, |settings, topology| {
        fs::write(&conf, format!("search internal\nnameserver {}\n", topology.backend_address(Family::V4, 3))).unwrap();
        settings.families = Family::BOTH.to_vec();
        settings.binary = Some(with_resolv_conf(&program, &conf));
    });
    let expected = |family: Family, numbers: &[u16]| {
        let address = |number: &u16| of.site.topology().backend_address(family, *number).to_string().replace(':', "-");
        let mut names: Vec<String> = numbers.iter().map(|number| format!("{}-8080", address(number))).collect();
        names.sort_unstable();
        names
    };
    let (two, two6) = (expected(Family::V4, &[0, 1]), expected(Family::V6, &[0, 1]));
    let (one, one6) = (expected(Family::V4, &[0]), expected(Family::V6, &[0]));
    let of_family = |of: &Place, index: usize| names(&of.site.status().unwrap().services[index]);
    assert_eq!((of_family(&of, 0), of_family(&of, 1), reasons(&of.site)), (two.clone(), two6.clone(), String::new()));
    let home = of.homes();
    let home6 = of.site.homes(Family::V6, CLIENTS).unwrap();
    of.named.await_questions("web.internal IN A", 3);
    assert_eq!((of.homes(), of.site.homes(Family::V6, CLIENTS).unwrap()), (home, home6));

    // One address disappears from the records of both families: both backends drain, and the balancer then removes
    // them.
    of.site.apply(|settings| settings.service_lines += "\ndrain = { timeout = \"1s\" }").unwrap();
    let topology = of.site.topology();
    let [a, a6] = Family::BOTH.map(|family| topology.backend_address(family, 0));
    of.answer(&format!("web A {a}\nweb AAAA {a6}\n"));
    wait_until("they are removed", || (of_family(&of, 0), of_family(&of, 1)) == (one.clone(), one6.clone()));
    assert!(of.homes().values().all(|home| home == "web1"));

    // The configuration of the system's name servers changes.
    fs::write(&conf, "nameserver 192.0.2.254\n").unwrap();
    of.await_reasons("dns_a web.internal: no answer");
    fs::write(&conf, "# none\n").unwrap();
    of.await_reasons("dns_a web.internal: /etc/resolv.conf names no server");
    assert_eq!(of_family(&of, 0), one);
    fs::write(&conf, format!("nameserver {}\n", of.site.topology().backend_address(Family::V4, 3))).unwrap();
    of.await_reasons("");

    // The balancer leaves out an address that no host can have.
    of.answer(&format!("web A {a}\nweb A 0.0.0.0\nweb AAAA {a6}\n"));
    of.await_reasons("dns_a web.internal: 1 target left out: the address 0.0.0.0 is the wildcard");
    assert_eq!(of_family(&of, 0), one);
}

/// Creates a wrapper that runs the balancer with the file `conf` as `/etc/resolv.conf`.
fn with_resolv_conf(program: &Path, conf: &Path) -> PathBuf {
    let balancer = binaries::balancer().unwrap();
    let text = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind {} /etc/resolv.conf && exec {} \"$@\"' balancer \"$@\"\n",
        conf.display(),
        balancer.display()
    );
    fs::write(program, text).unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    program.to_owned()
}

#[test]
fn when_two_sources_of_a_service_name_one_target_then_the_first_has_it_and_the_other_is_told() {
    let lists = tempfile::tempdir().unwrap();
    let file = lists.path().join("targets.json");
    let records = |topology: &Topology| format!("web A {}\n", topology.backend_address(Family::V4, 0));
    let lines = format!(
        "discover = [{{ file = \"{}\", keep = \"0s\" }}, {{ dns_a = \"web.internal\", port = 8080, \
         servers = [\"SERVER\"], keep = \"0s\" }}]",
        file.display()
    );
    let mut of = Place::start(&lines, records, |_, topology| {
        let address = topology.backend_address(Family::V4, 0);
        fs::write(&file, json!([{ "targets": [format!("{address}:8080")] }]).to_string()).unwrap();
    });
    of.await_reasons("dns_a web.internal lacks 1 of 1 target, so no part of it is applied: a target is called ");
    let only = names(&web(&of.site));
    assert_eq!((only.len(), web(&of.site).discover[1].error.is_some()), (1, true));

    // When the first source no longer lists a target, the second source provides the target, and the target's backend
    // keeps its identity.
    let b = of.site.topology().backend_address(Family::V4, 1);
    replace(&file, &json!([{ "targets": [format!("{b}:8080")] }]).to_string());
    wait_until("the first has another", || web(&of.site).backends.len() == 2);
    of.site
        .apply(|settings| {
            let dns = settings.service_lines.split_once("}, ").unwrap().1.to_owned();
            settings.service_lines = format!("discover = [{dns}\ndrain = {{ timeout = \"1s\" }}");
        })
        .unwrap();
    wait_until("the records alone count", || names(&web(&of.site)) == only && of.admin(&only[0]) == "ready");
    of.await_reasons("");
    assert!(of.homes().values().all(|home| home == "web1"));

    // The running balancer gets a configuration with a different source.
    let lines = SRV_LINES.replace("SERVER", &of.site.topology().backend_address(Family::V4, 3).to_string());
    of.answer(&(services(&[(10, 100, 2)]) + &of.hosts()));
    of.site.apply(|settings| settings.service_lines = lines + "\ndrain = { timeout = \"1s\" }").unwrap();
    wait_until("SRV records count", || names(&web(&of.site)).join(" ") == "web2.internal");
    assert!(of.homes().values().all(|home| home == "web2"));
}

#[test]
fn when_a_service_has_both_families_then_each_target_has_an_address_of_each() {
    let records = |topology: &Topology| {
        let v6 = |number| format!("web{} AAAA {}\n", number + 1, topology.backend_address(Family::V6, number));
        services(&[(10, 100, 1), (10, 100, 2), (10, 100, 3)]) + &hosts(topology) + &v6(0) + &v6(1)
    };
    let mut of = Place::start("", records, |settings, topology| {
        let vips = Family::BOTH.map(|family| std::net::SocketAddr::new(topology.vip(family), 81).to_string());
        settings.lines = format!(
            "[[service]]\nname = \"both\"\nlisten = {vips:?}\nforwarding = \"nat\"\ncheck = {{ type = \"tcp\" }}\n{}",
            SRV_LINES.replace("SERVER", &topology.backend_address(Family::V4, 3).to_string())
        );
    });
    let both = |of: &Place| of.site.status().unwrap().services.into_iter().find(|of| of.name == "both").unwrap();
    let shown = |of: &Place, name: &str| {
        let backend = both(of).backends.into_iter().find(|backend| backend.name == name).unwrap();
        backend.families.into_iter().map(|family| family.address).collect::<Vec<_>>().join(" ")
    };
    let place = |of: &Place, family, number| of.site.topology().backend_address(family, number).to_string();
    assert_eq!(names(&both(&of)).join(" "), "web1.internal web2.internal", "web3 has one family");
    let first = shown(&of, "web1.internal");
    assert!(first.contains(&place(&of, Family::V4, 0)) && first.contains(&place(&of, Family::V6, 0)), "{first}");
    of.await_reasons("web3.internal has not the addresses that the service needs: there is no AAAA record");
    let v6 = |number| format!("web{} AAAA {}\n", number + 1, place(&of, Family::V6, number));
    let third = v6(2);
    let whole = records(of.site.topology()) + &third;
    of.answer(&whole);
    wait_until("web3 is whole", || names(&both(&of)).len() == 3);
    of.await_reasons("");
}

#[test]
fn when_addresses_are_names_then_backends_follow_them_and_keep_the_last_when_a_name_is_gone() {
    let files = tempfile::tempdir().unwrap();
    let (conf, program) = (files.path().join("resolv.conf"), files.path().join("balancer"));
    let mut of = Place::start("", hosts, |settings, topology| {
        fs::write(&conf, format!("nameserver {}\n", topology.backend_address(Family::V4, 3))).unwrap();
        settings.binary = Some(with_resolv_conf(&program, &conf));
        settings.backends = vec![(1, 100), (2, 100)];
    });
    let home = of.homes();
    let all = of.hosts();

    // The new file contains names instead of addresses: no client moves.
    let lines = "backend = [{ name = \"web1\", address = \"web1.internal:8080\" }, { name = \"web2\", \
                 address = \"web2.internal:8080\", weight = 50 }]";
    of.site
        .apply(|settings| {
            settings.backends.clear();
            settings.service_lines = lines.to_owned();
        })
        .unwrap();
    wait_until("the weight is that of the file", || of.backend("web2").is_some_and(|backend| backend.weight == 50));
    assert_eq!((of.homes(), reasons(&of.site)), (home.clone(), String::new()));
    assert_eq!(web(&of.site).discover[0].address.as_deref(), Some("web1.internal"));

    // A name gets another address: the clients of the backend follow to the new address.
    let third = of.site.topology().backend_address(Family::V4, 2);
    let second = of.site.topology().backend_address(Family::V4, 1);
    of.answer(&format!("web1 A {third}\nweb2 A {second}\n"));
    let moved: BTreeMap<u16, String> =
        home.iter().map(|(client, home)| (*client, home.replace("web1", "web3"))).collect();
    // Open connections of the backend end, because the new address belongs to another server.
    let is_at = |of: &Place, host: &str| of.backend("web1").is_some_and(|backend| backend.address.starts_with(host));
    wait_until("web1 is at another place", || is_at(&of, &third.to_string()));
    assert_eq!(of.homes(), moved);

    // If a name disappears from DNS, the backend keeps the last address, even after a restart.
    of.answer(&format!("web2 A {second}\n"));
    of.await_reasons("its backends stay as they are: address web1.internal: the name does not exist (NXDOMAIN)");
    let shown = of.site.cli(&["status"]).unwrap();
    assert!(
        shown.contains("by address web1.internal\nWARNING: its backends stay as they are: address web1.internal"),
        "{shown}"
    );
    assert_eq!(of.homes(), moved);
    of.site.restart(|_| {}).unwrap();
    assert_eq!(names(&web(&of.site)).join(" "), "web1 web2");
    assert!(of.homes().values().all(|home| home != "web1"));
    of.await_reasons("NXDOMAIN");
    of.answer(&all);
    of.await_reasons("");
    let first = of.site.topology().backend_address(Family::V4, 0).to_string();
    wait_until("web1 is back at its place", || is_at(&of, &first));
    assert!(of.homes().values().all(|home| home != "web3"));

    // At run time, a user can add a rule that pins clients to a backend from DNS.
    let homes = of.homes();
    let (client, _) = homes.iter().find(|(_, home)| *home == "web2").unwrap();
    let address = of.site.topology().client_address(Family::V4, *client).to_string();
    of.site.cli(&["rule", "add", "web", &address, "pin", "web1"]).unwrap();
    assert_eq!(of.homes()[client], "web1");
}
