//! The table of verified instructions, `balancer-ebpf/verified.txt`.

use anyhow::{Context as _, Result, ensure};
use balancer_common::features::Features;
use balancer_dataplane::Capacity;

const TABLE: &str = include_str!("../../balancer-ebpf/verified.txt");
/// The columns of the table: series of kernels.
const SERIES: [&str; 3] = ["6.1", "6.12", "6.18"];
/// The word for a missing figure.
const MISSING: &str = "-";

/// A set of features, and what the verifier may need for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureSet {
    pub name: &'static str,
    pub features: Features,
    /// The verified instructions on each kernel of [`SERIES`].
    expected: Vec<Option<u32>>,
}

impl FeatureSet {
    /// The figure in the table for a kernel, given its release as `uname -r` prints it.
    #[must_use]
    pub fn expected(&self, release: &str) -> Option<u32> {
        let is_of = |series: &&str| release.strip_prefix(*series).is_some_and(|rest| rest.starts_with('.'));
        self.expected.get(SERIES.iter().position(is_of)?).copied().flatten()
    }
}

/// Returns the sizes of the maps with which the figures of the table hold.
#[must_use]
pub const fn capacity() -> Capacity {
    Capacity {
        slots: 1 << 16,
        services: 16,
        listeners: 16,
        ranges: 16,
        returns: 16,
        backends: 16,
        counted: 16,
        clients: 1024,
        flows: 0,
    }
}

/// Returns the sets of the table.
///
/// # Errors
/// Fails if a line is not a set.
pub fn sets() -> Result<Vec<FeatureSet>> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| set(line).with_context(|| format!("balancer-ebpf/verified.txt: {line}"))).collect()
}

fn set(line: &'static str) -> Result<FeatureSet> {
    let mut words = line.split_whitespace();
    let name = words.next().context("a set has a name")?;
    let features = features(words.next().context("a set has features")?)?;
    let figure = |word: &str| if word == MISSING { Ok(None) } else { word.parse().map(Some) };
    let expected = words.map(figure).collect::<Result<Vec<_>, _>>().context("a figure is a number")?;
    ensure!(expected.len() == SERIES.len(), "a set has {} figures", SERIES.len());
    Ok(FeatureSet { name, features, expected })
}

/// Returns the features of a list such as `v4,nat`.
///
/// # Errors
/// Fails if a name is unknown.
pub fn features(names: &str) -> Result<Features> {
    let each = names.split(',').map(|name| {
        let known = || Features::NAMES.map(|(name, _)| name).join(", ");
        Features::named(name).with_context(|| format!("no feature {name}; there are all, {}", known()))
    });
    each.reduce(|sum, one| Ok(sum? | one?)).context("there is no feature")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_table_is_read_then_each_set_has_its_features_and_its_figures() {
        let sets = sets().unwrap();
        let names: Vec<_> = sets.iter().map(|set| set.name).collect();
        assert_eq!(names, ["dsr", "nat", "nat+reject", "nat+snat", "everything"]);
        assert!(sets.iter().all(|set| set.features.has(Features::V4)));
        let set = set("some v4,nat 1 - 3").unwrap();
        assert_eq!(set.features, Features::V4 | Features::NAT);
        assert_eq!(set.expected("6.1.0-56-cloud-amd64"), Some(1));
        assert_eq!(set.expected("6.12.117+deb13"), None);
        assert_eq!(set.expected("6.18.44"), Some(3));
        assert_eq!(set.expected("7.2.13"), None);
        for wrong in ["some v4", "some v4,x 1 2 3", "some v4 1 2 3 4", "some v4 1 2 x"] {
            assert!(super::set(wrong).is_err(), "{wrong}");
        }
    }
}
