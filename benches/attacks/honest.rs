//! The client whose latencies are measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::attacks::object::{Object, Packing};
use crate::attacks::upstream::Upstream;
use crate::support::cache_dir::Stored;
use crate::support::client::exchange::request;

/// A kind of request of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    NarInfo,
    Nar,
    Upload,
    Fetch,
}

impl Task {
    pub const ALL: [Self; 4] = [Self::NarInfo, Self::Nar, Self::Upload, Self::Fetch];

    pub fn title(self) -> &'static str {
        match self {
            Self::NarInfo => "GET of a narinfo",
            Self::Nar => "GET of a NAR of 300 kB",
            Self::Upload => "upload of a path of 300 kB",
            Self::Fetch => "GET of a path of 300 kB from the upstream",
        }
    }
}

/// The number of narinfos that are read for each NAR, upload and fetch.
const NARINFOS: usize = 10;

/// The latencies of each task in microseconds, by its index in [`Task::ALL`].
pub type Latencies = [Vec<u32>; Task::ALL.len()];

/// Runs the tasks in turn for this time, each over a new connection.
pub fn work(
    address: SocketAddr,
    narinfos: &[Stored],
    upstream: Option<&Upstream>,
    time: Duration,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let begin = Instant::now();
    for number in 0.. {
        let (new, far) = prepare(number, upstream)?;
        let mut timed = |task: Task, what: &dyn Fn() -> anyhow::Result<()>| {
            let begin = Instant::now();
            what()?;
            let took = u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX);
            latencies[task as usize].push(took);
            anyhow::Ok(())
        };
        for index in 0..NARINFOS {
            let narinfo = &narinfos[(number * NARINFOS + index) % narinfos.len()];
            timed(Task::NarInfo, &|| get(address, &narinfo.path, Some(narinfo.size as usize)))?;
        }
        timed(Task::Upload, &|| {
            put(address, &new.nar_path, &new.nar)?;
            put(address, &new.narinfo_path, new.narinfo.as_bytes())
        })?;
        timed(Task::Nar, &|| get(address, &new.nar_path, Some(new.nar.len())))?;
        if let Some(far) = far {
            timed(Task::Fetch, &|| {
                // The daemon may add a line to a narinfo.
                get(address, &far.narinfo_path, None)?;
                get(address, &far.nar_path, Some(far.nar.len()))
            })?;
        }
        if begin.elapsed() >= time {
            break;
        }
    }
    Ok(latencies)
}

/// Creates a path to upload, and one that only the upstream has.
fn prepare(number: usize, upstream: Option<&Upstream>) -> anyhow::Result<(Object, Option<Object>)> {
    let new = Object::new("new", number, Packing::Zstd)?;
    let Some(upstream) = upstream else {
        return Ok((new, None));
    };
    let far = Object::new("far", number, Packing::Zstd)?;
    upstream.add(&far, false);
    Ok((new, Some(far)))
}

fn get(address: SocketAddr, path: &str, length: Option<usize>) -> anyhow::Result<()> {
    let answer = request(address, "GET", path, "", b"")?;
    ensure!(answer.status == 200, "{} for {path}", answer.status);
    let is_whole = length.is_none_or(|length| length == answer.body.len());
    ensure!(is_whole, "{} bytes for {path}", answer.body.len());
    Ok(())
}

fn put(address: SocketAddr, path: &str, body: &[u8]) -> anyhow::Result<()> {
    let answer = request(address, "PUT", path, "", body)?;
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status == 201, "{} for the upload of {path}: {text}", answer.status);
    Ok(())
}
