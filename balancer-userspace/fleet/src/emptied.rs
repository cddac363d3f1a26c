//! Records which backends could not keep their known clients.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// For each backend, by id, the last epoch in which the backend stopped keeping its known clients. A client that came
/// to such a backend in an earlier epoch is no longer there: it has moved to another backend, or will move with its
/// next packet.
///
/// The record is stored with the epoch, so that a member that was absent judges its old knowledge in the same way as
/// all other members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Emptied(BTreeMap<u16, u32>);

impl Emptied {
    /// The maximum number of backends in the record; the latest epochs have precedence. Each backend takes about 12
    /// bytes in every epoch that is written.
    const MOST: usize = 1024;

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a client that came to this backend in the epoch `came` had left the backend by the epoch `later`.
    #[must_use]
    pub fn between(&self, backend: u16, came: u32, later: u32) -> bool {
        self.0.get(&backend).is_some_and(|&emptied| came < emptied && emptied <= later)
    }

    /// Records that these backends stop keeping their clients in `epoch`.
    pub(crate) fn note(&mut self, backends: impl IntoIterator<Item = u16>, epoch: u32) {
        self.0.extend(backends.into_iter().map(|backend| (backend, epoch)));
        if self.0.len() > Self::MOST {
            let mut epochs: Vec<(u32, u16)> = self.0.iter().map(|(backend, epoch)| (*epoch, *backend)).collect();
            epochs.sort_unstable();
            for (_, backend) in &epochs[..epochs.len() - Self::MOST] {
                self.0.remove(backend);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_client_came_before_the_last_time_then_it_is_no_longer_there() {
        let mut emptied = Emptied::default();
        emptied.note([4, 5], 3);
        emptied.note([4], 9);
        let until = |backend, later| [2, 3, 8, 9].map(|came| emptied.between(backend, came, later));
        assert_eq!(until(4, 20), [true, true, true, false]);
        assert_eq!(until(4, 8), [false; 4]);
        assert_eq!(until(5, 3), [true, false, false, false]);
        assert_eq!(until(6, 20), [false; 4]);
    }

    #[test]
    fn when_backends_are_many_then_those_of_the_latest_epochs_are_remembered() {
        let mut emptied = Emptied::default();
        emptied.note(0..1000, 2);
        emptied.note(1000..2000, 1);
        assert_eq!(emptied.0.len(), Emptied::MOST);
        let is_known = |backend| emptied.between(backend, 0, 9);
        assert!(is_known(0) && is_known(1999) && !is_known(1000));
    }

    #[test]
    fn when_it_is_written_then_it_can_be_read_back() {
        let mut emptied = Emptied::default();
        emptied.note([65_000, 7], 4_000_000_000);
        let text = serde_json::to_string(&emptied).unwrap();
        assert_eq!(text, r#"{"7":4000000000,"65000":4000000000}"#);
        assert_eq!(serde_json::from_str::<Emptied>(&text).unwrap(), emptied);
    }
}
