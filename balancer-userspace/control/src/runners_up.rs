//! The runners-up of a table's slots in compact form, because the controller may have thousands of tables.

use std::sync::Arc;

use balancer_common::map_types::NO_BACKEND;

/// The ids of the runners-up of the M slots; `NO_BACKEND`: the slot has no runner-up.
#[derive(Clone, Debug)]
pub(crate) enum RunnersUp {
    /// Ids that are close to each other, like most ids of a service, as the distance of each id above `below`; 0: no
    /// runner-up.
    Near { below: u16, distances: Arc<[u8]> },
    /// Ids that may be at any distance from each other.
    Far(Arc<[u16]>),
}

impl Default for RunnersUp {
    fn default() -> Self {
        Self::Far(Arc::default())
    }
}

impl RunnersUp {
    pub(crate) fn new(ids: &[u16]) -> Self {
        let there = ids.iter().copied().filter(|&id| id != NO_BACKEND);
        let below = there.min().unwrap_or(1) - 1;
        let distance = |&id: &u16| if id == NO_BACKEND { Some(0) } else { u8::try_from(id - below).ok() };
        match ids.iter().map(distance).collect() {
            Some(distances) => Self::Near { below, distances },
            None => Self::Far(ids.into()),
        }
    }

    #[inline(always)]
    pub(crate) fn of(&self, slot: usize) -> u16 {
        let id = match self {
            Self::Near { below, distances } => distances
                .get(slot)
                .map(|&distance| if distance == 0 { NO_BACKEND } else { below + u16::from(distance) }),
            Self::Far(ids) => ids.get(slot).copied(),
        };
        id.unwrap_or(NO_BACKEND)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_runners_up_are_packed_then_each_can_be_read_back(
            least in 1u16..65_000,
            within in prop_oneof![0u16..3, 253u16..257, 0u16..500],
            places in prop::collection::vec(prop::option::of(0u16..500), 0..200),
        ) {
            let id = |place: &Option<u16>| place.map_or(NO_BACKEND, |place| least.saturating_add(place.min(within)));
            let ids: Vec<u16> = places.iter().map(id).collect();
            let kept = RunnersUp::new(&ids);
            let read: Vec<u16> = (0..ids.len()).map(|slot| kept.of(slot)).collect();
            prop_assert_eq!(read, ids);
            prop_assert_eq!(kept.of(places.len()), NO_BACKEND);
        }
    }

    #[test]
    fn when_ids_are_of_one_service_then_each_takes_a_byte() {
        let ids: Vec<u16> = (40_000..40_255).collect();
        assert!(matches!(RunnersUp::new(&ids), RunnersUp::Near { .. }));
        assert!(matches!(RunnersUp::new(&[40_000, 40_255]), RunnersUp::Far(_)));
    }
}
