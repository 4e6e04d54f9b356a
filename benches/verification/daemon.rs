//! The daemon under measurement, and uploads to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Pid;

use crate::bench::{Bench, Place};
use crate::body::Body;
use crate::client::HEADERS;
use crate::client::head::Head;
use crate::process::{Memory, cpu_seconds, resident_mib};
use crate::scratch::Leash;

/// How long the daemon may take to listen.
const TO_START: Duration = Duration::from_secs(20);

/// How long it may take to answer. Many large uploads at once wait for the disk, one for all.
const TO_ANSWER: Duration = Duration::from_secs(900);

/// Killed on drop: nobody waits for what is under way.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
    log: PathBuf,
    _leash: Leash,
}

impl Daemon {
    /// Starts one over a fresh directory and waits until it listens. It has none of the caller's own
    /// settings, nor of a service manager's.
    pub fn start(bench: &Bench, verify: &str, place: Place) -> anyhow::Result<Self> {
        let dir = bench.fresh_dir("cache")?;
        let log = dir.with_extension("log");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nix-stored"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["NIX_STORED_", "LISTEN_", "NOTIFY_", "WATCHDOG_"]
                .iter()
                .any(|it| text.starts_with(it))
            {
                command.env_remove(&name);
            }
        }
        command
            .env("NIX_STORED_PATH", &dir)
            .env("NIX_STORED_LISTEN_INTERFACE", format!("127.0.0.1:{port}"))
            .env("NIX_STORED_VERIFY", verify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = bench.spawn(&mut command, place)?;
        let leash = bench.scratch.leash(Pid::from_child(&child))?;
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut daemon = Self { child, dir, address, log, _leash: leash };
        daemon.wait_until_it_listens()?;
        Ok(daemon)
    }

    fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the daemon does not start: {status}\n{log}");
            }
            ensure!(begin.elapsed() < TO_START, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// User and system CPU seconds so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(&[Pid::from_child(&self.child)])
    }

    /// Resident memory in MiB.
    pub fn resident_mib(&self, which: Memory) -> anyhow::Result<f64> {
        resident_mib(&[Pid::from_child(&self.child)], which)
    }

    /// Uploads a file over a connection of its own.
    pub fn put(&self, body: &Body) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TO_ANSWER))?;
        stream.set_write_timeout(Some(TO_ANSWER))?;
        let head =
            format!("PUT /{} HTTP/1.1\r\n{HEADERS}Content-Length: {}\r\n\r\n", body.key, body.size);
        stream.write_all(head.as_bytes())?;
        let file = File::open(&body.file)?;
        let mut missing = body.size;
        // The page cache goes to the socket as it is, so that the client costs next to nothing.
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
                // The second upload under one name is told apart from the first.
                ensure!(matches!(head.status, 200 | 201 | 204), "an upload was answered {text}");
                return Ok(());
            }
        }
    }

    /// Where it keeps an object.
    pub fn stored(&self, body: &Body) -> PathBuf {
        self.dir.join(&body.key)
    }

    /// Checks that a file is there, and gives its space back. Its inode stays until the end, because
    /// ext4 takes its time before it uses one again.
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

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
