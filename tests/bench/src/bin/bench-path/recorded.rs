//! The committed ratios, `tests/bench/path.json`, by processor.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::gate::Ratios;

const FILE: &str = "tests/bench/path.json";

/// What each processor needs.
type Recorded = BTreeMap<String, Ratios>;

/// What this processor is held against, and whether that was recorded on others: the greatest of their ratios then.
pub(crate) fn committed(processor: &str) -> Result<(Ratios, bool)> {
    let recorded = read()?;
    ensure!(!recorded.is_empty(), "{FILE} has no ratios; record with `cargo xtask bench path --record`");
    Ok(held_against(&recorded, processor))
}

fn held_against(recorded: &Recorded, processor: &str) -> (Ratios, bool) {
    if let Some(own) = recorded.get(processor) {
        return (own.clone(), false);
    }
    let mut greatest = Ratios::new();
    for (yardstick, paths) in recorded.values().flatten() {
        let known = greatest.entry(yardstick.clone()).or_default();
        for (path, &ratio) in paths {
            known.entry(path.clone()).and_modify(|known| *known = known.max(ratio)).or_insert(ratio);
        }
    }
    (greatest, true)
}

/// Writes this processor's ratios, and leaves the others'.
pub(crate) fn record(processor: &str, ratios: Ratios) -> Result<()> {
    let mut recorded = read()?;
    recorded.insert(processor.to_owned(), ratios);
    let text = serde_json::to_string_pretty(&recorded)? + "\n";
    fs::write(file(), text).with_context(|| format!("cannot write {FILE}"))?;
    println!("recorded for {processor} in {FILE}");
    Ok(())
}

/// The file, or nothing if there is none.
fn read() -> Result<Recorded> {
    match fs::read(file()) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| {
            format!("{FILE} does not hold ratios by processor, yardstick and path; without it, `cargo xtask bench path --record` makes it anew")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Recorded::new()),
        Err(error) => Err(error).context(format!("cannot read {FILE}")),
    }
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("path.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(path: f64) -> Ratios {
        Ratios::from([("yard".to_owned(), BTreeMap::from([("path".to_owned(), path)]))])
    }

    #[test]
    fn an_unknown_processor_is_held_against_the_greatest_ratios() {
        let recorded = Recorded::from([("A".to_owned(), ratios(1.0)), ("B".to_owned(), ratios(2.0))]);
        assert_eq!(held_against(&recorded, "A"), (ratios(1.0), false));
        assert_eq!(held_against(&recorded, "B"), (ratios(2.0), false));
        assert_eq!(held_against(&recorded, "C"), (ratios(2.0), true));
    }

    #[test]
    fn what_is_recorded_can_be_read() {
        let recorded = Recorded::from([("A".to_owned(), ratios(1.234))]);
        let text = serde_json::to_string_pretty(&recorded).unwrap();
        assert_eq!(serde_json::from_str::<Recorded>(&text).unwrap(), recorded);
    }
}
