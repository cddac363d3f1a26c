//! Lists that are serialized without being held in memory as a whole.

use std::cell::Cell;

use serde::{Serialize, Serializer};

/// A list that can be serialized once. The serializer takes each item from the iterator only when it writes the item.
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
