//! `nix-stored migrate` from a directory into a bucket, from a bucket into a bucket, and back.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Pid;

use super::place::{Place, assert_nothing_is_false, on_every_server, over};
use crate::commands::given::{Ended, Given};
use crate::support::audit::objects;
use crate::support::closures::{Layers, narinfo_of};
use crate::support::daemon::on_cache;
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::sample;
use crate::support::rounds::{Kills, SeedOfFailure};
use crate::support::s3_bucket::Bucket;
use crate::support::scratch::{Leash, Scratch};

on_every_server! {
    a_cache_that_is_migrated_to_a_bucket_and_back_is_unchanged
    damaged_paths_in_a_bucket_are_reported_and_not_copied
    a_migration_into_a_bucket_that_was_killed_goes_on
    nix_substitutes_from_the_bucket_after_the_migration
}

fn migrate(bucket: &Bucket, from: &str, to: &str) -> Command {
    let mut command = on_cache(Path::new("/nonexistent"), &["migrate", from, to, "--json"]);
    command.envs(bucket.env());
    command
}

#[track_caller]
fn ended(mut command: Command) -> Ended {
    Ended::of(command.output().expect("the binary starts"))
}

fn a_cache_that_is_migrated_to_a_bucket_and_back_is_unchanged(place: &Place) {
    let from = Given::new();
    from.add(1, &[], 5);
    from.add(2, &[1], 4);
    // More than one part.
    let large = sample(3, &Noise::new(5).bytes(12 << 20));
    from.put(&large.nar_path, &large.nar, 0);
    from.put(&large.narinfo_path, &large.narinfo, 0);
    from.put(&format!("{}.ls", &large.narinfo_path[1..33]), "{}", 0);
    from.run(&["pin", "release", &large.store_path]).is(0);
    let (bucket, other) = (place.bucket(), place.bucket());
    let told = ended(migrate(&bucket, utf8(from.dir()), &bucket.url())).is(0).json();
    assert_eq!([&told["paths"], &told["pins"]], [3, 1], "{told}");
    let told = ended(migrate(&bucket, utf8(from.dir()), &bucket.url())).is(0).json();
    assert_eq!([&told["paths"], &told["objects"], &told["present"]], [0, 0, 3], "{told}");
    let told = ended(migrate(&bucket, &bucket.url(), &other.url())).is(0).json();
    assert_eq!([&told["paths"], &told["pins"]], [3, 1], "{told}");
    assert_eq!(assert_nothing_is_false(&other), 3);
    assert_eq!(place.unfinished(&other), 0);

    let back = Scratch::new();
    let dir = back.join("cache");
    ended(migrate(&bucket, &other.url(), utf8(&dir))).is(0);
    let contents = |dir: &Path| -> Vec<(String, Vec<u8>)> {
        let keys = objects(dir).into_iter().filter(|key| key != "nix-cache-info");
        keys.map(|key| (key.clone(), fs::read(dir.join(key)).unwrap())).collect()
    };
    assert!(contents(&dir) == contents(from.dir()), "{:?}", objects(&dir));
    let pins = Given::at(&dir).run(&["pins"]).is(0);
    pins.says("release: keeps 1 path");
}

fn damaged_paths_in_a_bucket_are_reported_and_not_copied(place: &Place) {
    let bucket = place.bucket();
    let (right, false_) = (sample(1, &[1; 100_000]), sample(2, &[2; 100_000]));
    for sample in [&right, &false_] {
        bucket.put(&sample.nar_path[1..], &sample.nar);
        bucket.put(&sample.narinfo_path[1..], sample.narinfo.as_bytes());
    }
    let mut bytes = false_.nar.clone();
    bytes[99_000] ^= 1;
    bucket.put(&false_.nar_path[1..], &bytes);
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let told = ended(migrate(&bucket, &bucket.url(), utf8(&dir))).is(2).json();
    let damaged: Vec<&str> = told["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["object"].as_str().unwrap())
        .collect();
    let mut expected = [&false_.nar_path[1..], &false_.narinfo_path[1..]];
    expected.sort_unstable_by_key(|key| key.parse::<nix_stored::nix::CachePath>().unwrap());
    assert_eq!(damaged, expected);
    assert_eq!(told["paths"], 1);
    assert!(Given::at(&dir).holds(&right) && !Given::at(&dir).holds(&false_));
}

fn a_migration_into_a_bucket_that_was_killed_goes_on(place: &Place) {
    let nix = Nix::new();
    let layers = Layers::new("bucket", 20, 200_000);
    let texts = nix.add_texts(&layers.texts);
    let roots: Vec<String> = layers.roots.iter().map(|&root| texts[root].clone()).collect();
    let dir = Scratch::new();
    let url = format!("file://{}?compression=none", utf8(dir.path()));
    nix.ok(&with_paths(&["nix", "copy", "--to", &url], &roots));
    let everything = nix.closure(&roots);

    let Kills { rounds, first } = Kills::from_env();
    for round in 0..rounds.min(3) {
        let seed = first.wrapping_add(round);
        let _told = SeedOfFailure(seed);
        let wanted = Noise::new(seed).below(everything.len() as u64) as usize;
        let (bucket, key) = (place.bucket(), narinfo_of(&everything[wanted]));
        let mut migrating = migrate(&bucket, utf8(dir.path()), &bucket.url())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let leash = Leash::new(Pid::from_child(&migrating));
        while bucket.get(&key).is_none() && migrating.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = migrating.kill();
        migrating.wait().expect("a child of ours");
        drop(leash);
        let here = assert_nothing_is_false(&bucket);
        let told = ended(migrate(&bucket, utf8(dir.path()), &bucket.url())).is(0).json();
        assert_eq!(told["present"], here, "{told}");
        assert_eq!(assert_nothing_is_false(&bucket), everything.len());
    }
}

fn nix_substitutes_from_the_bucket_after_the_migration(place: &Place) {
    let fixture = fixture();
    let dir = Scratch::new();
    let all = fixture.all();
    fixture.nix().copy_to(&format!("file://{}?compression=xz", utf8(dir.path())), &all);
    let bucket = place.bucket();
    ended(migrate(&bucket, utf8(dir.path()), &bucket.url())).is(0);
    let daemon = over(&bucket).start();
    let substituted = Nix::new().substituting_from(daemon.url(), fixture.public_key());
    substituted.realise(&all);
    substituted.assert_has_the_same(&fixture.nix(), &all);
}
