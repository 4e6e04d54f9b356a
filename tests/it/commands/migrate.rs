//! `nix-stored migrate`, from one directory into another.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix_stored::nix::{Compression, Sha256Hash};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::given::{Ended, Given, path, texts};
use crate::support::audit::{assert_nothing_is_false, objects, staging};
use crate::support::closures::{Layers, assert_closures_are_whole, references};
use crate::support::daemon::{Daemon, on_cache};
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::packing::{WITHOUT_DECODER, without_decoder};
use crate::support::rounds::{Kills, SeedOfFailure};
use crate::support::scratch::{Leash, Scratch};

/// Another directory for a cache, where none is yet.
struct Target {
    scratch: Scratch,
}

impl Target {
    fn new() -> Self {
        Self { scratch: Scratch::new() }
    }

    fn cache(&self) -> Given {
        Given::at(&self.scratch.join("cache"))
    }

    fn command(&self, from: &Path, more: &[&str]) -> Command {
        let to = self.scratch.join("cache");
        let mut command = on_cache(Path::new("/nonexistent"), &["migrate", utf8(from), utf8(&to)]);
        command.args(more);
        command
    }

    #[track_caller]
    fn import_from(&self, from: &Given, more: &[&str]) -> Ended {
        Ended::of(self.command(from.dir(), more).output().expect("the binary starts"))
    }

    /// Checks that there is the same as in `from`, and all of it true.
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
        assert_nothing_is_false(&to);
        let staged: Vec<String> =
            staging(&to).into_iter().filter(|it| !it.ends_with('/')).collect();
        assert_eq!(staged, [""; 0]);
    }
}

const BUILD_ID: &str = "abcdef0123456789abcdef0123456789abcdef01";

/// Three paths of which one needs the others, a path for itself, and an object of every other kind.
fn filled() -> Given {
    let cache = Given::new();
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
    let told = target.import_from(&from, &["--json"]).is(0).json();
    let sizes = before.iter().map(|key| from.dir().join(key).metadata().unwrap().len());
    assert_eq!(
        told,
        json!({
            "paths": 4, "present": 0, "objects": 9, "bytes": sizes.sum::<u64>(), "pins": 1,
            "orphans": 0, "differing": [], "damage": [], "stopped": false,
        })
    );
    target.is_a_copy_of(from.dir());
    assert_eq!(objects(from.dir()), before);
    let pins = |cache: &Given| cache.run(&["pins", "--json"]).is(0).json();
    assert_eq!(pins(&target.cache()), pins(&from));

    let written = |cache: &Given| -> BTreeMap<String, _> {
        let keys = objects(cache.dir()).into_iter();
        keys.map(|key| (key.clone(), cache.dir().join(key).metadata().unwrap().modified().unwrap()))
            .collect()
    };
    let before = written(&target.cache());
    let told = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!([&told["paths"], &told["objects"], &told["bytes"]], [0, 0, 0], "{told}");
    assert_eq!(told["present"], 4);
    assert_eq!(written(&target.cache()), before);
    target
        .import_from(&from, &[])
        .is(0)
        .says("copied 0 paths and 0 other objects")
        .says("4 paths already in TO");
}

#[test]
fn a_second_migration_copies_only_new_paths() {
    let from = filled();
    let target = Target::new();
    target.import_from(&from, &[]).is(0);
    from.add(5, &[3], 0);
    fs::write(from.dir().join("log/8ha1dhmx807czjczmwy078s4r9s254il-x.drv"), "new").unwrap();
    let told = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!([&told["paths"], &told["objects"], &told["present"]], [1, 2, 4], "{told}");
    // A side file can change without changing its length.
    fs::write(from.dir().join("log/8ha1dhmx807czjczmwy078s4r9s254il-x.drv"), "old").unwrap();
    let told = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!([&told["paths"], &told["objects"], &told["bytes"]], [0, 1, 3], "{told}");
    target.is_a_copy_of(from.dir());
}

#[test]
fn damaged_paths_are_reported_and_not_copied() {
    let from = Given::new();
    let whole = from.add(1, &[], 0);
    let flipped = from.add(2, &[], 0);
    let torn = from.add(3, &[], 0);
    let missing = from.add(4, &[], 0);
    let lying = from.add(5, &[1], 0);
    let broken = from.add(6, &[], 0);
    let wrong_name = from.add(7, &[], 0);
    let referring = from.add(8, &[2], 0);
    let no_nar = sample(9, b"").with_file(Compression::None, b"not a NAR".to_vec());
    let mut bytes = flipped.nar.clone();
    bytes[200] ^= 1;
    from.put(&flipped.nar_path, bytes, 0);
    from.put(&torn.nar_path, &torn.nar[..1000], 0);
    fs::remove_file(from.dir().join(&missing.nar_path[1..])).unwrap();
    let size = format!("NarSize: {}", lying.nar.len());
    from.put(&lying.narinfo_path, lying.narinfo.replace(&size, "NarSize: 4711"), 0);
    from.put(&broken.narinfo_path, "StorePath: nonsense\n", 0);
    from.put(&wrong_name.narinfo_path, &whole.narinfo, 0);
    from.put(&no_nar.nar_path, &no_nar.nar, 0);
    from.put(&no_nar.narinfo_path, &no_nar.narinfo, 0);
    let listing = format!("{}.ls", &whole.narinfo_path[1..33]);
    from.put(&listing, "{\"version\":", 0);

    let target = Target::new();
    let ended = target.import_from(&from, &["--json"]).is(2);
    let told: serde_json::Value = serde_json::from_str(&ended.out).expect("JSON");
    let key = |path: &str| path.trim_start_matches('/').to_owned();
    let expected = BTreeMap::from([
        (key(&flipped.nar_path), "nar"),
        (key(&flipped.narinfo_path), "nar-damaged"),
        (key(&torn.nar_path), "nar"),
        (key(&torn.narinfo_path), "nar-damaged"),
        (key(&missing.narinfo_path), "nar-missing"),
        (key(&lying.narinfo_path), "field"),
        (key(&broken.narinfo_path), "narinfo"),
        (key(&wrong_name.narinfo_path), "name"),
        (key(&no_nar.nar_path), "unpack"),
        (key(&no_nar.narinfo_path), "nar-damaged"),
        (listing, "json"),
    ]);
    let found: BTreeMap<String, &str> = told["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["object"].as_str().unwrap().to_owned(), one["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(found, expected, "{told:#}");
    assert_eq!(told["paths"], 2);

    let cache = target.cache();
    assert!(cache.holds(&whole) && cache.holds(&referring));
    assert_eq!(assert_nothing_is_false(cache.dir()), 2);
    assert!(!cache.has(&flipped.nar_path) && !cache.has(&no_nar.nar_path));
    // A right NAR that only a false narinfo names is not worth removing again.
    cache.run(&["verify", "--deep"]).is(0);
    let ended = target.import_from(&from, &[]).is(2);
    assert!(ended.out.contains(&format!("{}: does not match its name", key(&flipped.nar_path))));
    ended.says("11 objects are damaged");
}

#[test]
fn a_nar_that_is_damaged_in_the_copy_is_copied_again() {
    let from = Given::new();
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
    let from = Given::new();
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

    let told = target.import_from(&from, &["--json"]).is(0).json();
    assert_eq!(texts(&told["differing"]), [theirs.store_path.as_str()]);
    assert_eq!([&told["paths"], &told["present"]], [1, 1], "{told}");
    let read = |path: &str| fs::read_to_string(to.dir().join(&path[1..])).unwrap();
    assert_eq!(read(&ours.narinfo_path), ours.narinfo);
    let both = read(&signed.narinfo_path);
    assert!(both.contains("Sig: here:") && both.contains("Sig: there:"), "{both}");
    let pins = to.run(&["pins", "--json"]).is(0).json();
    assert_eq!(pins["pins"][0]["store_paths"].as_array().map(Vec::len), Some(2), "{pins}");
}

#[test]
fn abandoned_uploads_are_not_copied() {
    let from = Given::new();
    from.add(1, &[], 0);
    let orphan = path(2);
    from.put(&orphan.nar_path, &orphan.nar, 0);
    let target = Target::new();
    let ended = target.import_from(&from, &[]).is(0).says("skipped 1 NAR without a narinfo");
    ended.says("copied 1 path and 1 other object");
    assert!(!target.cache().has(&orphan.nar_path));
}

#[test]
fn the_upstream_of_a_mirrored_path_is_copied() {
    let from = Given::new();
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
    let from = Given::new();
    // Its NAR takes longer than that of what needs it.
    let needed = sample(1, &vec![1; 96 << 20]);
    from.put(&needed.nar_path, &needed.nar, 0);
    from.put(&needed.narinfo_path, &needed.narinfo, 0);
    let needing = from.add(2, &[1], 0);
    let target = Target::new();
    let dir = target.scratch.join("cache");
    let mut migrating =
        target.command(from.dir(), &[]).stdout(Stdio::null()).spawn().expect("the binary starts");
    let leash = Leash::new(Pid::from_child(&migrating));
    while !dir.join(&needing.narinfo_path[1..]).exists()
        && migrating.try_wait().expect("a child of ours").is_none()
    {
        std::hint::spin_loop();
    }
    assert!(dir.join(&needed.narinfo_path[1..]).exists(), "it came before what it needs");
    assert!(migrating.wait().expect("a child of ours").success());
    drop(leash);
}

#[test]
fn invalid_arguments_are_refused() {
    let from = filled();
    let target = Target::new();
    let nowhere = Path::new("/nonexistent/cache");
    let ended = Ended::of(target.command(nowhere, &[]).output().unwrap());
    ended.is(1).complains("there is no cache in /nonexistent/cache");
    assert!(!target.scratch.join("cache").exists());

    let same = from.dir().join("../cache");
    from.run(&["migrate", utf8(from.dir()), utf8(&same)]).is(64).complains("FROM and TO are both");
    from.run(&["migrate", utf8(from.dir())]).is(64);
    from.run(&["migrate", "s3://", utf8(&same)]).is(64);
    from.run(&["migrate", utf8(from.dir()), "x", "--jobs", "0"]).is(64);
}

/// A cache that Nix has written: texts that need each other, and many of them.
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
    let Kills { rounds, first } = Kills::from_env();
    let source = Source::new();
    let everything = references(source.dir.path());
    let mut half_way = 0;
    for round in 0..rounds {
        let seed = first.wrapping_add(round);
        let _told = SeedOfFailure(seed);
        let mut noise = Noise::new(seed);
        let target = Target::new();
        let dir = target.scratch.join("cache");
        let wanted = noise.below(everything.len() as u64) as usize;
        let object =
            everything.keys().nth(wanted).map(|path| crate::support::closures::narinfo_of(path));
        let object = dir.join(object.expect("one of them"));
        let mut migrating = target
            .command(source.dir.path(), &["--jobs", "3"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let leash = Leash::new(Pid::from_child(&migrating));
        while !object.exists() && migrating.try_wait().expect("a child of ours").is_none() {
            std::hint::spin_loop();
        }
        let _ = migrating.kill();
        migrating.wait().expect("a child of ours");
        drop(leash);

        assert_nothing_is_false(&dir);
        assert_closures_are_whole(&dir);
        let here = references(&dir).len();
        half_way += u64::from(here < everything.len());
        let ended = Ended::of(target.command(source.dir.path(), &["--json"]).output().unwrap());
        let told = ended.is(0).json();
        assert_eq!(told["present"], here, "{told}");
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
    let leash = Leash::new(Pid::from_child(&migrating));
    let dir = target.scratch.join("cache");
    // The folder is there before the first object is.
    while !dir.join("nar").exists() || objects(&dir).len() < 5 {
        std::hint::spin_loop();
    }
    kill_process(Pid::from_child(&migrating), Signal::TERM).expect("it is still there");
    let output = migrating.wait_with_output().expect("it ends");
    drop(leash);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("received SIGTERM; stopping"));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["stopped"], true);
    // What was being published when it was told may be there and not be counted.
    let (counted, here) =
        (told["paths"].as_u64().expect("a number"), references(&dir).len() as u64);
    assert!(counted > 0 && (counted..=counted + 1).contains(&here), "{here} are here: {told}");
    assert_closures_are_whole(&dir);
    Ended::of(target.command(source.dir.path(), &[]).output().unwrap()).is(0);
    target.is_a_copy_of(source.dir.path());
}

const KEY: &str = "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// A cache with a path whose narinfo says that it was mirrored from `url`, and has no signature.
fn mirrored_from(url: &str) -> Given {
    let from = Given::new();
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
    Ended::of(migrate.env(keys.0, keys.1).output().expect("the binary starts"))
        .is(2)
        .says("has no valid signature by a trusted key");
    assert!(!target.cache().has(&path(1).narinfo_path));
    from.run_with(&[keys], &["verify"]).is(2).says("has no valid signature by a trusted key");
    // Without keys, anything is trusted.
    from.run(&["verify"]).is(0).says("0 notes");
}

#[cfg(feature = "upstream")]
#[test]
fn paths_mirrored_from_a_configured_upstream_are_verified_with_its_keys() {
    let url = "https://mirrored.example.org";
    let from = mirrored_from(url);
    let keys = ("NIX_STORED_TRUSTED_PUBLIC_KEYS", KEY);
    // Nothing can be said of its signatures, which is no damage.
    let upstream = ("NIX_STORED_UPSTREAMS", url);
    from.run_with(&[keys, upstream], &["verify"]).is(0).says("without trusted-public-keys");
    let target = Target::new();
    let mut migrate = target.command(from.dir(), &[]);
    migrate.env(keys.0, keys.1).env(upstream.0, upstream.1);
    Ended::of(migrate.output().expect("the binary starts")).is(0).says("copied 1 path");

    let with_keys = format!("{url}?trusted-public-keys={KEY}");
    let upstream = ("NIX_STORED_UPSTREAMS", with_keys.as_str());
    from.run_with(&[upstream], &["verify"]).is(2).says("has no valid signature by a trusted key");
}

/// A cache as other programs lay it out: NARs anywhere, named after anything.
fn of_another_layout() -> (Given, Vec<Sample>) {
    let from = Given::new();
    let samples: Vec<Sample> = (1..=4).map(path).collect();
    // Named after the NarHash, as nix-push did; after a UUID, below another folder; after a hash in
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
    verified.says("nix-stored migrate").says("no damage");

    // What cannot be served is absent, and what can is served.
    let daemon = Daemon::builder().dir(from.dir()).start();
    let found: Vec<u16> = samples.iter().map(|sample| daemon.get(&sample.narinfo_path).0).collect();
    assert_eq!(found, [200, 404, 404, 404]);
    drop(daemon);

    let target = Target::new();
    target.import_from(&from, &[]).is(0).says("copied 4 paths");
    let cache = target.cache();
    for sample in &samples {
        assert!(cache.holds(sample), "{}", sample.nar_path);
    }
    assert_eq!(assert_nothing_is_false(cache.dir()), 4);
    cache.run(&["verify", "--deep"]).is(0).says("no damage, 0 notes");

    // A NAR that is not there is left out, and the exit status says so.
    fs::remove_file(from.dir().join("x.nar")).unwrap();
    let again = Target::new();
    again.import_from(&from, &[]).is(2).says("copied 3 paths");
    from.run(&["verify"]).is(2).says("does not name a NAR of this cache");
}

#[test]
fn a_narinfo_with_another_compression_than_its_nar_is_not_copied() {
    let from = Given::new();
    let (compression, magic) = WITHOUT_DECODER[3];
    let file = without_decoder(magic, 200_000);
    let honest = sample(1, b"").with_file(compression, file.clone());
    let lying = sample(2, b"").with_file(Compression::Gzip, [&file[..], b"y"].concat());
    for sample in [&honest, &lying] {
        from.put(&sample.nar_path, &sample.nar, 0);
        from.put(&sample.narinfo_path, &sample.narinfo, 0);
    }
    let target = Target::new();
    let ended = target.import_from(&from, &["--json"]).is(2);
    let told: serde_json::Value = serde_json::from_str(&ended.out).expect("JSON");
    let damage = told["damage"].as_array().unwrap();
    assert_eq!(damage.len(), 1, "{told:#}");
    assert_eq!(damage[0]["object"], lying.narinfo_path[1..]);
    let cache = target.cache();
    assert!(cache.has(&honest.narinfo_path) && !cache.has(&lying.narinfo_path));
}
