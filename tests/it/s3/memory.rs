//! Many large uploads at once take no more memory than a few, and many reads no more than what they
//! leave in memory on purpose.

use super::place::{Place, get, on_every_server, over, put, upload};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::sample;

/// As documented, for 32 at a time.
const LIMIT: usize = 512 << 20;

/// Uploads at a time.
const UPLOADS: usize = 32;

/// Paths that are read, and the memory that they may leave behind, which is a few times what their
/// narinfos are long and a tenth of the buffers that they came in.
const READ: usize = 600;
const LEFT: usize = 8 << 20;

on_every_server! {
    memory_does_not_grow_with_large_uploads
    memory_does_not_grow_with_paths_that_are_read
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

fn memory_does_not_grow_with_paths_that_are_read(place: &Place) {
    let daemon = over(&place.bucket()).start();
    let mut noise = Noise::new(2);
    let mut after_warming_up = 0;
    for number in 0..READ + READ / 4 {
        let new = sample(0, &noise.bytes(2_000)).named(&mut noise);
        upload(&daemon, &new);
        for path in [&new.narinfo_path, &new.nar_path] {
            assert_eq!(get(&daemon, path).status, 200, "{path}");
        }
        if number == READ / 4 {
            after_warming_up = daemon.memory();
        }
    }
    let grown = daemon.memory().saturating_sub(after_warming_up);
    assert!(grown < LEFT, "{} KiB for {READ} paths", grown >> 10);
}
