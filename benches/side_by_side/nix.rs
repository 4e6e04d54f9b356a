//! A private Nix: single user, no daemon, no system `/nix`, no network.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::side_by_side::comparison::Comparison;
use crate::support::nar::Large;

/// The limit for a command: old versions of Nix wait forever for a failing server.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Nix must not cache lookups between turns. Its own fsyncs would be most of the time for 2,000
/// small paths.
const CONFIG: &str = "\
build-users-group =
sandbox = false
experimental-features = nix-command
substituters =
require-sigs = false
fsync-metadata = false
narinfo-cache-positive-ttl = 0
narinfo-cache-negative-ttl = 0
connect-timeout = 5
";

/// A home directory and a store.
#[derive(Debug)]
pub struct Nix<'a> {
    comparison: &'a Comparison,
    home: PathBuf,
}

impl<'a> Nix<'a> {
    /// A new home and an empty store.
    pub fn new(comparison: &'a Comparison) -> anyhow::Result<Self> {
        Ok(Self { comparison, home: comparison.fresh_dir("nix")? })
    }

    /// Adds `count` files of a few bytes each.
    pub fn add_tiny_files(&self, count: usize) -> anyhow::Result<Vec<String>> {
        let dir = self.comparison.fresh_dir("tiny")?;
        let mut files = Vec::new();
        for number in 0..count {
            let file = dir.join(format!("tiny-{number}"));
            fs::write(&file, format!("{number}\n"))?;
            files.push(file.display().to_string());
        }
        let mut paths = Vec::new();
        for some in files.chunks(500) {
            paths.extend(self.run("nix-store", &["--add"], some)?.lines().map(str::to_owned));
        }
        Ok(paths)
    }

    /// Adds the file of a large NAR.
    pub fn add_large_file(&self, nar: &Large) -> anyhow::Result<Vec<String>> {
        let file = self.comparison.fresh_dir("large")?.join("large");
        nar.write_contents_to(fs::File::create(&file)?)?;
        let path = self.run("nix-store", &["--add"], &[file.display().to_string()])?;
        Ok(vec![path.trim_end().to_owned()])
    }

    /// Runs `nix copy --to` without compression, which would be most of the time.
    pub fn copy_to(&self, url: &str, paths: &[String]) -> anyhow::Result<()> {
        let url = format!("{url}?compression=none");
        self.run("nix", &["copy", "--to", &url], paths).map(drop)
    }

    /// Runs `nix copy --from`.
    pub fn copy_from(&self, url: &str, paths: &[String]) -> anyhow::Result<()> {
        self.run("nix", &["copy", "--no-check-sigs", "--from", url], paths)?;
        for path in [paths.first(), paths.last()].into_iter().flatten() {
            let real = self.home.join("root").join(path.trim_start_matches('/'));
            ensure!(real.exists(), "{path} was not substituted");
        }
        Ok(())
    }

    /// Removes the store, to free its disk space.
    pub fn remove(self) -> anyhow::Result<()> {
        unlock(&self.home)?;
        Ok(fs::remove_dir_all(&self.home)?)
    }

    /// Runs a command that must succeed, and returns its standard output.
    fn run(&self, program: &str, words: &[&str], more: &[String]) -> anyhow::Result<String> {
        let dir = |name: &str| {
            let dir = self.home.join(name);
            fs::create_dir_all(&dir).map(|()| dir)
        };
        let child = Command::new(program)
            .args(words)
            .args(more)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", &self.home)
            .env("TMPDIR", dir("tmp")?)
            .env("XDG_CACHE_HOME", dir(".cache")?)
            .env("XDG_CONFIG_HOME", dir(".config")?)
            .env("XDG_STATE_HOME", dir(".local/state")?)
            .env("XDG_DATA_HOME", dir(".local/share")?)
            .env("NIX_CONF_DIR", dir("conf")?)
            .env("NIX_REMOTE", format!("local?root={}", dir("root")?.display()))
            .env("NIX_CONFIG", CONFIG)
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{program} does not start"))?;
        let guard = self.comparison.bench.scratch.guard(Pid::from_child(&child))?;
        let (done, waiting) = channel::<()>();
        let pid = Pid::from_child(&child);
        let watchdog = std::thread::spawn(move || {
            if waiting.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let output = child.wait_with_output()?;
        drop((guard, done));
        watchdog.join().expect("the watchdog does not panic");
        let printed = String::from_utf8_lossy(&output.stderr);
        let words = words.join(" ");
        ensure!(output.status.success(), "`{program} {words} …`: {}\n{printed}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Makes `dir` and the directories in it writable, so that they can be removed.
fn unlock(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            unlock(&entry.path())?;
        }
    }
    Ok(())
}
