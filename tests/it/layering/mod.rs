//! The architecture of `src/`: each module uses only the modules below it, and no files use each other in a circle.
//!
//! Programs: none.

mod graph;
mod synthetic;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use graph::{Files, Graph, Tests};

/// The modules of the library from the top, as `src/lib.rs` lists them.
const MODULES: [&str; 17] = [
    "commands",
    "net",
    "http",
    "browse",
    "migrate",
    "verify",
    "retention",
    "mirror",
    "cache",
    "ingest",
    "unpack",
    "inventory",
    "store",
    "config",
    "metrics",
    "logging",
    "nix",
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn add_rust_files(folder: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(folder).expect("a folder of src/ can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            add_rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file can be read");
            let name = path.strip_prefix(src()).expect("the file is in src/");
            files.insert(name.to_str().expect("a file name in UTF-8").to_owned(), text);
        }
    }
}

fn files() -> Files {
    let mut files = Files::new();
    add_rust_files(&src(), &mut files);
    files
}

/// The module of the library that a file belongs to.
fn module(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or_default()
}

/// The uses of modules above the user's own, one per line.
fn uses_upwards(graph: &Graph, modules: &[&str]) -> Vec<String> {
    let rank = |file: &str| {
        let rank = modules.iter().position(|name| *name == module(file));
        rank.unwrap_or_else(|| panic!("{file} is in none of the modules {modules:?}"))
    };
    let upwards = graph.edges.iter().filter(|((from, to), _)| rank(to) < rank(from));
    upwards.map(|((from, to), path)| format!("{from} uses {to}: `{path}`")).collect()
}

#[test]
fn no_module_uses_one_above_it() {
    let graph = Graph::read(&files(), Tests::Included);
    let between = graph.edges.keys().filter(|(from, to)| module(from) != module(to)).count();
    assert!(between > 300, "only {between} uses between modules were found");
    assert_eq!(uses_upwards(&graph, &MODULES), [""; 0]);
    let all: BTreeSet<String> = files().into_keys().filter(|file| file != "main.rs").collect();
    assert_eq!(graph.files, all);
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let files = files();
    let graph = Graph::read(&files, Tests::Excluded);
    let users: BTreeSet<&String> = graph.edges.keys().map(|(from, _)| from).collect();
    assert!(users.len() * 4 > files.len() * 3, "{} of {} files use any", users.len(), files.len());
    let cycles = graph.cycles();
    let uses: Vec<String> = cycles.iter().map(|group| graph.uses_within(group)).collect();
    assert!(cycles.is_empty(), "files that use each other:\n\n{}", uses.join("\n"));
}

#[test]
fn lib_rs_lists_the_modules_from_the_top() {
    let lib = &files()["lib.rs"];
    let listed: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(listed, MODULES);
}

#[test]
fn only_the_http_module_has_status_codes() {
    // The upstream client reads the status codes of other servers.
    let may = |file: &str| module(file) == "http" || file == "mirror/client.rs";
    for (file, text) in files().iter().filter(|(file, _)| !may(file)) {
        assert!(!text.contains("StatusCode"), "{file}");
    }
}

#[test]
fn only_the_commands_use_anyhow() {
    for (file, text) in files().iter().filter(|(file, _)| module(file) != "commands") {
        assert!(!text.contains("anyhow::"), "{file}");
    }
}
