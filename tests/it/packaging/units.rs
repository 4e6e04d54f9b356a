//! The systemd units of `contrib/` and of the NixOS module, checked by systemd.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::nixos_module::evaluate;
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;

/// The limit for the exposure of a unit, in tenths, on the scale of `systemd-analyze security`.
const EXPOSURE: &str = "--threshold=15";

fn read(file: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[track_caller]
fn analyze(args: &[&str]) -> String {
    let output = Command::new("systemd-analyze")
        .args(args)
        .output()
        .expect("systemd-analyze is installed: Debian's package systemd has it");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(output.status.success(), "systemd-analyze {}: {printed}", args.join(" "));
    printed
}

/// Checks the exposure of a unit.
#[track_caller]
fn assert_hardened(name: &str, text: &str) {
    let scratch = Scratch::new();
    let unit = scratch.join(name);
    fs::write(&unit, text).expect("writable");
    analyze(&["security", "--offline=true", "--no-pager", EXPOSURE, utf8(&unit)]);
}

/// Checks that systemd accepts every line of these units. The programs that they start are not
/// installed here.
#[track_caller]
fn assert_understood(units: &[(String, String)]) {
    let scratch = Scratch::new();
    let files: Vec<String> = units
        .iter()
        .map(|(name, text)| {
            let lines = text.lines().map(|line| match line.split_once('=') {
                Some((key @ ("ExecStart" | "ExecReload"), _)) => format!("{key}=/bin/true\n"),
                _ => format!("{line}\n"),
            });
            let file = scratch.join(name);
            fs::write(&file, lines.collect::<String>()).expect("writable");
            utf8(&file).to_owned()
        })
        .collect();
    let args = ["verify", "--man=no"].into_iter().chain(files.iter().map(String::as_str));
    let printed = analyze(&args.collect::<Vec<_>>());
    // It also reports other units of this machine.
    let ours = |line: &&str| line.contains(utf8(scratch.path()));
    assert_eq!(printed.lines().filter(ours).collect::<Vec<_>>(), [""; 0]);
}

/// The words of each directive in a section.
fn directives(unit: &str, section: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<String, Vec<String>>::new();
    let mut inside = false;
    for line in unit.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            inside = line == format!("[{section}]");
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let words = value.split_whitespace().map(str::to_owned);
            found.entry(key.to_owned()).or_default().extend(words);
        }
    }
    found
}

/// The names and texts of the units of a case of the module.
fn of_module(case: &Value) -> Vec<(String, String)> {
    let units = |kind: &str, extension: &str| -> Vec<(String, String)> {
        let units = case["units"][kind].as_object().expect("an attribute set");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        units.iter().map(|(name, unit)| (format!("{name}.{extension}"), text(unit))).collect()
    };
    [units("services", "service"), units("sockets", "socket")].concat()
}

#[test]
fn systemd_accepts_every_unit() {
    let unit = |path: &str| {
        let name = path.rsplit('/').next().expect("a name").to_owned();
        (name, read(path))
    };
    assert_understood(&[
        unit("contrib/systemd/nix-stored.service"),
        unit("contrib/systemd/nix-stored.socket"),
        unit("contrib/push/nix-stored-push.service"),
        unit("contrib/push/nix-stored-push.path"),
        unit("contrib/push/nix-stored-push.timer"),
    ]);
    let module = evaluate();
    let cases = module["cases"].as_object().expect("an attribute set").values();
    let built = cases.filter(|case| case["failedAssertions"] == json!([]));
    let push = module["push"].as_object().expect("an attribute set").values();
    let mut count = 0;
    for case in built.chain(push) {
        assert_understood(&of_module(case));
        count += 1;
    }
    assert!(count > 8, "{count}");
}

#[test]
#[should_panic(expected = "Unknown key")]
fn a_line_that_systemd_does_not_know_is_detected() {
    let text = "[Service]\nExecStart=x\nProtectEverything=true\n".to_owned();
    assert_understood(&[("broken.service".to_owned(), text)]);
}

#[test]
fn systemd_rates_the_exposure_of_the_services_as_low() {
    assert_hardened("nix-stored.service", &read("contrib/systemd/nix-stored.service"));
    let module = evaluate();
    for case in ["defaults", "full", "foreignDirectory", "socket", "privilegedPort", "activated"] {
        for (name, text) in of_module(&module["cases"][case]) {
            if name.ends_with(".service") {
                assert_hardened(&name, &text);
            }
        }
    }
}

#[test]
#[should_panic(expected = "systemd-analyze security")]
fn an_exposed_service_is_detected() {
    let text = read("contrib/systemd/nix-stored.service");
    let weaker = text.replace("CapabilityBoundingSet=\n", "").replace("ProtectSystem=strict\n", "");
    assert_ne!(text, weaker);
    assert_hardened("nix-stored.service", &weaker);
}

/// Removes the differences between NixOS and other systems.
fn common(mut service: BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    for key in ["Environment", "EnvironmentFile", "ExecStart", "ExecReload", "LoadCredential"] {
        service.remove(key);
    }
    service
}

#[test]
fn the_units_of_contrib_and_of_the_module_are_the_same() {
    let module = evaluate();
    let pairs = [
        ("contrib/systemd/nix-stored.service", &module["cases"]["defaults"], "nix-stored"),
        ("contrib/push/nix-stored-push.service", &module["push"]["plain"], "nix-stored-push"),
    ];
    for (file, case, name) in pairs {
        let rendered = case["units"]["services"][name].as_str().expect("a text");
        let ours = common(directives(&read(file), "Service"));
        assert!(ours.len() > 30, "{ours:?}");
        assert_eq!(ours, common(directives(rendered, "Service")), "{file}");
    }
}
