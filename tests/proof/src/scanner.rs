//! The scan of the client table, in steps that the search chooses.

use std::{cell::RefCell, rc::Rc};

use super::sweep::{Scan, Scanned};
use crate::machine;

/// The scan in progress and the values that it has read, and the findings of the last scan.
#[derive(Debug, Default)]
struct Work {
    scan: Option<Scan>,
    values: Vec<u64>,
    found: Option<Scanned>,
}

/// The scanning thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanner(Rc<RefCell<Work>>);

impl Scanner {
    pub(in super::super) fn begin(&self, scan: Scan) {
        if !machine::is_stopped() {
            self.0.borrow_mut().scan = Some(scan);
        }
    }

    pub(in super::super) fn found(&self) -> Option<Scanned> {
        if machine::is_stopped() { None } else { self.0.borrow_mut().found.take() }
    }

    /// Whether a scan is in progress.
    pub(super) fn scans(&self) -> bool {
        self.0.borrow().scan.is_some()
    }

    /// Reads the next entry.
    pub(super) fn step(&self) {
        let Work { scan, values, found } = &mut *self.0.borrow_mut();
        if let Some(scanned) = scan.as_ref().and_then(|scan| machine::step(values, || scan.run())) {
            (*scan, *found) = (None, Some(scanned));
            values.clear();
        }
    }
}
