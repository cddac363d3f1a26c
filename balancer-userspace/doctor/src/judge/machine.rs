//! Findings about the machine and the controller as a whole.

use balancer_api::model::{Fitness, FleetSnapshot, FlowTableView, begin_of_unattached};
use balancer_common::verdict::DropReason;

use super::general;
use crate::{
    facts::{Controller, Facts, Hanging},
    finding::{Cure, Finding, Kind},
};

/// The oldest kernel version that has all required features.
const OLDEST: (u32, u32) = (6, 1);
/// The first kernel whose real-time variant cannot run the program.
const PREEMPTS: (u32, u32) = (6, 18);
/// The difference in seconds between two members' clocks above which members warn.
const CLOCKS: f64 = 2.0;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let Some(version) = version(&facts.kernel) else { return Vec::new() };
    let is_real_time = facts.kernel_build.split_whitespace().any(|word| word == "PREEMPT_RT");
    let (what, command, cure) = if version < OLDEST {
        let what = format!("Linux {} is too old: Linux 6.1 or newer is needed", facts.kernel);
        (what, "uname -r", "# install a newer kernel, and boot it")
    } else if is_real_time && version >= PREEMPTS {
        let what = format!(
            "Linux {} is a real-time kernel (PREEMPT_RT), in which packets of one CPU interrupt each other; the balancer \
             does not start there",
            facts.kernel
        );
        (what, "uname -v", "# boot a kernel without PREEMPT_RT")
    } else {
        return Vec::new();
    };
    vec![general(Kind::Kernel, what, command.to_owned(), Cure::here(&[cure.to_owned()]))]
}

/// The finding that the controller does not answer.
pub(super) fn hanging(Hanging { pid, stopped, waited_seconds }: &Hanging) -> Finding {
    let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    let (what, commands) = if *stopped {
        (format!("the controller (process {pid}) is stopped by a signal"), vec![format!("kill -CONT {pid}")])
    } else {
        let looks = vec![
            format!("# to see where it waits: cat /proc/{pid}/stack; journalctl -u balancer -n 50"),
            "# to start it again: systemctl restart balancer".to_owned(),
        ];
        (format!("the controller (process {pid}) does not answer"), looks)
    };
    let seen = format!("the process serves the control socket, and did not answer for {waited_seconds} s");
    general(Kind::Controller, what, seen, Cure::here(&commands))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Returns the findings that follow from the controller's own reports. If there is already a finding about a broken
/// interface (`is_known`), leaves out the consequences of that interface. Other findings are about the `unattached`
/// interfaces and the lists with the errors `unread`.
pub(super) fn of_controller<'a>(
    controller: &Controller,
    is_known: bool,
    unattached: impl Iterator<Item = &'a String> + Clone,
    unread: &[&str],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ready = &controller.after.ready;
    if ready.state != Fitness::Ready && !is_known {
        let other = |reason: &&String| {
            let of_interface = unattached.clone().any(|of| reason.starts_with(&begin_of_unattached(of)));
            !of_interface && !unread.iter().any(|error| reason.ends_with(error))
        };
        findings.extend(ready.reasons.iter().filter(other).map(|reason| {
            general(
                Kind::NotReady,
                format!("the balancer is {}: {reason}", ready.state.word().replace('_', " ")),
                "`balancer ready` says so".to_owned(),
                Cure::here(&["# to see more: balancer ready; balancer events --since 1h".to_owned()]),
            )
        }));
    }
    if controller.after.withdrawn {
        findings.push(general(
            Kind::Withdrawn,
            "the operator has withdrawn this balancer: it has no VIPs of `assign_vip`, and tells routers not to send it clients".to_owned(),
            "`balancer withdraw` was called, and `balancer announce` was not called since".to_owned(),
            Cure::here(&["balancer announce".to_owned()]),
        ));
    }
    findings.extend(controller.oom_kills.filter(|&kills| kills > 0).map(out_of_memory));
    findings.extend(client_table(controller));
    findings.extend(flow_table(controller));
    findings.extend(controller.after.flow_table.iter().flat_map(ports));
    findings.extend(controller.after.fleet.iter().flat_map(clocks));
    findings
}

fn out_of_memory(kills: u64) -> Finding {
    general(
        Kind::Memory,
        format!("the kernel has ended {kills} processes of the controller's control group for want of memory"),
        "memory.events of the control group".to_owned(),
        Cure::here(&["systemctl set-property balancer.service MemoryMax=infinity".to_owned()]),
    )
}

/// Returns a finding if the client table is too small, because the program evicts known clients or finds no room for
/// new clients.
fn client_table(controller: &Controller) -> Option<Finding> {
    let table = controller.after.client_table;
    let lost = table.evictions + table.unrecorded;
    let what = format!("the client table is too small: it has lost, or had no room for, {lost} clients");
    let full = (lost > 0).then_some((table.entries, table.capacity));
    too_small(Kind::ClientTable, "client_table", what, full?)
}

/// A finding if packets were dropped because the table of connections was full, and it is still nearly full.
fn flow_table(controller: &Controller) -> Option<Finding> {
    let table = controller.after.flow_table.as_ref()?;
    let lost = controller.after.drops.get(DropReason::FlowTableFull.label()).copied().unwrap_or(0);
    let what = format!("the table of connections is too small: {lost} packets of new connections were dropped");
    let full = (lost > 0).then_some((table.entries, table.capacity));
    too_small(Kind::FlowTable, "flow_table", what, full?)
}

/// A finding if at least nine tenths of a table's places are taken. The `section` of the configuration has the capacity.
fn too_small(kind: Kind, section: &str, what: String, (entries, capacity): (u64, u64)) -> Option<Finding> {
    let is_full = capacity > 0 && entries.saturating_mul(10) >= capacity.saturating_mul(9);
    is_full.then(|| {
        let twice = capacity.saturating_mul(2);
        let cure = format!("# set capacity = {twice} below [{section}] in the configuration, and restart the balancer");
        general(kind, what, format!("{entries} of {capacity} places are taken"), Cure::here(&[cure]))
    })
}

/// Findings about backends that soon can take no new connections, because the ports of their pool are taken.
fn ports(table: &FlowTableView) -> impl Iterator<Item = Finding> {
    table.full_pools.iter().map(|(name, part)| {
        let (service, backend) = name.split_once('/').unwrap_or((name, ""));
        let cure = "# give the service more addresses or a wider range of ports, \
                    snat = { addresses = [\"ADDRESS\", …], ports = \"20000-59999\" }, and apply the file";
        Finding {
            kind: Kind::Ports,
            service: Some(service.to_owned()),
            backend: Some(backend.to_owned()),
            backends: vec![name.clone()],
            what: format!("the pool of backend {name} has few free ports left for new connections"),
            seen: format!("{:.0}% of the ports are taken", part * 100.0),
            cure: Cure::here(&[cure.to_owned()]),
        }
    })
}

fn clocks(fleet: &FleetSnapshot) -> impl Iterator<Item = Finding> {
    fleet.members.iter().filter_map(|member| {
        let ahead = member.clock_ahead_seconds.filter(|ahead| ahead.abs() > CLOCKS)?;
        let direction = if ahead > 0.0 { "ahead" } else { "behind" };
        Some(general(
            Kind::Clock,
            format!("the clock of {} is {:.1} s {direction}", member.name, ahead.abs()),
            "members of the fleet compare their clocks".to_owned(),
            Cure::elsewhere(&member.name, &["timedatectl set-ntp true".to_owned()]),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_kernel_is_older_than_6_1_then_that_is_said() {
        for (release, old) in
            [("5.15.0-91-generic", true), ("6.0.12", true), ("6.1.0-18-amd64", false), ("6.18.44", false), ("", false)]
        {
            let facts = Facts { kernel: release.to_owned(), ..Facts::default() };
            assert_eq!(!findings(&facts).is_empty(), old, "{release}");
        }
    }
    #[test]
    fn when_a_real_time_kernel_lets_packets_interrupt_each_other_then_that_is_said() {
        for (release, build, refused) in [
            ("6.18.15-rt-amd64", "#1 SMP PREEMPT_RT Debian 6.18.15-1", true),
            ("6.17.13-rt-amd64", "#1 SMP PREEMPT_RT Debian 6.17.13-1", false),
            ("6.18.15-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.18.15-1", false),
        ] {
            let facts = Facts { kernel: release.to_owned(), kernel_build: build.to_owned(), ..Facts::default() };
            assert_eq!(!findings(&facts).is_empty(), refused, "{release} {build}");
        }
    }
}
