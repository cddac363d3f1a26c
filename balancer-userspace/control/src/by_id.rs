//! A small table of values by backend id, which makes one lookup per slot fast.

/// One row for each id from the lowest to the highest. A service uses few of the possible ids, and its ids lie close
/// together.
pub(crate) struct ById<T> {
    least: u16,
    rows: Vec<T>,
}

impl<T: Clone> ById<T> {
    /// Makes a table for these ids and all ids between them.
    pub(crate) fn new(ids: impl Iterator<Item = u16> + Clone, row: T) -> Self {
        let (least, greatest) = (ids.clone().min().unwrap_or(0), ids.max().unwrap_or(0));
        Self { least, rows: vec![row; usize::from(greatest - least) + 1] }
    }

    #[inline(always)]
    pub(crate) fn get(&self, id: u16) -> Option<&T> {
        self.rows.get(usize::from(id.checked_sub(self.least)?))
    }

    #[inline(always)]
    pub(crate) fn get_mut(&mut self, id: u16) -> Option<&mut T> {
        self.rows.get_mut(usize::from(id.checked_sub(self.least)?))
    }

    /// Changes the row of an id, if the table has a row for this id.
    #[inline(always)]
    pub(crate) fn set(&mut self, id: u16, to: impl FnOnce(&mut T)) {
        if let Some(row) = self.get_mut(id) {
            to(row);
        }
    }
}
