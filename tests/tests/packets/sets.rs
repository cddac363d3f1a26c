//! Runs the rows of several modules with each set of features in `balancer-ebpf/verified.txt`, on a program that has
//! exactly these features.

use std::thread;

use balancer_common::{
    features::Features,
    verdict::{DropReason, Verdict},
};
use balancer_control::io::{RuleAction, RuleSpec};
use balancer_testkit::{
    frame::{Frame, SYN},
    rig::{Rig, Service, Setup},
};
use balancer_tests::verified::{FeatureSet, sets};

use crate::{
    cases, checksums, dsr, echo, extensions, families, flows, fragments, icmp_errors, jumbo, malformed, martian, nat,
    nat_return, pass,
    rows::{self, Row},
    too_big, tunnel, unavailable,
};

const BOTH: Features = Features::V4.and(Features::V6);
const DSR: Features = BOTH.and(Features::DSR);
const NAT: Features = BOTH.and(Features::NAT);
const STATELESS: Features = DSR.and(NAT).and(Features::TUNNEL);
const SNAT: Features = BOTH.and(Features::SNAT);

const CLIENT: &str = "203.0.113.7:40000";

/// Rows, and the features that they need.
type Table = (Features, &'static [Row]);

/// The rows for [`cases::services`].
const TABLES: [Table; 15] = [
    (DSR, dsr::ROWS),
    (NAT, nat::ROWS),
    (NAT, nat_return::ROWS),
    (NAT, checksums::ROWS),
    (Features::NONE, pass::ROWS),
    (STATELESS, echo::ROWS),
    (STATELESS, extensions::ROWS),
    (STATELESS, fragments::ROWS),
    (STATELESS, icmp_errors::ROWS),
    (STATELESS, jumbo::ROWS),
    (STATELESS, malformed::ROWS),
    (STATELESS, martian::ROWS),
    (STATELESS, too_big::ROWS),
    (STATELESS, tunnel::ROWS),
    (STATELESS, unavailable::ROWS),
];
/// The rows for [`flows::services`].
const FLOWS: [Table; 1] = [(SNAT, flows::ROWS)];
/// The rows for [`families::services`].
const CROSS: [Table; 1] = [(SNAT.and(Features::CROSS), families::ROWS)];

/// Runs the rows whose features the set has, and returns the names of the rows that failed.
fn failed(set: &FeatureSet, services: Vec<Service>, tables: &'static [Table]) -> Vec<String> {
    let features = set.features;
    let tables: Vec<_> = tables.iter().filter(|(needed, _)| features.has(*needed)).collect();
    if tables.is_empty() {
        return Vec::new();
    }
    let fits = |service: &Service| features.has(service.features().expect("a service"));
    let services: Vec<_> = services.into_iter().filter(fits).collect();
    let name = set.name;
    let work = move || {
        let mut rig = Rig::with(&services, &Setup { features, ..Setup::default() }).expect("a rig");
        let failed = tables.iter().flat_map(|(_, rows)| rows::failed(&mut rig, rows));
        let failed: Vec<_> = failed.map(|row| format!("{name}: {row}")).collect();
        assert_eq!(rig.features(), features, "a row needed more features than the set {name} has");
        failed
    };
    thread::spawn(work).join().expect("the thread of the rows panicked")
}

#[test]
fn when_the_program_has_one_set_of_features_then_the_rows_for_these_features_hold() {
    let mut all = Vec::new();
    for set in sets().expect("the sets of features") {
        all.extend(failed(&set, cases::services(), &TABLES));
        all.extend(failed(&set, flows::services(), &FLOWS));
        all.extend(failed(&set, families::services(), &CROSS));
    }
    assert!(all.is_empty(), "{} rows failed:\n{}", all.len(), all.join("\n"));
}

#[test]
fn when_a_rig_has_a_service_then_its_program_has_the_features_of_the_service_until_a_change_needs_more() {
    const VIP: &str = "198.51.100.10:80";
    let service = || cases::services().into_iter().find(|service| service.address == VIP);
    let work = move || {
        let mut rig = Rig::new(&[service().expect("the service")]).expect("a rig");
        assert_eq!(rig.features(), Features::V4 | Features::DSR);
        let action = |rig: &Rig| rig.run(&Frame::tcp(CLIENT, VIP, SYN).bytes()).expect("a run").action;
        assert_eq!(action(&rig), flows::XDP_TX);
        let deny = RuleSpec { prefix: "203.0.113.0/24".parse().expect("a prefix"), action: RuleAction::Deny };
        rig.set_rules(VIP, &[deny]).expect("rules");
        assert_eq!(rig.features(), Features::V4 | Features::DSR | Features::RULES);
        assert_eq!(action(&rig), flows::XDP_DROP);
        rig.reset().expect("a rig as new");
        assert_eq!(action(&rig), flows::XDP_TX);
        assert_eq!(rig.drops(DropReason::Denied).expect("counters"), 0);
        assert_eq!(rig.verdicts(Verdict::Tx).expect("counters"), 1);
    };
    thread::spawn(work).join().expect("the thread of the rig panicked");
}
