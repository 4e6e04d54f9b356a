//! Uploads to the daemon.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::support::bench::{Bench, Place};
use crate::support::client::head::Head;
use crate::support::client::{HEADERS, connect};
use crate::support::daemon::Daemon;
use crate::verification::body::Body;

/// The limit for a response. Many concurrent large uploads wait for the same disk.
const TO_ANSWER: Duration = Duration::from_secs(900);

impl Daemon {
    /// Starts a daemon on a new directory, with this depth of verification.
    pub fn verifying(bench: &Bench, verify: &str, place: Place) -> anyhow::Result<Self> {
        Self::start(bench, bench.fresh_dir("cache")?, &[("NIX_STORED_VERIFY", verify)], place)
    }

    /// Uploads a file over a new connection.
    pub fn put(&self, body: &Body) -> anyhow::Result<()> {
        let mut stream = connect(self.address(), TO_ANSWER)?;
        let head =
            format!("PUT /{} HTTP/1.1\r\n{HEADERS}Content-Length: {}\r\n\r\n", body.key, body.size);
        stream.write_all(head.as_bytes())?;
        let file = File::open(&body.file)?;
        let mut missing = body.size;
        // sendfile from the page cache costs the client little.
        while missing > 0 {
            let most = usize::try_from(missing.min(1 << 30))?;
            let sent = rustix::fs::sendfile(&stream, &file, None, most).context("sending")?;
            ensure!(sent > 0, "{} became shorter", body.file.display());
            missing -= sent as u64;
        }
        let mut answer = [0; 16 * 1024];
        let mut filled = 0;
        loop {
            let count = stream.read(&mut answer[filled..]).context("reading the answer")?;
            ensure!(count > 0, "the daemon closed the connection");
            filled += count;
            if let Some(head) = Head::parse(&answer[..filled])? {
                let text = String::from_utf8_lossy(&answer[..filled]);
                // The status of a second upload under one name differs from that of the first.
                ensure!(matches!(head.status, 200 | 201 | 204), "an upload was answered {text}");
                return Ok(());
            }
        }
    }

    /// The file of an object.
    pub fn stored(&self, body: &Body) -> PathBuf {
        self.dir().join(&body.key)
    }

    /// Checks that the file exists, and frees its space. Its inode stays until the end, because
    /// ext4 is slow to reuse inodes.
    pub fn forget(self, body: &Body) -> anyhow::Result<()> {
        let path = self.stored(body);
        drop(self);
        empty(&path, body.size)
    }
}

fn empty(path: &Path, size: u64) -> anyhow::Result<()> {
    let file = File::options().write(true).open(path)?;
    ensure!(file.metadata()?.len() == size, "the daemon has stored something else");
    Ok(file.set_len(0)?)
}
