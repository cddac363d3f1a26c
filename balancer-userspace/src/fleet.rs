//! The command `balancer fleet`.

use balancer_api::{
    client::{Client, ClientError},
    model::{FleetMember, FleetSnapshot},
};
use balancer_config::words::grouped;
use hyper::StatusCode;

use super::{
    Failure,
    output::{self, Table},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let fleet = client.fleet().await?;
    if args.json {
        output::print_json(&fleet)?;
    } else {
        output::print(&render(&fleet))?;
    }
    Ok(())
}

/// Returns the state of the fleet, if this balancer belongs to one.
pub(super) async fn found(client: &Client) -> Result<Option<FleetSnapshot>, Failure> {
    match client.fleet().await {
        Ok(fleet) => Ok(Some(fleet)),
        Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Formats a line such as `fleet site1: this is lb1, epoch 12, 3 of 3 members ready`.
pub(super) fn line(fleet: &FleetSnapshot) -> String {
    let ready = fleet.members.iter().filter(|member| member.ready == "ready").count();
    let epoch = fleet.epoch.map_or_else(|| "no epoch yet".to_owned(), |epoch| format!("epoch {}", grouped(epoch)));
    let engine = match (&fleet.engine.denial, fleet.engine.reachable) {
        (Some(_), _) => ", etcd takes no writes",
        (None, false) => ", etcd is out of reach",
        (None, true) => "",
    };
    let (name, member, members) = (&fleet.name, &fleet.member, fleet.members.len());
    let files = files(fleet);
    format!("fleet {name}: this is {member}, {epoch}, {ready} of {members} members ready{engine}{files}")
}

/// Names the members whose configuration files differ from the file that the fleet applied last.
fn files(fleet: &FleetSnapshot) -> String {
    let differing = fleet.members.iter().filter(|member| member.file_differs).map(|member| member.name.as_str());
    let (own, others): (Vec<&str>, Vec<&str>) = differing.partition(|name| *name == fleet.member);
    let others = others.join(", ");
    let who = match (own.is_empty(), others.is_empty()) {
        (true, true) => return String::new(),
        (false, true) => "its file says".to_owned(),
        (true, false) => format!("the files of {others} say"),
        (false, false) => format!("its file and those of {others} say"),
    };
    format!(", {who} other services than the fleet's last one")
}

fn render(fleet: &FleetSnapshot) -> String {
    let mut text = format!("{}\n", line(fleet));
    for trouble in fleet.troubles.iter().chain(&fleet.engine.warnings) {
        text.push_str(&format!("WARNING: {trouble}\n"));
    }
    text.push('\n');
    text.push_str(&members(fleet));
    text.push_str(&engine(fleet));
    text.push_str(&records(fleet));
    text
}

fn members(fleet: &FleetSnapshot) -> String {
    let mut table = Table::new(&["MEMBER", "VERSION", "STATE", ">EPOCH", ">LAG", "VOTES THAT DIFFER"]);
    for FleetMember { name, version, ready, epoch, lag_seconds, votes_differ, .. } in &fleet.members {
        let leads = if fleet.leader.as_ref() == Some(name) { " (leads)" } else { "" };
        table.row([
            format!("{name}{leads}"),
            version.clone(),
            ready.replace('_', " "),
            epoch.map_or_else(|| "-".to_owned(), grouped),
            format!("{lag_seconds:.1} s"),
            votes_differ.join(", "),
        ]);
    }
    table.render()
}

fn engine(fleet: &FleetSnapshot) -> String {
    let engine = &fleet.engine;
    let state = match (&engine.denial, engine.reachable) {
        (Some(why), _) => format!("takes no writes ({why})"),
        (None, true) => "reachable".to_owned(),
        (None, false) => "out of reach".to_owned(),
    };
    let quota = engine.database_quota_bytes.map(|quota| format!(" of {}", grouped(quota))).unwrap_or_default();
    let endpoint = engine.endpoint.as_deref().unwrap_or("no endpoint");
    let leader = engine.leader.as_deref().unwrap_or("not known");
    let trouble = engine.trouble.as_ref().map(|trouble| format!("etcd: {trouble}\n")).unwrap_or_default();
    format!(
        "\netcd {} at {endpoint}: {state}, its leader {leader}, database {}{quota} bytes, {} bytes sent, {} received\n{trouble}",
        engine.version,
        grouped(engine.database_bytes),
        grouped(engine.bytes_sent),
        grouped(engine.bytes_received),
    )
}

fn records(fleet: &FleetSnapshot) -> String {
    let records = &fleet.records;
    let dropped = records.dropped.iter().filter(|&(_, &count)| count > 0);
    let dropped: String = dropped.map(|(reason, &count)| format!(", {} dropped ({reason})", grouped(count))).collect();
    let conflicts = grouped(records.conflicts);
    let (told, taken_over) = (grouped(records.told), grouped(records.taken_over));
    format!("records: {told} told, {taken_over} taken over{dropped}, {conflicts} conflicts\n")
}
