//! A killed collection leaves every closure complete, at once and after the next collection, which
//! completes it.
//!
//! The time of the kill is random: when a certain object has been removed. A failing round prints
//! its seed, and `NIX_STORED_TEST_KILL_SEED=<seed> NIX_STORED_TEST_KILL_ROUNDS=1` starts with it.
//! The long run is `NIX_STORED_TEST_KILL_ROUNDS=200 cargo test --test it durability::collect_kill`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Pid;

use crate::support::cache_dir::{assert_consistent, objects};
use crate::support::closures::{
    Layers, assert_closures_are_complete, assert_no_orphans, last_used, narinfo_of, references,
    trash,
};
use crate::support::daemon::{Daemon, on_cache};
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::noise::Noise;
use crate::support::rounds::{KillRounds, SeedOfFailure};
use crate::support::scratch::{KillAtExit, Scratch};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The number of roots. Their closures have a few times as many paths.
const ROOTS: usize = 80;

/// One in this many roots was used within the grace period.
const RECENT: usize = 10;

/// A cache written by Nix, which is copied for each round.
struct Template {
    source: Nix,
    /// The most recently used roots come first.
    roots: Vec<String>,
    cache: Scratch,
}

impl Template {
    fn new() -> Self {
        let source = Nix::new();
        let layers = Layers::new("kill", ROOTS, 3_000);
        let texts = source.add_texts(&layers.texts);
        let roots: Vec<String> = layers.roots.iter().map(|&root| texts[root].clone()).collect();
        let cache = Scratch::new();
        let url = format!("file://{}?compression=none", utf8(cache.path()));
        source.ok(&with_paths(&["nix", "copy", "--to", &url], &roots));
        Self { source, roots, cache }
    }

    fn recent(&self) -> &[String] {
        &self.roots[..ROOTS / RECENT]
    }

    fn copy_to(&self, dir: &Path) {
        for key in objects(self.cache.path()) {
            let to = dir.join(&key);
            fs::create_dir_all(to.parent().expect("the path has a parent")).expect("created");
            fs::copy(self.cache.path().join(&key), to).expect("an object is copied");
        }
    }

    /// Sets the times so that only a few roots were used recently. Called before each collection,
    /// because reading a file can count as a use.
    fn set_old(&self, dir: &Path) {
        objects(dir).iter().for_each(|key| last_used(dir, key, 60 * DAY));
        for root in self.recent() {
            last_used(dir, &narinfo_of(root), DAY / 2);
        }
    }
}

/// The binary with a command on this cache, with limits that remove every path that may be removed.
fn nix_stored(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = on_cache(dir, arguments);
    command.env("NIX_STORED_MAX_SIZE", "1").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command to its end. Returns its exit status and output.
fn run(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = nix_stored(dir, arguments);
    let output =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("the process runs");
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

/// Waits until an object is removed, or the process has ended.
fn wait_until_gone(object: &Path, collecting: &mut Child) {
    while object.exists() && collecting.try_wait().expect("a child process").is_none() {
        std::hint::spin_loop();
    }
}

/// Creates the state after a kill at the worst time, which most kills miss: the oldest root is in
/// the trash.
fn put_into_the_trash(dir: &Path, roots: &[String]) {
    let narinfo = narinfo_of(roots.last().expect("not empty"));
    if dir.join(&narinfo).exists() {
        let trash = dir.join(".nix-stored/trash");
        fs::create_dir_all(&trash).expect("created");
        fs::rename(dir.join(&narinfo), trash.join(&narinfo)).expect("renamed");
    }
}

#[test]
fn a_collection_that_was_killed_leaves_closures_whole_and_the_next_one_finishes_it() {
    let kills = KillRounds::from_env();
    let template = Template::new();
    let mut half_way = 0;
    let mut in_the_trash = 0;
    for seed in kills.seeds() {
        let _seed = SeedOfFailure(seed);
        let round = kill_and_collect_again(seed, &template);
        half_way += u64::from(round.half_way);
        in_the_trash += round.in_the_trash;
    }
    let KillRounds { rounds, first } = kills;
    eprintln!(
        "{rounds} rounds from seed {first}: {half_way} half-way, {in_the_trash} in the trash"
    );
    assert!(rounds < 10 || half_way > 0, "every kill came before or after the collection");
}

/// The state after the kill.
struct Round {
    /// Whether some objects were removed, and some were not.
    half_way: bool,
    /// The number of objects in the trash.
    in_the_trash: usize,
}

fn kill_and_collect_again(seed: u64, template: &Template) -> Round {
    let mut noise = Noise::new(seed);
    let scratch = Scratch::new();
    let dir: PathBuf = scratch.join("cache");
    template.copy_to(&dir);
    let safe = template.source.closure(template.recent());
    let everything = references(&dir);
    let recent: BTreeSet<&String> = safe.iter().collect();
    let before = objects(&dir);
    let may_go: Vec<&String> = before
        .iter()
        .filter(|key| !safe.iter().any(|path| **key == narinfo_of(path)))
        .filter(|key| *key != "nix-cache-info")
        .collect();

    template.set_old(&dir);
    let object = dir.join(may_go[noise.below(may_go.len() as u64) as usize]);
    let mut collecting = nix_stored(&dir, &["gc"]).spawn().expect("the binary starts");
    let guard = KillAtExit::new(Pid::from_child(&collecting));
    wait_until_gone(&object, &mut collecting);
    let _ = collecting.kill();
    collecting.wait().expect("a child process");
    drop(guard);

    let left = objects(&dir);
    let in_the_trash = trash(&dir);
    assert!(in_the_trash.len() <= 1, "{in_the_trash:?}");
    let check = || {
        assert_consistent(&dir);
        assert_closures_are_complete(&dir);
        let here = references(&dir);
        for path in &recent {
            assert!(here.get(*path) == everything.get(*path), "{path} was used half a day ago");
        }
    };
    check();
    // The daemon opens the cache as it is.
    let daemon = Daemon::builder().dir(&dir).start();
    let reader = Nix::new();
    reader.copy_from(daemon.url(), template.recent());
    reader.assert_has_the_same(&template.source, template.recent());
    drop(daemon);

    template.set_old(&dir);
    if in_the_trash.is_empty() {
        put_into_the_trash(&dir, &template.roots);
    }
    // Exit status 2: the protected paths are larger than the limit.
    let (code, printed) = run(&dir, &["gc"]);
    assert_eq!(code, Some(2), "{printed}");
    check();
    assert_no_orphans(&dir);
    assert_eq!(trash(&dir), [""; 0]);
    let kept: Vec<String> = references(&dir).into_keys().collect();
    assert!(kept == safe, "{} paths instead of {}", kept.len(), safe.len());
    let (code, printed) = run(&dir, &["verify", "--deep"]);
    assert_eq!(code, Some(0), "{printed}");
    Round {
        half_way: left.len() < before.len() && left.len() > objects(&dir).len(),
        in_the_trash: in_the_trash.len(),
    }
}
