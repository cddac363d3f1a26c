//! Tests of backends' agents: when the controller no longer uses an agent, it undoes exactly the changes that the agent
//! has caused.

use std::time::Duration;

use balancer_config::{
    agent::{Answer, Said},
    config::{AgentConfig, CheckConfig, CheckKind, HttpCheck, ServiceConfig, StatusRanges},
    fixture::{self, name, web},
    states::{Admin, BackendState, Forced},
};

use crate::{
    controller_test::Bench,
    io::{Change, Refused},
    service::WordsOf,
};

const WEB1: &str = "web/web1";

fn with_agents() -> ServiceConfig {
    let agent = Some(AgentConfig { port: 9777, interval: Duration::from_secs(5) });
    ServiceConfig { agent, remember: Duration::from_secs(600), ..web() }
}

impl Bench {
    /// A service whose backends have agents and pass their checks.
    fn with_agents() -> Self {
        let (mut bench, _) = Self::new(vec![with_agents()]);
        for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
            bench.pass(backend);
        }
        bench
    }

    fn says(&mut self, words: &str) -> String {
        let said = self.controller.agent_said(&name(WEB1)).unwrap().after(&Answer::parse(words.as_bytes()).unwrap());
        self.hears(said).unwrap()
    }

    fn hears(&mut self, said: Said) -> Result<String, Refused> {
        self.controller.change(Change::Agent { name: name(WEB1), said }, self.now).map(|(message, _)| message)
    }

    fn slots(&self) -> u32 {
        self.controller.backend(&name(WEB1)).unwrap().slots()
    }
}

#[test]
fn when_an_agent_says_a_percentage_then_that_part_of_the_weight_counts() {
    let mut bench = Bench::with_agents();
    let whole = bench.slots();
    let message = bench.says("50%");
    assert!(message.starts_with("backend web/web1 has an agent that says 50%: "), "{message}");
    let half = f64::from(bench.slots()) / 65_537.0;
    assert!((half - 50.0 / 350.0).abs() < 0.001, "{half}");
    assert_eq!(bench.shown(WEB1), (BackendState::Up, "its agent says 50%".to_owned()));
    assert_eq!(bench.says("52%"), "the agent of backend web/web1 says 50% as before: nothing changed");
    bench.says("0%");
    assert_eq!((bench.slots(), bench.shown(WEB1)), (0, (BackendState::Up, "its agent says 0%".to_owned())));
    assert!(bench.controller.backend(&name(WEB1)).unwrap().keeps_known(), "its known clients stay");
    bench.says("100%");
    assert_eq!((bench.slots(), bench.shown(WEB1).1), (whole, String::new()));
}

#[test]
fn when_an_operator_sets_a_weight_then_the_agents_part_of_it_counts() {
    let mut bench = Bench::with_agents();
    bench.says("50%");
    bench.controller.change(Change::SetWeight { name: name(WEB1), weight: 200 }, bench.now).unwrap();
    let quarter = f64::from(bench.slots()) / 65_537.0;
    assert!((quarter - 0.25).abs() < 0.001, "{quarter}");
    assert_eq!(bench.controller.backend(&name(WEB1)).unwrap().weight(), 200);
}

#[test]
fn when_an_agent_drains_or_stops_its_backend_then_it_does_as_an_operator_would_and_the_agent_takes_it_back() {
    let mut bench = Bench::with_agents();
    for (words, back, state, why) in [
        ("drain", "ready", BackendState::Draining, "its agent says drain"),
        ("maint", "ready", BackendState::Maint, "its agent says maint"),
        ("down #no disk", "up", BackendState::Down, "its agent says down: no disk"),
        ("stopped", "up", BackendState::Down, "its agent says down"),
    ] {
        bench.says(words);
        assert_eq!((bench.slots(), bench.shown(WEB1)), (0, (state, why.to_owned())), "{words}");
        assert_eq!(bench.controller.backend(&name(WEB1)).unwrap().admin(), Admin::Ready, "that is the operator's");
        let kept = format!("; it takes no new clients, because it is {}: {why}", state.word());
        let already = format!("backend web/web1 is ready already: nothing changed{kept}");
        assert_eq!(bench.admin(WEB1, Admin::Ready).0, already);
        bench.admin(WEB1, Admin::Maint);
        let ready = bench.admin(WEB1, Admin::Ready).0;
        assert!(ready.starts_with("backend web/web1 ready: ") && ready.ends_with(&kept), "{ready}");
        bench.says(back);
        bench.pass(WEB1);
        assert_eq!((bench.slots() > 0, bench.shown(WEB1)), (true, (BackendState::Up, String::new())), "{back}");
    }
}

#[test]
fn when_checks_fail_or_an_operator_drains_then_an_agent_cannot_raise_it() {
    let mut bench = Bench::with_agents();
    while bench.shown(WEB1).0 != BackendState::Down {
        bench.refuse(WEB1);
    }
    bench.hears(Said::default()).unwrap();
    assert_eq!(bench.shown(WEB1), (BackendState::Down, "connect: refused".to_owned()));
    bench.says("50% drain");
    bench.says("up ready 100%");
    assert_eq!(bench.shown(WEB1).0, BackendState::Down);
    while bench.shown(WEB1).0 != BackendState::Up {
        bench.pass(WEB1);
    }
    let admin = |admin| Change::SetAdmin { name: name(WEB1), admin, timeout: None };
    bench.controller.change(admin(Admin::Maint), bench.now).unwrap();
    bench.says("drain");
    bench.says("up ready 100%");
    assert_eq!(bench.shown(WEB1).0, BackendState::Maint);
    bench.controller.change(admin(Admin::Ready), bench.now).unwrap();
    bench.pass(WEB1);
    assert_eq!(bench.shown(WEB1).0, BackendState::Up);
}

#[test]
fn when_an_operator_forces_health_then_that_comes_before_the_agent() {
    let mut bench = Bench::with_agents();
    bench.says("down");
    bench.force(WEB1, Some(Forced::Up));
    assert_eq!(bench.shown(WEB1), (BackendState::Up, "forced up by operator".to_owned()));
    bench.force(WEB1, None);
    assert_eq!(bench.shown(WEB1), (BackendState::Down, "its agent says down".to_owned()));
}

#[test]
fn when_a_service_asks_no_agents_then_what_they_said_is_forgotten_and_no_more_is_heard() {
    let mut bench = Bench::with_agents();
    bench.says("maint");
    bench.reload(vec![ServiceConfig { agent: None, ..with_agents() }]).unwrap();
    assert_eq!(bench.controller.agent_said(&name(WEB1)), None);
    assert_ne!(bench.shown(WEB1).0, BackendState::Maint);
    assert_eq!(
        bench.hears(Said::default()),
        Err(Refused::Conflict("service web asks no agents and has no HTTP check".to_owned()))
    );
    bench.reload(vec![with_agents()]).unwrap();
    assert_eq!(bench.controller.agent_said(&name(WEB1)), Some(Said::default()));
}

#[test]
fn when_a_service_has_http_checks_then_their_answers_may_speak_until_agents_do() {
    let http = HttpCheck {
        port: None,
        tls: None,
        http2: false,
        method: "GET".to_owned(),
        path: "/".to_owned(),
        host: None,
        headers: Vec::new(),
        expect_status: StatusRanges(vec![(200, 399)]),
        expect_body: None,
    };
    let checked = ServiceConfig {
        agent: None,
        check: CheckConfig { kind: CheckKind::Http(http), ..fixture::check() },
        ..with_agents()
    };
    let (mut bench, _) = Bench::new(vec![checked.clone()]);
    bench.pass(WEB1);
    assert_eq!(bench.controller.words_of(&name(WEB1)), Some(WordsOf::Checks));
    bench.says("50% maint");
    assert_eq!(bench.shown(WEB1), (BackendState::Maint, "its agent says maint".to_owned()));
    let service = bench.controller.services().iter().next().unwrap();
    assert!(service.checked_at(&service.backends()[0]).is_some(), "it could not take that back");

    // The new weight comes from the file, and the agent's report stays in effect.
    let mut file = checked.clone();
    file.backends[0].weight = 300;
    bench.reload(vec![file.clone()]).unwrap();
    assert_eq!(bench.shown(WEB1).0, BackendState::Maint);
    // The earlier report came from checks, and not from an agent.
    file.agent = with_agents().agent;
    bench.reload(vec![file.clone()]).unwrap();
    assert_eq!(bench.controller.words_of(&name(WEB1)), Some(WordsOf::Agents));
    assert_eq!(bench.controller.agent_said(&name(WEB1)), Some(Said::default()));
    // If this backend alone gets a different check, the controller also drops the report.
    bench.reload(vec![checked.clone()]).unwrap();
    bench.says("50%");
    let mut file = checked;
    file.backends[0].check = Some(Box::new(fixture::check()));
    bench.reload(vec![file]).unwrap();
    assert_eq!((bench.controller.words_of(&name(WEB1)), bench.shown(WEB1).1), (None, String::new()));
}

#[test]
fn when_a_file_is_applied_then_what_agents_said_stays() {
    let mut bench = Bench::with_agents();
    bench.says("50% drain");
    let mut file = with_agents();
    file.backends[0].weight = 300;
    bench.reload(vec![file]).unwrap();
    assert_eq!(bench.shown(WEB1).0, BackendState::Draining);
    bench.says("ready");
    let share = f64::from(bench.slots()) / 65_537.0;
    assert!((share - 150.0 / 450.0).abs() < 0.001, "{share}");
}
