//! Commands that a user may try from another terminal.

use anyhow::Result;
use balancer_common::map_types::Forwarding;
use serde::Serialize;
use serde_json::json;

use super::{Kind, member::BACKENDS, site::Lab};
use crate::{
    config::{backend_address, name},
    controller::SOCKET_VARIABLE,
    load,
    topology::Family,
};

/// A command line that users can copy.
#[derive(Clone, Debug, Serialize)]
struct Command {
    what: &'static str,
    command: String,
}

/// The commands as text for people.
pub(super) fn text(lab: &Lab) -> String {
    let lines: Vec<String> = commands(lab).iter().map(|line| format!("  {:<24}{}", line.what, line.command)).collect();
    format!(
        "Configurations, logs and sockets are in {}\n\nTry from another terminal (as root):\n{}\nCtrl-C ends the lab and \
         removes everything.\n",
        lab.files.path().display(),
        lines.join("\n")
    )
}

pub(super) fn json(lab: &Lab) -> Result<String> {
    Ok(serde_json::to_string(&json!({ "commands": commands(lab) }))?)
}

fn commands(lab: &Lab) -> Vec<Command> {
    let (balancer, files) = (lab.program.display(), lab.files.path().display());
    let cable = |state: &str| {
        // The port of the switch that leads to the first balancer.
        format!("ip -n {} link set balancer {state}", lab.topology.switch().name())
    };
    let kill = |name: &str| format!("kill -9 $(cat {files}/{name}.pid)");
    let start = |name: &str| format!("sh {files}/start-{name} &");
    let (spare, added) = (name(BACKENDS), backend_address(&lab.topology, Forwarding::Dsr, BACKENDS));
    let client = load::address(&lab.topology, 7);
    let mut lines = vec![
        ("first", format!("export {SOCKET_VARIABLE}={files}/lb2/balancer.sock")),
        ("look at the fleet", format!("{balancer} fleet")),
        ("kill a balancer", kill("lb1")),
        ("start it again", start("lb1")),
        ("pull its cable", cable("down")),
        ("and plug it in", cable("up")),
        ("take it out", format!("{balancer} --socket {files}/lb1/balancer.sock withdraw")),
        ("take it in", format!("{balancer} --socket {files}/lb1/balancer.sock announce")),
        ("kill an etcd", kill("etcd1")),
        ("start it again", start("etcd1")),
        ("drain a backend", format!("{balancer} backend drain web/web2")),
        ("and take it back", format!("{balancer} backend ready web/web2")),
        ("kill a backend", kill("web1")),
        ("start it again", start("web1")),
        ("start one more", start(&spare)),
        ("and put it to use", format!("{balancer} backend add web/{spare} {added}")),
        ("where a client goes", format!("{balancer} client where {client}")),
        (
            "ask as a client",
            format!(
                "ip netns exec {} curl --interface {client} http://{}/",
                lab.topology.client().name(),
                lab.topology.vip(Family::V4)
            ),
        ),
    ];
    if let Kind::Spread(_) = lab.kind {
        lines.push((
            "the router's next hops",
            format!("ip -n {} route show {}", lab.topology.router().name(), lab.topology.vip(Family::V4)),
        ));
    }
    lines.into_iter().map(|(what, command)| Command { what, command }).collect()
}
