//! Uploads. nginx checks nothing and syncs nothing; the daemon has verified and synced what it
//! acknowledges.

use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::ensure;
use nix_stored::nix::Sha256Hash;
use rustix::time::{ClockId, clock_gettime};

use crate::bench::{Bench, Meter};
use crate::client::connection::Connection;
use crate::client::requests::Requests;
use crate::client::storm::{Until, storm};
use crate::line::{Goal, Line, Unit};
use crate::nar::{self, Large, name};
use crate::process::ended_children_cpu_seconds;
use crate::sample::{Sample, median};
use crate::server::{Kind, Server};
use crate::sizes::GIB;

/// The size of a small NAR.
const SMALL: usize = 4096;

/// Uploads before the clock runs: a server that has just started has threads to make.
const WARM_UP: usize = 200;

/// Many small NARs, each a file of its own.
pub fn small(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let nars = |seeds: std::ops::Range<usize>| {
        Requests::put(seeds.map(|seed| {
            let nar = nar::small(seed as u64, SMALL);
            (name(Sha256Hash::of(&nar)), nar)
        }))
    };
    let count = bench.sizes.small_uploads;
    let (requests, warm_up) = (nars(0..count), nars(count..count + WARM_UP));
    let samples = bench.take_turns(|kind| {
        [8, 64]
            .iter()
            .map(|&connections| {
                let server = Server::start(bench, kind, &bench.fresh_dir("put-small")?)?;
                storm(server.address(), connections, &warm_up, Until::Answered)?;
                bench.scratch.settle()?;
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
pub fn large(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let nar = Large::new(bench.sizes.large);
    let gib = nar.length() as f64 / GIB as f64;
    let mut digests = Vec::new();
    let samples = bench.take_turns(|kind| {
        if kind == Kind::NixStored {
            digests.push(digest_cpu_seconds(bench, &nar)? / gib);
        }
        let dir = bench.fresh_dir("put-large")?;
        let server = Server::start(bench, kind, &dir)?;
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
        bench.scratch.settle()?;
        // The disk is not to fill up. The inode stays: see the order of the rows.
        file.set_len(0)?;
        Ok(vec![Sample { value: cpu / gib, wall, cpu }])
    })?;
    let digest = median(digests);
    let tool = sha256sum_cpu_seconds(bench, &nar)? / gib;
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

/// What it costs to hash a NAR, on the server's core.
fn digest_cpu_seconds(bench: &Bench, nar: &Large) -> anyhow::Result<f64> {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    bench.cores.as_server(|| {
        let begin = now();
        ensure!(nar.digest() == nar.hash, "the same bytes have another hash");
        Ok(now() - begin)
    })?
}

/// What it costs everybody else, the reading of the file included.
fn sha256sum_cpu_seconds(bench: &Bench, nar: &Large) -> anyhow::Result<f64> {
    let file = bench.fresh_dir("sha256sum")?.join("nar");
    nar.write_to(File::create(&file)?)?;
    bench.scratch.settle()?;
    let before = ended_children_cpu_seconds()?;
    let mut command = Command::new(&bench.programs.sha256sum);
    command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    let status = bench.cores.spawn_server(&mut command)?.wait()?;
    ensure!(status.success(), "sha256sum: {status}");
    let cpu = ended_children_cpu_seconds()? - before;
    File::options().write(true).open(&file)?.set_len(0)?;
    Ok(cpu)
}
