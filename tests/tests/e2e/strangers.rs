//! Tests of a change that makes known clients unknown. The plan, the answer, the JSON output and the log announce the
//! number of forgotten clients, and a metric counts these clients. If the new file contains `renamed_from`, the clients
//! stay known.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use balancer_api::model::Applied;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{binaries, site::Site, users::Users};

use crate::support::wait;

const CLIENTS: u64 = 300;

fn users() -> Users {
    let mut users = Users::new(Forwarding::Nat, |settings| {
        settings.on_exit = "keep";
        settings.remember = "10m";
    });
    users.visit(1..=CLIENTS as u16);
    users
}

fn forgotten(site: &Site, service: &str) -> f64 {
    let labels = [&format!("service=\"{service}\"")[..], "cause=\"forgotten\""];
    site.metrics().unwrap().sum("moves_total", &labels).unwrap_or(0.0)
}

/// Edits the configuration file, and applies the file after a dry run. The function checks that the dry run and the
/// change report the same effects on known clients.
fn apply(site: &Site, edit: impl Fn(&str) -> String) -> Applied {
    let file = site.config();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, edit(&text)).unwrap();
    let path = file.to_str().unwrap();
    let of = |arguments: &[&str]| -> Applied { serde_json::from_str(&site.cli(arguments).unwrap()).unwrap() };
    let planned = of(&["apply", path, "--dry-run", "--json"]);
    let shown = site.cli(&["apply", path, "--dry-run"]).unwrap();
    let applied = of(&["apply", path, "--json"]);
    assert_eq!(planned.services, applied.services);
    assert_eq!(planned.message, applied.message);
    for of in planned.services.iter().filter(|of| of.known_clients_forgotten > 0) {
        let why = of.forgotten_because.as_deref().unwrap();
        let line = format!("{} known clients would be forgotten: {why}", of.known_clients_forgotten);
        assert!(shown.contains(&line), "{shown}");
    }
    applied
}

fn log(site: &Site) -> String {
    fs::read_to_string(site.files().join("balancer.log")).unwrap()
}

#[test]
fn when_client_prefix_or_name_changes_then_the_loss_of_clients_is_reported() {
    let mut users = users();
    let applied = apply(&users.site, |text| text.replace("v4 = 32", "v4 = 31"));
    assert!(applied.message.ends_with(", 300 known clients forgotten"), "{}", applied.message);
    assert_eq!(applied.services[0].forgotten_because.as_deref(), Some("client_prefix is another"));
    assert!(log(&users.site).contains(&applied.message));
    assert_eq!(forgotten(&users.site, "web"), 300.0);
    let moved = users.visit(1..=CLIENTS as u16);
    println!("client_prefix: {} of 300 clients moved", moved.len());
    assert!(moved.len() > 100);
    // Each two addresses are now one client, so the service has half as many clients as addresses.
    let applied = apply(&users.site, |text| text.replace("name = \"web\"", "name = \"www\""));
    let gone = applied.services.iter().find(|of| of.service == "web").unwrap();
    assert!(gone.removed && gone.known_clients_forgotten == 151, "{gone:?}");
    assert!(applied.message.ends_with(", 151 known clients forgotten"), "{}", applied.message);
    assert!(log(&users.site).contains("if it is called www now, renamed_from = \"web\" there keeps its known clients"));
    // The service that has taken over the address counts the forgotten clients.
    let text = users.site.metrics_text().unwrap();
    let moves: Vec<&str> = text.lines().filter(|line| line.contains("moves_total") && !line.ends_with(" 0")).collect();
    assert_eq!(forgotten(&users.site, "www"), 151.0, "{moves:#?} {applied:?}");

    // A restart with a changed file has the same effect as applying the file.
    users.visit(1..=CLIENTS as u16);
    let file = users.site.config();
    let text = fs::read_to_string(&file).unwrap();
    users.site.kill_and_restart(|settings| settings.prefix_v4 = 30).unwrap();
    assert!(fs::read_to_string(&file).unwrap() != text);
    assert!(log(&users.site).contains("the configuration has changed, 151 known clients forgotten"));
    assert_eq!(forgotten(&users.site, "web"), 151.0);
}

#[test]
fn when_a_service_and_backend_are_renamed_then_their_clients_stay() {
    let mut users = users();
    for arguments in [vec!["backend", "weight", "web/web4", "50"], vec!["backend", "drain", "web/web3"]] {
        users.site.cli(&arguments).unwrap();
    }
    let address = users.site.topology().client_address(balancer_testkit::topology::Family::V4, 7).to_string();
    users.site.cli(&["rule", "add", "web", &format!("{address}/32"), "pin", "web2"]).unwrap();
    users.visit([7]);
    let before = users.site.metrics().unwrap().sum("connections_total", &["backend=\"web2\""]).unwrap();
    let service = |text: &str| text.replace("name = \"web\"", "name = \"www\"\nrenamed_from = \"web\"");
    let backend = |text: &str| text.replace("name = \"web2\"", "name = \"new2\"\nrenamed_from = \"web2\"");
    let applied = apply(&users.site, |text| backend(&service(text)));
    assert!(applied.message.contains(": 0 of 65,537 slots moved, 0 needless"), "{}", applied.message);
    assert!(applied.services.is_empty(), "{applied:?}");
    for line in ["service web renamed www", "backend www/web2 renamed new2"] {
        assert!(log(&users.site).contains(line), "{line}");
    }
    let status = users.site.status().unwrap();
    let of = |name: &str| status.services[0].backends.iter().find(|backend| backend.name == name).unwrap().clone();
    assert_eq!(status.services[0].name, "www");
    assert_eq!((of("web4").weight, of("web3").state.as_str()), (50, "draining"));
    assert!(users.site.cli(&["rule", "list", "www"]).unwrap().contains("pin new2"));
    users.nobody_moves("when service and backend were renamed");
    let metrics = users.site.metrics().unwrap();
    let now = metrics.sum("connections_total", &["service=\"www\"", "backend=\"new2\""]).unwrap();
    assert!(now > before, "{before} connections, {now} under the new name");
    assert!(metrics.sum("connections_total", &["backend=\"web2\""]).is_err());
    assert_eq!(metrics.sum("moves_total", &["cause=\"forgotten\""]).unwrap_or(0.0), 0.0);
    // The balancer may write the state with the new names a moment later.
    let saved = || fs::read_to_string(users.site.files().join("state.json")).unwrap();
    wait("the new names are not saved", || ["\"www\"", "\"new2\""].iter().all(|name| saved().contains(name)));
    users.site.kill_and_restart_with_the_file_as_it_is().unwrap();
    users.nobody_moves("over a restart");

    // Without `renamed_from = "web"`, the service counts as a new service, so the balancer forgets the clients of the
    // old service.
    let applied = apply(&users.site, |text| text.replace("renamed_from = \"web\"\n", ""));
    assert_eq!(applied.services[0].forgotten_because.as_deref(), Some("it is hashed under another name"));
    assert!(applied.message.contains("300 known clients forgotten"), "{}", applied.message);
}

/// A pass over the service's client table has 64 steps, so that changes can happen between two steps.
#[test]
fn when_changes_come_during_a_pass_over_the_client_table_then_all_are_done() {
    let mut users = Users::new(Forwarding::Nat, |settings| {
        settings.on_exit = "keep";
        settings.remember = "10m";
        settings.lines = "[client_table]\ncapacity = 4000000".to_owned();
    });
    users.site.cli(&["backend", "weight", "web/web1", "10"]).unwrap();
    users.visit(1..=CLIENTS as u16);
    let text = fs::read_to_string(users.site.config()).unwrap();
    let file = |name: &str, remember: &str| {
        let path = users.site.files().join(name);
        fs::write(&path, text.replace("remember = \"10m\"", &format!("remember = \"{remember}\""))).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // The three values of `remember` have ticks of 1, 22 and 633 seconds.
    let files = [file("day.toml", "24h"), file("month.toml", "30d"), file("minutes.toml", "10m")];
    let address = users.site.topology().client_address(balancer_testkit::topology::Family::V4, 300).to_string();
    thread::scope(|scope| {
        let site = &users.site;
        let applies = files.iter().map(|file| vec!["apply", file]);
        let others = [vec!["backend", "weight", "web/web1", "100"], vec!["backend", "drain", "web/web3"]];
        let asked = [vec!["client", "where", &address], vec!["apply", &files[0], "--dry-run"], vec!["status"]];
        let commands: Vec<Vec<&str>> = applies.chain(others).chain(asked).collect();
        let run = |command: Vec<_>| scope.spawn(move || site.cli(&command).unwrap());
        let running: Vec<_> = commands.into_iter().map(run).collect();
        running.into_iter().for_each(|command| drop(command.join().unwrap()));
    });
    users.nobody_moves("by three changes of remember, a weight and a drain at once");
    assert_eq!(forgotten(&users.site, "web"), 0.0);

    // The test ends the controller in the middle of the pass, at different times.
    for (round, file) in [&files[1], &files[0]].into_iter().cycle().take(2).enumerate() {
        let mut command = Command::new(binaries::balancer().unwrap());
        command.args(["apply", file, "--socket"]).arg(users.site.files().join("balancer.sock"));
        let mut asking = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The moment at which the controller ends.
        thread::sleep(Duration::from_millis(40 + 25 * round as u64));
        users.site.restart(|_| {}).unwrap();
        asking.wait().unwrap();
        users.nobody_moves(&format!("over end {round}, with another remember before and after"));
    }
    let applied = apply(&users.site, |text| text.replace("v4 = 32", "v4 = 31"));
    assert!(applied.message.ends_with(", 300 known clients forgotten"), "{}", applied.message);
}
