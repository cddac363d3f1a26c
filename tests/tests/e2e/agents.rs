//! Tests of agents on the backends that use HAProxy's protocol.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, TcpListener},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use balancer_api::model::BackendView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    namespace::Namespace,
    site::{PATIENCE, QUICK_CHECK, Site},
    topology::{Family, Shape},
};

use crate::support::wait;

pub(crate) const AGENTS: &str = "agent = { port = 9777, interval = \"1s\" }";
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=40;

/// The port of the servers that answer HTTP checks.
const HTTP: u16 = 9778;

/// An agent in the namespace of a backend, which ends with the test.
#[derive(Clone)]
pub(crate) struct Agent(Arc<Mutex<Option<&'static str>>>);

impl Agent {
    pub(crate) fn start(namespace: &Namespace, words: &'static str) -> Self {
        Self::listen(namespace, 9777, Some(words))
    }

    /// Starts a server of health checks. The server's answers contain the header of the agent if the test sets the
    /// header.
    pub(crate) fn serve_checks(namespace: &Namespace) -> Self {
        Self::listen(namespace, HTTP, None)
    }

    fn listen(namespace: &Namespace, port: u16, words: Option<&'static str>) -> Self {
        let (entrance, this) = (namespace.entrance(), Self(Arc::new(Mutex::new(words))));
        let (says, (ready, is_ready)) = (this.clone(), std::sync::mpsc::channel());
        thread::spawn(move || {
            entrance.enter().unwrap();
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
            ready.send(()).unwrap();
            let mut hanging = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                match *says.0.lock().unwrap() {
                    words if port == HTTP => {
                        let _ = stream.read(&mut [0; 1024]);
                        let header = words.map(|words| format!("X-Load: {words}\r\n")).unwrap_or_default();
                        let _ = write!(stream, "HTTP/1.1 200 OK\r\n{header}Content-Length: 0\r\n\r\n");
                    }
                    Some(words) => drop(writeln!(stream, "{words}")),
                    None => hanging.push(stream),
                }
            }
        });
        is_ready.recv().unwrap();
        this
    }

    pub(crate) fn says(&self, words: &'static str) {
        *self.0.lock().unwrap() = Some(words);
    }

    fn hangs(&self) {
        *self.0.lock().unwrap() = None;
    }
}

fn web1(site: &Site) -> BackendView {
    let services = site.status().unwrap().services;
    services.into_iter().flat_map(|service| service.backends).find(|backend| backend.name == "web1").unwrap()
}

pub(crate) fn wait_until(site: &Site, what: &str, is_so: impl Fn(&BackendView) -> bool) -> BackendView {
    let start = Instant::now();
    loop {
        let backend = web1(site);
        if is_so(&backend) {
            return backend;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}: {backend:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn says(backend: &BackendView) -> &str {
    backend.agent.as_ref().map_or("", |agent| &agent.says)
}

/// Starts a site in which the balancer asks the backends' agents.
pub(crate) fn site() -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.check = QUICK_CHECK.to_owned();
        settings.service_lines = AGENTS.to_owned();
        Ok(())
    })
    .unwrap()
}

#[test]
fn when_agents_lower_a_backend_then_it_takes_fewer_new_clients_and_keeps_those_that_it_knows() {
    let mut site = site();
    let backend = wait_until(&site, "up, with an agent that is silent", |backend| {
        backend.state == "up" && backend.agent.as_ref().is_some_and(|agent| agent.silent.is_some())
    });
    assert!(backend.reason.starts_with("its agent is silent: "), "{backend:?}");
    wait("both are silent", || site.metrics().unwrap().sum("agent_silent", &[]).unwrap() == 2.0);
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    let all_stay = |site: &Site| assert_eq!(site.homes(Family::V4, CLIENTS).unwrap(), homes);
    let whole = backend.slots;

    let agent = Agent::start(&site.topology().backends()[0], "75%");
    let backend = wait_until(&site, "75%", |backend| says(backend) == "75%");
    assert_eq!((backend.weight, backend.agent.as_ref().unwrap().weight_percent), (100, 75));
    assert!(backend.slots < whole && backend.slots > 0, "{backend:?}");
    let shown = site.cli(&["status"]).unwrap();
    assert!(shown.contains("100 × 75%") && shown.contains("its agent says 75%"), "{shown}");
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("backend web/web1 has an agent that says 75%"), "{events}");
    assert_eq!(site.metrics().unwrap().sum("agent_weight_ratio", &["backend=\"web1\""]).unwrap(), 0.75);
    all_stay(&site);

    // Known clients stay at the backend during a drain that the agent requests. In the status, the operator's state is
    // separate from the agent's state.
    agent.says("drain");
    let backend = wait_until(&site, "drained", |backend| backend.state == "draining");
    assert_eq!((&*backend.admin, &*backend.reason, backend.slots), ("ready", "its agent says drain", 0));
    all_stay(&site);

    // If the agent hangs or sends a malformed answer, the balancer changes nothing.
    agent.hangs();
    let backend =
        wait_until(&site, "silent", |backend| backend.reason.contains("its agent is silent: no answer within"));
    assert_eq!((says(&backend), &*backend.state), ("75%, drain", "draining"));
    agent.says("HTTP/1.0 200 OK");
    wait_until(&site, "nonsense", |backend| backend.reason.contains("its agent is silent: says \"HTTP/1.0 200 OK\""));

    // The state that the agent has reported survives a restart of the balancer. After the restart, the balancer asks
    // the agent again.
    site.restart(|_| {}).unwrap();
    assert_eq!((says(&web1(&site)), &*web1(&site).state), ("75%, drain", "draining"));
    agent.says("ready 100%");
    wait_until(&site, "it is back", |backend| backend.state == "up" && backend.slots == whole);
    all_stay(&site);

    // The agent's answer "down" moves the backend's clients. The agent's answer "up" does not override failed checks.
    agent.says("down #deploy of v2");
    let backend = wait_until(&site, "down", |backend| backend.state == "down");
    assert_eq!(backend.reason, "its agent says down: deploy of v2");
    assert!(site.homes(Family::V4, CLIENTS).unwrap().values().all(|home| home == "web2"));
    site.kill_backend(1).unwrap();
    agent.says("up");
    let backend = wait_until(&site, "its checks decide", |backend| says(backend) == "100%" && backend.state == "down");
    assert!(!backend.reason.contains("agent says"), "{backend:?}");

    // Without the configuration key, the balancer does not ask the agent and ignores earlier answers.
    agent.says("maint");
    wait_until(&site, "maint", |backend| backend.state == "maint");
    site.apply(|settings| settings.service_lines.clear()).unwrap();
    wait_until(&site, "no agent", |backend| backend.agent.is_none() && backend.state != "maint");
}

#[test]
fn when_answers_to_http_checks_have_words_of_agents_then_these_count_for_as_long_as_they_come() {
    let mut agents = Vec::new();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, topology| {
        let quick = r#"interval = "300ms", timeout = "300ms", fast_interval = "100ms", fall = 5"#;
        settings.remember = "10m";
        settings.check = format!(r#"{{ type = "http", port = {HTTP}, {quick} }}"#);
        agents.extend(topology.backends().iter().map(Agent::serve_checks));
        Ok(())
    })
    .unwrap();
    let backend = wait_until(&site, "up", |backend| backend.state == "up");
    assert!(backend.agent.is_none(), "nobody has said a word: {backend:?}");
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    let all_stay = |site: &Site| assert_eq!(site.homes(Family::V4, CLIENTS).unwrap(), homes);
    let whole = backend.slots;
    let agent = &agents[0];

    // A header of the same name may come from another program; the balancer ignores values of such a header.
    agent.says("0.53");
    thread::sleep(Duration::from_secs(1));
    assert!(web1(&site).agent.is_none());
    agent.says("75%");
    let backend = wait_until(&site, "75%", |backend| says(backend) == "75%");
    assert!(backend.slots < whole && backend.slots > 0, "{backend:?}");
    let shown = site.cli(&["status"]).unwrap();
    assert!(shown.contains("100 × 75%") && shown.contains("its agent says 75%"), "{shown}");
    all_stay(&site);
    agent.says("0.53");
    wait_until(&site, "nonsense", |backend| {
        backend.reason.contains("its agent is silent: its header X-Load says \"0.53\"")
    });
    assert_eq!(says(&web1(&site)), "75%");

    // The state that the agent has reported survives a restart of the balancer.
    agent.says("drain");
    wait_until(&site, "drained", |backend| backend.state == "draining");
    all_stay(&site);
    site.restart(|_| {}).unwrap();
    assert_eq!(says(&web1(&site)), "75%, drain");

    // The balancer also checks a backend that is in the state `maint`. If an answer to a check lacks the header, the
    // balancer forgets the agent's state.
    agent.says("maint");
    wait_until(&site, "maint", |backend| backend.state == "maint");
    agent.hangs();
    let backend = wait_until(&site, "it is back", |backend| backend.state == "up" && backend.slots == whole);
    assert!(backend.agent.is_none(), "{backend:?}");
    assert_eq!(site.metrics().unwrap().sum("agent_weight_ratio", &[]).unwrap_or_default(), 0.0);
}
