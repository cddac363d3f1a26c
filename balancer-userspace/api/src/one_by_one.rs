//! Lists that are too long to be kept in memory.

use std::cell::Cell;

use serde::{Serialize, Serializer};

/// A list that is serialized once: each item is made when its turn comes.
pub struct OneByOne<Item>(Cell<Option<Box<dyn Iterator<Item = Item> + Send>>>);

impl<Item> OneByOne<Item> {
    /// Makes a list of the items from `items`.
    #[must_use]
    pub fn new(items: impl Iterator<Item = Item> + Send + 'static) -> Self {
        Self(Cell::new(Some(Box::new(items))))
    }
}

impl<Item: Serialize> Serialize for OneByOne<Item> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.take().into_iter().flatten())
    }
}
