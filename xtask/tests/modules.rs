//! Checks that modules use each other in one direction: no two modules of a crate's top level depend on each other,
//! directly or in a circle.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::Path,
};

use syn::{
    Attribute, File, Ident, Item, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

const CRATES: [&str; 21] = [
    "balancer-ebpf",
    "balancer-common",
    "balancer-userspace",
    "balancer-userspace/api",
    "balancer-userspace/control",
    "balancer-userspace/daemon",
    "balancer-userspace/dataplane",
    "balancer-userspace/demo",
    "balancer-userspace/doctor",
    "balancer-userspace/etcd",
    "balancer-userspace/fleet",
    "balancer-userspace/import",
    "balancer-userspace/kubernetes",
    "balancer-userspace/lab",
    "balancer-userspace/config",
    "balancer-userspace/simulate",
    "tests",
    "tests/bench",
    "tests/model",
    "tests/testkit",
    "xtask",
];

/// Each module of a crate's top level, with the top-level modules that the module names.
type Names = BTreeMap<String, BTreeSet<String>>;

/// Collects the top-level modules that a file names.
struct Paths<'a> {
    /// The path of the file's module from the crate's root.
    module: Vec<String>,
    named: &'a mut BTreeSet<String>,
}

impl Paths<'_> {
    /// The top-level module in `path`, or `None` if the path leads to another crate or an imported name.
    fn top(&self, path: &[String]) -> Option<String> {
        let (base, rest) = match path.first()?.as_str() {
            "crate" => (&[][..], &path[1..]),
            "self" => (&self.module[..], &path[1..]),
            "super" => {
                let supers = path.iter().take_while(|segment| *segment == "super").count();
                (&self.module[..self.module.len().checked_sub(supers)?], &path[supers..])
            }
            _ => return None,
        };
        base.iter().chain(rest).next().cloned()
    }

    fn name(&mut self, path: &[String]) {
        self.named.extend(self.top(path));
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |ident: &Ident| [before, &[ident.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) => self.name(&with(&name.ident)),
            UseTree::Rename(rename) => self.name(&with(&rename.ident)),
            UseTree::Glob(_) => self.name(before),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.name(&segments);
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_for_tests(&item.attrs) {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }
}

/// Whether the item is compiled only for tests.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

fn parsed(file: &Path) -> File {
    let parsed = syn::parse_file(&fs::read_to_string(file).unwrap());
    parsed.map_err(|error| format!("{}: {error}", file.display())).unwrap()
}

/// Reads the files of `module` below `directory`, except the `skipped` modules of the top level.
fn read(directory: &Path, module: &[String], skipped: &BTreeSet<String>, names: &mut Names) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let stem = path.file_stem().and_then(OsStr::to_str).unwrap().to_owned();
        if module.is_empty() && skipped.contains(&stem) {
            continue;
        }
        let inner = if stem == "mod" { module.to_vec() } else { [module, &[stem]].concat() };
        if path.is_dir() {
            read(&path, &inner, skipped, names);
        } else if path.extension() == Some(OsStr::new("rs")) {
            let named = names.entry(inner[0].clone()).or_default();
            Paths { module: inner, named }.visit_file(&parsed(&path));
        }
    }
}

/// The modules of a crate's top level, except tests and binaries.
fn modules(sources: &Path) -> Names {
    let roots = ["lib.rs", "main.rs"].map(|root| sources.join(root));
    let declared = roots.iter().filter(|root| root.exists()).flat_map(|root| parsed(root).items);
    let modules = declared.filter_map(|item| if let Item::Mod(module) = item { Some(module) } else { None });
    let tests = modules.filter(|module| is_for_tests(&module.attrs)).map(|module| module.ident.to_string());
    let skipped = tests.chain(["lib", "main", "bin"].map(str::to_owned)).collect();
    let mut names = Names::new();
    read(sources, &[], &skipped, &mut names);
    let all: BTreeSet<String> = names.keys().cloned().collect();
    for (module, named) in &mut names {
        named.retain(|other| other != module && all.contains(other));
    }
    names
}

/// Repeatedly removes each module that names none of the remaining modules. Returns the modules that are left: circles,
/// and the modules that depend on a circle.
fn circles(mut names: Names) -> Names {
    loop {
        let done: BTreeSet<String> =
            names.iter().filter(|(_, named)| named.is_empty()).map(|(module, _)| module.clone()).collect();
        if done.is_empty() {
            return names;
        }
        names.retain(|module, _| !done.contains(module));
        names.values_mut().for_each(|named| named.retain(|other| !done.contains(other)));
    }
}

#[test]
fn when_modules_name_each_other_then_it_is_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut edges = 0;
    for name in CRATES {
        let names = modules(&root.join(name).join("src"));
        edges += names.values().map(BTreeSet::len).sum::<usize>();
        let circles = circles(names);
        assert!(circles.is_empty(), "{name}: {circles:#?}");
    }
    assert!(edges > 500, "only {edges} names were found");
}

#[test]
fn when_modules_form_a_circle_then_it_is_found() {
    let names = |pairs: &[(&str, &str)]| {
        let mut names = Names::new();
        for (module, other) in pairs {
            names.entry((*module).to_owned()).or_default().insert((*other).to_owned());
            names.entry((*other).to_owned()).or_default();
        }
        names
    };
    assert!(circles(names(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    assert_eq!(circles(names(&[("a", "b"), ("b", "c"), ("c", "b")])).len(), 3);
}

#[test]
fn when_code_names_a_module_then_it_is_found_in_any_notation() {
    let mut named = BTreeSet::new();
    let text = "use crate::{a, b::{self, C}}; use super::d as e; fn f() { crate::g::h(); let _ = self::i::J; k::l(); }
                #[cfg(test)] mod tests { use crate::m; }";
    let module = vec!["n".to_owned(), "o".to_owned()];
    Paths { module, named: &mut named }.visit_file(&syn::parse_file(text).unwrap());
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["a", "b", "g", "n"]);
}
