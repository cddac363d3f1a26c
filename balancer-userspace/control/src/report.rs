//! Builds log lines for operators.

use std::{cmp::Ordering, time::Duration};

use balancer_config::{
    names::BackendName,
    states::BackendState,
    words::{counted, grouped},
};

use crate::{
    io::{Moved, Report, ReportLevel},
    moves::Moves,
    table::Tier,
};

/// Describes the moves that a change causes: `13,107 of 65,537 slots moved, 215 needless`.
pub(crate) fn moved(moves: &Moves, table_size: u32) -> String {
    let (total, needless) = (moves.total(), moves.needless());
    format!("{} of {} slots moved, {} needless", grouped(total), grouped(table_size), grouped(needless))
}

/// Returns the change in the size of a lookup table as part of a sentence, or an empty text if the size stays the same.
pub(crate) fn resized(before: u32, after: u32) -> String {
    let how = match after.cmp(&before) {
        Ordering::Equal => return String::new(),
        Ordering::Greater => "grows",
        Ordering::Less => "shrinks",
    };
    format!("; the table {how} from {} to {} slots", grouped(before), grouped(after))
}

/// The answer if a configuration changes nothing.
pub const NOTHING_CHANGED: &str = "configuration applied: nothing changed";

/// Returns the number of forgotten clients as part of a sentence, or an empty text if no client is forgotten.
pub fn clients_forgotten(clients: u64) -> String {
    match clients {
        0 => String::new(),
        clients => format!(", {} forgotten", counted(clients as usize, "known client")),
    }
}

/// A backend whose state has changed, for a report.
pub(crate) struct Transition {
    pub(crate) name: BackendName,
    pub(crate) id: u16,
    pub(crate) before: BackendState,
    pub(crate) after: BackendState,
    /// The duration of the backend's previous state.
    pub(crate) lasted: Duration,
    /// The reason for the backend's new state; may be empty.
    pub(crate) reason: String,
    /// The number of the backend's known clients at the last sweep; they have stayed at the backend so far.
    pub(crate) known: u64,
    /// Whether the backend's known clients still stay after the change.
    pub(crate) keeps_known: bool,
}

impl Transition {
    /// Returns a report such as `backend web/web1 down (connect: refused), 1,204 known clients and 16,384 of 65,537
    /// slots moved to 3 backends`.
    pub(crate) fn report(&self, moves: &Moves, table_size: u32) -> Report {
        let mut message = format!("backend {} {}", self.name, self.after.word());
        if !self.reason.is_empty() {
            message += &format!(" ({})", self.reason);
        }
        let (lost, heirs) = moves.from(self.id);
        let (gained, givers) = moves.to(self.id);
        let size = grouped(table_size);
        let leaving = if self.keeps_known { 0 } else { self.known };
        let clients = counted(self.known as usize, "known client");
        message += &match (lost, gained) {
            (0, 0) => ", no slots moved".to_owned(),
            (0, _) if givers == 0 => format!(", has {} of {size} slots", grouped(gained)),
            (0, _) => format!(", {} of {size} slots moved from {}", grouped(gained), counted(givers, "backend")),
            (_, _) if heirs == 0 => format!(", {} of {size} slots without a backend", grouped(lost)),
            (_, _) => {
                let clients = if leaving > 0 { format!("{clients} and ") } else { String::new() };
                format!(", {clients}{} of {size} slots moved to {}", grouped(lost), counted(heirs, "backend"))
            }
        };
        if self.known > 0 && self.keeps_known && lost > 0 {
            message += &format!(", {clients} stay");
        } else if leaving > 0 && (lost == 0 || heirs == 0) {
            message += &format!(", {clients} moved");
        }
        if self.before.is_failure() && !self.after.is_failure() {
            let lasted = Duration::from_secs(self.lasted.as_secs());
            message += &format!(", was {} for {}", self.before.word(), humantime::format_duration(lasted));
        }
        let level = if self.after.is_failure() { ReportLevel::Warn } else { ReportLevel::Info };
        let moves = Moved {
            slots: u64::from(lost.max(gained)),
            needless: u64::from(moves.needless()),
            known_clients: (leaving > 0).then_some(leaving),
        };
        Report { level, about: Some(self.name.clone()), message, moves: Some(moves) }
    }
}

/// Returns how a service treats its clients, in a form that ends a sentence about the service.
pub(crate) fn tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Primaries => "steers to its backends",
        Tier::Backups => "has no primary backend that takes clients: steers to its backups",
        Tier::AsIfUp => {
            "has no backend that takes clients: steers as if all outside of maintenance were up (when_all_down = \"open\")"
        }
        Tier::AllDown => "has no backend that takes clients: drops",
        Tier::NoBackend => "has no backends: drops",
    }
}

/// Reports that a service now treats its clients differently.
pub(crate) fn tier_report(service: &str, label: &str, now: Tier) -> Report {
    let level = if now == Tier::Primaries { ReportLevel::Info } else { ReportLevel::Warn };
    about_service(service, level, format!("service {label} {}", tier(now)))
}

/// Reports the start of an outage, in which this many of the eligible backends fail.
pub(crate) fn outage_began(service: &str, label: &str, (failing, eligible): (usize, usize), known: u64) -> Report {
    let message = format!(
        "outage of {label}: {} of {} fail, {} kept",
        grouped(failing as u64),
        counted(eligible, "backend"),
        counted(known as usize, "known client")
    );
    about_service(service, ReportLevel::Warn, message)
}

/// Reports the end of an outage; `down` contains those of its backends that have not come back.
pub(crate) fn outage_ended(service: &str, label: &str, lasted: Duration, down: &[&str], moved: u64) -> Report {
    const NAMED: usize = 5;
    let still = match down {
        [] => String::new(),
        [one] => format!(" from {one}, which is still down"),
        some if some.len() <= NAMED => format!(" from {}, which are still down", some.join(", ")),
        many => format!(" from {} backends, which are still down", grouped(many.len() as u64)),
    };
    let lasted = humantime::format_duration(Duration::from_secs(lasted.as_secs()));
    let moved = counted(moved as usize, "known client");
    let level = if down.is_empty() { ReportLevel::Info } else { ReportLevel::Warn };
    about_service(service, level, format!("outage of {label} over after {lasted}: {moved} moved{still}"))
}

/// Reports that an outage goes on; `held` is the number of its backends that are down.
pub(crate) fn outage_lasts(label: &str, lasted: Duration, held: usize, backends: usize, known: u64) -> String {
    format!(
        "outage of {label} for {}: {} of {} down, {} kept",
        humantime::format_duration(Duration::from_secs(lasted.as_secs())),
        grouped(held as u64),
        counted(backends, "backend"),
        counted(known as usize, "known client")
    )
}

fn about_service(service: &str, level: ReportLevel, message: String) -> Report {
    let about = Some(BackendName { service: service.to_owned(), backend: String::new() });
    Report { level, about, message, moves: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Shares;

    /// Returns the report about a change of web1 (id 1), with 2 of 5 slots and 1,204 known clients, to the state
    /// `after`; its slots move to `new`.
    fn message(after: BackendState, keeps_known: bool, new: &[u16]) -> Report {
        let shares = |ids: &[u16]| -> Shares { ids.iter().map(|&id| (id, 100)).collect() };
        let moves = Moves::between(&[1, 2, 1, 3, 2], &shares(&[1, 2, 3]), new, &shares(&[2, 3]));
        let name = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
        let (before, lasted, reason) = (BackendState::Up, Duration::ZERO, "connect: refused".to_owned());
        Transition { name, id: 1, before, after, lasted, reason, known: 1_204, keeps_known }.report(&moves, 5)
    }

    #[test]
    fn when_a_backend_changes_state_then_the_report_tells_its_known_clients() {
        let spread = [2, 2, 3, 3, 2];
        let down = message(BackendState::Down, false, &spread);
        assert_eq!(
            down.message,
            "backend web/web1 down (connect: refused), 1,204 known clients and 2 of 5 slots moved to 2 backends"
        );
        assert_eq!(down.moves, Some(Moved { slots: 2, needless: 0, known_clients: Some(1_204) }));
        let draining = message(BackendState::DrainingHealth, true, &spread);
        assert_eq!(
            draining.message,
            "backend web/web1 draining (health) (connect: refused), 2 of 5 slots moved to 2 backends, 1,204 known clients stay"
        );
        assert_eq!(draining.moves.and_then(|moves| moves.known_clients), None);
        let later = message(BackendState::Down, false, &[1, 2, 1, 3, 2]);
        assert_eq!(
            later.message,
            "backend web/web1 down (connect: refused), no slots moved, 1,204 known clients moved"
        );
    }

    #[test]
    fn when_a_number_is_long_then_its_digits_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (65_537, "65,537"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number as u64), text);
        }
    }
}
