//! The section of the page about the fleet.

use balancer_config::words::grouped;
use balancer_control::fleet::{FleetMember, FleetSnapshot};
use maud::{Markup, html};

pub(super) fn fleet(fleet: &FleetSnapshot) -> Markup {
    html! {
        section aria-labelledby="fleet" {
            h2 #fleet { "Fleet " (fleet.name) }
            p { (line(fleet)) }
            @for trouble in fleet.troubles.iter().chain(&fleet.engine.warnings) { p { (trouble) } }
            table {
                caption { "Members" }
                thead { tr {
                    th scope="col" { "Member" }
                    th scope="col" { "State" }
                    th.number scope="col" { "Epoch" }
                    th.number scope="col" { "Lag" }
                    th scope="col" { "Sees otherwise" }
                } }
                tbody { @for of in &fleet.members { (member(fleet, of)) } }
            }
        }
    }
}

fn line(fleet: &FleetSnapshot) -> String {
    let epoch = fleet.epoch.map_or_else(|| "no epoch yet".to_owned(), |epoch| format!("epoch {}", grouped(epoch)));
    let etcd = match (&fleet.engine.denial, fleet.engine.reachable) {
        (Some(why), _) => format!("etcd takes no writes ({why}): changes are refused"),
        (None, true) => "etcd is reachable".to_owned(),
        (None, false) => "etcd is out of reach: changes are refused".to_owned(),
    };
    format!("This is {}, {epoch}; {etcd}.", fleet.member)
}

fn member(fleet: &FleetSnapshot, member: &FleetMember) -> Markup {
    let FleetMember { name, ready, epoch, lag_seconds, votes_differ, .. } = member;
    html! {
        tr {
            th scope="row" { (name) @if fleet.leader.as_ref() == Some(name) { " (leads)" } }
            td { (ready.replace('_', " ")) }
            td.number { (epoch.map_or_else(|| "-".to_owned(), grouped)) }
            td.number { (format!("{lag_seconds:.1} s")) }
            td { (votes_differ.join(", ")) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_members_are_behind_then_the_page_shows_it() {
        let text = fleet(&FleetSnapshot::example()).into_string();
        for part in ["Fleet site1", "This is lb1, epoch 7; etcd is reachable.", "lb1 (leads)", "2.5 s", "web/web2"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let mut alone = FleetSnapshot::example();
        alone.engine.reachable = false;
        assert!(fleet(&alone).into_string().contains("out of reach"));
    }
}
