//! Arguments, help, and the documentation of the commands.

use super::command_cache::CommandCache;

/// The commands, as the help lists them.
fn commands() -> Vec<String> {
    let help = CommandCache::new().run(&["--help"]).is(0).prints("Exit status: 0 done;").out;
    let (_, list) = help.split_once("Commands:\n").expect("a list of commands");
    let list = list.lines().take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names = names.filter(|name| !name.is_empty() && *name != "help");
    names.map(str::to_owned).collect()
}

#[test]
fn wrong_usage_is_status_64_and_help_is_not() {
    let cache = CommandCache::new();
    cache.run(&["frobnicate"]).is(64).prints_error("frobnicate");
    cache.run(&["gc", "--frobnicate"]).is(64).prints_error("--frobnicate");
    cache.run(&["delete"]).is(64).prints_error("STORE-PATH");
    cache.run(&["gc", "--dry-run", "--explain", "x"]).is(64).prints_error("cannot be used with");
    cache.run(&["--help"]).is(0).prints("Usage: nix-stored");
    cache.run(&["gc", "--help"]).is(0).prints("--dry-run");
    cache.run(&["--version"]).is(0).prints(env!("CARGO_PKG_VERSION"));
    cache.run_with(&[("NIX_STORED_PRIORITY", "x")], &["stats"]).is(64).prints_error("PRIORITY");
}

#[test]
fn the_help_of_every_command_explains_its_exit_statuses() {
    let commands = commands();
    assert!(commands.len() >= 9, "{commands:?}");
    for command in commands.iter().filter(|command| *command != "serve") {
        let help = CommandCache::new().run(&[command, "--help"]).is(0).out;
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains("Exit status: 0 ") && help.contains("; 64 the "), "{help}");
    }
}

#[test]
fn the_documentation_lists_every_command_with_every_option() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");
    let page = std::fs::read_to_string(page).expect("the page exists");
    for command in commands() {
        let heading = format!("\n## `nix-stored {command}");
        let Some((_, section)) = page.split_once(&heading) else {
            panic!("docs/commands.md has no{heading}");
        };
        let section = section.split("\n## ").next().expect("the first part");
        let help = CommandCache::new().run(&[&command, "--help"]).is(0).out;
        for option in help.split([' ', '\n']).filter(|word| word.starts_with("--")) {
            let printed = ["--help", "--json"].contains(&option) || section.contains(option);
            assert!(printed, "docs/commands.md does not tell of {command} {option}");
        }
        assert!(
            section.contains("Exit status"),
            "docs/commands.md: {command} has no exit statuses"
        );
        assert!(section.contains("```"), "docs/commands.md: {command} has no example");
    }
}

#[test]
fn a_closed_standard_output_is_no_failure() {
    let cache = CommandCache::new();
    for number in 1..=20 {
        cache.add(number, &[], 90);
    }
    let mut child =
        cache.command(&["gc", "--dry-run", "--max-age", "1d"]).spawn().expect("the process starts");
    drop(child.stdout.take());
    let result = child.wait_with_output().expect("the process ends");
    let err = String::from_utf8_lossy(&result.stderr).into_owned();
    assert_eq!((result.status.code(), &*err), (Some(0), ""));
}
