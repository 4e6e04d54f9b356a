//! A private Nix: single user, no daemon, no system `/nix`, no network, any number of stores.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::scratch::{KillAtExit, Scratch};
use super::tree::assert_same_tree;

/// Longer than any command of a test takes. Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(240);

/// The configuration of every Nix of the tests. Builds in such a store are always sandboxed, so the
/// host's shell is added to the sandbox. Nix must not cache lookups between the steps of a test.
const CONFIG: &str = "\
build-users-group =
sandbox = false
experimental-features = nix-command flakes ca-derivations
substituters =
trusted-public-keys =
require-sigs = true
narinfo-cache-positive-ttl = 0
narinfo-cache-negative-ttl = 0
connect-timeout = 5
";

/// A home directory and a store. Store paths begin with `/nix/store`; their files are under
/// [`Nix::real`].
#[derive(Clone)]
pub struct Nix {
    home: Arc<Scratch>,
    root: Arc<Scratch>,
    settings: Vec<(String, String)>,
    authority: Option<String>,
}

impl Nix {
    /// A new home and an empty store.
    pub fn new() -> Self {
        Self {
            home: Arc::new(Scratch::new()),
            root: Arc::new(Scratch::new()),
            settings: Vec::new(),
            authority: None,
        }
    }

    /// The same home, with the caches of Nix, and an empty store.
    pub fn fresh_store(&self) -> Self {
        Self { root: Arc::new(Scratch::new()), ..self.clone() }
    }

    /// The same store with a new home, which has no cached lookups.
    pub fn fresh_home(&self) -> Self {
        Self { home: Arc::new(Scratch::new()), ..self.clone() }
    }

    /// Adds a line to the configuration.
    pub fn with(mut self, setting: &str, value: &str) -> Self {
        self.settings.push((setting.into(), value.into()));
        self
    }

    /// Sends these credentials to every server on this machine.
    pub fn with_netrc(self, user: &str, pass: &str) -> Self {
        let file = self.home.join("netrc");
        fs::write(&file, format!("machine 127.0.0.1 login {user} password {pass}\n"))
            .expect("netrc is written");
        self.with("netrc-file", utf8(&file))
    }

    /// Trusts only the CA in this file.
    pub fn trusting_ca(mut self, authority: &str) -> Self {
        self.authority = Some(authority.into());
        self
    }

    /// Substitutes from this cache, signed with this key, and never builds.
    pub fn substituting_from(self, url: &str, public_key: &str) -> Self {
        self.with("substituters", url).with("trusted-public-keys", public_key).with("max-jobs", "0")
    }

    /// The path of a file or directory in the home, for use by tests.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// The location of a store path in the file system.
    pub fn real(&self, store_path: &str) -> PathBuf {
        self.root.join(store_path.trim_start_matches('/'))
    }

    /// Removes the cached lookups.
    pub fn forget_caches(&self) {
        let cache = self.home.join(".cache");
        if cache.exists() {
            fs::remove_dir_all(cache).expect("the lookup cache is removed");
        }
    }

    /// A command with the environment of this Nix.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let dir = |name| {
            let dir = self.home.join(name);
            fs::create_dir_all(&dir).expect("a directory of the home can be made");
            dir
        };
        let mut config = format!("{CONFIG}sandbox-paths = {}\n", sandbox_paths());
        for (name, value) in &self.settings {
            writeln!(config, "{name} = {value}").expect("writing to a string succeeds");
        }
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.home.path())
            .env("TMPDIR", dir("tmp"))
            .env("XDG_CACHE_HOME", dir(".cache"))
            .env("XDG_CONFIG_HOME", dir(".config"))
            .env("XDG_STATE_HOME", dir(".local/state"))
            .env("XDG_DATA_HOME", dir(".local/share"))
            .env("NIX_CONF_DIR", dir("conf"))
            .env("NIX_REMOTE", format!("local?root={}", utf8(self.root.path())))
            .env("NIX_CONFIG", config)
            .envs(self.authority.iter().map(|file| ("NIX_SSL_CERT_FILE", file)))
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `nix …` or `nix-store …`.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        let (program, args) = args.split_first().expect("a command has a name");
        let child = match self.command(program).args(args).spawn() {
            Ok(child) => child,
            Err(err) => panic!(
                "`{program}` does not start ({err}): install Nix, or run tests/run, which does that"
            ),
        };
        let pid = Pid::from_child(&child);
        let guard = KillAtExit::new(pid);
        let (done, waiting) = channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let late = waiting.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = kill_process(pid, Signal::KILL);
            }
            late
        });
        let output = child.wait_with_output().expect("readable");
        drop((guard, done));
        let late = watchdog.join().expect("the watchdog does not panic");
        assert!(!late, "`{program} {}` took too long:\n{}", args.join(" "), text(&output.stderr));
        output
    }

    /// Runs a command that must succeed, and returns its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<str>>(&self, args: &[S]) -> String {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let output = self.run(&args);
        let stderr = text(&output.stderr);
        assert!(output.status.success(), "`{}`: {}\n{stderr}", short(&args), output.status);
        text(&output.stdout).trim_end().to_owned()
    }

    /// Runs a command that must fail, and returns its standard error.
    #[track_caller]
    pub fn fails<S: AsRef<str>>(&self, args: &[S]) -> String {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let output = self.run(&args);
        let stderr = text(&output.stderr);
        assert!(!output.status.success(), "`{}` succeeded\n{stderr}", short(&args));
        stderr
    }

    #[track_caller]
    pub fn copy_to(&self, url: &str, paths: &[String]) {
        self.ok(&with_paths(&["nix", "copy", "--to", url], paths));
    }

    #[track_caller]
    pub fn copy_from(&self, url: &str, paths: &[String]) {
        self.ok(&with_paths(&["nix", "copy", "--from", url], paths));
    }

    /// Copies paths from another store on this machine.
    #[track_caller]
    pub fn copy_from_store(&self, other: &Self, paths: &[String]) {
        self.copy_from(&format!("local?root={}", utf8(other.root.path())), paths);
    }

    #[track_caller]
    pub fn realise(&self, paths: &[String]) -> Vec<String> {
        lines(&self.ok(&with_paths(&["nix-store", "-r"], paths)))
    }

    #[track_caller]
    pub fn instantiate(&self, file: &Path, attribute: &str) -> String {
        let drv = self.ok(&["nix-instantiate", utf8(file), "-A", attribute]);
        drv.split('!').next().expect("split yields an item").to_owned()
    }

    /// Builds an attribute, and returns all its outputs.
    #[track_caller]
    pub fn build(&self, file: &Path, attribute: &str) -> Vec<String> {
        self.realise(&[self.instantiate(file, attribute)])
    }

    /// The closure of these paths.
    #[track_caller]
    pub fn closure(&self, paths: &[String]) -> Vec<String> {
        let mut closure = lines(&self.ok(&with_paths(&["nix-store", "-qR"], paths)));
        closure.sort();
        closure.dedup();
        closure
    }

    /// Checks that the closure of these paths is the same as in `other`, with the same contents,
    /// and that `nix store verify` finds no error. It verifies signatures if keys are configured.
    #[track_caller]
    pub fn assert_has_the_same(&self, other: &Self, paths: &[String]) {
        let closure = other.closure(paths);
        assert_eq!(self.closure(paths), closure, "the closures differ");
        for path in &closure {
            assert_same_tree(&self.real(path), &other.real(path));
        }
        self.ok(&with_paths(&["nix", "store", "verify", "-r"], paths));
    }
}

/// The host's files that a build can access: a shell and a few tools.
fn sandbox_paths() -> String {
    assert!(
        Path::new("/usr/bin/mkdir").exists(),
        "the builds of these tests need /usr/bin/mkdir and its like, as on Debian"
    );
    let links = ["bin", "lib", "lib64"]
        .into_iter()
        .filter(|name| Path::new("/usr").join(name).exists())
        .map(|name| format!("/{name}=/usr/{name}"));
    std::iter::once("/usr".to_owned()).chain(links).collect::<Vec<_>>().join(" ")
}

/// Appends store paths to a command line.
pub fn with_paths<'a>(words: &[&'a str], paths: &'a [String]) -> Vec<&'a str> {
    words.iter().copied().chain(paths.iter().map(String::as_str)).collect()
}

/// A path as text. Scratch directories and store paths are always UTF-8.
pub fn utf8(path: &Path) -> &str {
    path.to_str().expect("the path of the target directory is UTF-8")
}

/// A command line, shortened for messages.
fn short(args: &[&str]) -> String {
    let shown = args.iter().take(12).copied().collect::<Vec<_>>().join(" ");
    if args.len() > 12 { format!("{shown} … ({} more)", args.len() - 12) } else { shown }
}

/// The lines of a text; Nix prints one store path on each.
pub fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
