//! A cache directory with known content, and commands run on it.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::cache_dir;
use crate::support::daemon;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;

/// A cache directory without a daemon.
pub struct CommandCache {
    dir: PathBuf,
    _scratch: Option<Scratch>,
}

/// The exit status and the output of a command.
#[derive(Debug)]
pub struct CommandOutput {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The sample with this number. Its file has 1,000 bytes times the number, so that sizes differ.
pub fn path(number: u8) -> Sample {
    sample(number, &vec![number; 1000 * usize::from(number)])
}

impl CommandCache {
    /// An empty cache.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let dir = scratch.join("cache");
        fs::create_dir(&dir).expect("created");
        Self { dir, _scratch: Some(scratch) }
    }

    /// The directory of a daemon's cache.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), _scratch: None }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds [`path`] with these references, last used this many days ago.
    pub fn add(&self, number: u8, references: &[u8], days: u64) -> Sample {
        let mut added = path(number);
        let names = references.iter().map(|&number| {
            let name = path(number).store_path;
            name.trim_start_matches("/nix/store/").to_owned()
        });
        let names: Vec<String> = names.collect();
        added.narinfo =
            added.narinfo.replace("References: \n", &format!("References: {}\n", names.join(" ")));
        self.put(&added.narinfo_path, &added.narinfo, days);
        self.put(&added.nar_path, &added.nar, days);
        added
    }

    /// Writes a file, with times this many days ago.
    pub fn put(&self, path: &str, bytes: impl AsRef<[u8]>, days: u64) {
        let file = self.dir.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().expect("the path is in the cache")).expect("created");
        fs::write(file, bytes).expect("written");
        self.age(path, days);
    }

    /// Sets the times of a file to this many days ago.
    pub fn age(&self, path: &str, days: u64) {
        let used = SystemTime::now() - Duration::from_secs(days * 86_400);
        let times = FileTimes::new().set_accessed(used).set_modified(used);
        let file = File::options().write(true).open(self.dir.join(path.trim_start_matches('/')));
        file.expect("present").set_times(times).expect("the owner may change it");
    }

    pub fn has(&self, path: &str) -> bool {
        self.dir.join(path.trim_start_matches('/')).exists()
    }

    /// Whether the narinfo and the NAR are in the cache. Panics if only one of them is.
    #[track_caller]
    pub fn holds(&self, sample: &Sample) -> bool {
        let (narinfo, nar) = (self.has(&sample.narinfo_path), self.has(&sample.nar_path));
        assert_eq!(narinfo, nar, "{} is here in part", sample.store_path);
        narinfo
    }

    pub fn objects(&self) -> Vec<String> {
        cache_dir::objects(&self.dir)
    }

    /// The command that runs the binary with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = daemon::on_cache(&self.dir, args);
        // An argument that is a file name must not name a file of the user who runs the tests.
        command.current_dir(&self.dir);
        command
    }

    /// Runs the binary with these arguments.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> CommandOutput {
        CommandOutput::of(self.command(args).output().expect("the binary starts"))
    }

    /// Runs the binary with these arguments and variables.
    #[track_caller]
    pub fn run_with(&self, env: &[(&str, &str)], args: &[&str]) -> CommandOutput {
        let output = self.command(args).envs(env.iter().copied()).output();
        CommandOutput::of(output.expect("the binary starts"))
    }
}

impl CommandOutput {
    #[track_caller]
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code();
        let (out, err) = (text(output.stdout), text(output.stderr));
        Self { code: code.unwrap_or_else(|| panic!("a signal ended it: {err}")), out, err }
    }

    #[track_caller]
    pub fn is(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Checks that standard output contains `part`.
    #[track_caller]
    pub fn prints(self, part: &str) -> Self {
        assert!(self.out.contains(part), "“{part}” is not in {self:#?}");
        self
    }

    /// Checks that standard error contains `part`, and that standard output is empty.
    #[track_caller]
    pub fn prints_error(self, part: &str) -> Self {
        assert!(self.err.contains(part), "“{part}” is not in {self:#?}");
        assert_eq!(self.out, "");
        self
    }

    /// The JSON document on standard output. Standard error may contain only the audit log of
    /// removed objects.
    #[track_caller]
    pub fn json(&self) -> Value {
        let unexpected = self.err.lines().filter(|line| !line.contains("INFO deleted by="));
        assert_eq!(unexpected.collect::<Vec<_>>(), [""; 0]);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }
}

/// The strings of a JSON array.
#[track_caller]
pub fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().map(|item| item.as_str().expect("a text")).collect()
}
