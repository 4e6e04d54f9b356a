//! A cache directory with chosen content, and the commands on it.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::audit;
use crate::support::daemon;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;

/// A cache in a directory that nobody serves.
pub struct Given {
    dir: PathBuf,
    _scratch: Option<Scratch>,
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The sample with this number: 1,000 bytes and more of it for each number, so that sizes differ.
pub fn path(number: u8) -> Sample {
    sample(number, &vec![number; 1000 * usize::from(number)])
}

impl Given {
    /// An empty cache.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let dir = scratch.join("cache");
        fs::create_dir(&dir).expect("made");
        Self { dir, _scratch: Some(scratch) }
    }

    /// The cache of a daemon.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), _scratch: None }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds [`path`], which refers to others and was last used so many days ago.
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

    /// Makes a file that was written and used so many days ago.
    pub fn put(&self, path: &str, bytes: impl AsRef<[u8]>, days: u64) {
        let file = self.dir.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().expect("it is below the cache")).expect("made");
        fs::write(file, bytes).expect("written");
        self.age(path, days);
    }

    /// Says of a file that it was written and used so many days ago.
    pub fn age(&self, path: &str, days: u64) {
        let used = SystemTime::now() - Duration::from_secs(days * 86_400);
        let times = FileTimes::new().set_accessed(used).set_modified(used);
        let file = File::options().write(true).open(self.dir.join(path.trim_start_matches('/')));
        file.expect("it is there").set_times(times).expect("its owner may");
    }

    pub fn has(&self, path: &str) -> bool {
        self.dir.join(path.trim_start_matches('/')).exists()
    }

    /// Whether the whole path is here, or nothing of it.
    #[track_caller]
    pub fn holds(&self, sample: &Sample) -> bool {
        let (narinfo, nar) = (self.has(&sample.narinfo_path), self.has(&sample.nar_path));
        assert_eq!(narinfo, nar, "{} is here in part", sample.store_path);
        narinfo
    }

    /// All objects.
    pub fn objects(&self) -> Vec<String> {
        audit::objects(&self.dir)
    }

    /// The binary with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = daemon::on_cache(&self.dir, args);
        // Nobody who runs the tests shall look for a file of this name.
        command.current_dir(&self.dir);
        command
    }

    /// Runs the binary with these arguments.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().expect("the binary starts"))
    }

    /// Runs the binary with these arguments and variables.
    #[track_caller]
    pub fn run_with(&self, env: &[(&str, &str)], args: &[&str]) -> Ended {
        let output = self.command(args).envs(env.iter().copied()).output();
        Ended::of(output.expect("the binary starts"))
    }
}

impl Ended {
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

    /// What it says of the matter, on standard output.
    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(self.out.contains(part), "“{part}” is not in {self:#?}");
        self
    }

    /// What it complains of, on standard error, with nothing on standard output.
    #[track_caller]
    pub fn complains(self, part: &str) -> Self {
        assert!(self.err.contains(part), "“{part}” is not in {self:#?}");
        assert_eq!(self.out, "");
        self
    }

    /// The one JSON document on standard output, with nothing on standard error but what is logged
    /// of each object that goes.
    #[track_caller]
    pub fn json(&self) -> Value {
        let complaints = self.err.lines().filter(|line| !line.contains("INFO deleted by="));
        assert_eq!(complaints.collect::<Vec<_>>(), [""; 0]);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }
}

/// The texts in a list.
#[track_caller]
pub fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().map(|item| item.as_str().expect("a text")).collect()
}
