//! Many large uploads at once take no more memory than a few.

use super::place::{Place, on_every_server, over, put};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::sample;

/// As documented, for 32 at a time.
const LIMIT: usize = 512 << 20;

/// Uploads at a time.
const UPLOADS: usize = 32;

on_every_server! {
    memory_does_not_grow_with_large_uploads
}

/// Together they are larger than the limit, several times if `mib` says so.
fn upload_all(daemon: &Daemon, mib: usize) {
    let block = Noise::new(1).bytes(1 << 20);
    std::thread::scope(|scope| {
        for number in 0..UPLOADS {
            let block = &block;
            scope.spawn(move || {
                // Each another one, by its first byte.
                let contents = [&[number as u8], block.repeat(mib).as_slice()].concat();
                let sample = sample(number as u8, &contents);
                drop(contents);
                let answer = put(daemon, &sample.nar_path, &sample.nar);
                assert_eq!(answer.status, 201, "{} {}", answer.head, answer.text());
            });
        }
    });
}

fn memory_does_not_grow_with_large_uploads(place: &Place) {
    let mib = crate::support::rounds::number("NIX_STORED_TEST_UPLOAD_MIB").unwrap_or(24);
    let bucket = place.bucket();
    let daemon = over(&bucket).start();
    upload_all(&daemon, mib as usize);
    let peak = daemon.peak_memory();
    assert!(peak < LIMIT, "{} MiB for {UPLOADS} uploads of {mib} MiB", peak >> 20);
    assert_eq!(place.unfinished(&bucket), 0);
    assert_eq!(bucket.keys().iter().filter(|key| key.starts_with("nar/")).count(), UPLOADS);
}
