//! A test of `interfaces` that lack the interface towards `nat` and `snat` backends: replies do not reach the program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use balancer_testkit::{
    binaries,
    site::{QUICK_HTTP_CHECK, Settings, Site},
    topology::{Family, Shape},
};

use super::fault::{TRANSLATED, examine};
use crate::support::wait;

/// The standard error of `balancer check` on the balancer's host.
fn check(site: &Site) -> String {
    let mut command = site.topology().balancer().command(binaries::balancer().unwrap());
    let output = command.arg("check").arg(site.config()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The sites of all tests have the hash key of an example.
    let lines = String::from_utf8_lossy(&output.stderr);
    lines.split_inclusive('\n').filter(|line| !line.contains("the hash key is that of an example")).collect()
}

#[test]
fn when_interfaces_lack_the_side_of_the_backends_then_every_view_says_so_until_it_is_named() {
    for forwarding in TRANSLATED {
        let mut site = Site::start(Shape::TwoLegged, *forwarding, 2, |settings, _| {
            settings.interfaces = vec!["eth0".to_owned()];
            settings.check = QUICK_HTTP_CHECK.to_owned();
            Ok(())
        })
        .unwrap();
        for number in 1..=2 {
            site.wait_state(number, &["up"]).unwrap();
        }
        let served = site.ask(Family::V4, 1..=4, Duration::from_secs(2)).unwrap();
        assert!(served.iter().all(Result::is_err), "{forwarding:?}: the fault breaks connections");
        println!("{}", site.cli(&["status"]).unwrap());
        println!("{}", String::from_utf8_lossy(&site.output(&["doctor"]).unwrap().stdout));
        println!("check: {}", check(&site));

        let reason = "the program is not on eth1, by which replies of web/web1, web/web2 come in: name eth1 in `interfaces` as well";
        let events = site.cli(&["events"]).unwrap();
        assert!(events.contains(&format!("degraded: {reason}")), "the start warns: {events}");
        assert_eq!(site.cli(&["ready"]).unwrap(), format!("degraded: {reason}\n"));
        let backends = site.status().unwrap().services.remove(0).backends;
        assert!(backends.iter().all(|backend| backend.unattached.as_deref() == Some("eth1")), "{backends:?}");
        let shown = site.cli(&["status"]).unwrap();
        let lines = shown.matches("its replies come in by eth1, which lacks the program").count();
        assert_eq!(lines, 2, "{shown}");
        let line = "interfaces = [\"eth0\", \"eth1\"]";
        let checked = check(&site);
        assert!(
            checked.contains("warning: on this machine, eth1 leads to web/web1, web/web2") && checked.contains(line)
        );
        // No further client is steered into the fault.
        site.cli(&["service", "steer", "web", "50"]).unwrap();
        let refused = site.cli(&["service", "steer", "web", "100"]).unwrap_err().to_string();
        let words = "nothing was changed: replies of web/web1 come in by eth1, which lacks the program";
        assert!(refused.contains(words), "{refused}");
        site.cli(&["service", "steer", "web", "100", "--force"]).unwrap();
        let (code, report) = examine(&site, &[]);
        assert_eq!((code, report.findings.len()), (1, 1), "{report:?}");
        assert_eq!(report.findings[0].kind, "not-attached");
        assert!(report.findings[0].cure.commands[0].ends_with(line), "{report:?}");

        // As the doctor says.
        let both = |settings: &mut Settings| settings.interfaces = ["eth0", "eth1"].map(str::to_owned).to_vec();
        site.apply(both).unwrap();
        assert_eq!(site.homes(Family::V4, 1..=4).unwrap().len(), 4, "{forwarding:?}");
        wait("it is still degraded", || site.cli(&["ready"]).unwrap() == "ready\n");
        assert_eq!(check(&site), "");
        assert_eq!(examine(&site, &[]).1.findings, []);

        // A route that changes later is seen as well.
        if *forwarding == TRANSLATED[0] {
            let balancer = site.topology().balancer();
            balancer.ip("link add other0 type veth peer name other1").unwrap();
            balancer.ip("link set other1 up").unwrap();
            balancer.ip("link set other0 up").unwrap();
            balancer.ip("route add 10.0.0.11/32 dev other0").unwrap();
            balancer.ip("neigh replace 10.0.0.11 lladdr 02:00:00:00:00:99 dev other0").unwrap();
            let moved = "degraded: the program is not on other0, by which replies of web/web1 come in";
            wait("the new route is not seen", || site.cli(&["ready"]).unwrap().starts_with(moved));
            balancer.ip("route del 10.0.0.11/32 dev other0").unwrap();
            wait("the old route is not seen", || site.cli(&["ready"]).unwrap() == "ready\n");
        }
    }
}
