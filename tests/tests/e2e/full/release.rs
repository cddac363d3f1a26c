//! Tests of `when_full`, which take longer than a landing has time for.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use balancer_testkit::{site::Site, topology::Family};

use super::{KNOWN, all_work, answers, backends, limit, open, site};
use crate::support::wait;

#[test]
fn when_all_backends_have_as_many_connections_as_they_may_then_when_full_decides_and_known_clients_stay() {
    const PATIENCE: Duration = Duration::from_secs(3);
    let mut site = site("");
    let known = answers(&site, KNOWN);
    let mut streams = Vec::new();
    for backend in ["web1", "web2", "web3"] {
        limit(&site, backend, 2);
        streams.extend(open(&site, backend, 2));
    }
    wait("they are not full", || (1..=3).flat_map(|number| backends(&site, number)).all(|backend| backend.full));
    let mut newcomer = 200;
    let mut new_client = |site: &Site| -> Vec<io::Result<u16>> {
        newcomer += 1;
        let asked = |family| site.ask(family, [newcomer], PATIENCE).unwrap().remove(0).map(|reply| reply.status);
        Family::BOTH.map(asked).into()
    };
    for (word, error) in [("reject", ErrorKind::ConnectionRefused), ("drop", ErrorKind::TimedOut)] {
        site.apply(|settings| settings.service_lines = format!("when_full = \"{word}\"")).unwrap();
        let new = new_client(&site);
        assert!(new.iter().all(|answer| answer.as_ref().is_err_and(|is| is.kind() == error)), "{word}: {new:?}");
        assert_eq!(answers(&site, KNOWN), known, "{word}: a known client moved");
        all_work(&mut streams);
    }
    site.restart(|_| ()).unwrap();
    let new = new_client(&site);
    assert!(new.iter().all(Result::is_err), "after a restart: {new:?}");
    site.apply(|settings| settings.service_lines = "when_full = \"open\"".to_owned()).unwrap();
    let new = new_client(&site);
    assert!(new.iter().all(|answer| matches!(answer, Ok(200))), "{new:?}");
    all_work(&mut streams);

    // With `when_full = "drop"`, the balancer serves new clients as soon as connections have ended.
    site.apply(|settings| settings.service_lines = "when_full = \"drop\"".to_owned()).unwrap();
    drop(streams);
    wait("they have no room", || (1..=3).flat_map(|number| backends(&site, number)).all(|backend| !backend.full));
    let new = new_client(&site);
    assert!(new.iter().all(|answer| matches!(answer, Ok(200))), "{new:?}");
    assert_eq!(answers(&site, KNOWN), known);
    assert_eq!(site.metrics().unwrap().sum("moves_total", &[]).unwrap_or(0.0), 0.0);
}
