//! Rows that the controller writes while packets read them.

use aya_ebpf::maps::Array;

/// A row of a map. What is replaced in place is a word, stored in one piece; it is read in one piece and once, by [`word`],
/// so that a decision does not rest on two states of it. The rest of a row is written while nobody can read it: in a half
/// or a copy that is not in use, after a grace period.
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

    /// For [`word`].
    #[inline(always)]
    pub(crate) const fn pointer(self) -> *const Row {
        self.0
    }
}

/// Reads a word of a [`Shared`] row.
macro_rules! word {
    ($row:expr, $($field:tt)+) => {{
        let row = $crate::shared::Shared::pointer($row);
        // SAFETY: a map value, which lives as long as the program, within its bounds and aligned; the controller replaces
        // the word in one piece.
        unsafe { (&raw const (*row).$($field)+).read_volatile() }
    }};
}

pub(crate) use word;
