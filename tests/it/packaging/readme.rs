//! The snippets of the README and of `docs/deployment.md`, run unchanged.
//!
//! Every command of a shell block must succeed; a server must begin to listen. nix.conf is read by
//! Nix, NixOS configurations are evaluated, and nginx reads its own. A snippet that cannot run here
//! has a comment above it, `<!-- not run: the reason -->`.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, utf8};
use crate::support::scratch::{KillAtExit, Scratch};
use crate::support::server_process::ServerProcess;

const NOT_RUN: &str = "<!-- not run: ";

/// A block of code.
#[derive(Debug)]
struct Snippet {
    /// The file and line.
    place: String,
    language: String,
    text: String,
    /// The reason why it is not run.
    not_run: Option<String>,
}

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn snippets(file: &str) -> Vec<Snippet> {
    let page = fs::read_to_string(repository(file)).expect("the page exists");
    parse(file, &page)
}

fn parse(file: &str, page: &str) -> Vec<Snippet> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    let mut before = "";
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            let text = body.map(|line| format!("{line}\n")).collect();
            let reason = before.strip_prefix(NOT_RUN).and_then(|rest| rest.strip_suffix(" -->"));
            found.push(Snippet {
                place: format!("{file}:{}", number + 1),
                language: language.to_owned(),
                text,
                not_run: reason.map(str::to_owned),
            });
        }
        before = line;
    }
    found
}

/// A machine with a cache and a builder, where the snippets of one page run in order.
struct TestMachine {
    dir: Scratch,
    nix: Nix,
    daemon: Daemon,
}

impl TestMachine {
    fn new() -> Self {
        let dir = Scratch::new();
        let daemon = Daemon::builder().dir(&dir.join("cache")).start();
        // A separate store, because snippets sign its paths.
        let nix = Nix::new();
        let (app, exchange) = (fixture().output("app"), format!("file://{}", utf8(&dir.join("x"))));
        fixture().nix().ok(&["nix", "copy", "--no-check-sigs", "--to", &exchange, &app]);
        nix.ok(&["nix", "copy", "--no-check-sigs", "--from", &exchange, &app]);
        symlink(fixture().output("app"), dir.join("result")).expect("the link is created");
        fs::create_dir_all(dir.join("etc/nix")).expect("the folder is created");
        fs::create_dir(dir.join("bin")).expect("the folder is created");
        let binary = env!("CARGO_BIN_EXE_nix-stored");
        symlink(binary, dir.join("bin/nix-stored")).expect("the link is created");
        // `cargo run --release` runs the binary that is already built.
        let cargo = format!("#!/bin/sh\n[ \"$*\" = 'run --release' ] && exec {binary}\n");
        let file = dir.join("bin/cargo");
        fs::write(&file, cargo).expect("writable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .expect("the owner may change it");
        Self { dir, nix, daemon }
    }

    /// Replaces the addresses and folders of a text by those of the test.
    fn here(&self, text: &str) -> String {
        let etc = utf8(&self.dir.join("etc")).to_owned();
        text.replace("http://cache.example.org:8100", self.daemon.url())
            .replace("http://127.0.0.1:8100", self.daemon.url())
            .replace("/etc/nix/", &format!("{etc}/nix/"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.nix.command(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{path}", utf8(&self.dir.join("bin"))))
            .env("NIX_STORED_PATH", self.dir.join("cache"))
            .env("NIX_STORED_LISTEN_INTERFACE", "127.0.0.1:0");
        command
    }

    /// Runs a block until it ends or listens. Returns the output of a failed one.
    fn shell(&self, text: &str) -> Result<(), String> {
        let mut child = self
            .command("/bin/sh")
            .args(["-euc", &self.here(text)])
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let pid = Pid::from_child(&child);
        let _guard = KillAtExit::new(pid);
        let mut printed = String::new();
        let mut listens = false;
        for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
            let line = line.expect("UTF-8");
            if line.contains("listening on ") && !listens {
                listens = true;
                kill_process_group(pid, Signal::TERM).expect("present");
            }
            printed.push_str(&line);
            printed.push('\n');
        }
        let status = child.wait().expect("a child process");
        if listens || status.success() { Ok(()) } else { Err(format!("{status}: {printed}")) }
    }

    /// Checks that Nix reads a nix.conf.
    fn nix_conf(&self, text: &str) -> Result<(), String> {
        let conf = self.dir.join("conf");
        fs::create_dir_all(&conf).expect("the folder is created");
        fs::write(conf.join("nix.conf"), self.here(text)).expect("writable");
        // `show-config` is the name of `config show` before Nix 2.20.
        let mut printed = String::new();
        for words in [["config", "show"].as_slice(), &["show-config"]] {
            let output = self.command("nix").args(words).env("NIX_CONF_DIR", &conf).output();
            let output = output.expect("nix starts");
            printed = String::from_utf8_lossy(&output.stderr).into_owned();
            if !output.status.success() {
                continue;
            }
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            let names =
                text.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
            let unknown = names
                .map(|name| name.trim_start_matches("extra-"))
                .find(|name| !shown.lines().any(|line| line.starts_with(&format!("{name} = "))));
            return unknown
                .map_or(Ok(()), |name| Err(format!("Nix does not know {name}: {printed}")));
        }
        Err(printed)
    }

    /// Evaluates a flake or a NixOS configuration, with stand-ins for nixpkgs.
    fn evaluate(&self, text: &str) -> Result<(), String> {
        let file = self.dir.join("snippet.nix");
        fs::write(&file, text).expect("writable");
        let output = Command::new("nix-instantiate")
            .args(["--eval", "--strict", "--json", "--arg", "file", utf8(&file)])
            .arg(repository("tests/nixos-module/snippet.nix"))
            .envs([("HOME", utf8(self.dir.path())), ("NIX_REMOTE", "dummy://")])
            .output()
            .expect("nix-instantiate starts");
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        match String::from_utf8_lossy(&output.stdout).trim() {
            "[]" if output.status.success() => Ok(()),
            failed => Err(format!("{failed} {printed}")),
        }
    }

    fn run(&self, snippet: &Snippet) -> Result<(), String> {
        match snippet.language.as_str() {
            "sh" => self.shell(&snippet.text),
            "ini" => self.nix_conf(&snippet.text),
            "nix" => self.evaluate(&snippet.text),
            "netrc" => {
                let lines = snippet.text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
                let right = lines
                    .map(|words| matches!(words[..], ["machine", _, "login", _, "password", _]));
                fs::write(self.dir.join("etc/nix/netrc"), &snippet.text).expect("writable");
                right.into_iter().all(|right| right).then_some(()).ok_or("no netrc".to_owned())
            }
            "nginx" => {
                // Panics if nginx does not start.
                ServerProcess::nginx_with(|address| {
                    format!("server {{ listen {address};\n{}\n}}", snippet.text)
                });
                Ok(())
            }
            other => Err(format!("“{other}” cannot be run")),
        }
    }

    /// Substitutes the closure of `./result` into a new store that requires signatures by the key
    /// in `/etc/nix/cache.secret`.
    fn substitute(&self) {
        let key = "nix key convert-secret-to-public < /etc/nix/cache.secret";
        let key = self.command("/bin/sh").args(["-euc", &self.here(key)]).output();
        let key = String::from_utf8(key.expect("sh starts").stdout).expect("a key");
        let app = fixture().output("app");
        let consumer = Nix::new().substituting_from(self.daemon.url(), key.trim());
        consumer.ok(&["nix-store", "--realise", &app]);
        let closure = consumer.ok(&["nix-store", "--query", "--requisites", &app]);
        assert!(closure.lines().count() > 1, "one path shows nothing: {closure}");
    }

    /// Runs all snippets of a page in order, and `check` after each.
    #[track_caller]
    fn run_all(&self, file: &str, check: impl Fn(&Snippet)) {
        let (skipped, runnable): (Vec<_>, Vec<_>) =
            snippets(file).into_iter().partition(|snippet| snippet.not_run.is_some());
        assert!(runnable.len() >= 3, "{runnable:?}");
        assert!(
            skipped.iter().all(|snippet| snippet.not_run.as_deref() != Some("")),
            "{skipped:?}"
        );
        for snippet in runnable {
            if let Err(why) = self.run(&snippet) {
                panic!("{}: {why}\n{}", snippet.place, snippet.text);
            }
            check(&snippet);
        }
    }
}

#[test]
fn the_readmes_snippets_work() {
    let machine = TestMachine::new();
    let signed = Cell::new(false);
    machine.run_all("README.md", |snippet| {
        // After this snippet the cache is ready for substitution.
        if snippet.text.contains("--store http://cache.example.org:8100") {
            machine.substitute();
            signed.set(true);
        }
    });
    assert!(signed.get());
}

impl TestMachine {
    /// Runs the snippets of the README that contain `part`; there must be at least one.
    #[track_caller]
    fn run_those_with(&self, part: &str) {
        let chosen = snippets("README.md").into_iter().filter(|it| it.text.contains(part));
        let count = chosen
            .map(|it| self.run(&it).unwrap_or_else(|why| panic!("{}: {why}", it.place)))
            .count();
        assert!(count > 0, "{part}");
    }
}

#[test]
fn paths_signed_and_uploaded_as_in_the_readme_can_be_substituted() {
    let machine = TestMachine::new();
    machine.run_those_with("nix key generate-secret");
    machine.run_those_with("machine cache.example.org");
    machine.run_those_with("nix store sign -r --key-file /etc/nix/cache.secret ./result");
    machine.substitute();
}

#[test]
fn unsigned_paths_can_be_signed_in_the_cache_as_in_the_readme() {
    let machine = TestMachine::new();
    let app = fixture().output("app");
    machine.shell(&format!("nix copy --to {} ./result", machine.daemon.url())).unwrap();
    machine.run_those_with("nix key generate-secret");
    machine.run_those_with("machine cache.example.org");
    // Copying signed paths again changes nothing.
    machine.run_those_with("nix store sign -r --key-file /etc/nix/cache.secret ./result");
    let narinfo = format!("/{}.narinfo", &app[11..43]);
    let text = String::from_utf8(machine.daemon.get(&narinfo).1).unwrap();
    assert!(!text.contains("Sig: cache.example.org-1"), "{text}");
    machine.run_those_with("--store http://cache.example.org:8100");
    machine.substitute();
}

#[test]
fn the_snippets_about_deployment_work() {
    TestMachine::new().run_all("docs/deployment.md", |_| {});
}

#[test]
fn a_new_snippet_is_run_or_has_a_reason() {
    let page = "text\n```sh\nfalse\n```\n<!-- not run: why -->\n```sh\nfalse\n```\n```toml\n```\n";
    let [first, second, third] = &parse("page", page)[..] else { panic!("three") };
    assert_eq!((first.not_run.as_deref(), second.not_run.as_deref()), (None, Some("why")));
    let machine = TestMachine::new();
    assert!(machine.run(first).is_err());
    assert!(machine.run(third).is_err());
    let broken = |language: &str, text: &str| {
        let (language, text) = (language.to_owned(), text.to_owned());
        let snippet = Snippet { place: String::new(), language, text, not_run: None };
        assert!(machine.run(&snippet).is_err(), "{snippet:?}");
    };
    broken("ini", "no-such-setting = 1\n");
    broken("nix", "{ services.nix-stored.enable = true; services.nix-stored.port = 1; }");
    broken("nix", "{ services.nix-stored = { enable = true; readPasswordFile = \"/x\"; }; }");
}

#[test]
fn every_link_in_the_documentation_works() {
    let docs = fs::read_dir(repository("docs")).expect("readable");
    let docs = docs.map(|entry| entry.expect("an entry can be read").file_name());
    let docs = docs.filter_map(|name| Some(format!("docs/{}", name.to_str()?)));
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned);
    for file in docs.filter(|name| name.ends_with(".md")).chain(top) {
        let file = file.as_str();
        let page = fs::read_to_string(repository(file)).expect("the page exists");
        let folder = repository(file).parent().expect("a folder").to_owned();
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (target, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if target.is_empty() { repository(file) } else { folder.join(target) };
            assert!(target.exists(), "{file}: {link}");
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).expect("a page");
                // The anchor that GitHub makes of a heading.
                let has = text.lines().filter(|line| line.starts_with('#')).any(|line| {
                    let words = line.trim_start_matches(['#', ' ']).to_lowercase();
                    let is_kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
                    words.chars().filter(is_kept).collect::<String>().replace(' ', "-") == heading
                });
                assert!(has, "{file}: {link}");
            }
        }
    }
}

/// A cell of a table that links to a file names types and fields of that file, such as `NarInfoCache`.
/// "The same" is the file of the row before.
#[test]
fn the_architecture_page_names_what_is_in_the_linked_files() {
    let page = fs::read_to_string(repository("docs/architecture.md")).expect("the page exists");
    let mut texts = Vec::new();
    let mut names = 0;
    for cell in page.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('|')) {
        let links = cell.split("](../src/").skip(1).filter_map(|rest| rest.split(')').next());
        let linked: Vec<String> = links
            .map(|link| fs::read_to_string(repository("src").join(link)).expect("the file exists"))
            .collect();
        if !linked.is_empty() {
            texts = linked;
        } else if !cell.contains("the same") {
            continue;
        }
        for name in cell.split('`').skip(1).step_by(2) {
            let mut words = texts
                .iter()
                .flat_map(|text| text.split(|c: char| !(c.is_alphanumeric() || c == '_')));
            assert!(words.any(|word| word == name), "{name} is in none of the files: {cell}");
            names += 1;
        }
    }
    assert!(names > 30, "only {names} names were found");
}
