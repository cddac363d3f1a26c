//! Tables of rows that share one loaded program: the kernel's verifier takes longer than most rows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use balancer_testkit::rig::{Rig, Service, Setup};

use crate::cases::{Case, check_all};

/// A named row: a function that gets the rig in its first state, and fails by panicking.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Rig),
}

/// The rows of these functions, each named after its function. A function returns nothing, or a table of cases.
macro_rules! rows {
    ($($row:path),+ $(,)?) => {
        &[$($crate::rows::Row {
            name: stringify!($row),
            run: |rig| $crate::rows::Outcome::check($row(rig), rig),
        }),+]
    };
}
pub(crate) use rows;

/// The result of a row's function.
pub(crate) trait Outcome {
    /// Checks on the rig what is still unchecked.
    fn check(self, rig: &Rig);
}

impl Outcome for () {
    fn check(self, _: &Rig) {}
}

impl Outcome for Vec<Case> {
    fn check(self, rig: &Rig) {
        check_all(rig, &self);
    }
}

/// Runs all rows with one rig, which is as new before each row, and fails with the names of the rows that failed.
pub(crate) fn run(services: Vec<Service>, setup: Setup, rows: &'static [Row]) {
    // The rig moves its thread into another namespace, so the rows run in a separate thread.
    let work = move || {
        let mut rig = Rig::with(&services, &setup).expect("a rig");
        failed(&mut rig, rows)
    };
    let failed = std::thread::spawn(work).join().expect("the thread of the rows panicked");
    assert!(failed.is_empty(), "{} of {} rows failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

/// Runs all rows, and returns the names of the rows that failed.
pub(crate) fn failed(rig: &mut Rig, rows: &[Row]) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for Row { name, run } in rows {
        rig.reset().expect("a rig as new");
        if catch_unwind(AssertUnwindSafe(|| run(rig))).is_err() {
            eprintln!("the row {name} failed");
            failed.push(*name);
        }
    }
    failed
}
