//! `nix-stored migrate`, from one directory into another.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix_stored::nix::{Compression, Sha256Hash};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::command_cache::{CommandCache, CommandOutput, path, texts};
use crate::support::cache_dir::{assert_consistent, objects, staging};
use crate::support::closures::{Layers, assert_closures_are_complete, references};
use crate::support::daemon::{Daemon, on_cache};
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::packing::{WITHOUT_DECODER, without_decoder};
use crate::support::rounds::{KillRounds, SeedOfFailure};
use crate::support::scratch::{KillAtExit, Scratch};

/// A new directory for a cache.
struct Target {
    scratch: Scratch,
}

impl Target {
    fn new() -> Self {
        Self { scratch: Scratch::new() }
    }

    fn cache(&self) -> CommandCache {
        CommandCache::at(&self.scratch.join("cache"))
    }

    fn command(&self, from: &Path, more: &[&str]) -> Command {
        let to = self.scratch.join("cache");
        let mut command = on_cache(Path::new("/nonexistent"), &["migrate", utf8(from), utf8(&to)]);
        command.args(more);
        command
    }

    #[track_caller]
    fn import_from(&self, from: &CommandCache, more: &[&str]) -> CommandOutput {
        CommandOutput::of(self.command(from.dir(), more).output().expect("the binary starts"))
    }

    /// Checks that the target has the same objects as `from`, and that they are consistent.
    #[track_caller]
    fn is_a_copy_of(&self, from: &Path) {
        let to = self.scratch.join("cache");
        let mut keys = objects(from);
        keys.retain(|key| key != "nix-cache-info");
        let mut copies = objects(&to);
        copies.retain(|key| key != "nix-cache-info");
        assert_eq!(copies, keys);
        for key in &keys {
            let (one, other) = (fs::read(from.join(key)).unwrap(), fs::read(to.join(key)).unwrap());
            assert!(one == other, "{key}: {}", String::from_utf8_lossy(&other));
        }
        assert_consistent(&to);
        let staged: Vec<String> =
            staging(&to).into_iter().filter(|it| !it.ends_with('/')).collect();
        assert_eq!(staged, [""; 0]);
    }
}

const BUILD_ID: &str = "abcdef0123456789abcdef0123456789abcdef01";

/// Three paths of which one refers to the others, a single path, and an object of every other kind.
fn filled() -> CommandCache {
    let cache = CommandCache::new();
    let (one, two) = (cache.add(1, &[], 3), cache.add(2, &[1], 2));
    cache.add(3, &[1, 2], 1);
    cache.add(4, &[], 0);
    let hash = &one.narinfo_path[1..33];
    cache.put(&format!("{hash}.ls"), "{\"version\": 1}", 0);
    cache.put(&format!("log/{hash}-one.drv"), "built\n", 0);
    let out = &two.store_path["/nix/store/".len()..];
    let modulo = "ab".repeat(32);
    let realisation = format!("{{\"outPath\": \"{out}\", \"id\": \"sha256:{modulo}!out\"}}");
    cache.put(&format!("realisations/sha256:{modulo}!out.doi"), realisation, 0);
    let trace = format!("{{\"outPath\": \"{out}\"}}");
    cache.put(&format!("build-trace-v2/{hash}-one.drv/out.doi"), trace, 0);
    let link = format!("{{\"archive\": \"..{}\", \"member\": \"x\"}}", one.nar_path);
    cache.put(&format!("debuginfo/{BUILD_ID}.debug"), link, 0);
    cache
}

#[test]
fn every_object_is_copied_once() {
    let from = filled();
    from.run(&["pin", "release", &path(3).store_path, &path(9).store_path]).is(0);
    let before = objects(from.dir());
    let target = Target::new();
    let printed = target.import_from(&from, &["--json"]).is(0).json();
    let sizes = before.iter().map(|key| from.dir().join(key).metadata().unwrap().len());
    assert_eq!(
        printed,
        json!({
            "paths": 4, "present": 0, "objects": 9, "bytes": sizes.sum::<u64>(), "pins": 1,
            "orphans": 0, "differing": [], "damage": [], "stopped": false,
        })
    );
    target.is_a_copy_of(from.dir());
    assert_eq!(objects(from.dir()), before);
    let pins = |cache: &CommandCache| cache.run(&["pins", "--json"]).is(0).json();
    assert_eq!(pins(&target.cache()), pins(&from));

    let written = |cache: &CommandCache| -> BTreeMap<String, _> {
        let keys = objects(cache.dir()).into_iter();
        keys.map(|key| (key.clone(), cache.dir().join(key).metadata().unwrap().modified().unwrap()))
            .collect()
    };
    let before = written(&target.cache());
    let printed = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!([&printed["paths"], &printed["objects"], &printed["bytes"]], [0, 0, 0], "{printed}");
    assert_eq!(printed["present"], 4);
    assert_eq!(written(&target.cache()), before);
    target
        .import_from(&from, &[])
        .is(0)
        .prints("copied 0 paths and 0 other objects")
        .prints("4 paths already in TO");
}

#[test]
fn a_second_migration_copies_only_new_paths() {
    let from = filled();
    let target = Target::new();
    target.import_from(&from, &[]).is(0);
    from.add(5, &[3], 0);
    fs::write(from.dir().join("log/8ha1dhmx807czjczmwy078s4r9s254il-x.drv"), "new").unwrap();
    let printed = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!(
        [&printed["paths"], &printed["objects"], &printed["present"]],
        [1, 2, 4],
        "{printed}"
    );
    // A side file can change while its length stays the same.
    fs::write(from.dir().join("log/8ha1dhmx807czjczmwy078s4r9s254il-x.drv"), "old").unwrap();
    let printed = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!([&printed["paths"], &printed["objects"], &printed["bytes"]], [0, 1, 3], "{printed}");
    target.is_a_copy_of(from.dir());
}

#[test]
fn damaged_paths_are_reported_and_not_copied() {
    let from = CommandCache::new();
    let whole = from.add(1, &[], 0);
    let flipped = from.add(2, &[], 0);
    let torn = from.add(3, &[], 0);
    let missing = from.add(4, &[], 0);
    let mismatched = from.add(5, &[1], 0);
    let broken = from.add(6, &[], 0);
    let wrong_name = from.add(7, &[], 0);
    let referring = from.add(8, &[2], 0);
    let no_nar = sample(9, b"").with_file(Compression::None, b"not a NAR".to_vec());
    let mut bytes = flipped.nar.clone();
    bytes[200] ^= 1;
    from.put(&flipped.nar_path, bytes, 0);
    from.put(&torn.nar_path, &torn.nar[..1000], 0);
    fs::remove_file(from.dir().join(&missing.nar_path[1..])).unwrap();
    let size = format!("NarSize: {}", mismatched.nar.len());
    from.put(&mismatched.narinfo_path, mismatched.narinfo.replace(&size, "NarSize: 4711"), 0);
    from.put(&broken.narinfo_path, "StorePath: nonsense\n", 0);
    from.put(&wrong_name.narinfo_path, &whole.narinfo, 0);
    from.put(&no_nar.nar_path, &no_nar.nar, 0);
    from.put(&no_nar.narinfo_path, &no_nar.narinfo, 0);
    let listing = format!("{}.ls", &whole.narinfo_path[1..33]);
    from.put(&listing, "{\"version\":", 0);

    let target = Target::new();
    let result = target.import_from(&from, &["--json"]).is(2);
    let printed: serde_json::Value = serde_json::from_str(&result.out).expect("JSON");
    let key = |path: &str| path.trim_start_matches('/').to_owned();
    let expected = BTreeMap::from([
        (key(&flipped.nar_path), "nar"),
        (key(&flipped.narinfo_path), "nar-damaged"),
        (key(&torn.nar_path), "nar"),
        (key(&torn.narinfo_path), "nar-damaged"),
        (key(&missing.narinfo_path), "nar-missing"),
        (key(&mismatched.narinfo_path), "field"),
        (key(&broken.narinfo_path), "narinfo"),
        (key(&wrong_name.narinfo_path), "name"),
        (key(&no_nar.nar_path), "unpack"),
        (key(&no_nar.narinfo_path), "nar-damaged"),
        (listing, "json"),
    ]);
    let found: BTreeMap<String, &str> = printed["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["object"].as_str().unwrap().to_owned(), one["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(found, expected, "{printed:#}");
    assert_eq!(printed["paths"], 2);

    let cache = target.cache();
    assert!(cache.holds(&whole) && cache.holds(&referring));
    assert_eq!(assert_consistent(cache.dir()), 2);
    assert!(!cache.has(&flipped.nar_path) && !cache.has(&no_nar.nar_path));
    // A valid NAR that only an invalid narinfo refers to is not worth removing again.
    cache.run(&["verify", "--deep"]).is(0);
    let result = target.import_from(&from, &[]).is(2);
    assert!(result.out.contains(&format!("{}: does not match its name", key(&flipped.nar_path))));
    result.prints("11 objects are damaged");
}

#[test]
fn a_nar_that_is_damaged_in_the_copy_is_copied_again() {
    let from = CommandCache::new();
    let one = from.add(1, &[], 0);
    let target = Target::new();
    let mut bytes = one.nar.clone();
    bytes[200] ^= 1;
    target.cache().put(&one.nar_path, bytes, 0);
    target.import_from(&from, &[]).is(0);
    target.is_a_copy_of(from.dir());
}

#[test]
fn objects_that_only_the_target_has_are_kept() {
    let from = CommandCache::new();
    let theirs = from.add(1, &[], 0);
    from.add(2, &[], 0);
    let signed = from.add(3, &[], 0);
    let signed_by = |key: &str| format!("{}Sig: {key}:{}==\n", signed.narinfo, "A".repeat(86));
    from.put(&signed.narinfo_path, signed_by("there"), 0);
    let target = Target::new();
    let to = target.cache();
    let ours = Sample { narinfo_path: theirs.narinfo_path.clone(), ..sample(1, b"another build") };
    to.put(&ours.narinfo_path, &ours.narinfo, 0);
    to.put(&ours.nar_path, &ours.nar, 0);
    to.put(&signed.narinfo_path, signed_by("here"), 0);
    to.put(&signed.nar_path, &signed.nar, 0);
    to.run(&["pin", "both", &theirs.store_path]).is(0);
    from.run(&["pin", "both", &path(2).store_path]).is(0);

    let printed = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!(texts(&printed["differing"]), [theirs.store_path.as_str()]);
    assert_eq!([&printed["paths"], &printed["present"]], [1, 1], "{printed}");
    let read = |path: &str| fs::read_to_string(to.dir().join(&path[1..])).unwrap();
    assert_eq!(read(&ours.narinfo_path), ours.narinfo);
    let both = read(&signed.narinfo_path);
    assert!(both.contains("Sig: here:") && both.contains("Sig: there:"), "{both}");
    let pins = to.run(&["pins", "--json"]).is(0).json();
    assert_eq!(pins["pins"][0]["store_paths"].as_array().map(Vec::len), Some(2), "{pins}");
}

#[test]
fn abandoned_uploads_are_not_copied() {
    let from = CommandCache::new();
    from.add(1, &[], 0);
    let orphan = path(2);
    from.put(&orphan.nar_path, &orphan.nar, 0);
    let target = Target::new();
    let result = target.import_from(&from, &[]).is(0).prints("skipped 1 NAR without a narinfo");
    result.prints("copied 1 path and 1 other object");
    assert!(!target.cache().has(&orphan.nar_path));
}

#[test]
fn the_upstream_of_a_mirrored_path_is_copied() {
    let from = CommandCache::new();
    let mirrored = from.add(1, &[], 0);
    from.put(
        &mirrored.narinfo_path,
        format!("{}Upstream: https://cache.example.org\n", mirrored.narinfo),
        0,
    );
    let target = Target::new();
    target.import_from(&from, &[]).is(0);
    target.is_a_copy_of(from.dir());
}

#[test]
fn a_path_is_copied_after_its_references() {
    let from = CommandCache::new();
    // This NAR takes longer to copy than that of its referrer.
    let needed = sample(1, &vec![1; 96 << 20]);
    from.put(&needed.nar_path, &needed.nar, 0);
    from.put(&needed.narinfo_path, &needed.narinfo, 0);
    let needing = from.add(2, &[1], 0);
    let target = Target::new();
    let dir = target.scratch.join("cache");
    let mut migrating =
        target.command(from.dir(), &[]).stdout(Stdio::null()).spawn().expect("the binary starts");
    let guard = KillAtExit::new(Pid::from_child(&migrating));
    while !dir.join(&needing.narinfo_path[1..]).exists()
        && migrating.try_wait().expect("a child process").is_none()
    {
        std::hint::spin_loop();
    }
    assert!(
        dir.join(&needed.narinfo_path[1..]).exists(),
        "the path was stored before its references"
    );
    assert!(migrating.wait().expect("a child process").success());
    drop(guard);
}

#[test]
fn invalid_arguments_are_refused() {
    let from = filled();
    let target = Target::new();
    let nowhere = Path::new("/nonexistent/cache");
    let result = CommandOutput::of(target.command(nowhere, &[]).output().unwrap());
    result.is(1).prints_error("there is no cache in /nonexistent/cache");
    assert!(!target.scratch.join("cache").exists());

    let same = from.dir().join("../cache");
    from.run(&["migrate", utf8(from.dir()), utf8(&same)])
        .is(64)
        .prints_error("FROM and TO are both");
    from.run(&["migrate", utf8(from.dir())]).is(64);
    from.run(&["migrate", "s3://", utf8(&same)]).is(64);
    from.run(&["migrate", utf8(from.dir()), "x", "--jobs", "0"]).is(64);
}

/// A cache written by Nix: many texts that refer to each other.
struct Source {
    dir: Scratch,
}

impl Source {
    fn new() -> Self {
        let nix = Nix::new();
        let layers = Layers::new("move", 40, 20_000);
        let texts = nix.add_texts(&layers.texts);
        let roots: Vec<String> = layers.roots.iter().map(|&root| texts[root].clone()).collect();
        let dir = Scratch::new();
        let url = format!("file://{}?compression=none", utf8(dir.path()));
        nix.ok(&with_paths(&["nix", "copy", "--to", &url], &roots));
        Self { dir }
    }
}

#[test]
fn a_migration_that_was_killed_leaves_closures_whole_and_the_next_one_finishes_it() {
    let KillRounds { rounds, first } = KillRounds::from_env();
    let source = Source::new();
    let everything = references(source.dir.path());
    let mut half_way = 0;
    for round in 0..rounds {
        let seed = first.wrapping_add(round);
        let _seed = SeedOfFailure(seed);
        let mut noise = Noise::new(seed);
        let target = Target::new();
        let dir = target.scratch.join("cache");
        let wanted = noise.below(everything.len() as u64) as usize;
        let object =
            everything.keys().nth(wanted).map(|path| crate::support::closures::narinfo_of(path));
        let object = dir.join(object.expect("one of the objects"));
        let mut migrating = target
            .command(source.dir.path(), &["--jobs", "3"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let guard = KillAtExit::new(Pid::from_child(&migrating));
        while !object.exists() && migrating.try_wait().expect("a child process").is_none() {
            std::hint::spin_loop();
        }
        let _ = migrating.kill();
        migrating.wait().expect("a child process");
        drop(guard);

        assert_consistent(&dir);
        assert_closures_are_complete(&dir);
        let here = references(&dir).len();
        half_way += u64::from(here < everything.len());
        let result =
            CommandOutput::of(target.command(source.dir.path(), &["--json"]).output().unwrap());
        let printed = result.is(0).json();
        assert_eq!(printed["present"], here, "{printed}");
        target.is_a_copy_of(source.dir.path());
    }
    assert!(rounds < 10 || half_way > 0, "every kill came after the end");
}

#[test]
fn an_interrupted_migration_reports_its_progress() {
    let source = Source::new();
    let target = Target::new();
    let migrating = target
        .command(source.dir.path(), &["--jobs", "1", "--json"])
        .spawn()
        .expect("the binary starts");
    let guard = KillAtExit::new(Pid::from_child(&migrating));
    let dir = target.scratch.join("cache");
    // The folder is created before the first object.
    while !dir.join("nar").exists() || objects(&dir).len() < 5 {
        std::hint::spin_loop();
    }
    kill_process(Pid::from_child(&migrating), Signal::TERM).expect("still running");
    let output = migrating.wait_with_output().expect("the process ends");
    drop(guard);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("received SIGTERM; stopping"));
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed["stopped"], true);
    // The object that was being published at the time of the signal may be stored without being
    // counted.
    let (counted, here) =
        (printed["paths"].as_u64().expect("a number"), references(&dir).len() as u64);
    assert!(counted > 0 && (counted..=counted + 1).contains(&here), "{here} are here: {printed}");
    assert_closures_are_complete(&dir);
    CommandOutput::of(target.command(source.dir.path(), &[]).output().unwrap()).is(0);
    target.is_a_copy_of(source.dir.path());
}

const KEY: &str = "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// A cache with a path whose narinfo says that it was mirrored from `url`, and that has no
/// signature.
fn mirrored_from(url: &str) -> CommandCache {
    let from = CommandCache::new();
    let one = from.add(1, &[], 0);
    from.put(&one.narinfo_path, format!("{}Upstream: {url}\n", one.narinfo), 0);
    from
}

#[test]
fn an_upstream_line_in_a_narinfo_does_not_make_it_trusted() {
    let keys = ("NIX_STORED_TRUSTED_PUBLIC_KEYS", KEY);
    let from = mirrored_from("https://mirrored.example.org");
    let target = Target::new();
    let mut migrate = target.command(from.dir(), &[]);
    CommandOutput::of(migrate.env(keys.0, keys.1).output().expect("the binary starts"))
        .is(2)
        .prints("has no valid signature by a trusted key");
    assert!(!target.cache().has(&path(1).narinfo_path));
    from.run_with(&[keys], &["verify"]).is(2).prints("has no valid signature by a trusted key");
    // Without trusted keys, every path is trusted.
    from.run(&["verify"]).is(0).prints("0 notes");
}

#[cfg(feature = "upstream")]
#[test]
fn paths_mirrored_from_a_configured_upstream_are_verified_with_its_keys() {
    let url = "https://mirrored.example.org";
    let from = mirrored_from(url);
    let keys = ("NIX_STORED_TRUSTED_PUBLIC_KEYS", KEY);
    // Its signatures cannot be checked, which is not damage.
    let upstream = ("NIX_STORED_UPSTREAMS", url);
    from.run_with(&[keys, upstream], &["verify"]).is(0).prints("without trusted-public-keys");
    let target = Target::new();
    let mut migrate = target.command(from.dir(), &[]);
    migrate.env(keys.0, keys.1).env(upstream.0, upstream.1);
    CommandOutput::of(migrate.output().expect("the binary starts")).is(0).prints("copied 1 path");

    let with_keys = format!("{url}?trusted-public-keys={KEY}");
    let upstream = ("NIX_STORED_UPSTREAMS", with_keys.as_str());
    from.run_with(&[upstream], &["verify"]).is(2).prints("has no valid signature by a trusted key");
}

/// A cache in the layout of other programs: NARs in any folder, with any name.
fn of_another_layout() -> (CommandCache, Vec<Sample>) {
    let from = CommandCache::new();
    let samples: Vec<Sample> = (1..=4).map(path).collect();
    // Named after the NarHash, like nix-push did; after a UUID, in another folder; after a hash in
    // base 16; and in no folder, without a FileHash.
    let nar_hash = Sha256Hash::of(&samples[0].nar).to_nix32();
    let elsewhere = [
        format!("nar/{nar_hash}.nar.zst"),
        "files/6f9619ff-8b86-d011-b42d-00c04fc964ff.nar.zst".to_owned(),
        format!("nar/{}.nar.zst", "ab".repeat(32)),
        "x.nar".to_owned(),
    ];
    let mut laid_out = Vec::new();
    for (number, (sample, url)) in samples.iter().zip(&elsewhere).enumerate() {
        let sample = sample.packed(Compression::Zstd);
        let mut narinfo = sample.narinfo.replace(&sample.nar_path[1..], url);
        if number == 3 {
            let lines = narinfo.lines().filter(|line| !line.starts_with("File"));
            narinfo = lines.map(|line| format!("{line}\n")).collect();
        }
        from.put(&sample.narinfo_path, narinfo, 0);
        from.put(url, &sample.nar, 0);
        laid_out.push(sample);
    }
    (from, laid_out)
}

#[test]
fn a_cache_with_other_nar_names_migrates_to_the_names_of_nix() {
    let (from, samples) = of_another_layout();
    let verified = from.run(&["verify", "--deep", "--repair"]).is(0);
    verified.prints("nix-stored migrate").prints("no damage");

    // Objects that cannot be served are absent; the others are served.
    let daemon = Daemon::builder().dir(from.dir()).start();
    let found: Vec<u16> = samples.iter().map(|sample| daemon.get(&sample.narinfo_path).0).collect();
    assert_eq!(found, [200, 404, 404, 404]);
    drop(daemon);

    let target = Target::new();
    target.import_from(&from, &[]).is(0).prints("copied 4 paths");
    let cache = target.cache();
    for sample in &samples {
        assert!(cache.holds(sample), "{}", sample.nar_path);
    }
    assert_eq!(assert_consistent(cache.dir()), 4);
    cache.run(&["verify", "--deep"]).is(0).prints("no damage, 0 notes");

    // A missing NAR is skipped, and reported by the exit status.
    fs::remove_file(from.dir().join("x.nar")).unwrap();
    let again = Target::new();
    again.import_from(&from, &[]).is(2).prints("copied 3 paths");
    from.run(&["verify"]).is(2).prints("does not name a NAR of this cache");
}

#[test]
fn a_narinfo_with_another_compression_than_its_nar_is_not_copied() {
    let from = CommandCache::new();
    let (compression, magic) = WITHOUT_DECODER[3];
    let file = without_decoder(magic, 200_000);
    let honest = sample(1, b"").with_file(compression, file.clone());
    let mismatched = sample(2, b"").with_file(Compression::Gzip, [&file[..], b"y"].concat());
    for sample in [&honest, &mismatched] {
        from.put(&sample.nar_path, &sample.nar, 0);
        from.put(&sample.narinfo_path, &sample.narinfo, 0);
    }
    let target = Target::new();
    let result = target.import_from(&from, &["--json"]).is(2);
    let printed: serde_json::Value = serde_json::from_str(&result.out).expect("JSON");
    let damage = printed["damage"].as_array().unwrap();
    assert_eq!(damage.len(), 1, "{printed:#}");
    assert_eq!(damage[0]["object"], mismatched.narinfo_path[1..]);
    let cache = target.cache();
    assert!(cache.has(&honest.narinfo_path) && !cache.has(&mismatched.narinfo_path));
}
