//! The steps that change the servers, and the numbers of clients that the steps move.

use anyhow::{Result, ensure};

/// The number of equal servers at the start.
pub(crate) const SERVERS: u16 = 4;
/// The number of a server that no list contains at the start.
pub(crate) const SPARE: u16 = SERVERS + 1;
/// The number of the server that the steps change.
pub(crate) const TARGET: u16 = 2;

/// A change of the list of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The benchmark deletes a server from the list of servers.
    Delete,
    /// The benchmark writes the list of servers in reverse order, and restarts the program.
    Reorder,
    /// The benchmark adds a fifth server to the list of servers.
    Add,
    /// The benchmark halves a server's weight.
    Weigh,
    /// The benchmark drains one of the servers.
    Drain,
    /// The drained server receives clients again.
    Return,
}

/// Sequences of steps, each of which begins with the same servers.
pub(crate) const COURSES: [&[Step]; 5] =
    [&[Step::Delete], &[Step::Reorder], &[Step::Add], &[Step::Weigh], &[Step::Drain, Step::Return]];

/// The clients that a step has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) step: Step,
    /// The clients of the changed server that moved.
    pub(crate) own: Share,
    /// The clients of all servers except the changed server that moved.
    pub(crate) others: Share,
}

/// A number of moved clients out of a total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) moved: usize,
    pub(crate) of: usize,
}

impl Step {
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Delete => "delete one server",
            Self::Reorder => "reorder the lines, restart",
            Self::Add => "add a server",
            Self::Weigh => "halve a server's weight",
            Self::Drain => "drain a server",
            Self::Return => "take it back",
        }
    }

    /// Returns the titles of two rows of the table: one for the clients of the other servers, and one for the clients
    /// of the changed server.
    pub(crate) fn rows(self) -> [String; 2] {
        let title = self.title();
        let others = if self.has_target() { format!("{title}: of the other servers") } else { title.to_owned() };
        let own = if self == Self::Return { "that were its own before" } else { "its own" };
        [others, format!("{title}: {own}")]
    }

    /// Returns whether the step changes one server that has clients.
    pub(crate) const fn has_target(self) -> bool {
        !matches!(self, Self::Reorder | Self::Add)
    }

    /// Counts the clients that the step has moved. The arguments are the servers of all clients: at the start of the
    /// sequence, before the step, and after the step.
    pub(crate) fn moved(self, start: &[String], before: &[String], after: &[String]) -> Result<Moved> {
        ensure!(start.len() == before.len() && before.len() == after.len(), "some clients were not seen");
        let target = format!("web{TARGET}");
        let mut moved = Moved { step: self, own: Share::default(), others: Share::default() };
        for ((start, before), after) in start.iter().zip(before).zip(after) {
            let share = if self.has_target() && *start == target { &mut moved.own } else { &mut moved.others };
            share.of += 1;
            share.moved += usize::from(before != after);
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::{Share, Step};

    fn homes(numbers: &[u16]) -> Vec<String> {
        numbers.iter().map(|number| format!("web{number}")).collect()
    }

    #[test]
    fn when_clients_move_then_they_are_counted_at_their_first_backend() {
        let (start, drained, back) = (homes(&[1, 2, 2, 3]), homes(&[1, 3, 4, 1]), homes(&[1, 2, 4, 1]));
        let drain = Step::Drain.moved(&start, &start, &drained).unwrap();
        assert_eq!((drain.own, drain.others), (Share { moved: 2, of: 2 }, Share { moved: 1, of: 2 }));
        let back = Step::Return.moved(&start, &drained, &back).unwrap();
        assert_eq!((back.own, back.others), (Share { moved: 1, of: 2 }, Share { moved: 0, of: 2 }));
        let reordered = Step::Reorder.moved(&start, &start, &drained).unwrap();
        assert_eq!((reordered.own, reordered.others), (Share::default(), Share { moved: 3, of: 4 }));
        assert!(Step::Add.moved(&start, &start, &drained[1..]).is_err());
    }
}
