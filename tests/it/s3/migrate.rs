//! `nix-stored migrate` from a directory into a bucket, from a bucket into a bucket, and back.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Pid;

use super::server::{TestServer, assert_consistent, on_every_server, over};
use crate::commands::command_cache::{CommandCache, CommandOutput};
use crate::support::cache_dir::objects;
use crate::support::closures::{Layers, narinfo_of};
use crate::support::daemon::on_cache;
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::sample;
use crate::support::rounds::{KillRounds, SeedOfFailure};
use crate::support::s3_bucket::Bucket;
use crate::support::scratch::{KillAtExit, Scratch};

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
fn result(mut command: Command) -> CommandOutput {
    CommandOutput::of(command.output().expect("the binary starts"))
}

fn a_cache_that_is_migrated_to_a_bucket_and_back_is_unchanged(server: &TestServer) {
    let from = CommandCache::new();
    from.add(1, &[], 5);
    from.add(2, &[1], 4);
    // More than one part.
    let large = sample(3, &Noise::new(5).bytes(12 << 20));
    from.put(&large.nar_path, &large.nar, 0);
    from.put(&large.narinfo_path, &large.narinfo, 0);
    from.put(&format!("{}.ls", &large.narinfo_path[1..33]), "{}", 0);
    from.run(&["pin", "release", &large.store_path]).is(0);
    let (bucket, other) = (server.bucket(), server.bucket());
    let printed = result(migrate(&bucket, utf8(from.dir()), &bucket.url())).is(0).json();
    assert_eq!([&printed["paths"], &printed["pins"]], [3, 1], "{printed}");
    let printed = result(migrate(&bucket, utf8(from.dir()), &bucket.url())).is(0).json();
    assert_eq!(
        [&printed["paths"], &printed["objects"], &printed["present"]],
        [0, 0, 3],
        "{printed}"
    );
    let printed = result(migrate(&bucket, &bucket.url(), &other.url())).is(0).json();
    assert_eq!([&printed["paths"], &printed["pins"]], [3, 1], "{printed}");
    assert_eq!(assert_consistent(&other), 3);
    assert_eq!(server.unfinished(&other), 0);

    let back = Scratch::new();
    let dir = back.join("cache");
    result(migrate(&bucket, &other.url(), utf8(&dir))).is(0);
    let contents = |dir: &Path| -> Vec<(String, Vec<u8>)> {
        let keys = objects(dir).into_iter().filter(|key| key != "nix-cache-info");
        keys.map(|key| (key.clone(), fs::read(dir.join(key)).unwrap())).collect()
    };
    assert!(contents(&dir) == contents(from.dir()), "{:?}", objects(&dir));
    let pins = CommandCache::at(&dir).run(&["pins"]).is(0);
    pins.prints("release: keeps 1 path");
}

fn damaged_paths_in_a_bucket_are_reported_and_not_copied(server: &TestServer) {
    let bucket = server.bucket();
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
    let printed = result(migrate(&bucket, &bucket.url(), utf8(&dir))).is(2).json();
    let damaged: Vec<&str> = printed["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["object"].as_str().unwrap())
        .collect();
    let mut expected = [&false_.nar_path[1..], &false_.narinfo_path[1..]];
    expected.sort_unstable_by_key(|key| key.parse::<nix_stored::nix::CachePath>().unwrap());
    assert_eq!(damaged, expected);
    assert_eq!(printed["paths"], 1);
    assert!(CommandCache::at(&dir).holds(&right) && !CommandCache::at(&dir).holds(&false_));
}

fn a_migration_into_a_bucket_that_was_killed_goes_on(server: &TestServer) {
    let nix = Nix::new();
    let layers = Layers::new("bucket", 20, 200_000);
    let texts = nix.add_texts(&layers.texts);
    let roots: Vec<String> = layers.roots.iter().map(|&root| texts[root].clone()).collect();
    let dir = Scratch::new();
    let url = format!("file://{}?compression=none", utf8(dir.path()));
    nix.ok(&with_paths(&["nix", "copy", "--to", &url], &roots));
    let everything = nix.closure(&roots);

    let KillRounds { rounds, first } = KillRounds::from_env();
    for round in 0..rounds.min(3) {
        let seed = first.wrapping_add(round);
        let _seed = SeedOfFailure(seed);
        let wanted = Noise::new(seed).below(everything.len() as u64) as usize;
        let (bucket, key) = (server.bucket(), narinfo_of(&everything[wanted]));
        let mut migrating = migrate(&bucket, utf8(dir.path()), &bucket.url())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let guard = KillAtExit::new(Pid::from_child(&migrating));
        while bucket.get(&key).is_none() && migrating.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = migrating.kill();
        migrating.wait().expect("a child process");
        drop(guard);
        let here = assert_consistent(&bucket);
        let printed = result(migrate(&bucket, utf8(dir.path()), &bucket.url())).is(0).json();
        assert_eq!(printed["present"], here, "{printed}");
        assert_eq!(assert_consistent(&bucket), everything.len());
    }
}

fn nix_substitutes_from_the_bucket_after_the_migration(server: &TestServer) {
    let fixture = fixture();
    let dir = Scratch::new();
    let all = fixture.all();
    fixture.nix().copy_to(&format!("file://{}?compression=xz", utf8(dir.path())), &all);
    let bucket = server.bucket();
    result(migrate(&bucket, utf8(dir.path()), &bucket.url())).is(0);
    let daemon = over(&bucket).start();
    let substituted = Nix::new().substituting_from(daemon.url(), fixture.public_key());
    substituted.realise(&all);
    substituted.assert_has_the_same(&fixture.nix(), &all);
}
