//! Uploads into a bucket that hardly arrive keep no memory from others, and come whole all the same.

use std::time::{Duration, Instant};

use super::place::{Place, get, on_every_server, over, upload};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::trickle::Trickle;

/// How long an upload may take for somebody who is not slow. Generous.
const PATIENCE: Duration = Duration::from_secs(10);

on_every_server! {
    uploads_that_trickle_keep_no_memory_for_parts
    what_was_slow_in_any_part_comes_whole
}

fn large(number: u8, length: usize) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(length))
}

/// How many files without a name a daemon has open.
fn nameless_files(daemon: &Daemon) -> usize {
    let folder = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
    let files = std::fs::read_dir(folder).expect("the daemon is there").flatten();
    let is_nameless = |link: &std::path::PathBuf| link.to_string_lossy().ends_with("(deleted)");
    files.flat_map(|file| std::fs::read_link(file.path())).filter(is_nameless).count()
}

fn uploads_that_trickle_keep_no_memory_for_parts(place: &Place) {
    let bucket = place.bucket();
    let daemon = over(&bucket).start();
    let slow = large(1, 300_000);
    // More than there is memory for parts.
    let bodies = vec![(&*slow.nar_path, &*slow.nar); 80];
    let trickle = Trickle::start(&daemon, &bodies, 100_000);
    for number in 10..13 {
        let begun = Instant::now();
        upload(&daemon, &large(number, 400_000));
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }
    let answers = trickle.finish();
    assert!(answers.iter().all(|answer| answer.status == 200 || answer.status == 201));
    assert_eq!(get(&daemon, &slow.nar_path).body, slow.nar);
}

fn what_was_slow_in_any_part_comes_whole(place: &Place) {
    let bucket = place.bucket();
    let daemon = over(&bucket).start();
    // Parts have 5 MiB: slow in the first, at its end, in the second, and in the last.
    let nar = large(2, 12 << 20);
    for at in [100, (5 << 20) - 1, 5 << 20, 7 << 20, nar.nar.len() - 20] {
        let trickle = Trickle::start(&daemon, &[(&nar.nar_path, &nar.nar)], at);
        daemon.wait_until("the part is kept in a file", || nameless_files(&daemon) > 0);
        let status = trickle.finish()[0].status;
        assert!(status == 200 || status == 201, "{at}: {status}");
        assert!(get(&daemon, &nar.nar_path).body == nar.nar, "{at}");
    }
    assert_eq!(place.unfinished(&bucket), 0);
}
