//! Lists that are longer than anybody wants to have in memory.

use std::cell::Cell;

use serde::{Serialize, Serializer};

/// A list to be written, once: each of its items is made when it is its turn.
pub struct OneByOne<Item>(Cell<Option<Box<dyn Iterator<Item = Item> + Send>>>);

impl<Item> OneByOne<Item> {
    /// Makes a list of the items that `items` gives.
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
