//! The dependencies of the program against `Cargo.toml` and `deny.toml`: `cargo deny` checks the same and more, and is not
//! installed everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

/// The packages of a build of the program for this platform, including itself.
fn packages() -> Vec<Value> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    // Without the dependencies of tests.
    let mut wanted = vec![metadata["resolve"]["root"].as_str().expect("a root")];
    let mut found = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if !found.insert(id) {
            continue;
        }
        let mut nodes = array(&metadata["resolve"]["nodes"]).iter();
        let node = nodes.find(|node| node["id"] == id).expect("each dependency is resolved");
        wanted.extend(array(&node["deps"]).iter().filter_map(|dependency| {
            let is_shipped =
                array(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            dependency["pkg"].as_str().filter(|_| is_shipped)
        }));
    }
    assert!(found.len() > 100, "only {} dependencies were found", found.len());
    let mut packages = array(&metadata["packages"]).clone();
    packages.retain(|package| found.contains(text(package, "id")));
    packages
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().expect("an array")
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_else(|| panic!("{} has no {field}", package["name"]))
}

/// The values of a key in the lines of a list in `deny.toml`.
fn deny_list(list: &str, key: &str) -> BTreeSet<String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
    let rules = std::fs::read_to_string(file).expect("deny.toml can be read");
    let (_, lines) = rules.split_once(&format!("\n{list} = [\n")).expect("the list is there");
    let (lines, _) = lines.split_once("\n]\n").expect("the list ends");
    let value = |line: &str| line.split_once(key)?.1.split('"').next().map(str::to_owned);
    lines.lines().map(|line| value(line).expect("a string in each line")).collect()
}

/// A version as numbers. Trailing ones may be missing.
fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().expect("a number")).collect()
}

#[test]
fn no_dependency_needs_a_newer_rust_than_the_program() {
    let newest = version(env!("CARGO_PKG_RUST_VERSION"));
    let mut with_version = 0;
    for package in packages() {
        let Some(needed) = package["rust_version"].as_str() else { continue };
        assert!(version(needed) <= newest, "{} needs Rust {needed}", package["id"]);
        with_version += 1;
    }
    assert!(with_version > 50, "only {with_version} packages have a Rust version");
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let allowed = deny_list("allow", "\"");
    let is_allowed = |licence: &LicenseReq| allowed.contains(&licence.to_string());
    for package in packages() {
        let licence = text(&package, "license");
        let licence = Expression::parse_mode(licence, ParseMode::LAX).expect("an SPDX expression");
        assert!(licence.evaluate(is_allowed), "{} is under {licence}", package["id"]);
    }
}

#[test]
fn every_dependency_is_from_crates_io() {
    for package in packages().iter().filter(|package| package["name"] != env!("CARGO_PKG_NAME")) {
        let source = text(package, "source");
        assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index");
    }
}

#[test]
fn no_dependency_has_two_versions_without_a_reason_in_deny_toml() {
    let skipped = deny_list("skip", "crate = \"");
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let name = text(&package, "name").to_owned();
        versions.entry(name).or_default().insert(text(&package, "version").to_owned());
    }
    let mut used = BTreeSet::new();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let skip_of = |version: &String| {
            skipped.iter().find(|skip| {
                let (skipped, prefix) = skip.split_once('@').expect("a name and a version");
                skipped == name && version.starts_with(&format!("{prefix}."))
            })
        };
        used.extend(versions.iter().filter_map(skip_of));
        let left: Vec<&String> =
            versions.iter().filter(|version| skip_of(version).is_none()).collect();
        assert!(left.len() <= 1, "{name} has the versions {left:?}");
    }
    let unused: Vec<&String> = skipped.iter().filter(|skip| !used.contains(skip)).collect();
    assert!(unused.is_empty(), "deny.toml skips versions that are not needed: {unused:?}");
}
