//! Checks that dependencies between modules point one way.
//!
//! Reads the sources of each crate with syn, resolves every path to the file that defines the item it
//! names (through `pub use`), and fails on two files of a crate that depend on each other in a circle and on
//! each dependency that ARCHITECTURE.md rules out. Code under `#[cfg(test)]` is not looked at. Method calls
//! are not paths, so a dependency on a trait's methods alone is not seen, and neither is a path in a string,
//! as in attributes of serde.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, UseTree, Visibility};

/// Dependencies that are not allowed: from a file below the first path, on one below the second, except
/// from or on a file below one of the third.
const FORBIDDEN: &[(&str, &str, &[&str])] = &[
    ("ktstr_core::linux", "ktstr_core::model", &[]),
    ("ktstr_core::linux", "ktstr_core::guest", &[]),
    ("ktstr_core::model", "ktstr_core::linux", &[]),
    ("ktstr_core::model", "ktstr_core::guest", &[]),
    // The data that both use must not lead from one to the other.
    ("ktstr_core::cgroup_stats", "ktstr_core", &["ktstr_core::cgroup_stats"]),
    ("ktstr_core::guest", "ktstr_core::guest::registry", &["ktstr_core::guest::agent"]),
    ("ktstr_vmm", "ktstr_core", &["ktstr_core::linux", "ktstr_core::model::machine"]),
    ("ktstr::provision", "ktstr::runner", &[]),
    ("ktstr::provision", "ktstr::report", &[]),
    ("ktstr::report", "ktstr::runner", &[]),
    ("ktstr::report", "ktstr_vmm", &[]),
];

/// The crates, by name, and the directories of their sources.
const CRATES: &[(&str, &str)] = &[
    ("ktstr", "src"),
    ("ktstr_core", "ktstr-core/src"),
    ("ktstr_vmm", "ktstr-vmm/src"),
    ("ktstr_macros", "ktstr-macros/src"),
    ("cargo_ktstr", "cargo-ktstr/src"),
];

/// A module's path; the first segment is the crate.
type ModulePath = Vec<String>;

#[derive(Debug, Default)]
struct Module {
    /// The module of this one's source file: itself, except for an inline module.
    file: ModulePath,
    /// The names of the items defined here.
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths outside of `use`, by their segments.
    paths: BTreeSet<Vec<String>>,
}

#[derive(Debug)]
struct Import {
    /// The name it has here; `None` for a glob.
    alias: Option<String>,
    path: Vec<String>,
    is_reexport: bool,
}

/// The modules of one or more crates.
#[derive(Debug, Default)]
struct Sources(BTreeMap<ModulePath, Module>);

/// For each file, the files it depends on, each with a path that shows it.
type Dependencies = BTreeMap<ModulePath, BTreeMap<ModulePath, String>>;

impl Sources {
    /// Reads a crate from its `lib.rs` or `main.rs` on.
    fn read(&mut self, name: &str, directory: &Path) {
        let root = ["lib.rs", "main.rs"].map(|file| directory.join(file));
        let root = root.iter().find(|file| file.exists()).expect("a crate has a root");
        self.read_file(vec![name.to_owned()], root, directory);
    }

    /// Reads a module's file; those of its child modules are in `directory`.
    fn read_file(&mut self, path: ModulePath, file: &Path, directory: &Path) {
        let text = std::fs::read_to_string(file).expect("a module's file can be read");
        let parsed = syn::parse_file(&text)
            .unwrap_or_else(|error| panic!("cannot parse {}: {error}", file.display()));
        self.add(path.clone(), path, parsed.items, directory);
    }

    fn add(&mut self, path: ModulePath, file: ModulePath, items: Vec<Item>, directory: &Path) {
        let mut module = Module { file: file.clone(), ..Module::default() };
        for item in items {
            if attributes(&item).iter().any(is_test_only) {
                continue;
            }
            module.items.extend(name_of(&item));
            match item {
                Item::Use(item) => {
                    let is_reexport = !matches!(item.vis, Visibility::Inherited);
                    imports(item.tree, &mut Vec::new(), is_reexport, &mut module.imports);
                }
                Item::Mod(child) => {
                    let name = child.ident.to_string();
                    let child_path = [path.clone(), vec![name.clone()]].concat();
                    let below = directory.join(&name);
                    match child.content {
                        Some((_, items)) => self.add(child_path, file.clone(), items, &below),
                        None => {
                            let flat = directory.join(format!("{name}.rs"));
                            let nested = below.join("mod.rs");
                            let file = if flat.exists() { flat } else { nested };
                            self.read_file(child_path, &file, &below);
                        }
                    }
                }
                other => collect(other.to_token_stream(), &mut module),
            }
        }
        self.0.insert(path, module);
    }

    /// Returns what each file depends on.
    fn dependencies(&self) -> Dependencies {
        let mut all = Dependencies::new();
        for (path, module) in &self.0 {
            let imports = module.imports.iter().filter(|import| {
                // A module that re-exports its own children does not depend on them.
                let target = self.resolve(path, &import.path, import.alias.is_none());
                !(import.is_reexport && target.is_some_and(|target| target.starts_with(path)))
            });
            let imported = imports.map(|import| (&import.path, import.alias.is_none()));
            for (used, is_glob) in imported.chain(module.paths.iter().map(|path| (path, false))) {
                for target in self.targets(path, used, is_glob) {
                    let target = &self.0[&target].file;
                    if *target != module.file {
                        let example = all.entry(module.file.clone()).or_default();
                        example.entry(target.clone()).or_insert_with(|| used.join("::"));
                    }
                }
            }
        }
        all
    }

    /// Returns the modules that define what `used` names. For a glob, these are the module and all that it
    /// re-exports from: the names that are used of it need not be paths.
    fn targets(&self, at: &[String], used: &[String], is_glob: bool) -> Vec<ModulePath> {
        let Some(target) = self.resolve(at, used, is_glob) else { return Vec::new() };
        let reexports =
            self.0[&target].imports.iter().filter(|import| is_glob && import.is_reexport);
        let reexported = reexports
            .filter_map(|import| self.resolve(&target, &import.path, import.alias.is_none()));
        let mut targets: Vec<_> = reexported.collect();
        targets.push(target);
        targets
    }

    /// Returns the module that defines what `used` names when it stands in the module `at`; `None`
    /// for an item of another crate, and for a module itself unless `is_glob`.
    fn resolve(&self, at: &[String], used: &[String], is_glob: bool) -> Option<ModulePath> {
        let (target, is_item) = self.lookup(at, used, 0)?;
        (is_item || is_glob).then_some(target)
    }

    fn lookup(&self, at: &[String], used: &[String], depth: usize) -> Option<(ModulePath, bool)> {
        if depth > 16 {
            return None;
        }
        let (first, rest) = used.split_first()?;
        let is_crate = |name: &String| self.0.contains_key(std::slice::from_ref(name));
        match first.as_str() {
            "crate" => self.descend(&at[..1], rest, depth),
            "self" => self.descend(at, rest, depth),
            "super" => {
                let (mut parent, mut rest) = (at.split_last()?.1, rest);
                while let Some((next, after)) = rest.split_first().filter(|(it, _)| *it == "super")
                {
                    let _ = next;
                    (parent, rest) = (parent.split_last()?.1, after);
                }
                self.descend(parent, rest, depth)
            }
            // The crate's own modules and imports hide other crates.
            _ => self.member(at, first, rest, depth).or_else(|| {
                if is_crate(first) { self.descend(&used[..1], rest, depth) } else { None }
            }),
        }
    }

    /// Follows `rest` from the module `at`. The flag is whether it ended at an item. A name that `at` does
    /// not show is taken for an item of it, which a macro defines.
    fn descend(&self, at: &[String], rest: &[String], depth: usize) -> Option<(ModulePath, bool)> {
        let Some((first, rest)) = rest.split_first() else { return Some((at.to_vec(), false)) };
        let by_macro = || self.0.contains_key(at).then(|| (at.to_vec(), true));
        self.member(at, first, rest, depth).or_else(by_macro)
    }

    fn member(
        &self,
        at: &[String],
        first: &String,
        rest: &[String],
        depth: usize,
    ) -> Option<(ModulePath, bool)> {
        let module = self.0.get(at)?;
        let child = [at, std::slice::from_ref(first)].concat();
        if self.0.contains_key(&child) {
            return self.descend(&child, rest, depth);
        }
        if module.items.contains(first) {
            return Some((at.to_vec(), true));
        }
        let alias = module.imports.iter().find(|import| import.alias.as_ref() == Some(first));
        if let Some(import) = alias {
            return self.lookup(at, &[&import.path, rest].concat(), depth + 1);
        }
        module.imports.iter().filter(|import| import.alias.is_none()).find_map(|import| {
            let (target, _) = self.lookup(at, &import.path, depth + 1)?;
            if target == at { None } else { self.member(&target, first, rest, depth + 1) }
        })
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(it) => &it.attrs,
        Item::Enum(it) => &it.attrs,
        Item::Fn(it) => &it.attrs,
        Item::Impl(it) => &it.attrs,
        Item::Macro(it) => &it.attrs,
        Item::Mod(it) => &it.attrs,
        Item::Static(it) => &it.attrs,
        Item::Struct(it) => &it.attrs,
        Item::Trait(it) => &it.attrs,
        Item::Type(it) => &it.attrs,
        Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

fn is_test_only(attribute: &Attribute) -> bool {
    let text = attribute.to_token_stream().to_string().replace(' ', "");
    text == "#[cfg(test)]" || text == "#[test]"
}

fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(it) => &it.ident,
        Item::Enum(it) => &it.ident,
        Item::Fn(it) => &it.sig.ident,
        Item::Macro(it) => it.ident.as_ref()?,
        Item::Static(it) => &it.ident,
        Item::Struct(it) => &it.ident,
        Item::Trait(it) => &it.ident,
        Item::Type(it) => &it.ident,
        Item::Union(it) => &it.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn imports(tree: UseTree, prefix: &mut Vec<String>, is_reexport: bool, found: &mut Vec<Import>) {
    let mut push = |alias: Option<String>, path: Vec<String>| {
        found.push(Import { alias, path, is_reexport });
    };
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            imports(*path.tree, prefix, is_reexport, found);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            push(prefix.last().cloned(), prefix.clone());
        }
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            push(Some(name.clone()), [prefix.clone(), vec![name]].concat());
        }
        UseTree::Rename(rename) => {
            let path = [prefix.clone(), vec![rename.ident.to_string()]].concat();
            push(Some(rename.rename.to_string()), path);
        }
        UseTree::Glob(_) => push(None, prefix.clone()),
        UseTree::Group(group) => {
            for tree in group.items {
                imports(tree, prefix, is_reexport, found);
            }
        }
    }
}

/// Collects every `a::b` of the tokens, those in arguments of macros included, and every `use` in a body.
fn collect(tokens: TokenStream, module: &mut Module) {
    let mut path: Vec<String> = Vec::new();
    let (mut colons, mut after_dot) = (0, false);
    let mut groups = Vec::new();
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        match &token {
            TokenTree::Ident(ident) if ident == "use" => {
                module.paths.extend(taken(&mut path));
                let length = tokens.clone().take_while(|token| !is_punct(token, ';')).count() + 1;
                let rest = tokens.clone().take(length);
                let item = std::iter::once(token).chain(rest).collect::<TokenStream>();
                // Not in `impl Trait + use<'a>`.
                if let Ok(item) = syn::parse2::<syn::ItemUse>(item) {
                    imports(item.tree, &mut Vec::new(), false, &mut module.imports);
                    tokens.by_ref().take(length).for_each(drop);
                }
                (colons, after_dot) = (0, false);
            }
            TokenTree::Ident(ident) => {
                if colons != 2 || path.is_empty() {
                    module.paths.extend(taken(&mut path));
                }
                if !after_dot {
                    path.push(ident.to_string());
                }
                (colons, after_dot) = (0, false);
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            other => {
                module.paths.extend(taken(&mut path));
                (colons, after_dot) = (0, is_punct(other, '.'));
                if let TokenTree::Group(group) = other {
                    groups.push(group.stream());
                }
            }
        }
    }
    module.paths.extend(taken(&mut path));
    for group in groups {
        collect(group, module);
    }
}

/// Empties `path`; returns it if it has more than one segment.
fn taken(path: &mut Vec<String>) -> Option<Vec<String>> {
    Some(std::mem::take(path)).filter(|path| path.len() > 1)
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// A dependency that should not be: the files of a circle, or the two ends of a forbidden arrow.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the dependencies between modules of one parent. Of two files, `a::b::c` and `a::d::e`, it is
/// those of `a::b` on `a::d`. A module and its descendants are one unit here.
fn between_siblings(files: &Dependencies) -> Dependencies {
    let mut all = Dependencies::new();
    for (from, targets) in files {
        for (to, example) in targets {
            let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            if common > 0 && common < from.len().min(to.len()) {
                let targets = all.entry(from[..=common].to_vec()).or_default();
                let example = || format!("{example}` in `{}", from.join("::"));
                targets.entry(to[..=common].to_vec()).or_insert_with(example);
            }
        }
    }
    all
}

/// Returns a shortest circle through each pair of modules that depend on each other, each circle once.
fn circles(dependencies: &Dependencies) -> BTreeSet<Fault> {
    let mut seen = BTreeSet::new();
    let mut faults = BTreeSet::new();
    for (from, targets) in dependencies {
        for to in targets.keys() {
            let Some(way) = shortest_way(dependencies, to, from) else { continue };
            let members: BTreeSet<_> = way.iter().cloned().collect();
            if seen.insert(members) {
                let mut text = from.join("::");
                let mut at = from;
                for next in &way {
                    let example = &dependencies[at][next];
                    text += &format!("\n    uses {} (`{example}`)", next.join("::"));
                    at = next;
                }
                faults.insert(Fault(text));
            }
        }
    }
    faults
}

/// Returns the files of a shortest way, both ends included.
fn shortest_way(all: &Dependencies, from: &ModulePath, to: &ModulePath) -> Option<Vec<ModulePath>> {
    let mut before: BTreeMap<&ModulePath, Option<&ModulePath>> = BTreeMap::from([(from, None)]);
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        if at == to {
            let mut way = vec![at.clone()];
            let mut last = at;
            while let Some(previous) = before[last] {
                way.push(previous.clone());
                last = previous;
            }
            way.reverse();
            return Some(way);
        }
        for next in all.get(at).into_iter().flat_map(BTreeMap::keys) {
            if !before.contains_key(next) {
                before.insert(next, Some(at));
                queue.push_back(next);
            }
        }
    }
    None
}

fn forbidden(dependencies: &Dependencies, rules: &[(&str, &str, &[&str])]) -> BTreeSet<Fault> {
    let is_below = |path: &str, ancestor: &str| {
        path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let mut faults = BTreeSet::new();
    for (from, targets) in dependencies {
        for (to, example) in targets {
            let (from, to) = (from.join("::"), to.join("::"));
            let is_forbidden = |&&(first, second, except): &&(&str, &str, &[&str])| {
                let is_excepted = |path: &str| except.iter().any(|except| is_below(path, except));
                is_below(&from, first)
                    && is_below(&to, second)
                    && !is_excepted(&from)
                    && !is_excepted(&to)
            };
            if rules.iter().find(is_forbidden).is_some() {
                faults.insert(Fault(format!("{from}\n    must not use {to} (`{example}`)")));
            }
        }
    }
    faults
}

fn workspace() -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace");
    let mut sources = Sources::default();
    for (name, directory) in CRATES {
        sources.read(name, &root.join(directory));
    }
    sources
}

fn listed(faults: &BTreeSet<Fault>) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

#[test]
fn modules_do_not_depend_on_each_other_in_circles() {
    let faults = circles(&between_siblings(&workspace().dependencies()));
    assert!(faults.is_empty(), "{} circles:{}", faults.len(), listed(&faults));
}

#[test]
fn dependencies_point_one_way() {
    let dependencies = workspace().dependencies();
    assert!(dependencies.len() > 150, "only {} files have dependencies", dependencies.len());
    let faults = forbidden(&dependencies, FORBIDDEN);
    assert!(faults.is_empty(), "{} forbidden:{}", faults.len(), listed(&faults));
}

/// Writes a crate `it` and returns its dependencies.
fn example(files: &[(&str, &str)]) -> Dependencies {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path: PathBuf = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let mut sources = Sources::default();
    sources.read("it", directory.path());
    sources.dependencies()
}

#[test]
fn circles_are_found_through_re_exports_and_macros() {
    for (name, a, b, is_circle) in [
        ("by import", "use crate::b::B; pub struct A;", "use super::A; pub struct B;", true),
        ("by path", "pub fn a() { crate::b::f(); }", "pub fn f() { super::a::a(); }", true),
        (
            "in a macro",
            "pub fn a() { println!(\"{}\", crate::b::f()) }",
            "use super::a::a; pub fn f() {}",
            true,
        ),
        ("in a body", "pub fn a() { use crate::b::{B}; }", "use super::A; pub struct B;", true),
        ("by macro", "items! { B }", "use super::a::C;", false),
        ("of a macro", "use crate::b::B; items! { C }", "use super::a::C; items! { B }", true),
        ("by glob", "use crate::b::*; pub struct A;", "use crate::*; pub struct B;", true),
        ("by module", "use crate::b; pub struct A(b::B);", "use crate::A; pub struct B;", true),
        ("one way", "pub struct A;", "use crate::A; pub struct B;", false),
        (
            "in a test",
            "#[cfg(test)] mod tests { use crate::b::B; } pub struct A;",
            "use crate::A;",
            false,
        ),
    ] {
        let dependencies =
            example(&[("lib.rs", "mod a; mod b; pub use a::A;"), ("a.rs", a), ("b.rs", b)]);
        let faults = circles(&between_siblings(&dependencies));
        assert_eq!(!faults.is_empty(), is_circle, "{name}: {dependencies:?}");
    }
}

#[test]
fn forbidden_names_an_arrow_that_is_added() {
    let rules: &[(&str, &str, &[&str])] = &[("it::low", "it::high", &["it::high::leaf"])];
    for (low, count) in [
        ("pub struct L;", 0),
        ("use crate::high::leaf::Leaf; pub struct L;", 0),
        ("use crate::high::H; pub struct L;", 1),
        ("pub fn l() -> crate::high::H { todo!() }", 1),
    ] {
        let dependencies = example(&[
            ("lib.rs", "mod low; mod high;"),
            ("low.rs", low),
            ("high/mod.rs", "pub mod leaf; mod other; pub use other::H;"),
            ("high/other.rs", "use crate::low::L; pub struct H(L);"),
            ("high/leaf.rs", "pub struct Leaf;"),
        ]);
        assert_eq!(forbidden(&dependencies, rules).len(), count, "{low}");
    }
}
