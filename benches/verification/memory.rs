//! The peak memory of many concurrent large uploads.

use std::time::{Duration, Instant};

use nix_stored::nix::Compression;

use crate::support::bench::{Bench, GIB, MIB, Place};
use crate::support::daemon::Daemon;
use crate::support::process::Memory;
use crate::support::report::Section;
use crate::support::say;
use crate::verification::body::Body;

const UPLOADS: u64 = 32;

/// The free space needed for uploads of 1 GiB: all of them are on the disk at once, with some
/// reserve.
const FOR_FULL_SIZE: u64 = 60_000_000_000;

/// xz is slow, and its decoder has allocated all its memory after the first 8 MiB.
const XZ_CONTENTS: u64 = 64 * MIB;

pub fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let mut section = Section::new(
        &format!("Resident memory, {UPLOADS} parallel uploads, `VERIFY=nar`"),
        &["uploads", "peak MiB", "afterwards MiB", "wall s", "CPU s"],
    );
    let idle = Daemon::verifying(bench, "nar", Place::Anywhere)?;
    std::thread::sleep(Duration::from_secs(1));
    section.row([
        "idle".to_owned(),
        format!("{:.1}", idle.resident_mib(Memory::Peak)?),
        format!("{:.1}", idle.resident_mib(Memory::Now)?),
        "–".to_owned(),
        "–".to_owned(),
    ]);
    drop(idle);

    let contents = contents(bench, &mut section)?;
    for (compression, contents) in [
        (Compression::None, contents),
        (Compression::Zstd, contents),
        (Compression::Xz, XZ_CONTENTS.min(contents)),
    ] {
        say(&format!("memory: {UPLOADS} × {} MiB, {compression}", contents / MIB));
        let body = Body::make(bench, compression, contents)?;
        let daemon = Daemon::verifying(bench, "nar", Place::Anywhere)?;
        let (begin, cpu) = (Instant::now(), daemon.cpu_seconds()?);
        upload_concurrently(&daemon, &body)?;
        let wall = begin.elapsed().as_secs_f64();
        section.row([
            format!("{} MiB, {compression}", contents / MIB),
            format!("{:.1}", daemon.resident_mib(Memory::Peak)?),
            format!("{:.1}", daemon.resident_mib(Memory::Now)?),
            format!("{wall:.0}"),
            format!("{:.1}", daemon.cpu_seconds()? - cpu),
        ]);
        daemon.forget(&body)?;
        std::fs::remove_file(&body.file)?;
    }
    section.notes.push(
        "Sizes are of the NAR; zstd is at level 3 and xz at level 6. The daemon unpacks 8 NARs at a \
         time while they arrive; one that comes while 8 others are unpacked is read again when it \
         has arrived. One run"
            .to_owned(),
    );
    Ok(section)
}

/// The size of the uploads: 1 GiB, or less if half of the free space is not enough.
fn contents(bench: &Bench, section: &mut Section) -> anyhow::Result<u64> {
    if bench.quick {
        return Ok(16 * MIB);
    }
    let free = bench.free_space()?;
    if free >= FOR_FULL_SIZE {
        return Ok(GIB);
    }
    let mut contents = GIB / 2;
    while contents > 16 * MIB && UPLOADS * contents > free / 2 {
        contents /= 2;
    }
    let text = format!(
        "Uploads of {} MiB instead of 1 GiB, because only {} GB of disk were free and not {}",
        contents / MIB,
        free / 1_000_000_000,
        FOR_FULL_SIZE / 1_000_000_000,
    );
    say(&format!("memory: {text}"));
    section.notes.push(text);
    Ok(contents)
}

/// Uploads the body under one name, because the daemon cannot know before the end that the contents
/// are the same.
fn upload_concurrently(daemon: &Daemon, body: &Body) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..UPLOADS).map(|_| scope.spawn(|| daemon.put(body))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a client does not panic"))
    })
}
