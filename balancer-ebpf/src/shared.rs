//! Rows that the controller writes while the program reads them for packets.

use aya_ebpf::maps::Array;

/// A row of a map. The controller replaces each changing word in one store, and [`word`] reads it once in one load, so
/// that a decision never mixes two states of the word. The other words are written only while no packet can read them:
/// in an unused half or copy, after a grace period.
pub(crate) struct Shared<Row: 'static>(*const Row);

impl<Row> Clone for Shared<Row> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<Row> Copy for Shared<Row> {}

impl<Row> Shared<Row> {
    /// The row at `index`.
    #[inline(always)]
    pub(crate) fn at(rows: &'static Array<Row>, index: u32) -> Option<Self> {
        rows.get_ptr(index).map(Self)
    }

    /// The pointer for [`word`].
    #[inline(always)]
    pub(crate) const fn pointer(self) -> *const Row {
        self.0
    }
}

/// Reads a word of a [`Shared`] row.
macro_rules! word {
    ($row:expr, $($field:tt)+) => {{
        let row = $crate::shared::Shared::pointer($row);
        // SAFETY: a map value, which lives as long as the program, within its bounds and aligned; the controller
        // replaces the word in one store.
        unsafe { (&raw const (*row).$($field)+).read_volatile() }
    }};
}

pub(crate) use word;
