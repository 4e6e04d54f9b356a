//! A power cut loses everything that was not synced. The order of the daemon's system calls shows
//! what would be lost.

use std::sync::Barrier;

use super::order::judge;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;
use crate::support::trace::TracedDaemon;
use crate::support::wire::Wire;

const UPLOADERS: u8 = 6;

/// The length of the largest NAR, which takes many reads and writes.
const LARGE: usize = 3 * 1024 * 1024;

/// A narinfo with another signature.
fn signed_again(sample: &Sample) -> String {
    let signature = "A".repeat(86);
    format!("{}Sig: somebody-1:{signature}==\n", sample.narinfo)
}

/// An object of every kind. A new cache does not have the folders for most of them.
fn everything(sample: &Sample, number: u8) -> Vec<(String, Vec<u8>)> {
    let base = sample.store_path.rsplit('/').next().expect("split yields an item");
    let hash_part = &base[..32];
    let side = |path: String| (path, format!("{{\"number\": {number}}}").into_bytes());
    vec![
        side(format!("/{hash_part}.ls")),
        (sample.nar_path.clone(), sample.nar.clone()),
        (sample.narinfo_path.clone(), sample.narinfo.clone().into_bytes()),
        (sample.narinfo_path.clone(), signed_again(sample).into_bytes()),
        side(format!("/log/{base}.drv")),
        side(format!("/realisations/sha256:{}!out.doi", format!("{number:02x}").repeat(32))),
        side(format!("/build-trace-v2/{base}.drv/out.doi")),
        side(format!("/debuginfo/{}.debug", format!("{number:02x}").repeat(20))),
        // repeated, like a retry
        (sample.nar_path.clone(), sample.nar.clone()),
    ]
}

/// A sample of this length that differs from all others.
fn sample_of(number: u8, length: usize) -> Sample {
    let contents: Vec<u8> = (0..length).map(|n| (n / 7) as u8 ^ number).collect();
    sample(number, &contents)
}

/// Uploads objects over one connection: first its own, then one that all connections upload at the
/// same time.
fn upload(address: &str, number: u8, together: &Barrier) -> Vec<String> {
    let length = [LARGE, 100_000, 0][usize::from(number) % 3];
    let own = sample_of(number, length);
    let shared = sample_of(200, 50_000);
    let mut wire = Wire::to_address(address);
    let mut done = Vec::new();
    together.wait();
    let mut put = |path: &str, body: &[u8]| {
        let response = wire.request("PUT", path, body);
        assert!(
            [200, 201].contains(&response.status),
            "{path}: {} {}",
            response.head,
            response.text()
        );
        done.push(path[1..].to_owned());
    };
    for (path, body) in everything(&own, number) {
        put(&path, &body);
    }
    together.wait();
    put(&shared.nar_path, &shared.nar);
    together.wait();
    put(&shared.narinfo_path, shared.narinfo.as_bytes());
    done
}

#[test]
fn acknowledged_uploads_and_their_names_were_synced_before_the_response() {
    let scratch = Scratch::new();
    // The daemon creates this directory, and must sync its parent.
    let root = scratch.join("cache");
    let daemon = TracedDaemon::start(&root);
    // Single uploads are committed differently from concurrent ones, and no other upload's sync can
    // hide a missing one.
    let mut uploaded = Vec::new();
    for number in 100..103 {
        uploaded.extend(upload(daemon.address(), number, &Barrier::new(1)));
    }
    let together = Barrier::new(UPLOADERS.into());
    let at_once: Vec<String> = std::thread::scope(|scope| {
        let uploaders: Vec<_> = (1..=UPLOADERS)
            .map(|number| {
                let (address, together) = (daemon.address(), &together);
                scope.spawn(move || upload(address, number, together))
            })
            .collect();
        let joined = uploaders.into_iter().map(|one| one.join().expect("the uploads succeed"));
        joined.flatten().collect()
    });
    uploaded.extend(at_once);
    let (trace, log) = daemon.stop();

    let root = root.canonicalize().expect("created by the daemon");
    let mut verdict = judge(&trace, root.to_str().expect("UTF-8"));
    // All acknowledged uploads must be found in the trace, or it would prove nothing.
    verdict.acknowledged.sort();
    uploaded.sort();
    assert_eq!(verdict.acknowledged, uploaded, "{log}");
    let objects: std::collections::BTreeSet<_> = uploaded.iter().collect();
    assert!(verdict.published >= objects.len(), "{} of {}", verdict.published, objects.len());
    let (count, some) = (verdict.broken.len(), verdict.broken.iter().take(5).collect::<Vec<_>>());
    assert!(count == 0, "broken {count} times, among them {some:#?}");
}
