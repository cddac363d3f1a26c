//! Stores results in a directory, with a file for each event and row, so that an interrupted run can continue.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{cell::Cell, event::Event, row::Row};

/// The directory in which a run stores its results.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    directory: PathBuf,
}

impl Results {
    /// Opens a directory of results, and creates it if it is missing. With `fresh`, the function removes the results of
    /// earlier runs.
    ///
    /// # Errors
    /// Fails if the directory cannot be created or read.
    pub(crate) fn open(directory: &Path, fresh: bool) -> Result<Self> {
        let cells = directory.join("cells");
        fs::create_dir_all(&cells).with_context(|| cells.display().to_string())?;
        let this = Self { directory: directory.to_owned() };
        if fresh {
            for path in this.files()? {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(this)
    }

    /// Returns the stored result of an event for a row, if it exists.
    #[must_use]
    pub(crate) fn find(&self, row: Row, event: Event) -> Option<Cell> {
        let text = fs::read(self.path(row, event)).ok()?;
        // If a result cannot be read, the lab causes the event again.
        serde_json::from_slice(&text).ok()
    }

    /// Stores a result, either completely or not at all.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub(crate) fn keep(&self, cell: &Cell) -> Result<()> {
        let path = self.path(cell.row, cell.event);
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec_pretty(cell)?).with_context(|| draft.display().to_string())?;
        fs::rename(&draft, &path).with_context(|| path.display().to_string())
    }

    /// Returns all results of these rows, in the order of the rows.
    #[must_use]
    pub(crate) fn cells(&self, rows: &[Row]) -> Vec<Cell> {
        rows.iter().flat_map(|&row| row.events().filter_map(move |event| self.find(row, event))).collect()
    }

    /// Writes a file beside the results, and returns its path.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn path(&self, row: Row, event: Event) -> PathBuf {
        self.directory.join("cells").join(format!("{}.{}.json", row.id(), event.id()))
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let cells = self.directory.join("cells");
        let entries = fs::read_dir(&cells).with_context(|| cells.display().to_string())?;
        let files = entries.flatten().map(|entry| entry.path());
        Ok(files.filter(|path| path.extension().is_some_and(|end| end == "json" || end == "draft")).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Results;
    use crate::{
        cell::{Cell, Latency, Sessions, fixture},
        event::Event,
        row::{Front, Row},
        strategy::Strategy,
    };

    fn cell(event: Event) -> Cell {
        Cell {
            failed: 1,
            latency_ms: Latency { p50: 1.5, p99: 2.5 },
            moved_seen: 1,
            moved_counted: Some(1),
            ..fixture(
                Row { strategy: Strategy::NodeMemory, front: Front::Sticky },
                event,
                Sessions { total: 3, survived: 2, lost: 1, stale: 0 },
            )
        }
    }

    #[test]
    fn when_a_run_was_interrupted_then_it_goes_on_with_the_stored_results() {
        let directory = tempfile::tempdir().unwrap();
        let results = Results::open(directory.path(), false).unwrap();
        results.keep(&cell(Event::Kill)).unwrap();
        results.keep(&cell(Event::Add)).unwrap();
        let row = cell(Event::Add).row;
        // The test writes an incomplete result.
        fs::write(directory.path().join("cells/node-memory.weight.json"), "{\"row\":").unwrap();

        let again = Results::open(directory.path(), false).unwrap();
        assert_eq!(again.find(row, Event::Kill), Some(cell(Event::Kill)));
        assert_eq!((again.find(row, Event::Weight), again.find(row, Event::Nothing)), (None, None));
        let found: Vec<Event> = again.cells(&[row]).into_iter().map(|cell| cell.event).collect();
        assert_eq!(found, [Event::Add, Event::Kill]);

        let fresh = Results::open(directory.path(), true).unwrap();
        assert!(fresh.cells(&[row]).is_empty());
    }
}
