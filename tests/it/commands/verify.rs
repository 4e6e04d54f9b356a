//! `nix-stored verify`: damage is found and, with `--repair`, quarantined.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use nix_stored::nix::{Compression, NarInfo, Sha256Hash, StoreDir};
use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::support::cache_dir::{assert_consistent, objects};
use crate::support::daemon::{Daemon, command};
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::packing::{WITHOUT_DECODER, without_decoder};
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

/// A cache directory without a daemon.
struct Cache {
    dir: PathBuf,
    env: Vec<(String, String)>,
    _scratch: Scratch,
}

/// The result of a verification.
struct Verified {
    code: i32,
    out: String,
    err: String,
}

impl Cache {
    fn new() -> Self {
        let scratch = Scratch::new();
        let dir = scratch.join("cache");
        fs::create_dir_all(dir.join("nar")).expect("created");
        Self { dir, env: Vec::new(), _scratch: scratch }
    }

    fn with(samples: &[&Sample]) -> Self {
        let cache = Self::new();
        samples.iter().for_each(|sample| cache.add(sample));
        cache
    }

    fn add(&self, sample: &Sample) {
        self.write(&sample.nar_path, &sample.nar);
        self.write(&sample.narinfo_path, sample.narinfo.as_bytes());
    }

    /// The file of the object at this request path.
    fn file(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let file = self.file(path);
        fs::create_dir_all(file.parent().expect("the line is present")).expect("created");
        fs::write(file, bytes).expect("writable");
    }

    fn verify(&self, args: &[&str]) -> Verified {
        let output = command(env!("CARGO_BIN_EXE_nix-stored"), &["verify"])
            .args(args)
            .env("NIX_STORED_PATH", &self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .output()
            .expect("the binary starts");
        Verified {
            code: output.status.code().expect("not ended by a signal"),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The keys of the quarantined objects.
    fn quarantined(&self) -> Vec<String> {
        let folder = self.dir.join(".nix-stored/quarantine");
        if folder.exists() { objects(&folder) } else { Vec::new() }
    }
}

impl Verified {
    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn prints(self, part: &str) -> Self {
        assert!(self.out.contains(part), "“{part}” is not in “{}”", self.out);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// The kind of damage by object.
    fn damage(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let json = self.json();
        let all = json["damage"].as_array().expect("an array");
        let found: BTreeMap<String, String> =
            all.iter().map(|one| (text(&one["object"]), text(&one["kind"]))).collect();
        assert_eq!(found.len(), all.len(), "each object once: {json}");
        found
    }
}

fn key(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

/// A compressed sample that is larger than the read buffer.
fn large(number: u8) -> Sample {
    let contents = Noise::new(number.into()).bytes(200_000);
    sample(number, &contents).packed(Compression::Zstd)
}

/// A way to damage the objects of a sample.
struct DamageCase {
    /// The kinds of damage that are found in the NAR and in the narinfo.
    nar: Option<&'static str>,
    narinfo: Option<&'static str>,
    /// A part of the printed text.
    printed_part: &'static str,
    deep_only: bool,
    inflict: fn(&Cache, &Sample),
}

/// Replaces a part of a narinfo.
fn rewrite(cache: &Cache, sample: &Sample, from: &str, to: &str) {
    assert!(sample.narinfo.contains(from), "{from}");
    cache.write(&sample.narinfo_path, sample.narinfo.replacen(from, to, 1).as_bytes());
}

const DAMAGE_CASES: [DamageCase; 12] = [
    // A truncated NAR.
    DamageCase {
        nar: Some("nar"),
        narinfo: Some("nar-damaged"),
        printed_part: "does not match its name",
        deep_only: false,
        inflict: |cache, sample| cache.write(&sample.nar_path, &sample.nar[..100_000]),
    },
    // A flipped bit.
    DamageCase {
        nar: Some("nar"),
        narinfo: Some("nar-damaged"),
        printed_part: "its NAR is damaged",
        deep_only: false,
        inflict: |cache, sample| {
            let mut nar = sample.nar.clone();
            nar[150_000] ^= 4;
            cache.write(&sample.nar_path, &nar);
        },
    },
    DamageCase {
        nar: None,
        narinfo: Some("nar-missing"),
        printed_part: "its NAR is missing",
        deep_only: false,
        inflict: |cache, sample| fs::remove_file(cache.file(&sample.nar_path)).expect("present"),
    },
    DamageCase {
        nar: None,
        narinfo: Some("narinfo"),
        printed_part: "the narinfo ends without a line feed",
        deep_only: false,
        inflict: |cache, sample| {
            cache.write(&sample.narinfo_path, &sample.narinfo.as_bytes()[..300]);
        },
    },
    // A narinfo that a power cut left empty.
    DamageCase {
        nar: None,
        narinfo: Some("narinfo"),
        printed_part: "is not a narinfo",
        deep_only: false,
        inflict: |cache, sample| cache.write(&sample.narinfo_path, b""),
    },
    DamageCase {
        nar: None,
        narinfo: Some("name"),
        printed_part: "is the narinfo of another hash part",
        deep_only: false,
        inflict: |cache, lost| {
            rewrite(cache, lost, "/nix/store/", "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-");
        },
    },
    DamageCase {
        nar: None,
        narinfo: Some("url"),
        printed_part: "does not name a NAR of this cache",
        deep_only: false,
        inflict: |cache, sample| rewrite(cache, sample, "URL: nar/", "URL: elsewhere/"),
    },
    DamageCase {
        nar: None,
        narinfo: Some("field"),
        printed_part: "found FileSize: 1",
        deep_only: false,
        inflict: |cache, sample| rewrite(cache, sample, "FileSize: ", "FileSize: 1"),
    },
    DamageCase {
        nar: None,
        narinfo: Some("field"),
        printed_part: "FileHash: sha256:",
        deep_only: false,
        inflict: |cache, sample| {
            let line = format!("FileHash: {}", Sha256Hash::of(&sample.nar));
            rewrite(cache, sample, &line, &format!("FileHash: {}", Sha256Hash::of(b"")));
        },
    },
    DamageCase {
        nar: None,
        narinfo: Some("field"),
        printed_part: "found Compression: xz",
        deep_only: false,
        inflict: |cache, sample| rewrite(cache, sample, "Compression: zstd", "Compression: xz"),
    },
    DamageCase {
        nar: None,
        narinfo: Some("field"),
        printed_part: "NarHash: sha256:",
        deep_only: true,
        inflict: |cache, sample| {
            let lines = sample.narinfo.lines().map(|line| match line.starts_with("NarHash: ") {
                true => format!("NarHash: {}\n", Sha256Hash::of(b"")),
                false => format!("{line}\n"),
            });
            cache.write(&sample.narinfo_path, lines.collect::<String>().as_bytes());
        },
    },
    DamageCase {
        nar: None,
        narinfo: Some("field"),
        printed_part: "found NarSize: 1",
        deep_only: true,
        inflict: |cache, sample| rewrite(cache, sample, "NarSize: ", "NarSize: 1"),
    },
];

#[test]
fn a_valid_cache_has_no_damage() {
    let cache = Cache::with(&[&sample(1, b"one"), &large(2), &large(3)]);
    cache.write("log/0123456789abcdfghijklmnpqrsvwxyz-x.drv", b"\xff any bytes");
    cache.write("0123456789abcdfghijklmnpqrsvwxyz.ls", b"{\"version\": 1}");
    for args in [&[][..], &["--deep"], &["--repair"], &["--deep", "--repair", "--json"]] {
        let verified = cache.verify(args).exits(0);
        if args.contains(&"--json") {
            let json = verified.json();
            assert_eq!(json["checked"]["paths"], 3);
            assert_eq!(json["checked"]["nars"], 3);
            assert_eq!(json["checked"]["side_files"], 2);
            assert_eq!(
                (json["damage"].as_array(), json["notes"].as_array()),
                (Some(&vec![]), Some(&vec![]))
            );
        } else {
            verified.prints("checked 3 paths, 3 NARs and 2 other objects").prints("no damage");
        }
    }
    assert!(cache.quarantined().is_empty());
}

#[test]
fn every_damage_is_reported_and_gone_after_a_repair() {
    let good = large(1);
    let harmed = large(2);
    for DamageCase { nar, narinfo, printed_part, deep_only, inflict } in &DAMAGE_CASES {
        let cache = Cache::with(&[&good, &harmed]);
        inflict(&cache, &harmed);
        let before = objects(&cache.dir);
        if *deep_only {
            cache.verify(&[]).exits(0);
        }
        let mut expected = BTreeMap::new();
        expected.extend(nar.map(|kind| (key(&harmed.nar_path), kind.to_owned())));
        expected.extend(narinfo.map(|kind| (key(&harmed.narinfo_path), kind.to_owned())));
        cache.verify(&["--deep"]).exits(2).prints(printed_part).prints("--repair");
        assert_eq!(
            cache.verify(&["--deep", "--json"]).exits(2).damage(),
            expected,
            "{printed_part}"
        );
        assert_eq!(objects(&cache.dir), before, "without --repair nothing is moved");

        let repaired = cache.verify(&["--deep", "--repair", "--json"]).exits(2);
        assert_eq!(repaired.damage(), expected);
        let damage = repaired.json()["damage"].as_array().cloned().unwrap_or_default();
        assert!(damage.iter().all(|one| one["repaired"] == true), "{damage:?}");
        assert_eq!(cache.quarantined(), expected.into_keys().collect::<Vec<_>>());
        cache.verify(&["--deep"]).exits(0);
        assert!(cache.file(&good.narinfo_path).exists() && cache.file(&good.nar_path).exists());
    }
}

#[test]
fn a_running_daemon_does_not_serve_quarantined_paths_and_accepts_them_again() {
    let cache = Cache::new();
    let daemon = Daemon::builder().dir(&cache.dir).start();
    let samples: Vec<Sample> = (1..).take(DAMAGE_CASES.len() + 1).map(large).collect();
    let mut wire = Wire::to(&daemon);
    for sample in &samples {
        assert_eq!(wire.request("PUT", &sample.nar_path, &sample.nar).status, 201);
        let taken = wire.request("PUT", &sample.narinfo_path, sample.narinfo.as_bytes());
        assert_eq!(taken.status, 201, "{}", taken.text());
        // The daemon has the narinfo in memory now.
        assert_eq!(wire.request("GET", &sample.narinfo_path, b"").status, 200);
    }
    let (good, harmed) = samples.split_last().expect("not empty");
    for (sample, harm) in harmed.iter().zip(&DAMAGE_CASES) {
        (harm.inflict)(&cache, sample);
    }

    cache.verify(&["--deep"]).exits(2);
    cache.verify(&["--deep", "--repair"]).exits(2).prints("quarantined 14 objects");
    for (sample, harm) in harmed.iter().zip(&DAMAGE_CASES) {
        daemon.wait_until("quarantined objects are a 404", || {
            daemon.get(&sample.narinfo_path).0 == 404
        });
        if harm.nar.is_some() {
            assert_eq!(daemon.get(&sample.nar_path).0, 404, "{}", harm.printed_part);
        }
    }
    assert_eq!(daemon.get(&good.narinfo_path).0, 200);
    cache.verify(&["--deep"]).exits(0);

    let mut wire = Wire::to(&daemon);
    for (sample, harm) in harmed.iter().zip(&DAMAGE_CASES) {
        // As Nix does.
        if wire.request("HEAD", &sample.nar_path, b"").status == 404 {
            assert_eq!(wire.request("PUT", &sample.nar_path, &sample.nar).status, 201);
        }
        let taken = wire.request("PUT", &sample.narinfo_path, sample.narinfo.as_bytes());
        assert_eq!(taken.status, 201, "{}: {}", harm.printed_part, taken.text());
    }
    cache.verify(&["--deep"]).exits(0).prints("checked 13 paths, 13 NARs");
    assert_eq!(assert_consistent(&cache.dir), samples.len());
}

#[test]
fn a_damaged_nar_is_quarantined_with_its_narinfos_and_read_once() {
    let contents = Noise::new(7).bytes(200_000);
    let (one, two) = (sample(1, &contents), sample(2, &contents));
    assert_eq!(one.nar_path, two.nar_path);
    let cache = Cache::with(&[&one, &two]);
    let clean = cache.verify(&["--json"]).exits(0).json();
    assert_eq!(clean["checked"]["bytes"], one.nar.len());

    cache.write(&one.nar_path, b"short");
    let repaired = cache.verify(&["--repair", "--json"]).exits(2);
    let expected = [&one.nar_path, &one.narinfo_path, &two.narinfo_path].map(|path| key(path));
    assert_eq!(repaired.damage().into_keys().collect::<Vec<_>>().len(), 3);
    assert!(expected.iter().all(|key| repaired.damage().contains_key(key)), "{}", repaired.out);
    assert!(objects(&cache.dir).is_empty());

    // When the object is quarantined again, the first one is kept.
    cache.add(&one);
    cache.write(&one.nar_path, b"shorter");
    cache.verify(&["--repair"]).exits(2);
    let quarantined = cache.dir.join(".nix-stored/quarantine");
    assert_eq!(fs::read(quarantined.join(key(&one.nar_path))).expect("kept"), b"short");
    assert_eq!(fs::read(quarantined.join(key(&one.nar_path) + ".1")).expect("kept"), b"shorter");
}

#[test]
fn unreferenced_nars_and_side_files_are_verified() {
    let cache = Cache::new();
    let (good, bad, no_nar) = (large(1), large(2), large(3));
    cache.write(&good.nar_path, &good.nar);
    cache.write(&bad.nar_path, &bad.nar[1..]);
    let no_nar = no_nar.with_file(Compression::Zstd, b"not by zstd".to_vec());
    cache.write(&no_nar.nar_path, &no_nar.nar);
    let drv = "0123456789abcdfghijklmnpqrsvwxyz-x.drv";
    let json = [
        "0123456789abcdfghijklmnpqrsvwxyz.ls".to_owned(),
        format!("realisations/sha256:{}!out.doi", "a".repeat(64)),
        format!("build-trace-v2/{drv}/out.doi"),
        format!("debuginfo/{}.debug", "b".repeat(40)),
    ];
    for name in &json {
        cache.write(name, b"{\"torn\": ");
    }
    let mut expected: BTreeMap<String, String> =
        json.iter().map(|name| (name.clone(), "json".to_owned())).collect();
    expected.insert(key(&bad.nar_path), "nar".to_owned());
    assert_eq!(cache.verify(&["--json"]).exits(2).damage(), expected);
    expected.insert(key(&no_nar.nar_path), "unpack".to_owned());
    assert_eq!(cache.verify(&["--json", "--deep", "--repair"]).exits(2).damage(), expected);
    cache.verify(&["--deep"]).exits(0);
    assert_eq!(objects(&cache.dir), [key(&good.nar_path)]);
}

#[test]
fn private_files_of_the_daemon_are_no_damage() {
    let (mut one, bare) = (sample(1, b"one"), sample(2, b"two"));
    let absent = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-absent";
    one.narinfo = one.narinfo.replace("References: ", &format!("References: {}", &absent[11..]));
    let bare = bare.with_file(Compression::Lzop, b"\x89LZO and more".to_vec());
    let cache = Cache::with(&[&one, &bare]);
    let link = format!("debuginfo/{}.debug", "b".repeat(40));
    let nar = format!("../nar/{}.nar", Sha256Hash::of(b"").to_nix32());
    cache.write(&link, format!("{{\"archive\": \"{nar}\"}}").as_bytes());
    for foreign in ["README", "nar/half.tmp", "x.narinfo"] {
        cache.write(foreign, b"mine");
    }
    let lost = cache.dir.join("lost+found");
    fs::create_dir(&lost).expect("created");
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o0)).expect("the owner may change it");
    let before = objects_without(&cache.dir, "lost+found");

    let printed = cache.verify(&["--deep", "--repair", "--json"]).exits(0).json();
    let notes = printed["notes"].as_array().expect("an array").iter();
    let notes: BTreeMap<&str, &str> = notes
        .map(|note| (note["object"].as_str().expect("text"), note["kind"].as_str().expect("text")))
        .collect();
    let expected = [
        ("README", "foreign"),
        ("nar/half.tmp", "foreign"),
        ("x.narinfo", "foreign"),
        ("lost+found", "foreign"),
        (absent, "reference"),
        (bare.nar_path.trim_start_matches('/'), "no-decoder"),
        (link.as_str(), "debug-info"),
    ];
    assert_eq!(notes, BTreeMap::from(expected));
    assert_eq!(objects_without(&cache.dir, "lost+found"), before);
    cache.verify(&["--deep"]).exits(0).prints("note: README: ").prints("note: 1 reference missing");
}

#[test]
fn a_directory_at_the_path_of_an_object_is_damage_and_is_quarantined() {
    let (good, one, two) = (large(1), large(2), large(3));
    let cache = Cache::with(&[&good, &one, &two]);
    for path in [&one.narinfo_path, &two.nar_path] {
        fs::remove_file(cache.file(path)).expect("present");
        cache.write(&format!("{path}/mine"), b"kept");
    }
    let expected = BTreeMap::from([
        (key(&one.narinfo_path), "no-file".to_owned()),
        (key(&two.nar_path), "no-file".to_owned()),
        (key(&two.narinfo_path), "nar-missing".to_owned()),
    ]);
    assert_eq!(cache.verify(&["--json"]).exits(2).damage(), expected);
    cache.verify(&[]).exits(2).prints("is not a file, so no object can be stored under its name");
    assert!(cache.quarantined().is_empty());
    // The folder does not block a collection.
    let gc = command(env!("CARGO_BIN_EXE_nix-stored"), &["gc", "--max-age", "30d"])
        .env("NIX_STORED_PATH", &cache.dir)
        .output()
        .expect("the binary starts");
    assert!(gc.status.success(), "{}", String::from_utf8_lossy(&gc.stderr));

    assert_eq!(cache.verify(&["--json", "--repair"]).exits(2).damage(), expected);
    let mut quarantined: Vec<String> = cache.quarantined();
    quarantined.sort();
    let mut moved = vec![
        format!("{}/mine", key(&one.narinfo_path)),
        format!("{}/mine", key(&two.nar_path)),
        key(&two.narinfo_path),
    ];
    moved.sort();
    assert_eq!(quarantined, moved);
    cache.verify(&["--json"]).exits(0);
}

#[test]
fn a_narinfo_must_state_the_compression_of_its_nar() {
    let (compression, magic) = WITHOUT_DECODER[3];
    let file = without_decoder(magic, 200_000);
    let honest = sample(1, b"").with_file(compression, file.clone());
    let mismatched = sample(2, b"").with_file(Compression::None, [&file[..], b"y"].concat());
    let cache = Cache::with(&[&honest, &mismatched]);
    let verified = cache.verify(&["--deep", "--json"]).exits(2);
    assert_eq!(
        verified.damage(),
        BTreeMap::from([(key(&mismatched.narinfo_path), "field".to_owned())])
    );
    // Without unpacking there is nothing to compare.
    cache.verify(&[]).exits(0);
    cache.verify(&["--deep", "--repair"]).exits(2);
    assert_eq!(cache.quarantined(), [key(&mismatched.narinfo_path)]);
    cache.verify(&["--deep"]).exits(0);
}

/// The objects of a cache with an unreadable folder.
fn objects_without(dir: &Path, folder: &str) -> Vec<String> {
    let folder = dir.join(folder);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
        .expect("the owner may change it");
    let found = objects(dir);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o0)).expect("the owner may change it");
    found
}

#[test]
fn unreadable_objects_are_reported_and_kept() {
    let (good, one, two) = (large(1), large(2), large(3));
    let cache = Cache::with(&[&good, &one, &two]);
    // Circular symbolic links, which even root cannot read.
    for path in [&one.nar_path, &two.narinfo_path] {
        let file = cache.file(path);
        fs::remove_file(&file).expect("present");
        symlink(file.file_name().expect("the line is present"), &file).expect("created");
    }
    for args in [&["--json"][..], &["--json", "--deep", "--repair"]] {
        let verified = cache.verify(args).exits(1);
        let unreadable = |path: &str| (key(path), "unreadable".to_owned());
        let expected = [unreadable(&one.nar_path), unreadable(&two.narinfo_path)];
        assert_eq!(verified.damage(), BTreeMap::from(expected));
        assert_eq!(verified.json()["damage"][0]["repaired"], false);
    }
    cache.verify(&["--repair"]).exits(1).prints("2 objects could not be read and may be intact");
    assert!(cache.quarantined().is_empty());
}

#[test]
fn where_keys_are_set_a_path_needs_a_signature_by_one() {
    let (mut signed, unsigned, mut forged) =
        (sample(1, b"one"), sample(2, b"two"), sample(3, b"3"));
    let ours = SigningKey::from_bytes(&[7; 32]);
    let theirs = SigningKey::from_bytes(&[8; 32]);
    let sign = |sample: &mut Sample, key: &SigningKey| {
        let info = NarInfo::parse(sample.narinfo.as_bytes(), &StoreDir::default());
        let text = info.expect("valid").fingerprint();
        let signature = STANDARD.encode(key.sign(text.as_bytes()).to_bytes());
        sample.narinfo += &format!("Sig: test-1:{signature}\n");
    };
    sign(&mut signed, &ours);
    sign(&mut forged, &theirs);
    let mut cache = Cache::with(&[&signed, &unsigned, &forged]);
    cache.verify(&[]).exits(0);
    let public = format!("test-1:{}", STANDARD.encode(ours.verifying_key().to_bytes()));
    cache.env.push(("NIX_STORED_TRUSTED_PUBLIC_KEYS".to_owned(), public));
    let found = cache.verify(&["--json"]).exits(2).damage();
    let false_one = |sample: &Sample| (key(&sample.narinfo_path), "signature".to_owned());
    assert_eq!(found, BTreeMap::from([false_one(&unsigned), false_one(&forged)]));
    cache.verify(&[]).exits(2).prints("expected a signature by test-1, found none");
}

#[test]
fn nothing_is_quarantined_during_a_collection() {
    let bad = sample(1, b"one");
    let cache = Cache::with(&[&bad]);
    cache.write(&bad.nar_path, b"");
    cache.verify(&[]).exits(2);
    fs::create_dir_all(cache.dir.join(".nix-stored")).expect("created");
    let lock = File::create(cache.dir.join(".nix-stored/lock")).expect("created");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("free");
    let refused = cache.verify(&["--repair"]).exits(1);
    assert!(refused.err.contains("a garbage collection is running"), "{}", refused.err);
    cache.verify(&[]).exits(2);
    drop(lock);
    cache.verify(&["--repair"]).exits(2);
    cache.verify(&["--reapir"]).exits(64);
}

#[test]
fn nothing_is_quarantined_with_another_store_dir_than_the_daemons() {
    let mut cache = Cache::with(&[&sample(1, b"one"), &large(2)]);
    cache.env.push(("NIX_STORED_STORE_DIR".to_owned(), "/gnu/store".to_owned()));
    let refused = cache.verify(&["--repair"]).exits(1);
    assert!(refused.err.contains("NIX_STORED_STORE_DIR"), "{}", refused.err);
    assert!(cache.quarantined().is_empty());
    cache.env.clear();
    cache.verify(&["--repair"]).exits(0);
}

#[test]
fn verification_does_not_count_as_use() {
    let cache = Cache::with(&[&sample(1, b"one"), &large(2)]);
    let link = format!("debuginfo/{}.debug", "b".repeat(40));
    cache.write(&link, b"{}");
    cache.write("0123456789abcdfghijklmnpqrsvwxyz.ls", &[b' '; 70_000].map(|_| b'1'));
    let day = Duration::from_secs(86_400);
    let (used, made) = (SystemTime::now() - 10 * day, SystemTime::now() - 20 * day);
    let times = FileTimes::new().set_accessed(used).set_modified(made);
    for key in objects(&cache.dir) {
        let file = File::options().write(true).open(cache.dir.join(&key)).expect("writable");
        file.set_times(times).expect("the owner may change it");
    }
    cache.verify(&["--deep", "--repair"]).exits(0);
    for key in objects(&cache.dir) {
        let metadata = fs::metadata(cache.dir.join(&key)).expect("present");
        assert_eq!(metadata.accessed().expect("known"), used, "{key}");
    }
}
