//! A killed collection leaves every closure complete, at once and after the next collection, which finishes it.
//!
//! The moment is random: when a certain object has gone. A failing round prints its seed, and
//! `NIX_STORED_TEST_KILL_SEED=<seed> NIX_STORED_TEST_KILL_ROUNDS=1` starts with it. The long run is
//! `NIX_STORED_TEST_KILL_ROUNDS=200 cargo test --test it durability::collect_kill`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Pid;

use crate::support::audit::{assert_nothing_is_false, objects};
use crate::support::closures::{
    Layers, assert_closures_are_whole, assert_no_orphans, last_used, narinfo_of, references, trash,
};
use crate::support::daemon::{Daemon, on_cache};
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::noise::Noise;
use crate::support::rounds::{Kills, SeedOfFailure};
use crate::support::scratch::{Leash, Scratch};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Roots in the cache. With what they need, a few times as many paths.
const ROOTS: usize = 80;

/// Roots that were used within the time of grace: one in so many.
const RECENT: usize = 10;

/// A cache that Nix has written, to be copied for each round.
struct Template {
    source: Nix,
    /// Those that were used last come first.
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
            fs::create_dir_all(to.parent().expect("it is in a folder")).expect("it can be made");
            fs::copy(self.cache.path().join(&key), to).expect("an object is copied");
        }
    }

    /// Only a few roots were used lately, and nothing else. To be called before each collection,
    /// because looking at a file is a use, too.
    fn grow_old(&self, dir: &Path) {
        objects(dir).iter().for_each(|key| last_used(dir, key, 60 * DAY));
        for root in self.recent() {
            last_used(dir, &narinfo_of(root), DAY / 2);
        }
    }
}

/// The binary with a command, on this cache, in which everything may go that is not safe.
fn nix_stored(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = on_cache(dir, arguments);
    command.env("NIX_STORED_MAX_SIZE", "1").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command to its end; its exit status and what it said.
fn run(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = nix_stored(dir, arguments);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Waits until an object is gone, or the process.
fn wait_until_gone(object: &Path, collecting: &mut Child) {
    while object.exists() && collecting.try_wait().expect("it is a child of ours").is_none() {
        std::hint::spin_loop();
    }
}

/// What a kill at the worst moment leaves, which most do not hit: the oldest root on its way out.
fn put_into_the_trash(dir: &Path, roots: &[String]) {
    let narinfo = narinfo_of(roots.last().expect("there are some"));
    if dir.join(&narinfo).exists() {
        let trash = dir.join(".nix-stored/trash");
        fs::create_dir_all(&trash).expect("it can be made");
        fs::rename(dir.join(&narinfo), trash.join(&narinfo)).expect("it can be moved");
    }
}

#[test]
fn a_collection_that_was_killed_leaves_closures_whole_and_the_next_one_finishes_it() {
    let kills = Kills::from_env();
    let template = Template::new();
    let mut half_way = 0;
    let mut in_the_trash = 0;
    for seed in kills.seeds() {
        let _told = SeedOfFailure(seed);
        let round = kill_and_collect_again(seed, &template);
        half_way += u64::from(round.half_way);
        in_the_trash += round.in_the_trash;
    }
    let Kills { rounds, first } = kills;
    eprintln!(
        "{rounds} rounds from seed {first}: {half_way} half-way, {in_the_trash} in the trash"
    );
    assert!(rounds < 10 || half_way > 0, "every kill came before or after the collection");
}

/// What the kill found.
struct Round {
    /// Something had gone, and something had not.
    half_way: bool,
    /// Objects that were on their way out.
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

    template.grow_old(&dir);
    let object = dir.join(may_go[noise.below(may_go.len() as u64) as usize]);
    let mut collecting = nix_stored(&dir, &["gc"]).spawn().expect("the binary starts");
    let leash = Leash::new(Pid::from_child(&collecting));
    wait_until_gone(&object, &mut collecting);
    let _ = collecting.kill();
    collecting.wait().expect("it is a child of ours");
    drop(leash);

    let left = objects(&dir);
    let in_the_trash = trash(&dir);
    assert!(in_the_trash.len() <= 1, "{in_the_trash:?}");
    let check = || {
        assert_nothing_is_false(&dir);
        assert_closures_are_whole(&dir);
        let here = references(&dir);
        for path in &recent {
            assert!(here.get(*path) == everything.get(*path), "{path} was used half a day ago");
        }
    };
    check();
    // The daemon takes the cache as it is.
    let daemon = Daemon::builder().dir(&dir).start();
    let reader = Nix::new();
    reader.copy_from(daemon.url(), template.recent());
    reader.assert_has_the_same(&template.source, template.recent());
    drop(daemon);

    template.grow_old(&dir);
    if in_the_trash.is_empty() {
        put_into_the_trash(&dir, &template.roots);
    }
    // Two is the answer to the limit: what is safe is larger.
    let (code, said) = run(&dir, &["gc"]);
    assert_eq!(code, Some(2), "{said}");
    check();
    assert_no_orphans(&dir);
    assert_eq!(trash(&dir), [""; 0]);
    let kept: Vec<String> = references(&dir).into_keys().collect();
    assert!(kept == safe, "{} paths instead of {}", kept.len(), safe.len());
    let (code, said) = run(&dir, &["verify", "--deep"]);
    assert_eq!(code, Some(0), "{said}");
    Round {
        half_way: left.len() < before.len() && left.len() > objects(&dir).len(),
        in_the_trash: in_the_trash.len(),
    }
}
