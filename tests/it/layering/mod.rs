//! The architecture: each module uses only the modules below it.
//!
//! Programs: none.

use std::path::{Path, PathBuf};

/// From the top; `src/lib.rs` lists them so too.
const WINGS: [&str; 9] =
    ["commands", "net", "http", "cache", "store", "config", "metrics", "logging", "nix"];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of src/ can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The wings that a text names behind `crate::`, alone or in braces.
fn wings_used(text: &str) -> Vec<&str> {
    let mut used = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                used.extend(list.split(',').map(|item| word(item.trim_start())));
            }
            None => used.push(word(rest)),
        }
    }
    used
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

#[test]
fn no_wing_uses_one_above_it() {
    let rank = |name: &str| WINGS.iter().position(|wing| *wing == name);
    let mut files = Vec::new();
    rust_files(&src(), &mut files);
    let mut uses = 0;
    for file in files {
        let name = file.strip_prefix(src()).expect("it is in src/").display().to_string();
        let own = name.split(['/', '.']).next().unwrap_or_default();
        if ["lib", "main"].contains(&own) {
            continue;
        }
        let own_rank = rank(own).unwrap_or_else(|| panic!("{name} is in no wing"));
        let text = std::fs::read_to_string(&file).expect("a source file can be read");
        for used in wings_used(&text) {
            let used_rank =
                rank(used).unwrap_or_else(|| panic!("{name} uses crate::{used}, no wing"));
            assert!(used_rank >= own_rank, "{name} uses crate::{used}, which is above {own}");
            uses += 1;
        }
    }
    assert!(uses > 30, "only {uses} uses were found: the test does not see them");
}

#[test]
fn the_library_lists_the_wings_from_the_top() {
    let lib = std::fs::read_to_string(src().join("lib.rs")).expect("lib.rs can be read");
    let listed: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(listed, WINGS);
}

#[test]
fn status_codes_are_in_the_http_wing_only() {
    let mut files = Vec::new();
    rust_files(&src(), &mut files);
    // The second reads what others answer.
    let theirs = [src().join("http"), src().join("cache/upstream/client.rs")];
    for file in files.iter().filter(|file| !theirs.iter().any(|path| file.starts_with(path))) {
        let text = std::fs::read_to_string(file).expect("a source file can be read");
        assert!(!text.contains("StatusCode"), "{}", file.display());
    }
}

#[test]
fn anyhow_is_in_the_commands_only() {
    let mut files = Vec::new();
    rust_files(&src(), &mut files);
    for file in files.iter().filter(|file| !file.starts_with(src().join("commands"))) {
        let text = std::fs::read_to_string(file).expect("a source file can be read");
        assert!(!text.contains("anyhow::"), "{}", file.display());
    }
}

#[test]
fn wings_are_found_in_every_form_of_use() {
    assert_eq!(wings_used("use crate::nix::CachePath;"), ["nix"]);
    assert_eq!(
        wings_used("use crate::{http, logging, net::Listener};"),
        ["http", "logging", "net"]
    );
    assert_eq!(wings_used("fn x(y: crate::store::Object) {}"), ["store"]);
}
