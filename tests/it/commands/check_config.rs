//! `nix-stored check-config`: the configuration as it was parsed.

use nix_stored::config::SETTINGS;
use serde_json::{Value, json};

use super::command_cache::{CommandCache, CommandOutput};

/// Runs `check-config` with a cache path that does not exist.
fn check(env: &[(&str, &str)], args: &[&str]) -> CommandOutput {
    let home = CommandCache::new();
    let absent = home.dir().join("absent");
    let path = [("NIX_STORED_PATH", absent.to_str().expect("UTF-8"))];
    let result = home.run_with(&[&path, env].concat(), &[&["check-config"], args].concat());
    assert!(!absent.exists());
    result
}

fn variable<'a>(printed: &'a Value, name: &str) -> &'a Value {
    let variables = printed["variables"].as_array().expect("a list");
    let found = variables.iter().find(|variable| variable["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {printed}"))
}

#[test]
fn every_variable_is_shown_in_order_with_its_default() {
    let printed = check(&[], &["--json"]).is(0).json();
    let shown = printed["variables"].as_array().expect("a list").iter();
    let shown: Vec<&str> = shown.map(|one| one["name"].as_str().expect("a name")).collect();
    let supported = SETTINGS.iter().filter(|setting| setting.is_supported());
    assert_eq!(shown, supported.map(|setting| setting.name).collect::<Vec<_>>());
    let priority = json!({"name": "NIX_STORED_PRIORITY", "value": "30", "source": "default"});
    assert_eq!(variable(&printed, "NIX_STORED_PRIORITY"), &priority);
    let unset = json!({"name": "NIX_STORED_MAX_SIZE", "value": null, "source": "default"});
    assert_eq!(variable(&printed, "NIX_STORED_MAX_SIZE"), &unset);
    assert_eq!(
        (&printed["may_read"], &printed["may_upload"]),
        (&json!("anyone"), &json!("anyone"))
    );

    let text = check(&[], &[]).is(0);
    let names = text.out.lines().filter_map(|line| Some(line.split_once('=')?.0));
    assert_eq!(names.collect::<Vec<_>>(), shown);
    text.prints("\nNIX_STORED_GC_INTERVAL=1h  # default\n")
        .prints("# anyone may upload from this machine\n");
}

#[test]
fn every_setting_is_shown_as_it_was_parsed() {
    let env = [
        ("NIX_STORED_LISTEN_INTERFACE", "0.0.0.0:8100"),
        ("NIX_STORED_MAX_SIZE", "2048M"),
        ("NIX_STORED_MAX_AGE", "4w"),
        ("NIX_STORED_LOG_LEVEL", "WARNING"),
        ("NIX_STORED_WANT_MASS_QUERY", "no"),
    ];
    let text = check(&env, &[]).is(0);
    let text = text.prints("\nNIX_STORED_MAX_SIZE=2G\n").prints("\nNIX_STORED_MAX_AGE=28d\n");
    let text =
        text.prints("\nNIX_STORED_LOG_LEVEL=warn\n").prints("\nNIX_STORED_WANT_MASS_QUERY=0\n");
    text.prints("# anyone may read").prints("# nobody may upload");
}

#[test]
fn passwords_are_never_shown() {
    let home = CommandCache::new();
    home.put("pass", "correct horse\n", 0);
    let file = home.dir().join("pass");
    let file = file.to_str().expect("UTF-8");
    let env = [
        ("NIX_STORED_USER_READ", "reader"),
        ("NIX_STORED_USER_READ_PASS", "battery staple"),
        ("NIX_STORED_USER_WRITE", "builder"),
        ("NIX_STORED_USER_WRITE_PASSFILE", file),
    ];
    let is_silent = |result: &CommandOutput| {
        for secret in ["horse", "staple"] {
            assert!(!result.out.contains(secret) && !result.err.contains(secret), "{result:?}");
        }
    };
    let text = check(&env, &[]).is(0);
    is_silent(&text);
    let text = text.prints("\nNIX_STORED_USER_READ_PASS=***\n");
    let text =
        text.prints("\nNIX_STORED_USER_WRITE_PASS=***  # from NIX_STORED_USER_WRITE_PASSFILE\n");
    let text = text.prints(&format!("\nNIX_STORED_USER_WRITE_PASSFILE={file}\n"));
    text.prints("# the user reader or builder may read").prints("# the user builder may upload");
    let json = check(&env, &["--json"]).is(0);
    is_silent(&json);
    let printed = json.json();
    let expected = json!({"name": "NIX_STORED_USER_WRITE_PASS", "value": "***", "source": "file"});
    assert_eq!(variable(&printed, "NIX_STORED_USER_WRITE_PASS"), &expected);
    assert_eq!(printed["may_upload"], json!({"users": ["builder"]}));

    // Nor where something else is wrong.
    let wrong = [&env[..], &[("NIX_STORED_PRIORITY", "x")]].concat();
    for args in [&[][..], &["--json"]] {
        is_silent(&check(&wrong, args).is(64));
    }
}

#[test]
fn an_invalid_configuration_is_status_64_with_every_error() {
    let env = [("NIX_STORED_PRIORITY", "first"), ("NIX_STORED_USER_WRIET", "me")];
    let result = check(&env, &[]).is(64).prints_error("NIX_STORED_PRIORITY: “first”");
    result.prints_error("did you mean NIX_STORED_USER_WRITE?");
    let printed = check(&env, &["--json"]).is(64).json();
    let problems = printed["problems"].as_array().expect("a list");
    assert_eq!(problems.len(), 2);
    assert!(problems.iter().any(|problem| problem["name"] == "NIX_STORED_PRIORITY"));
    assert!(problems.iter().all(|problem| problem["reason"].is_string()));
}
