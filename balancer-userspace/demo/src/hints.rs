//! Commands that a user may try from another terminal.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::Result;
use balancer_api::model::StatusView;

use crate::{
    config::name,
    hosts::{Hosts, SPARE},
    load,
    topology::Family,
};

/// Prints the commands in a form that users can copy.
pub(crate) fn print(hosts: &mut Hosts, status: &StatusView) -> Result<()> {
    let text = text(hosts, status)?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn text(hosts: &mut Hosts, status: &StatusView) -> Result<String> {
    let started: Vec<(String, u32)> = (hosts.running.backends.iter_mut())
        .map(|backend| (backend.process().what().to_owned(), backend.process().pid()))
        .collect();
    let balancer = hosts.program().display();
    let topology = &hosts.topology;
    let client = load::address(topology, 7);
    let mut text = String::new();
    for interface in &status.interfaces {
        writeln!(
            text,
            "Balancer on {} of namespace {} ({} XDP), log in {}",
            interface.name,
            topology.balancer().name(),
            interface.xdp_mode,
            hosts.log().display()
        )?;
    }
    let pids = started.iter().map(|(name, pid)| format!("{name} {pid}")).collect::<Vec<_>>().join(", ");
    let victim = started.first().map_or(0, |&(_, pid)| pid);
    writeln!(text, "\nTry from another terminal (as root):")?;
    writeln!(text, "  first                 export BALANCER_SOCKET={}", hosts.socket().display())?;
    writeln!(text, "  drain a backend       {balancer} backend drain web/web2")?;
    writeln!(text, "  and take it back      {balancer} backend ready web/web2")?;
    writeln!(text, "  kill a backend        kill {victim}        # process ids: {pids}")?;
    writeln!(text, "  start it again        {}", hosts.start_command(0))?;
    writeln!(text, "  start one more        {}", hosts.start_command(SPARE))?;
    writeln!(
        text,
        "  and put it to use     {balancer} backend add web/{} {}",
        name(SPARE),
        hosts.backend_address(SPARE)
    )?;
    writeln!(
        text,
        "  ask as a client       ip netns exec {} curl --interface {client} http://{}/",
        topology.client().name(),
        topology.vip(Family::V4)
    )?;
    writeln!(text, "  where a client goes   {balancer} client where {client}")?;
    writeln!(text, "  all there is to see   {balancer} status\nCtrl-C ends the demo and removes everything.\n")?;
    Ok(text)
}
