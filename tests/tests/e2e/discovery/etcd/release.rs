//! Tests of an etcd that is away, which take longer than a landing has time for.

use balancer_testkit::{etcd::Options, topology::Family};

use super::{Place, SOURCE, keys};
use crate::discovery::{reasons, wait_until};

#[test]
fn when_etcd_is_away_then_the_last_pool_stays_also_over_a_restart_and_what_changed_comes_with_it() {
    let tls = Options { tls: true, ..Options::default() };
    let mut place = Place::adapted(&tls, SOURCE, keys, |settings| settings.on_exit = "keep");
    place.wait_for(&["web1 ready 100", "web2 ready 100"]);
    let first = place.homes();
    place.etcd.kill(0).unwrap();
    wait_until("silence is told", || {
        reasons(&place.site).contains("its backends stay as they are: etcd /services/web/: ")
    });
    place.site.restart(|_| {}).unwrap();
    place.wait_for(&["web1 ready 100", "web2 ready 100"]);
    assert_eq!(place.homes(), first);
    wait_until("it is told again", || reasons(&place.site).contains("etcd /services/web/: "));
    place.etcd.start_member(0, &place.site.topology().backends()[3]).unwrap();
    let address = place.site.topology().backend_address(Family::V4, 3);
    place.etcd.wait_until_well(&place.site.topology().backends()[3], address).unwrap();
    place.put("/services/web/web3", &place.at(3));
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 ready 100"]);
    wait_until("all is well", || reasons(&place.site).is_empty());
    assert_eq!(place.homes(), first);
}
