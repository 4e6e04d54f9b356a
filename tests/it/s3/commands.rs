//! The commands on a bucket, beside a running daemon.

use std::path::Path;

use serde_json::Value;

use super::server::{TestServer, get, on_every_server, over, upload};
use crate::commands::command_cache::CommandOutput;
use crate::support::daemon::on_cache;
use crate::support::objects::{Sample, sample};
use crate::support::s3_bucket::Bucket;

on_every_server! {
    stats_and_verify_report_the_content_of_the_bucket
    damaged_objects_are_quarantined
    a_deleted_path_is_removed_with_its_unreferenced_objects
    pins_are_kept_in_the_bucket
    collections_follow_each_other
}

/// Runs the binary on a bucket.
#[track_caller]
pub fn run(bucket: &Bucket, args: &[&str]) -> CommandOutput {
    let mut command = on_cache(Path::new(&bucket.url()), args);
    command.envs(bucket.env());
    CommandOutput::of(command.output().expect("the binary starts"))
}

/// A bucket with this many paths, uploaded through a daemon.
fn filled(server: &TestServer, count: u8) -> (Bucket, Vec<Sample>) {
    let bucket = server.bucket();
    let daemon = over(&bucket).start();
    let samples: Vec<Sample> = (1..=count).map(|number| sample(number, &[number; 5000])).collect();
    samples.iter().for_each(|sample| upload(&daemon, sample));
    (bucket, samples)
}

#[track_caller]
fn json(bucket: &Bucket, args: &[&str]) -> Value {
    run(bucket, args).is(0).json()
}

fn stats_and_verify_report_the_content_of_the_bucket(server: &TestServer) {
    let (bucket, samples) = filled(server, 3);
    assert_eq!(json(&bucket, &["stats", "--json"])["paths"], samples.len());
    let printed = json(&bucket, &["verify", "--deep", "--json"]);
    assert_eq!(printed["checked"]["paths"], samples.len());
    assert_eq!(printed["checked"]["nars"], samples.len());
}

fn damaged_objects_are_quarantined(server: &TestServer) {
    let (bucket, samples) = filled(server, 3);
    let (nar, narinfo) = (&samples[0].nar_path[1..], &samples[0].narinfo_path[1..]);
    let mut bytes = samples[0].nar.clone();
    bytes[300] ^= 1;
    bucket.put(nar, &bytes);
    run(&bucket, &["verify"]).is(2).prints("does not match its name");
    assert_eq!(bucket.get(nar).as_ref(), Some(&bytes));
    run(&bucket, &["verify", "--repair"]).is(2).prints("quarantined 2 objects");
    assert_eq!((bucket.get(nar), bucket.get(narinfo)), (None, None));
    assert_eq!(bucket.get(&format!(".nix-stored/quarantine/{nar}")), Some(bytes));
    run(&bucket, &["verify", "--deep"]).is(0);
    upload(&over(&bucket).start(), &samples[0]);
    run(&bucket, &["verify", "--deep"]).is(0).prints("checked 3 paths");
}

fn a_deleted_path_is_removed_with_its_unreferenced_objects(server: &TestServer) {
    let (bucket, samples) = filled(server, 3);
    run(&bucket, &["delete", &samples[0].store_path]).is(0);
    assert_eq!(bucket.get(&samples[0].nar_path[1..]), None);
    assert_eq!(bucket.get(&samples[0].narinfo_path[1..]), None);
    run(&bucket, &["verify", "--deep"]).is(0).prints("checked 2 paths");
    // Another deletion immediately after it.
    run(&bucket, &["delete", &samples[1].store_path]).is(0);
    let daemon = over(&bucket).start();
    assert_eq!(get(&daemon, &samples[1].narinfo_path).status, 404);
    assert_eq!(get(&daemon, &samples[2].narinfo_path).status, 200);
}

fn pins_are_kept_in_the_bucket(server: &TestServer) {
    let (bucket, samples) = filled(server, 2);
    run(&bucket, &["pin", "release", &samples[0].store_path]).is(0);
    assert!(bucket.get(".nix-stored/pins/release").is_some());
    assert_eq!(json(&bucket, &["pins", "--json"])["pins"][0]["closure_paths"], 1);
    run(&bucket, &["delete", &samples[0].store_path]).is(2);
    run(&bucket, &["unpin", "release"]).is(0);
    run(&bucket, &["delete", &samples[0].store_path]).is(0);
}

fn collections_follow_each_other(server: &TestServer) {
    let (bucket, samples) = filled(server, 2);
    // Everything was uploaded just now, so it is kept, and the cache stays over its limit.
    for _ in 0..2 {
        run(&bucket, &["gc", "--max-size", "1"]).is(2);
    }
    assert_eq!(json(&bucket, &["stats", "--json"])["paths"], samples.len());
    assert_eq!(bucket.get(".nix-stored/lock"), None, "the lease was let go");
}
