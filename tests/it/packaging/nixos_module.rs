//! The NixOS modules, evaluated by Nix with a stand-in for the `lib` of nixpkgs.

use std::collections::BTreeSet;
use std::process::Command;

use nix_stored::config::{Config, PREFIX, SETTINGS};
use serde_json::Value;

use crate::support::scratch::Scratch;

/// The result of `tests/nixos-module/eval.nix`.
pub fn evaluate() -> Value {
    let home = Scratch::new();
    let output = Command::new("nix-instantiate")
        .args(["--eval", "--strict", "--json", "tests/nixos-module/eval.nix"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("HOME", home.path())
        // The evaluation needs no store, and must not create one.
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
    let settings = module["defaults"].as_object().expect("an attribute set").keys().cloned();
    // Settings that name a file passed by systemd have options of their own.
    let files = environment(&module["cases"]["full"])
        .into_iter()
        .filter_map(|(name, value)| value.starts_with("%d/").then_some(name));
    let options: BTreeSet<String> = settings.chain(files).collect();
    let variables: BTreeSet<String> = SETTINGS
        .iter()
        .map(|setting| setting.name.to_owned())
        // Passwords are passed as files.
        .filter(|name| !name.ends_with("_PASS"))
        .collect();
    assert_eq!(options, variables);
}

#[test]
fn the_daemon_accepts_the_environment_of_the_module() {
    let module = evaluate();
    let defaults = &module["cases"]["defaults"];
    assert_eq!(strings(&defaults["failedAssertions"]), [""; 0]);
    assert_eq!(strings(&defaults["warnings"]), [""; 0]);
    let config = Config::from_vars(environment(defaults)).expect("the defaults are right");
    let own = Config::from_vars([]).expect("the defaults are right");
    assert_eq!(format!("{config:?}"), format!("{own:?}"), "the same defaults on both sides");
}

#[test]
fn secrets_go_through_credentials_and_never_through_the_nix_store() {
    let module = evaluate();
    let full = &module["cases"]["full"];
    assert_eq!(strings(&full["failedAssertions"]), [""; 0]);
    let credentials = strings(&full["loadCredential"]);
    let names =
        ["read-pass", "write-pass", "upstream-netrc", "tls-cert", "tls-key", "tls-client-ca"];
    for name in names {
        assert!(
            credentials.iter().any(|one| one.starts_with(&format!("{name}:/"))),
            "{credentials:?}"
        );
        assert!(
            environment(full).iter().any(|(_, value)| *value == format!("%d/{name}")),
            "{name}"
        );
    }
    assert_eq!(credentials.len(), names.len());
    let passfile = format!("{PREFIX}USER_READ_PASSFILE");
    assert!(environment(full).contains(&(passfile, "%d/read-pass".to_owned())));
    assert_eq!(full["serviceConfig"]["EnvironmentFile"], serde_json::json!(["/run/secrets/s3"]));
    assert_eq!(full["firewallPorts"], serde_json::json!([8100]));
}

#[test]
fn wrong_options_fail_the_evaluation() {
    let module = evaluate();
    let bad = strings(&module["cases"]["bad"]["failedAssertions"]);
    let about = [
        "readPasswordFile",
        "_READ_PASS would",
        "WRITE and writePasswordFile",
        "_WRITE_PASSFILE;",
        "_TLS_KEY;",
        "tlsClientCaFile needs",
        "openFirewall",
    ];
    for part in about {
        assert!(bad.iter().any(|message| message.contains(part)), "{part}: {bad:?}");
    }
    assert_eq!(bad.len(), about.len(), "{bad:?}");
    let by_name = strings(&module["cases"]["activatedByName"]["failedAssertions"]);
    assert!(by_name.len() == 1 && by_name[0].contains("localhost:8100"), "{by_name:?}");
    let refused = module["refused"].as_object().expect("an attribute set");
    assert!(!refused.is_empty() && refused.values().all(|value| *value == true), "{refused:?}");
}

#[test]
fn a_bucket_needs_no_directory_and_a_directory_has_one() {
    let module = evaluate();
    let case = |name: &str| module["cases"][name].clone();
    let state = |name: &str| case(name)["serviceConfig"]["StateDirectory"].clone();
    assert_eq!(state("defaults"), "nixStored");
    assert_eq!(state("stateDirectory"), "caches/nix");
    assert_eq!(state("full"), serde_json::json!([]));
    assert_eq!(strings(&case("foreignDirectory")["directories"]), ["/srv/cache"]);
    assert_eq!(strings(&case("foreignDirectory")["users"]), ["nix-stored"]);
    assert_eq!(strings(&case("full")["directories"]), [""; 0]);
}

#[test]
fn systemd_opens_the_socket_if_configured() {
    let module = evaluate();
    let socket = |case: &str| {
        let unit = module["cases"][case]["units"]["sockets"]["nix-stored"].clone();
        unit.as_str().map(str::to_owned)
    };
    assert_eq!(socket("defaults"), None);
    let tcp = socket("activated").expect("a socket");
    assert!(tcp.contains("\nListenStream=[::]:80\n"), "{tcp}");
    // The process that binds the port needs a capability for it, which is systemd here.
    let bounds =
        |case: &str| module["cases"][case]["serviceConfig"]["CapabilityBoundingSet"].clone();
    assert_eq!(bounds("activated"), "");
    assert_eq!(bounds("privilegedPort"), "CAP_NET_BIND_SERVICE");
    let unix = socket("activatedSocket").expect("a socket");
    assert!(unix.contains("\nListenStream=/run/nix-stored/http\n"), "{unix}");
    assert!(
        unix.contains("\nSocketMode=0660\n") && unix.contains("\nSocketGroup=nix-stored\n"),
        "{unix}"
    );
    let open = socket("activatedSocketForAll").expect("a socket");
    assert!(open.contains("\nListenStream=/run/nix-stored/http\n"), "{open}");
    assert!(open.contains("\nSocketMode=0666\n"), "{open}");
}

#[test]
fn scheduled_collections_get_only_the_settings_they_need() {
    let module = evaluate();
    let unit = |case: &str| module["cases"][case]["units"]["services"]["nix-stored-gc"].clone();
    assert_eq!(unit("defaults"), Value::Null);
    let full = unit("full");
    let full = full.as_str().expect("a unit");
    assert!(full.contains("\nExecStart=/nix-stored/bin/nix-stored gc --max-age 90d\n"), "{full}");
    assert!(full.contains("NIX_STORED_PATH=s3://") && !full.contains("PASSFILE"), "{full}");
}

#[test]
fn a_builder_gets_its_cache_and_keeps_its_secrets() {
    let module = evaluate();
    let unit = |case: &str| {
        let unit = module["push"][case]["units"]["services"]["nix-stored-push"].clone();
        unit.as_str().expect("a unit").to_owned()
    };
    let plain = unit("plain");
    assert!(plain.contains("\"NIX_PUSH_TO=http://cache.example.org:8100\""), "{plain}");
    assert!(plain.contains("NIX_PUSH_ROOTS=/nix/var/nix/gcroots/"), "{plain}");
    assert!(!plain.contains("LoadCredential"), "{plain}");
    let full = unit("full");
    assert!(full.contains("x=a%%2Fb\""), "{full}");
    assert!(full.contains("\nLoadCredential=NIX_PUSH_KEY:/run/secrets/cache.secret\n"), "{full}");
    assert!(full.contains("\"NIX_PUSH_NETRC=%d/NIX_PUSH_NETRC\""), "{full}");
    assert!(full.contains("\"NIX_PUSH_ROOTS=\""), "{full}");
    assert_eq!(module["push"]["full"]["hook"], "/script/nix-stored-push-hook");
}

#[test]
fn every_nix_file_parses() {
    for file in [
        "flake.nix",
        "nixos-module.nix",
        "contrib/push/nixos-module.nix",
        "tests/nixos-module/eval.nix",
        "tests/nixos-module/snippet.nix",
        "tests/nixos-module/stand-in.nix",
        "tests/nixos-module/vm.nix",
        "tests/nixos-module/vm-push.nix",
    ] {
        let output = Command::new("nix-instantiate")
            .args(["--parse", file])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("nix-instantiate is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
