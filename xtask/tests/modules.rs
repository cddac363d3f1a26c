//! Checks that modules use each other in one direction: no two modules beside each other, at any depth of any crate of
//! the workspace, depend on each other, directly or in a circle.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Expr, File, Ident, Item, ItemMod, ItemUse, Lit, Meta, UseTree,
    visit::{self, Visit},
};

/// The path of a module from its crate's root.
type Module = Vec<String>;

/// Each module of a crate, with the paths from the crate's root that the module names.
type Names = BTreeMap<Module, BTreeSet<Module>>;

/// Modules beside each other, each with those of the others that it or a module below it names.
type Beside = BTreeMap<String, BTreeSet<String>>;

/// Collects the paths that a file names, from the crate's root.
struct Paths<'a> {
    module: Module,
    named: &'a mut BTreeSet<Module>,
}

impl Paths<'_> {
    /// The path from the crate's root, or `None` if `path` leads to another crate or an imported name.
    fn rooted(&self, path: &[String]) -> Option<Module> {
        let (base, rest) = match path.first()?.as_str() {
            "crate" => (&[][..], &path[1..]),
            "self" => (&self.module[..], &path[1..]),
            "super" => {
                let supers = path.iter().take_while(|segment| *segment == "super").count();
                (&self.module[..self.module.len().checked_sub(supers)?], &path[supers..])
            }
            _ => return None,
        };
        Some([base, rest].concat())
    }

    fn name(&mut self, path: &[String]) {
        self.named.extend(self.rooted(path));
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

/// The file that the attribute `path` names.
fn named_file(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        if let Meta::NameValue(named) = &attribute.meta
            && named.path.is_ident("path")
            && let Expr::Lit(literal) = &named.value
            && let Lit::Str(file) = &literal.lit
        {
            Some(file.value())
        } else {
            None
        }
    })
}

/// Reads the module in `file` and the modules below it, except tests. `below` is the folder of the files of the modules
/// below it.
fn read(file: &Path, below: &Path, module: &Module, names: &mut Names) {
    let parsed = parsed(file);
    let named = names.entry(module.clone()).or_default();
    Paths { module: module.clone(), named }.visit_file(&parsed);
    for item in &parsed.items {
        let Item::Mod(inner) = item else { continue };
        if inner.content.is_some() || is_for_tests(&inner.attrs) {
            continue;
        }
        let name = inner.ident.to_string();
        let path = [&module[..], std::slice::from_ref(&name)].concat();
        let file = match named_file(&inner.attrs) {
            Some(other) => file.with_file_name(other),
            None => [format!("{name}.rs"), format!("{name}/mod.rs")]
                .map(|file| below.join(file))
                .into_iter()
                .find(|file| file.exists())
                .unwrap(),
        };
        read(&file, &below.join(&name), &path, names);
    }
}

/// The members of the workspace.
fn members(root: &Path) -> Vec<PathBuf> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let list = manifest.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    list.split('"').skip(1).step_by(2).map(|member| root.join(member)).collect()
}

/// The root files of a package's crates: the library, the program and integration tests; not the programs in `src/bin`,
/// which measure.
fn roots(package: &Path) -> Vec<PathBuf> {
    let entries =
        |folder: &str| fs::read_dir(package.join(folder)).into_iter().flatten().map(|entry| entry.unwrap().path());
    let own = ["src/lib.rs", "src/main.rs"].map(|file| package.join(file));
    let others = entries("tests").map(|path| if path.is_dir() { path.join("main.rs") } else { path });
    own.into_iter().chain(others).filter(|path| path.extension() == Some(OsStr::new("rs")) && path.exists()).collect()
}

/// The modules beside each other, by the module that contains them.
fn beside(names: &Names) -> BTreeMap<Module, Beside> {
    let mut all: BTreeMap<Module, Beside> = BTreeMap::new();
    for (module, named) in names {
        for path in named {
            let target =
                (0..=path.len()).rev().map(|length| &path[..length]).find(|module| names.contains_key(*module));
            let Some(target) = target else { continue };
            let common = module.iter().zip(target).take_while(|(one, other)| one == other).count();
            if let (Some(one), Some(other)) = (module.get(common), target.get(common)) {
                let modules = all.entry(module[..common].to_vec()).or_default();
                modules.entry(one.clone()).or_default().insert(other.clone());
                modules.entry(other.clone()).or_default();
            }
        }
    }
    all
}

/// Repeatedly removes each module that names none of the remaining modules. Returns the modules that are left: circles,
/// and the modules that depend on a circle.
fn circles(mut modules: Beside) -> Beside {
    loop {
        let done: BTreeSet<String> =
            modules.iter().filter(|(_, named)| named.is_empty()).map(|(module, _)| module.clone()).collect();
        if done.is_empty() {
            return modules;
        }
        modules.retain(|module, _| !done.contains(module));
        modules.values_mut().for_each(|named| named.retain(|other| !done.contains(other)));
    }
}

#[test]
fn when_modules_name_each_other_then_it_is_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut edges = 0;
    for file in members(&root).iter().flat_map(|package| roots(package)) {
        let mut names = Names::new();
        read(&file, file.parent().unwrap(), &Module::new(), &mut names);
        for (module, modules) in beside(&names) {
            edges += modules.values().map(BTreeSet::len).sum::<usize>();
            let circles = circles(modules);
            assert!(circles.is_empty(), "{}, {}: {circles:#?}", file.display(), module.join("::"));
        }
    }
    assert!(edges > 1000, "only {edges} names were found");
}

#[test]
fn when_modules_form_a_circle_then_it_is_found() {
    let modules = |pairs: &[(&str, &str)]| {
        let mut modules = Beside::new();
        for (module, other) in pairs {
            modules.entry((*module).to_owned()).or_default().insert((*other).to_owned());
            modules.entry((*other).to_owned()).or_default();
        }
        modules
    };
    assert!(circles(modules(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    assert_eq!(circles(modules(&[("a", "b"), ("b", "c"), ("c", "b")])).len(), 3);
}

#[test]
fn when_modules_below_the_top_level_name_each_other_then_that_belongs_to_the_module_that_contains_them() {
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Module>();
    let names = [("a", "a::b::X"), ("a::b", "a::c::f"), ("a::c::d", "a::b"), ("a::c", "a::Y"), ("e", "a::b")];
    let mut all = Names::new();
    for (module, named) in names {
        all.entry(path(module)).or_default().insert(path(named));
    }
    let beside = beside(&all);
    assert_eq!(beside.keys().map(|module| module.join("::")).collect::<Vec<_>>(), ["", "a"]);
    assert!(circles(beside[&Module::new()].clone()).is_empty());
    assert_eq!(circles(beside[&path("a")].clone()).into_keys().collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn when_code_names_a_module_then_it_is_found_in_any_notation() {
    let mut named = BTreeSet::new();
    let text = "use crate::{a, b::{self, C}}; use super::d as e; fn f() { crate::g::h(); let _ = self::i::J; k::l(); }
                #[cfg(test)] mod tests { use crate::m; }";
    let module = vec!["n".to_owned(), "o".to_owned()];
    Paths { module, named: &mut named }.visit_file(&syn::parse_file(text).unwrap());
    let named: Vec<String> = named.iter().map(|path| path.join("::")).collect();
    assert_eq!(named, ["a", "b::C", "b::self", "g::h", "n::d", "n::o::i::J"]);
}
