//! Renames: the key `renamed_from` shows that an object was renamed and not removed.

use std::{cell::LazyCell, sync::Arc};

use foldhash::{HashMap, HashSet};

use crate::{
    service::{BackendConfig, ServiceConfig},
    shared::by_name,
};

/// An object with a name, and possibly with an earlier name that hashes still use.
pub trait Named {
    /// The present name of the object.
    fn name(&self) -> &str;

    /// The earlier name by which the object is hashed, if there is one.
    fn renamed_from(&self) -> Option<&str>;

    /// The former identity of the object, if the object may continue another one.
    fn continues(&self) -> Option<&str> {
        self.renamed_from()
    }

    /// The name by which the object is hashed. This name depends only on the configuration file, so all members of a
    /// fleet use the same name.
    fn identity(&self) -> &str {
        self.renamed_from().unwrap_or_else(|| self.name())
    }
}

impl Named for ServiceConfig {
    fn name(&self) -> &str {
        &self.name
    }

    fn renamed_from(&self) -> Option<&str> {
        self.renamed_from.as_deref()
    }
}

impl Named for BackendConfig {
    fn name(&self) -> &str {
        &self.name
    }

    fn renamed_from(&self) -> Option<&str> {
        self.renamed_from.as_deref()
    }

    fn continues(&self) -> Option<&str> {
        let listed = self.discovered.as_ref().and_then(|listed| listed.was.as_deref());
        listed.or_else(|| self.renamed_from())
    }
}

impl<N: Named> Named for Arc<N> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn renamed_from(&self) -> Option<&str> {
        (**self).renamed_from()
    }

    fn continues(&self) -> Option<&str> {
        (**self).continues()
    }
}

impl<N: Named> Named for &N {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn renamed_from(&self) -> Option<&str> {
        (**self).renamed_from()
    }

    fn continues(&self) -> Option<&str> {
        (**self).continues()
    }
}

/// Maps the new name of each object of `new` that continues an object of `old` under another name to the old name. The
/// predecessor is the object that was hashed by the earlier name, or else the object whose name was the earlier name.
pub fn renamed<N: Named>(old: &[N], new: &[N]) -> HashMap<String, String> {
    if new.iter().all(|new| new.continues().is_none()) {
        return HashMap::default();
    }
    let mut taken: HashSet<&str> = new.iter().map(N::name).collect();
    let before: HashSet<&str> = old.iter().map(N::name).collect();
    let mut renamed = HashMap::default();
    for new in new.iter().filter(|new| !before.contains(new.name())) {
        let Some(from) = new.continues() else { continue };
        let goes_on = |is: fn(&N) -> &str| old.iter().find(|old| is(old) == from && !taken.contains(old.name()));
        if let Some(old) = goes_on(N::identity).or_else(|| goes_on(N::name)) {
            taken.insert(old.name());
            renamed.insert(new.name().to_owned(), old.name().to_owned());
        }
    }
    renamed
}

/// Returns `services` with the new names that `file` gives to the services and to their backends.
#[must_use]
pub fn under_new_names(mut services: Vec<Arc<ServiceConfig>>, file: &[Arc<ServiceConfig>]) -> Vec<Arc<ServiceConfig>> {
    for (new, old) in renamed(&services, file) {
        let called_so = services.iter_mut().filter(|service| service.name == old);
        called_so.for_each(|service| Arc::make_mut(service).name.clone_from(&new));
    }
    let wanted = LazyCell::new(|| by_name(file));
    for (index, service) in services.iter_mut().enumerate() {
        if file.get(index).is_some_and(|wanted| Arc::ptr_eq(wanted, service)) {
            continue;
        }
        let Some(wanted) = wanted.get(service.name.as_str()).filter(|wanted| !Arc::ptr_eq(wanted, service)) else {
            continue;
        };
        for (new, old) in renamed(&service.backends, &wanted.backends) {
            let called_so = Arc::make_mut(service).backends.iter_mut().filter(|backend| backend.name == old);
            called_so.for_each(|backend| backend.name.clone_from(&new));
            Arc::make_mut(service).rules.iter_mut().for_each(|rule| rule.action.rename(&old, &new));
        }
    }
    services
}

/// The first two objects of `all` that would be hashed by the same name, with the position of the second object.
pub(super) fn hashed_alike<N: Named>(all: &[N]) -> Option<(usize, &N, &N)> {
    let mut seen: HashMap<&str, &N> = HashMap::default();
    all.iter().enumerate().find_map(|(at, one)| seen.insert(one.identity(), one).map(|first| (at, first, one)))
}

/// The error message for two objects that would be hashed by the same name.
pub(super) fn text<N: Named>(first: &N, second: &N) -> String {
    format!(
        "{} and {} would both be hashed under the name {:?}; give renamed_from to one of them, and an unused name to \
         the new one",
        first.name(),
        second.name(),
        second.identity()
    )
}

#[cfg(test)]
mod tests {
    use crate::{fixture::backend, renames::*};

    /// Makes backends from words of the form `NAME` or `NAME<OLD`.
    fn backends(words: &[&str]) -> Vec<BackendConfig> {
        let one = |word: &&str| {
            let (name, from) = word.split_once('<').map_or((*word, None), |(name, from)| (name, Some(from)));
            BackendConfig { renamed_from: from.map(str::to_owned), ..backend(name, "10.0.0.1:80") }
        };
        words.iter().map(one).collect()
    }

    #[test]
    fn when_objects_are_renamed_then_they_continue_under_the_new_name() {
        // Each case contains the names before, the names after, and the pairs of new and old names.
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [(&'a str, &'a str)]);
        let cases: &[Case<'_>] = &[
            (&["a"], &["b"], &[]),
            (&["a"], &["b<a"], &[("b", "a")]),
            (&["a", "c"], &["b<a", "c"], &[("b", "a")]),
            // The renamed object has no predecessor.
            (&["c"], &["b<a"], &[]),
            // An object with the new name already exists: the file may keep the key `renamed_from` for any time after
            // the rename.
            (&["b<a"], &["b<a"], &[]),
            // The second rename states the first name or (with a different hash) the last name.
            (&["b<a"], &["c<a"], &[("c", "b")]),
            (&["b<a"], &["c<b"], &[("c", "b")]),
            // The name by which the object is hashed takes precedence over its present name.
            (&["x<a", "a<y"], &["b<a"], &[("b", "x")]),
            // An object whose name stays the same continues itself.
            (&["a"], &["a", "b<a"], &[]),
            (&["a"], &["b<a", "c<a"], &[("b", "a")]),
        ];
        for (before, after, expected) in cases {
            let expected: HashMap<_, _> =
                expected.iter().map(|(new, old)| ((*new).to_owned(), (*old).to_owned())).collect();
            assert_eq!(renamed(&backends(before), &backends(after)), expected, "{before:?} {after:?}");
        }
    }
}
