//! The dependencies between the files of a crate, read from their text.
//!
//! File A uses file B if code in A names an item that B defines, directly or through re-exports. A
//! declaration (`mod`) and a re-export (`pub use`) are not uses. Method calls and items defined by
//! macros are not recognized.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, LitStr, Meta, Token, UseTree, Visibility};

/// The text of each file, by its path below `src/`.
pub type Files = BTreeMap<String, String>;

/// Whether modules and items with `#[cfg(test)]` count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    Included,
    Excluded,
}

/// The files of a crate, and their uses of each other.
#[derive(Debug)]
pub struct Graph {
    /// The files that are modules of the crate.
    pub files: BTreeSet<String>,
    /// The using and the used file, with the path in the first that names the second.
    pub edges: BTreeMap<(String, String), String>,
}

impl Graph {
    /// Reads all files that are modules of `lib.rs`.
    pub fn read(files: &Files, tests: Tests) -> Self {
        let mut modules = Modules { files, tests, modules: Vec::new() };
        modules.add_file("lib.rs", None);
        let mut edges = BTreeMap::new();
        for (index, module) in modules.modules.iter().enumerate() {
            for path in &module.paths {
                let target = modules.resolve(index, path, &mut BTreeSet::new());
                if let Some(Target::Item(file)) = target
                    && file != module.file
                {
                    edges.entry((module.file.clone(), file)).or_insert_with(|| path.join("::"));
                }
            }
        }
        let files = modules.modules.into_iter().map(|module| module.file).collect();
        Self { files, edges }
    }

    /// The groups of two or more files that use each other, directly or indirectly.
    pub fn cycles(&self) -> Vec<Vec<&str>> {
        let mut graph = DiGraph::<&str, ()>::new();
        let mut nodes = BTreeMap::new();
        for (from, to) in self.edges.keys() {
            let [from, to] =
                [from, to].map(|file| *nodes.entry(file).or_insert_with(|| graph.add_node(file)));
            graph.add_edge(from, to, ());
        }
        let groups = tarjan_scc(&graph).into_iter().filter(|group| group.len() > 1);
        let mut cycles: Vec<Vec<&str>> =
            groups.map(|group| group.into_iter().map(|node| graph[node]).collect()).collect();
        cycles.iter_mut().for_each(|group| group.sort_unstable());
        cycles.sort();
        cycles
    }

    /// The uses within a group of files, one per line.
    pub fn uses_within(&self, group: &[&str]) -> String {
        let within = |file: &String| group.contains(&file.as_str());
        let uses = self.edges.iter().filter(|((from, to), _)| within(from) && within(to));
        uses.map(|((from, to), path)| format!("  {from} uses {to}: `{path}`\n")).collect()
    }
}

/// A module. A file has several if some are inline.
#[derive(Debug, Default)]
struct Module {
    file: String,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// The names of the items that the file defines.
    items: BTreeSet<String>,
    /// The paths of names imported with `use`, by their name in this module.
    aliases: BTreeMap<String, Vec<Vec<String>>>,
    /// The modules in `use module::*`.
    globs: Vec<Vec<String>>,
    /// The paths in code and in private `use`.
    paths: BTreeSet<Vec<String>>,
}

/// The target of a path.
#[derive(Debug, Clone)]
enum Target {
    Module(usize),
    /// An item in this file.
    Item(String),
}

struct Modules<'a> {
    files: &'a Files,
    tests: Tests,
    /// The modules; the first is the root.
    modules: Vec<Module>,
}

impl Modules<'_> {
    fn add_file(&mut self, file: &str, parent: Option<usize>) -> usize {
        let text = self.files.get(file).unwrap_or_else(|| panic!("{file} does not exist"));
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        // The folder of the files of its child modules.
        let folder = match file.strip_suffix("mod.rs").or(file.strip_suffix("lib.rs")) {
            Some(folder) => folder.to_owned(),
            None => format!("{}/", file.trim_end_matches(".rs")),
        };
        self.add_module(file, &folder, parent, &parsed.items)
    }

    fn add_module(
        &mut self,
        file: &str,
        folder: &str,
        parent: Option<usize>,
        items: &[Item],
    ) -> usize {
        let index = self.modules.len();
        self.modules.push(Module { file: file.to_owned(), parent, ..Module::default() });
        let mut code = Code { tests: self.tests, module: Module::default() };
        for item in items {
            if self.tests == Tests::Excluded && is_test(attributes(item)) {
                continue;
            }
            let Item::Mod(child) = item else {
                if let Some(name) = name(item) {
                    code.module.items.insert(name);
                }
                code.visit_item(item);
                continue;
            };
            let name = child.ident.to_string();
            let below = format!("{folder}{name}");
            let added = match &child.content {
                Some((_, items)) => self.add_module(file, &format!("{below}/"), Some(index), items),
                None if self.files.contains_key(&format!("{below}.rs")) => {
                    self.add_file(&format!("{below}.rs"), Some(index))
                }
                None => self.add_file(&format!("{below}/mod.rs"), Some(index)),
            };
            self.modules[index].children.insert(name, added);
        }
        let Module { items, aliases, globs, paths, .. } = code.module;
        let module = &mut self.modules[index];
        (module.items, module.aliases, module.globs, module.paths) = (items, aliases, globs, paths);
        index
    }

    /// Resolves a path in a module. Returns nothing if the item is in another crate or local to a
    /// function. `seen` has the names that are being resolved, because globs can be circular.
    fn resolve(
        &self,
        module: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        let mut target = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(module),
            "super" => Target::Module(self.modules[module].parent?),
            name => self.find(module, name, rest.is_empty(), seen)?,
        };
        for (index, segment) in rest.iter().enumerate() {
            let Target::Module(module) = target else { break };
            let is_last = index + 1 == rest.len();
            target = match segment.as_str() {
                "super" => Target::Module(self.modules[module].parent?),
                "self" => target,
                // Names that are not found are defined by macros.
                name => self
                    .find(module, name, is_last, seen)
                    .unwrap_or_else(|| Target::Item(self.modules[module].file.clone())),
            };
        }
        Some(target)
    }

    /// Finds a name in a module. A module and an item can have the same name: the last segment of a
    /// path means the item.
    fn find(
        &self,
        module: usize,
        name: &str,
        is_last: bool,
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<Target> {
        let Module { file, children, items, aliases, globs, .. } = &self.modules[module];
        let child = children.get(name).map(|child| Target::Module(*child));
        if child.is_some() && !is_last {
            return child;
        }
        if items.contains(name) {
            return Some(Target::Item(file.clone()));
        }
        if !seen.insert((module, name.to_owned())) {
            return child;
        }
        let mut aliased = aliases.get(name).into_iter().flatten();
        let target = aliased.find_map(|path| self.resolve(module, path, seen)).or_else(|| {
            globs.iter().find_map(|glob| match self.resolve(module, glob, seen)? {
                Target::Module(from) => self.find(from, name, is_last, seen),
                Target::Item(_) => None,
            })
        });
        seen.remove(&(module, name.to_owned()));
        target.or(child)
    }
}

/// Collects the names and paths in the items of a module.
struct Code {
    tests: Tests,
    module: Module,
}

impl Code {
    fn add_use(&mut self, prefix: &[String], tree: &UseTree, is_private: bool) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        let mut add = |name: String, path: Vec<String>| {
            if is_private {
                self.module.paths.insert(path.clone());
            }
            self.module.aliases.entry(name).or_default().push(path);
        };
        match tree {
            UseTree::Path(path) => self.add_use(&with(&path.ident), &path.tree, is_private),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_use(prefix, tree, is_private));
            }
            UseTree::Glob(_) => self.module.globs.push(prefix.to_vec()),
            UseTree::Rename(rename) => add(rename.rename.to_string(), with(&rename.ident)),
            UseTree::Name(name) if name.ident == "self" => {
                add(prefix.last().cloned().unwrap_or_default(), prefix.to_vec());
            }
            UseTree::Name(name) => add(name.ident.to_string(), with(&name.ident)),
        }
    }

    /// Adds the paths in the tokens of a macro: identifiers with `::` between them.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        // The punctuation since the last identifier.
        let mut between = String::new();
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if between != "::" {
                        self.module.paths.insert(std::mem::take(&mut path));
                    }
                    // A field or method after a dot is not a path.
                    if !between.ends_with('.') {
                        path.push(ident.to_string());
                    }
                    between.clear();
                }
                TokenTree::Punct(punct) => between.push(punct.as_char()),
                TokenTree::Literal(literal) => {
                    between.push('"');
                    let text = syn::parse_str::<LitStr>(&literal.to_string());
                    let path = text.and_then(|text| text.parse::<syn::Path>());
                    if let Ok(path) = path
                        && path.segments.len() > 1
                    {
                        self.visit_path(&path);
                    }
                }
                TokenTree::Group(group) => {
                    let is_brace = group.delimiter() == Delimiter::Brace;
                    between.push(if is_brace { '{' } else { '(' });
                    self.add_tokens(group.stream());
                }
            }
        }
        self.module.paths.insert(path);
    }

    fn skips(&self, attributes: &[Attribute]) -> bool {
        self.tests == Tests::Excluded && is_test(attributes)
    }
}

impl Visit<'_> for Code {
    fn visit_path(&mut self, path: &syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string());
        // `::name` is another crate.
        if path.leading_colon.is_none() {
            self.module.paths.insert(segments.collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &syn::Macro) {
        self.add_tokens(invocation.tokens.clone());
        visit::visit_macro(self, invocation);
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.add_use(&[], &item.tree, matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_item(&mut self, item: &Item) {
        if !self.skips(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &ImplItem) {
        let attributes: &[Attribute] = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => &[],
        };
        if !self.skips(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    /// The path in `pub(in path)` is not a use.
    fn visit_visibility(&mut self, _: &Visibility) {}

    /// Derive macros get paths in attributes, partly in strings.
    fn visit_attribute(&mut self, attribute: &Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.add_tokens(list.tokens.clone());
        }
    }
}

/// Whether an item is only in test builds.
fn is_test(attributes: &[Attribute]) -> bool {
    fn implies_test(condition: &Meta) -> bool {
        match condition {
            Meta::Path(path) => path.is_ident("test"),
            Meta::List(list) if list.path.is_ident("all") => {
                let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
                parts.is_ok_and(|parts| parts.iter().any(implies_test))
            }
            _ => false,
        }
    }
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<Meta>().is_ok_and(|condition| implies_test(&condition))
    })
}

/// The name of an item.
fn name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
