//! Rows that the controller may write while the program reads them.

use aya_ebpf::maps::Array;

/// A row of a map. The controller replaces each changing word in one store, and [`word`] reads a word in one load, so
/// that a decision never mixes two states of a word. The controller writes all other words of a row only while the
/// program cannot read them: in an unused half or copy, after a grace period.
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

    /// The pointer to the row, as an argument for [`word`].
    #[inline(always)]
    pub(crate) const fn pointer(self) -> *const Row {
        self.0
    }
}

/// Reads a word of a [`Shared`] row.
macro_rules! word {
    ($row:expr, $($field:tt)+) => {{
        let row = $crate::shared::Shared::pointer($row);
        // SAFETY: the pointer points to a map value, which lives as long as the program, within its bounds and aligned;
        // the controller replaces the word in one store.
        unsafe { (&raw const (*row).$($field)+).read_volatile() }
    }};
}

pub(crate) use word;
