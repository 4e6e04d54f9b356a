//! Durable uploads of small NARs per second, by the number of connections.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use nix_stored::nix::Sha256Hash;

use crate::support::bench::{Bench, Place};
use crate::support::client::requests::Requests;
use crate::support::client::storm::{Until, storm};
use crate::support::daemon::Daemon;
use crate::support::nar::{name, small};
use crate::support::report::Section;
use crate::support::sample::median;
use crate::support::say;

/// The size of each NAR.
const SIZE: usize = 4096;

/// The number of connections, and of files for them: enough for a second or two.
const LOADS: [(usize, usize); 4] = [(1, 500), (8, 2000), (25, 3000), (64, 4000)];

/// Uploads before the measurement, because a new daemon starts threads first.
const WARM_UP: usize = 100;

/// The results of one load, round by round.
#[derive(Default)]
struct Samples {
    per_second: Vec<f64>,
    cpu_ms: Vec<f64>,
}

pub fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let count = |count: usize| if bench.quick { count / 10 } else { count };
    let most = LOADS.iter().map(|(_, files)| count(*files)).max().unwrap_or_default();
    let nars: Vec<(String, Vec<u8>)> = (0..most + WARM_UP)
        .map(|seed| {
            let nar = small(seed as u64, SIZE);
            (name(Sha256Hash::of(&nar)), nar)
        })
        .collect();
    let (warm_up, nars) = nars.split_at(WARM_UP);
    let warm_up = Requests::put(warm_up.iter().cloned());
    let mut bare = Vec::new();
    let mut samples: [Samples; LOADS.len()] = Default::default();
    for round in 0..bench.rounds {
        say(&format!("commits: round {} of {}", round + 1, bench.rounds));
        for position in 0..=LOADS.len() {
            // The order rotates.
            let turn = (position + round) % (LOADS.len() + 1);
            bench.scratch.settle()?;
            let Some(&(connections, files)) = LOADS.get(turn) else {
                let files = &nars[..count(LOADS[0].1)];
                bare.push(files.len() as f64 / without_a_daemon(&bench.fresh_dir("bare")?, files)?);
                continue;
            };
            let requests = Requests::put(nars[..count(files)].iter().cloned());
            let daemon = Daemon::verifying(bench, "nar", Place::OwnCore)?;
            storm(daemon.address(), connections, &warm_up, Until::Answered)?;
            bench.scratch.settle()?;
            let (begin, cpu) = (Instant::now(), daemon.cpu_seconds()?);
            storm(daemon.address(), connections, &requests, Until::Answered)?;
            let wall = begin.elapsed().as_secs_f64();
            let cpu = daemon.cpu_seconds()? - cpu;
            samples[turn].per_second.push(requests.count() as f64 / wall);
            samples[turn].cpu_ms.push(cpu * 1000.0 / requests.count() as f64);
        }
    }
    Ok(section(&bare, &samples))
}

/// The seconds that it takes to store files durably one after the other, which is the limit of the
/// disk.
fn without_a_daemon(dir: &Path, files: &[(String, Vec<u8>)]) -> anyhow::Result<f64> {
    let nar = dir.join("nar");
    fs::create_dir(&nar)?;
    let folder = File::open(&nar)?;
    let begin = Instant::now();
    for (key, bytes) in files {
        let staged = dir.join("staged");
        let mut file = File::create_new(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&staged, dir.join(key))?;
        folder.sync_all()?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

fn section(bare: &[f64], samples: &[Samples]) -> Section {
    let mut section = Section::new(
        "Durable uploads of 4 KiB NARs",
        &["connections", "files/s", "lowest to highest", "CPU ms per file", "ratio"],
    );
    let reference = median(bare.iter().copied());
    let mut row = |label: String, rates: &[f64], cpu: String| {
        let middle = median(rates.iter().copied());
        let low = rates.iter().copied().fold(f64::MAX, f64::min);
        let high = rates.iter().copied().fold(f64::MIN, f64::max);
        section.row([
            label,
            format!("{middle:.0}"),
            format!("{low:.0} to {high:.0}"),
            cpu,
            format!("{:.2}", middle / reference),
        ]);
    };
    row("no daemon".to_owned(), bare, "–".to_owned());
    for ((connections, _), samples) in LOADS.iter().zip(samples) {
        let cpu = format!("{:.2}", median(samples.cpu_ms.iter().copied()));
        row(connections.to_string(), &samples.per_second, cpu);
    }
    section.notes.push(
        "Each file is staged, synced and renamed, and its directory synced, before the upload is \
         acknowledged; `no daemon` is a program that does just that with one file after the other"
            .to_owned(),
    );
    section
}
