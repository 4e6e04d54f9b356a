//! The NixOS module, evaluated by the real Nix with a stand-in for nixpkgs' `lib`.

use std::collections::BTreeSet;
use std::process::Command;

use nix_stored::config::{Config, PREFIX, VARIABLES};
use serde_json::Value;

use crate::support::scratch::Scratch;

fn evaluate() -> Value {
    let home = Scratch::new();
    let output = Command::new("nix-instantiate")
        .args(["--eval", "--strict", "--json", "tests/nixos-module/eval.nix"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("HOME", home.path())
        // Evaluation needs no store, and must not make one.
        .env("NIX_REMOTE", "dummy://")
        .output()
        .expect("nix-instantiate is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn strings(value: &Value) -> Vec<&str> {
    let list = value.as_array().expect("a list");
    list.iter().map(|item| item.as_str().expect("a text")).collect()
}

fn environment(case: &Value) -> Vec<(String, String)> {
    let map = case["environment"].as_object().expect("an attribute set");
    map.iter()
        .map(|(name, value)| (name.clone(), value.as_str().expect("a text").to_owned()))
        .collect()
}

#[test]
fn the_module_has_every_variable_and_no_other() {
    let module = evaluate();
    let options: BTreeSet<&str> = module["defaults"]
        .as_object()
        .expect("an attribute set")
        .keys()
        .map(String::as_str)
        .collect();
    let variables: BTreeSet<&str> = VARIABLES
        .iter()
        .filter(|variable| variable.supported)
        .map(|variable| variable.name)
        // Passwords come as files, through systemd's credentials.
        .filter(|name| !name.ends_with("_PASS") && !name.ends_with("_PASSFILE"))
        .collect();
    assert_eq!(options, variables);
}

#[test]
fn the_daemon_takes_what_the_module_writes() {
    let module = evaluate();
    let defaults = &module["cases"]["defaults"];
    assert_eq!(strings(&defaults["failedAssertions"]), [""; 0]);
    assert_eq!(strings(&defaults["warnings"]), [""; 0]);
    let config = Config::from_vars(environment(defaults)).expect("the defaults are right");
    let own = Config::from_vars([]).expect("the defaults are right");
    assert_eq!(format!("{config:?}"), format!("{own:?}"), "the same defaults on both sides");
}

#[test]
fn passwords_go_through_credentials_and_never_through_the_nix_store() {
    let module = evaluate();
    let full = &module["cases"]["full"];
    let credentials = strings(&full["loadCredential"]);
    assert!(credentials.iter().any(|one| one.starts_with("read-pass:")), "{credentials:?}");
    assert!(credentials.iter().any(|one| one.starts_with("write-pass:")), "{credentials:?}");
    let environment = environment(full);
    let passfile = format!("{PREFIX}USER_READ_PASSFILE");
    assert!(environment.contains(&(passfile, "%d/read-pass".to_owned())));
    assert_eq!(full["firewallPorts"], serde_json::json!([8100]));
}

#[test]
fn mistakes_are_caught_at_evaluation() {
    let module = evaluate();
    assert_eq!(strings(&module["cases"]["bad"]["failedAssertions"]).len(), 5);
    let refused = module["refused"].as_object().expect("an attribute set");
    assert!(!refused.is_empty() && refused.values().all(|value| *value == true), "{refused:?}");
}

#[test]
fn every_nix_file_parses() {
    for file in ["flake.nix", "nixos-module.nix", "tests/nixos-module/eval.nix"] {
        let output = Command::new("nix-instantiate")
            .args(["--parse", file])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("nix-instantiate is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
