//! Uploads. nginx verifies and syncs nothing; the daemon has verified and synced every upload that
//! it acknowledges.

use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::ensure;
use nix_stored::nix::Sha256Hash;

use crate::side_by_side::comparison::{Comparison, Meter};
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::side_by_side::server::{Kind, Server};
use crate::support::bench::GIB;
use crate::support::client::connection::Connection;
use crate::support::client::requests::Requests;
use crate::support::client::storm::{Until, storm};
use crate::support::nar::{self, Large, name};
use crate::support::sample::{Sample, median};

/// The size of a small NAR.
const SMALL: usize = 4096;

/// Uploads before the measurement, because a new server starts threads first.
const WARM_UP: usize = 200;

/// Many small NARs, each in its own file.
pub fn small(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let nars = |seeds: std::ops::Range<usize>| {
        Requests::put(seeds.map(|seed| {
            let nar = nar::small(seed as u64, SMALL);
            (name(Sha256Hash::of(&nar)), nar)
        }))
    };
    let count = comparison.sizes.small_uploads;
    let (requests, warm_up) = (nars(0..count), nars(count..count + WARM_UP));
    let samples = comparison.take_turns(|kind| {
        [8, 64]
            .iter()
            .map(|&connections| {
                let server = Server::start(comparison, kind, &comparison.fresh_dir("put-small")?)?;
                storm(server.address(), connections, &warm_up, Until::Answered)?;
                comparison.settle()?;
                let meter = Meter::start(&server)?;
                storm(server.address(), connections, &requests, Until::Answered)?;
                let (wall, cpu) = meter.read()?;
                Ok(Sample { value: count as f64 / wall, wall, cpu })
            })
            .collect()
    })?;
    let line = |index, connections, times| {
        let label = format!("PUT {count} × 4 KiB, durable, {connections} connections");
        Line::new(label, Unit::FilesPerSecond, Goal::TimesNginx(times), &samples, index)
            .short(format!("PUT of small NARs, {connections} connections"))
            .best()
    };
    Ok(vec![line(0, 8, 0.4), line(1, 64, 0.8)])
}

/// One large NAR.
pub fn large(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let nar = Large::new(comparison.sizes.large);
    let gib = nar.length() as f64 / GIB as f64;
    let mut digests = Vec::new();
    let samples = comparison.take_turns(|kind| {
        if kind == Kind::NixStored {
            digests.push(digest_cpu_seconds(comparison, &nar)? / gib);
        }
        let dir = comparison.fresh_dir("put-large")?;
        let server = Server::start(comparison, kind, &dir)?;
        let meter = Meter::start(&server)?;
        let mut connection = Connection::open(server.address())?;
        let path = name(nar.hash);
        connection.begin_put(&path, nar.length())?;
        nar.pieces().try_for_each(|piece| connection.send(piece))?;
        connection.end_put()?;
        let (wall, cpu) = meter.read()?;
        drop(server);
        let file = File::options().write(true).open(dir.join(path))?;
        ensure!(file.metadata()?.len() == nar.length(), "{kind} has stored something else");
        comparison.settle()?;
        // Frees the disk space. The inode stays: see the order of the rows.
        file.set_len(0)?;
        Ok(vec![Sample { value: cpu / gib, wall, cpu }])
    })?;
    let digest = median(digests);
    let tool = sha256sum_cpu_seconds(comparison, &nar)? / gib;
    let goal = Goal::TimesNginxPlus { times: 1.1, plus: digest, what: "SHA-256" };
    let label = "PUT 1 GiB, verified and durable, 1 connection";
    Ok(vec![
        Line::new(label, Unit::CpuSecondsPerGib, goal, &samples, 0)
            .short("PUT 1 GiB, against nginx + SHA-256")
            .best()
            .note(format!(
                "SHA-256 of 1 GiB: {digest:.3} CPU s with the daemon's own crate, \
                 {tool:.3} with `sha256sum`"
            )),
    ])
}

/// The CPU time of hashing a NAR, on the server's core.
fn digest_cpu_seconds(comparison: &Comparison, nar: &Large) -> anyhow::Result<f64> {
    comparison.bench.own_cpu_seconds(|| {
        ensure!(nar.digest() == nar.hash, "the same bytes have another hash");
        Ok(())
    })
}

/// The CPU time of `sha256sum`, including the reading of the file.
fn sha256sum_cpu_seconds(comparison: &Comparison, nar: &Large) -> anyhow::Result<f64> {
    let file = comparison.fresh_dir("sha256sum")?.join("nar");
    nar.write_to(File::create(&file)?)?;
    comparison.settle()?;
    let mut command = Command::new(&comparison.programs.sha256sum);
    let cpu = comparison.bench.cpu_seconds_of(command.arg(&file).stdin(Stdio::null()))?;
    File::options().write(true).open(&file)?.set_len(0)?;
    Ok(cpu)
}
