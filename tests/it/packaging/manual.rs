//! The README's table of variables, the man page and the shell completions: generated from the
//! table of settings and from the command definition, and committed.
//!
//! `NIX_STORED_TEST_WRITE=1 cargo test --test it manual` rewrites them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::Roff;
use nix_stored::commands::command;
use nix_stored::config::{SETTINGS, Setting};

use crate::support::nix::utf8;

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(repository(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Compares a file with the generated text, or writes it.
#[track_caller]
fn assert_current(file: &str, text: &str) {
    if std::env::var_os("NIX_STORED_TEST_WRITE").is_some() {
        fs::write(repository(file), text).expect("the repository can be written");
    }
    let hint = "NIX_STORED_TEST_WRITE=1 cargo test --test it manual";
    assert!(read(file) == text, "{file} is out of date: run {hint}");
}

/// Escapes a text for roff.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "\\&...");
    let guard = |line: &str| {
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() }
    };
    text.lines().map(guard).collect::<Vec<_>>().join("\n")
}

/// Converts Markdown's `code` to bold.
fn bold_code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(
            |(at, part)| {
                if at % 2 == 1 { format!("\\fB{}\\fR", escape(part)) } else { escape(part) }
            },
        )
        .collect()
}

/// The README with the table of variables.
fn readme() -> String {
    const HEADING: &str = "| variable | default | meaning |\n|---|---|---|\n";
    let readme = read("README.md");
    let (before, rest) = readme.split_once(HEADING).expect("the README has a table of variables");
    let (_, after) = rest.split_once("\n\n").expect("text after the table");
    let rows = SETTINGS.iter().map(|Setting { name, default, doc, .. }| {
        let default = default.map(|default| format!("`{default}` ")).unwrap_or_default();
        format!("| `{name}` | {default}| {doc} |\n")
    });
    format!("{before}{HEADING}{}\n{after}", rows.collect::<String>())
}

fn environment() -> String {
    let rows = SETTINGS.iter().map(|Setting { name, default, doc, .. }| {
        let default =
            default.map(|default| format!("\n(default: {})", bold_code(&format!("`{default}`"))));
        format!(
            ".TP\n\\fB{}\\fR\n{}{}\n",
            escape(name),
            bold_code(doc),
            default.unwrap_or_default()
        )
    });
    format!(".SH ENVIRONMENT\n{}", rows.collect::<String>())
}

/// The date of the last change of the page.
const DATE: &str = "2026-11-30";

/// The output of `clap_mangen`, without its common header.
fn rendered(render: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    render(&mut text).expect("writing to memory succeeds");
    let text = String::from_utf8(text).expect("UTF-8");
    text.strip_prefix(&Roff::new().render()).expect("the page has the common header").to_owned()
}

/// A section for each command, with its description, arguments and exit statuses.
fn commands() -> String {
    let mut all = command();
    all.build();
    let sections = all.get_subcommands_mut().filter(|one| one.get_name() != "help").map(|one| {
        let usage = one.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        let about = one.get_about().expect("every command has a description").to_string();
        let man = Man::new(one.clone());
        let options = rendered(|text| man.render_options_section(text));
        let options = options.split_once('\n').expect("a heading").1;
        let after =
            one.get_after_help().map(|after| format!(".PP\n{}\n", escape(&after.to_string())));
        let after = after.unwrap_or_default();
        format!(".SS {}\n{}.\n{options}{after}", escape(usage), escape(&about))
    });
    format!(".SH COMMANDS\n{}", sections.collect::<String>())
}

fn man_page() -> String {
    let source = format!("nix-stored {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command()).date(DATE).source(source).manual("nix-stored");
    let sections = [
        rendered(|text| man.render_title(text)),
        rendered(|text| man.render_name_section(text)),
        rendered(|text| man.render_synopsis_section(text)),
        rendered(|text| man.render_description_section(text)),
        commands(),
        environment(),
        read("contrib/man/sections.roff"),
    ];
    Roff::new().render() + &sections.concat()
}

#[test]
fn the_readme_has_the_table_of_settings() {
    assert_current("README.md", &readme());
}

#[test]
fn the_man_page_has_the_commands_and_the_settings() {
    assert_current("contrib/man/nix-stored.1", &man_page());
}

#[test]
fn the_man_page_has_every_setting_section_and_command() {
    let page = read("contrib/man/nix-stored.1").replace("\\-", "-");
    for setting in SETTINGS {
        assert!(page.contains(setting.name), "{}", setting.name);
    }
    for section in ["ENVIRONMENT", "EXIT STATUS", "FILES", "SIGNALS", "EXAMPLES"] {
        assert!(
            page.contains(&format!("\n.SH {section}\n").replace("EXIT STATUS", "\"EXIT STATUS\"")),
            "{section}"
        );
    }
    let mut all = command();
    all.build();
    for one in all.get_subcommands().filter(|one| one.get_name() != "help") {
        assert!(
            page.contains(&format!("\n.SS nix-stored {}", one.get_name())),
            "{}",
            one.get_name()
        );
        for option in
            one.get_arguments().filter_map(clap::Arg::get_long).filter(|name| *name != "help")
        {
            assert!(page.contains(&format!("--{option}")), "{option}");
        }
    }
}

#[test]
fn the_man_page_is_good_roff() {
    let page = repository("contrib/man/nix-stored.1");
    let output = Command::new("mandoc")
        .args(["-T", "lint", "-W", "warning", utf8(&page)])
        .output()
        .expect("mandoc is installed: Debian's package mandoc has it");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && printed.is_empty(), "{printed}");
    let output = Command::new("mandoc")
        .args(["-T", "utf8", utf8(&page)])
        .output()
        .expect("mandoc is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("NIX_STORED_PATH") && !text.contains("\\f"), "{text}");
}

#[test]
fn the_completions_are_those_of_the_commands() {
    let shells = [
        (Shell::Bash, "nix-stored.bash"),
        (Shell::Zsh, "_nix-stored"),
        (Shell::Fish, "nix-stored.fish"),
    ];
    for (shell, file) in shells {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command(), "nix-stored", &mut text);
        // For bash, clap_complete 4.6.11 uses two names for a program with a hyphen, so that its
        // commands are not completed.
        let text = String::from_utf8(text).expect("UTF-8");
        let text = text.replace("nix__subcmd__stored", "nix__stored");
        assert_current(&format!("contrib/completions/{file}"), &text);
    }
}

#[test]
fn bash_completes() {
    let file = repository("contrib/completions/nix-stored.bash");
    let completed = |words: &str, at: usize| {
        let script = format!(
            "source {}; function=$(complete -p nix-stored | grep -o -e '-F [^ ]*'); \
             COMP_WORDS=({words}); COMP_CWORD={at}; COMPREPLY=(); \
             ${{function#-F }} nix-stored \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{at}-1]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            utf8(&file)
        );
        let output = Command::new("bash").args(["-c", &script]).output().expect("bash starts");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        printed.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(completed("nix-stored ver", 1), ["verify"]);
    assert_eq!(completed("nix-stored gc --dr", 2), ["--dry-run"]);
}
