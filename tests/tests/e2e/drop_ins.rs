//! Tests of drop-ins, which bring services over the command line, with clients and servers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{collections::BTreeMap, fs, path::PathBuf};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

use crate::support::{requests, under_load, wait};

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=100;

/// A drop-in whose check runs a program.
const EXEC: &str = "[[service]]\nname = \"more\"\naddress = \"198.51.100.99:80\"\nforwarding = \"nat\"\n\
                    check = { type = \"exec\", command = [\"/bin/true\"], user = \"nobody\" }\n";

/// A site whose configuration file has no services.
struct Bare {
    site: Site,
    /// The file with the service that the site's configuration file had at first.
    shop: PathBuf,
}

impl Bare {
    fn start(forwarding: Forwarding, on_exit: &'static str) -> Self {
        let mut site = Site::start(Shape::OneLegged, forwarding, 4, |settings, _| {
            settings.on_exit = on_exit;
            settings.remember = "10m";
            Ok(())
        })
        .unwrap();
        let text = fs::read_to_string(site.config()).unwrap();
        let (head, services) = text.split_at(text.find("[[service]]").unwrap());
        let capacity = if forwarding == Forwarding::Snat { "[flow_table]\ncapacity = 65536\n" } else { "" };
        fs::write(site.config(), format!("service = []\n{head}{capacity}")).unwrap();
        let shop = site.files().join("shop.toml");
        fs::write(&shop, services).unwrap();
        site.controller().process().stop().unwrap();
        site.detach().unwrap();
        fs::remove_file(site.files().join("state.json")).unwrap();
        site.restart_with_the_file_as_it_is().unwrap();
        Self { site, shop }
    }

    fn cli(&self, words: &str) -> String {
        self.site.cli(&words.split(' ').collect::<Vec<_>>()).unwrap().trim().to_owned()
    }

    fn refused(&self, words: &str) -> String {
        let output = self.site.output(&words.split(' ').collect::<Vec<_>>()).unwrap();
        assert!(!output.status.success(), "{words}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn apply(&self) -> String {
        self.cli(&format!("drop-in apply shop {}", self.shop.display()))
    }

    /// Waits until all backends are up, and returns the backend of each client.
    fn homes(&self) -> BTreeMap<u16, String> {
        wait("not all backends are up", || {
            let services = self.site.status().unwrap().services;
            services.iter().flat_map(|service| &service.backends).filter(|backend| backend.state == "up").count() == 4
        });
        self.site.homes(Family::V4, CLIENTS).unwrap()
    }

    /// Returns the names of the services, each with its drop-in.
    fn services(&self) -> Vec<(String, Option<String>)> {
        let services = self.site.status().unwrap().services;
        services.into_iter().map(|service| (service.name, service.drop_in)).collect()
    }
}

fn clients_of_a_drop_in_stay(cells: &[(Forwarding, &'static str)]) {
    for &(forwarding, on_exit) in cells {
        let mut bare = Bare::start(forwarding, on_exit);
        assert_eq!(bare.services(), []);
        assert_eq!(bare.cli("drop-in list --json"), "[]");
        let dry = bare.cli(&format!("drop-in apply shop {} --dry-run", bare.shop.display()));
        assert!(dry.contains("dry run, nothing was changed: drop-in shop applied, 1 service added"), "{dry}");
        assert_eq!(bare.services(), []);
        let done = bare.apply();
        assert!(done.starts_with("drop-in shop applied, 1 service added, 4 backends added"), "{done}");
        let shop = [("web".to_owned(), Some("shop".to_owned()))];
        assert_eq!(bare.services(), shop);
        let homes = bare.homes();
        let file = bare.site.config().display().to_string();
        let all = requests(bare.site.topology(), Family::V4, 80, CLIENTS);
        let entrance = bare.site.topology().client().entrance();
        let load = under_load(&entrance, &all, || {
            assert_eq!(bare.cli("--if-generation 0 drop-in list"), "NAME  SERVICES\nshop  web");
            assert_eq!(bare.apply(), "drop-in shop applied: nothing changed");
            bare.cli(&format!("apply {file}"));
            bare.cli(&format!("apply {file} --reset"));
            bare.cli(&format!("apply {file} --reread"));
            if on_exit == "keep" {
                bare.site.kill_and_restart_with_the_file_as_it_is().unwrap();
                bare.site.restart_with_the_file_as_it_is().unwrap();
            }
            assert_eq!((bare.services(), bare.homes()), (shop.to_vec(), homes.clone()));
        });
        load.assert_answered(CLIENTS.count());
        bare.site.restart_with_the_file_as_it_is().unwrap();
        assert_eq!((bare.services(), bare.homes()), (shop.to_vec(), homes));
        assert_eq!(bare.cli("drop-in show shop").trim(), fs::read_to_string(&bare.shop).unwrap().trim());
        let gone = bare.cli("drop-in remove shop");
        assert!(gone.starts_with("drop-in shop removed, 1 service removed"), "{gone}");
        bare.site.restart_with_the_file_as_it_is().unwrap();
        assert_eq!(bare.services(), []);
    }
}

#[test]
fn when_a_drop_in_brings_the_only_service_then_its_clients_stay_through_restarts_reloads_and_resets() {
    clients_of_a_drop_in_stay(&[(Forwarding::Snat, "keep")]);
}

#[test]
fn when_a_drop_in_is_wrong_then_nothing_changes_and_the_fault_is_named() {
    let bare = Bare::start(Forwarding::Nat, "detach");
    bare.apply();
    let shop = fs::read_to_string(&bare.shop).unwrap();
    let write = |text: &str| fs::write(&bare.shop, text).unwrap();
    let path = bare.shop.display().to_string();
    for (text, name, why) in [
        ("interfaces = [\"eth0\"]\n".to_owned(), "shop", "shop.toml:1: unknown key \"interfaces\" in the drop-in"),
        (shop.replace("weight = ", "wait = "), "shop", "unknown key \"wait\""),
        (String::new(), "shop", "a drop-in without [[service]] has no effect; remove it"),
        (shop.clone(), "other", "service web is in drop-in shop already"),
        (shop.replace("\"web\"", "\"more\""), "other", "is service web already"),
        (
            shop.replace("\"nat\"", "\"snat\""),
            "shop",
            "needs a table of connections, and the balancer started without one: write [flow_table]",
        ),
        (EXEC.to_owned(), "other", "programs come only from"),
    ] {
        write(&text);
        let refused = bare.refused(&format!("drop-in apply {name} {path}"));
        assert!(refused.contains(why), "{why}: {refused}");
        assert_eq!(bare.services(), [("web".to_owned(), Some("shop".to_owned()))]);
    }
    let refused = bare.refused("drop-in show shpo");
    assert!(refused.contains("there is no drop-in \"shpo\"; did you mean \"shop\"?"), "{refused}");
    write(&shop);
    // The file takes an address of the drop-in: a reload is refused, a start leaves the service of the drop-in out.
    let mut bare = bare;
    let head = fs::read_to_string(bare.site.config()).unwrap().replace("service = []\n", "");
    fs::write(bare.site.config(), head + &shop.replace("\"web\"", "\"api\"")).unwrap();
    let refused = bare.refused(&format!("apply {}", bare.site.config().display()));
    assert!(refused.contains("is service api already"), "{refused}");
    bare.site.restart_with_the_file_as_it_is().unwrap();
    assert_eq!(bare.services(), [("api".to_owned(), None)]);
    let events = bare.cli("events");
    assert!(events.contains("service web of drop-in shop is left out: "), "{events}");
}
