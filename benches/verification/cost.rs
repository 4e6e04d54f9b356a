//! The cost of an upload, by its compression and the depth of verification.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::ensure;
use nix_stored::nix::Compression;
use sha2::{Digest, Sha256};

use crate::support::bench::{Bench, GIB, MIB, Place};
use crate::support::daemon::Daemon;
use crate::support::report::Section;
use crate::support::sample::median;
use crate::support::say;
use crate::verification::body::Body;

/// A program that decompresses, and its Debian package.
type Decompressor = (&'static str, &'static str);

/// The compressions with the sizes of their NARs in MiB. Slow ones have smaller NARs.
const CASES: [(Compression, u64, Option<Decompressor>); 7] = [
    (Compression::None, 1024, None),
    (Compression::Zstd, 1024, Some(("zstd", "zstd"))),
    (Compression::Lz4, 1024, Some(("lz4", "lz4"))),
    (Compression::Gzip, 512, Some(("gzip", "gzip"))),
    (Compression::Brotli, 256, Some(("brotli", "brotli"))),
    (Compression::Xz, 128, Some(("xz", "xz-utils"))),
    (Compression::Bzip2, 64, Some(("bzip2", "bzip2"))),
];

/// One of [`CASES`], and its results in every round.
struct Case {
    compression: Compression,
    body: Body,
    program: Option<&'static str>,
    file: Vec<f64>,
    nar: Vec<f64>,
    sha256sum: Vec<f64>,
    decompressor: Vec<f64>,
}

pub fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let mut missing = Vec::new();
    let mut digests = Vec::new();
    let mut cases = Vec::new();
    for (compression, mib, program) in CASES {
        say(&format!("cost: preparing {compression}"));
        let contents = if bench.quick { 8 * MIB } else { mib * MIB };
        let program = program.and_then(|(program, package)| {
            if is_there(program) {
                return Some(program);
            }
            missing.push(format!("`{program}` is missing (Debian package {package})"));
            None
        });
        cases.push(Case {
            compression,
            body: Body::make(bench, compression, contents)?,
            program,
            file: Vec::new(),
            nar: Vec::new(),
            sha256sum: Vec::new(),
            decompressor: Vec::new(),
        });
    }
    for round in 0..bench.rounds {
        say(&format!("cost: round {} of {}", round + 1, bench.rounds));
        // The first case is the uncompressed NAR.
        digests.push(digest(bench, &cases[0].body)?);
        for case in &mut cases {
            case.take_turns(bench, round)?;
        }
    }
    let mut section = section(&cases, median(digests));
    section.notes.extend(missing);
    Ok(section)
}

impl Case {
    /// Measures everything once, in an order that rotates.
    fn take_turns(&mut self, bench: &Bench, round: usize) -> anyhow::Result<()> {
        let gib = self.body.nar_size as f64 / GIB as f64;
        for position in 0..4 {
            match (position + round) % 4 {
                0 => self.file.push(upload(bench, "file", &self.body)? / gib),
                1 => self.nar.push(upload(bench, "nar", &self.body)? / gib),
                2 => self.sha256sum.push(piped(bench, &["sha256sum"], &self.body)? / gib),
                _ => {
                    if let Some(program) = self.program {
                        let cpu = piped(bench, &[program, "-dc"], &self.body)?;
                        self.decompressor.push(cpu / gib);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The daemon's CPU seconds for one upload.
fn upload(bench: &Bench, verify: &str, body: &Body) -> anyhow::Result<f64> {
    bench.scratch.settle()?;
    let daemon = Daemon::verifying(bench, verify, Place::OwnCore)?;
    let before = daemon.cpu_seconds()?;
    daemon.put(body)?;
    let cpu = daemon.cpu_seconds()? - before;
    daemon.forget(body)?;
    Ok(cpu)
}

/// The CPU seconds of a program that reads the body from its standard input.
fn piped(bench: &Bench, command: &[&str], body: &Body) -> anyhow::Result<f64> {
    let input = Stdio::from(File::open(&body.file)?);
    bench.cpu_seconds_of(Command::new(command[0]).args(&command[1..]).stdin(input))
}

/// The CPU seconds per GiB of the daemon's SHA-256.
fn digest(bench: &Bench, body: &Body) -> anyhow::Result<f64> {
    let cpu = bench.own_cpu_seconds(|| {
        let mut file = File::open(&body.file)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        ensure!(body.is_named_by(hasher.finalize().into()), "the same bytes have another hash");
        Ok(())
    })?;
    Ok(cpu * GIB as f64 / body.size as f64)
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn section(cases: &[Case], digest: f64) -> Section {
    let middle = |of: &[f64]| median(of.iter().copied());
    let mut section = Section::new(
        "CPU seconds per GiB of NAR, one upload",
        &[
            "compression",
            "packed to",
            "`VERIFY=file`",
            "`VERIFY=nar`",
            "`sha256sum` of the file",
            "decompressor",
            "`nar` ÷ parts",
        ],
    );
    let range = |of: &[f64]| {
        let (low, high) =
            of.iter().fold((f64::MAX, f64::MIN), |(low, high), it| (low.min(*it), high.max(*it)));
        format!("{:.2} ({low:.2}–{high:.2})", middle(of))
    };
    for case in cases {
        let plain = case.compression == Compression::None;
        let (unpacking, shown) = match case.program {
            Some(program) => {
                let cpu = middle(&case.decompressor);
                (Some(cpu + digest), format!("{cpu:.2} `{program} -dc`"))
            }
            None => (plain.then_some(0.0), if plain { "–" } else { "missing" }.to_owned()),
        };
        let parts = unpacking.map(|unpacking| middle(&case.file) + unpacking);
        section.row([
            case.compression.to_string(),
            format!("{:.2}", case.body.size as f64 / case.body.nar_size as f64),
            range(&case.file),
            range(&case.nar),
            format!("{:.2}", middle(&case.sha256sum)),
            shown,
            parts.map_or("–".to_owned(), |parts| format!("{:.2}", middle(&case.nar) / parts)),
        ]);
    }
    section.notes.push(format!(
        "Median of the rounds (lowest–highest). The parts are `VERIFY=file`, the decompressor, and \
         SHA-256 of the NAR with the crate that the daemon uses: {digest:.2} CPU s per GiB, where \
         `sha256sum` needs {:.2}. Of a NAR that is not compressed there is only one hash, so \
         `VERIFY=file` is its only part",
        middle(&cases[0].sha256sum),
    ));
    section
}
