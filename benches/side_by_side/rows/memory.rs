//! Resident memory. Each state has a new server, so that none inherits the peak of another.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::side_by_side::comparison::{Comparison, Meter};
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::side_by_side::server::{Kind, Server};
use crate::support::cache_dir::{Stored, hash_part, write_large, write_narinfos};
use crate::support::client::connection::Connection;
use crate::support::nar::Large;
use crate::support::process::{Memory, resident_mib};
use crate::support::sample::Sample;

/// An upper bound of a server's open files besides its connections.
const OTHER_FILES: u64 = 200;

/// All four states.
pub fn resident(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let dir = comparison.fresh_dir("memory")?;
    // With open_file_cache, nginx keeps a file open for each of them besides the connection.
    let narinfos = write_narinfos(&dir, comparison.sizes.narinfos / 2)?;
    let nar = Large::new(comparison.sizes.large);
    let stored = write_large(&dir, &nar)?;
    let count = comparison.sizes.kept_alive;
    ensure!(
        comparison.open_files >= (count + narinfos.len()) as u64 + OTHER_FILES,
        "needs {count} open connections, {} open files and some more; `ulimit -Hn` is {}",
        narinfos.len(),
        comparison.open_files
    );
    let samples = comparison.take_turns(|kind| {
        let turn = Turn { comparison, kind, dir: &dir };
        Ok(vec![
            turn.idle()?,
            turn.keeping_alive(count, &narinfos)?,
            turn.slow_downloads(&stored)?,
            turn.half_uploads()?,
        ])
    })?;
    let line = |index, what: &str, most| {
        let label = format!("resident memory: {what}");
        Line::new(label, Unit::Mib, Goal::AtMost(most), &samples, index)
    };
    Ok(vec![
        line(0, "idle", 16.0),
        line(1, &format!("{count} keep-alive connections"), 128.0),
        line(2, &format!("{DOWNLOADS} parallel NAR downloads"), 64.0),
        line(3, &format!("{UPLOADS} parallel uploads"), 128.0),
    ])
}

const DOWNLOADS: usize = 64;
const UPLOADS: usize = 32;

struct Turn<'a> {
    comparison: &'a Comparison,
    kind: Kind,
    dir: &'a Path,
}

impl Turn<'_> {
    fn idle(&self) -> anyhow::Result<Sample> {
        let server = Server::start(self.comparison, self.kind, self.dir)?;
        let meter = Meter::start(&server)?;
        std::thread::sleep(Duration::from_secs(1));
        sample(&meter, Memory::Now)
    }

    /// Idle connections after one request each.
    fn keeping_alive(&self, count: usize, narinfos: &[Stored]) -> anyhow::Result<Sample> {
        // nginx closes idle connections if fewer than a sixteenth of its connections are free.
        let room = count + count / 8 + OTHER_FILES as usize;
        let server = Server::start_for(self.comparison, self.kind, self.dir, room)?;
        let meter = Meter::start(&server)?;
        let mut buffer = vec![0; 16 * 1024];
        let mut connections = Vec::new();
        for number in 0..count {
            let mut connection = Connection::open(server.address())?;
            let narinfo = &narinfos[number % narinfos.len()];
            connection.get(narinfo, &mut buffer).with_context(|| format!("connection {number}"))?;
            connections.push(connection);
        }
        // All connections are still served.
        connections
            .iter_mut()
            .try_for_each(|it| it.get(&narinfos[0], &mut buffer))
            .context("a connection that was kept alive")?;
        sample(&meter, Memory::Peak)
    }

    /// Slow downloads of one NAR.
    fn slow_downloads(&self, nar: &Stored) -> anyhow::Result<Sample> {
        let server = Server::start(self.comparison, self.kind, self.dir)?;
        let meter = Meter::start(&server)?;
        let mut connections = Vec::new();
        for _ in 0..DOWNLOADS {
            let mut connection = Connection::open(server.address())?;
            connection.ask(&nar.path)?;
            connections.push(connection);
        }
        let mut buffer = vec![0; 64 * 1024];
        let begin = Instant::now();
        let mut read = 0;
        // At most half of the NAR, so that the transfers do not end.
        while begin.elapsed() < self.comparison.sizes.slow_reading && read < nar.size / 2 {
            for connection in &mut connections {
                connection.read_some(&mut buffer)?;
            }
            read += buffer.len() as u64;
            std::thread::sleep(Duration::from_millis(5));
        }
        sample(&meter, Memory::Peak)
    }

    /// Incomplete uploads on open connections.
    fn half_uploads(&self) -> anyhow::Result<Sample> {
        let dir = self.comparison.fresh_dir("half-uploads")?;
        let server = Server::start(self.comparison, self.kind, &dir)?;
        let meter = Meter::start(&server)?;
        let half = self.comparison.sizes.half_upload;
        // Not larger, because the daemon reserves the space at the beginning.
        let nar = Large::new(2 * half);
        let mut connections = Vec::new();
        for number in 0..UPLOADS {
            let mut connection = Connection::open(server.address())?;
            // A valid name. A mismatch is noticed only at the end.
            let path = format!("nar/{number:0>20}{}.nar", hash_part("half", number));
            connection.begin_put(&path, nar.length())?;
            connections.push(connection);
        }
        let mut sent = 0;
        for piece in nar.pieces() {
            if sent >= half {
                break;
            }
            connections.iter_mut().try_for_each(|it| it.send(piece))?;
            sent += piece.len() as u64;
        }
        // Waits until the bytes in the sockets have arrived.
        std::thread::sleep(Duration::from_millis(500));
        sample(&meter, Memory::Peak)
    }
}

fn sample(meter: &Meter<'_>, which: Memory) -> anyhow::Result<Sample> {
    let (wall, cpu) = meter.read()?;
    Ok(Sample { value: resident_mib(meter.server.pids(), which)?, wall, cpu })
}
