//! Tests of healthy sites, in which every finding of the doctor would be a false alarm.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{QUICK_HTTP_CHECK, Site},
    topology::{Family, Shape},
};

use super::fault::{examine, lab};

/// Checks sites of both shapes, with services of both families, before and after clients have connected.
pub(super) fn nothing_is_found(forwarding: Forwarding) {
    for shape in [Shape::OneLegged, Shape::TwoLegged] {
        let site = lab(shape, forwarding, &Family::BOTH);
        let (code, report) = examine(&site, &[]);
        assert_eq!((code, &report.findings), (0, &Vec::new()), "{shape:?}, before clients came");
        for family in Family::BOTH {
            site.homes(family, 1..=12).unwrap();
        }
        let (code, report) = examine(&site, &["web"]);
        assert_eq!((code, &report.findings), (0, &Vec::new()), "{shape:?}, after clients came");
        for backend in ["web/web1", "web/web2"] {
            assert!(report.looked_at.iter().any(|line| line.starts_with(backend)), "{report:?}");
        }
    }
}

#[test]
fn when_a_nat_site_is_healthy_then_nothing_is_found() {
    nothing_is_found(Forwarding::Nat);
}

#[test]
fn when_a_gue_site_is_healthy_then_nothing_is_found() {
    nothing_is_found(Forwarding::Gue);
}

/// Checks a site whose backends have addresses of the other family.
pub(super) fn nothing_is_found_over_the_other_family(forwarding: Forwarding) {
    let adapt = |settings: &mut balancer_testkit::site::Settings, _: &_| {
        (settings.crossed, settings.check) = (true, QUICK_HTTP_CHECK.to_owned());
        settings.families = Family::BOTH.to_vec();
        Ok(())
    };
    let mut site = Site::start(Shape::OneLegged, forwarding, 2, adapt).unwrap();
    for number in 1..=2 {
        site.wait_state(number, &["up"]).unwrap();
    }
    let (code, report) = examine(&site, &[]);
    assert_eq!((code, &report.findings), (0, &Vec::new()), "{forwarding:?}");
}

#[test]
fn when_backends_are_of_the_other_family_then_a_healthy_site_has_no_finding() {
    nothing_is_found_over_the_other_family(Forwarding::Gue);
}

#[test]
fn when_a_service_is_unknown_then_the_nearest_name_is_said() {
    let site = lab(Shape::OneLegged, Forwarding::Nat, &[Family::V4]);
    let output = site.output(&["doctor", "wep"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("there is no service \"wep\"") && words.contains("web"), "{words}");
}
