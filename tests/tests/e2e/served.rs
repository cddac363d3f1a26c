//! Tests of the share of handshakes that clients complete: the balancer must not look healthy while its clients get no
//! answers, whatever its health checks find.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, TcpStream};

use balancer_api::model::{BackendView, HandshakesView};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, PORT, Site},
    topology::{Family, Shape},
};

use crate::support::wait;

/// The number of clients; the balancer judges from 20 handshakes on.
const CLIENTS: u16 = 30;

fn ready(site: &Site) -> String {
    String::from_utf8(site.output(&["ready"]).unwrap().stdout).unwrap()
}

fn handshakes(site: &Site) -> HandshakesView {
    let backends = site.status().unwrap().services.remove(0).backends;
    let all = backends.into_iter().filter_map(|BackendView { handshakes, .. }| handshakes);
    all.fold(HandshakesView::default(), |sum, of| HandshakesView {
        completed: sum.completed + of.completed,
        unanswered: sum.unanswered + of.unanswered,
    })
}

/// Begins a connection of each client, and gives it up before the client's SYN comes again.
fn knock(site: &Site) {
    let vip = SocketAddr::new(site.topology().vip(Family::V4), PORT);
    let knock = move |client| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(client, 0).into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _in_progress = socket.connect(&vip.into());
        TcpStream::from(socket)
    };
    let topology = site.topology();
    let clients: Vec<_> = (1..=CLIENTS).map(|client| topology.client_address(Family::V4, client)).collect();
    topology.client().run_in_thread(move || drop(clients.into_iter().map(knock).collect::<Vec<_>>())).unwrap();
}

/// A step to fewer steered clients is never refused; a step to more is, unless the operator forces it.
fn only_a_forced_step_steers_more(site: &Site) {
    site.cli(&["service", "steer", "web", "50"]).unwrap();
    for refused in [&["service", "steer", "web", "100"][..], &["plan", "service", "steer", "web", "100"]] {
        let output = site.output(refused).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in ["nothing was changed: clients of web completed ", "`balancer doctor web`", "use --force"] {
            assert!(said.contains(part), "{said}");
        }
    }
    assert_eq!(site.status().unwrap().services[0].steer, 50);
    site.cli(&["plan", "service", "steer", "web", "100", "--force"]).unwrap();
    site.cli(&["service", "steer", "web", "100", "--force"]).unwrap();
}

/// The servers answer the checks of the balancer, and their answers to clients go nowhere.
#[test]
fn when_answers_reach_no_client_then_the_balancer_is_degraded_until_clients_are_served() {
    for forwarding in [Forwarding::Nat, Forwarding::Dsr] {
        let site = Site::start(Shape::OneLegged, forwarding, 2, |settings, _| {
            settings.families = vec![Family::V4];
            Ok(())
        })
        .unwrap();
        let clients = 1..=CLIENTS;
        wait("no completed handshake is counted", || {
            site.ask(Family::V4, clients.clone(), PATIENCE).unwrap().into_iter().for_each(|reply| drop(reply.unwrap()));
            handshakes(&site).completed >= u64::from(CLIENTS)
        });
        assert_eq!((handshakes(&site).unanswered, ready(&site).as_str()), (0, "ready\n"));
        assert!(site.cli(&["status"]).unwrap().contains("100%"));

        let change = |verb: &str| {
            for client in clients.clone() {
                let client = site.topology().client_address(Family::V4, client);
                site.topology().backends().iter().for_each(|host| {
                    host.ip(&format!("route {verb} blackhole {client}/32")).unwrap();
                });
            }
        };
        change("add");
        let reason = "clients of web complete less than half of their handshakes: `balancer doctor web`";
        wait("the balancer is not degraded", || {
            knock(&site);
            ready(&site).contains(reason)
        });
        let unanswered = site.metrics().unwrap().sum("handshakes_total", &["outcome=\"unanswered\""]);
        assert!(unanswered.as_ref().is_ok_and(|&count| count > f64::from(CLIENTS)), "{unanswered:?}");
        assert!(site.status().unwrap().services[0].backends.iter().all(|backend| backend.state == "up"));
        only_a_forced_step_steers_more(&site);

        change("del");
        wait("the balancer is still degraded", || {
            site.ask(Family::V4, clients.clone(), PATIENCE).unwrap().into_iter().for_each(|reply| drop(reply.unwrap()));
            ready(&site) == "ready\n"
        });
    }
}
