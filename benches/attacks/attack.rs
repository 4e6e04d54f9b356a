//! The attacks.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::ensure;

use crate::attacks::object::{Object, Packing, false_signature, public_key};
use crate::attacks::upstream::Upstream;
use crate::support::client::connect;
use crate::support::client::exchange::{TIMEOUT, request};

/// An attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    Uploads,
    Upstream,
    Signatures,
    Listings,
}

/// The number of slow uploads: more than there are decoders. Half of them are zstd, half xz.
const UPLOADS: usize = 64;

/// The number of bytes of such an upload that are sent at once, and the interval before each
/// further one.
const AT_ONCE: usize = 200_000;
const EVERY: Duration = Duration::from_millis(100);

/// The number of readers of NARs that the upstream sends slowly: more than there are decoders, and
/// fewer than the limit of concurrent requests to an upstream.
const READERS: usize = 40;

/// The number of viewers of a page, each of whom requests it again after every response.
const VIEWERS: usize = 48;

/// The number of concurrent uploads of a narinfo with thousands of signatures.
const SIGNERS: usize = 16;

/// The number of signatures of that narinfo, and of files in a listing.
const SIGNATURES: u64 = 9000;
const FILES: usize = 45_000;

/// The daemon under attack.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub address: SocketAddr,
    pub upstream: &'a Upstream,
}

/// A running attack.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<u64>>>,
}

impl Running {
    /// Ends the attack. Returns the number of requests that were answered.
    pub fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = 0;
        for thread in self.threads {
            answers += thread.join().map_err(|_| anyhow::anyhow!("an attacker panicked"))??;
        }
        Ok(answers)
    }
}

impl Attack {
    pub const ALL: [Self; 4] = [Self::Uploads, Self::Upstream, Self::Signatures, Self::Listings];

    pub fn title(self) -> String {
        match self {
            Self::Uploads => format!("{UPLOADS} uploads of NARs that trickle"),
            Self::Upstream => format!("{READERS} readers of NARs that trickle from an upstream"),
            Self::Signatures => format!(
                "{VIEWERS} views and {SIGNERS} uploads at a time of a narinfo with {SIGNATURES} \
                 signatures"
            ),
            Self::Listings => format!("{VIEWERS} views at a time of a listing of {FILES} files"),
        }
    }

    /// Whether the daemon has an upstream.
    pub fn needs_upstream(self) -> bool {
        self == Self::Upstream
    }

    /// The daemon's settings.
    pub fn settings(self, upstream: &Upstream) -> Vec<(&'static str, String)> {
        match self {
            Self::Upstream => vec![("NIX_STORED_UPSTREAMS", upstream.url())],
            Self::Signatures => vec![("NIX_STORED_TRUSTED_PUBLIC_KEYS", public_key())],
            Self::Uploads | Self::Listings => Vec::new(),
        }
    }

    /// Stores the objects that the attack needs in the cache.
    pub fn prepare(self, dir: &Path) -> anyhow::Result<()> {
        if !matches!(self, Self::Signatures | Self::Listings) {
            return Ok(());
        }
        let shown = shown()?;
        fs::write(dir.join(&shown.nar_path), &shown.nar)?;
        match self {
            Self::Signatures => fs::write(dir.join(&shown.narinfo_path), signed_often(&shown))?,
            _ => {
                fs::write(dir.join(&shown.narinfo_path), &shown.narinfo)?;
                fs::write(dir.join(format!("{}.ls", shown.hash_part)), listing())?;
            }
        }
        Ok(())
    }

    pub fn begin(self, target: Target<'_>) -> anyhow::Result<Running> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        match self {
            Self::Uploads => threads.push(upload_slowly(target.address, Arc::clone(&stop))?),
            Self::Upstream => threads.push(read_slowly(target, Arc::clone(&stop))?),
            Self::Signatures => {
                let shown = shown()?;
                views(target.address, &shown, &stop, &mut threads);
                let narinfo: Arc<[u8]> = signed_often(&shown).into_bytes().into();
                for _ in 0..SIGNERS {
                    let (path, narinfo) = (shown.narinfo_path.clone(), Arc::clone(&narinfo));
                    threads.push(again_and_again(&stop, move || {
                        let status = request(target.address, "PUT", &path, "", &narinfo)?.status;
                        ensure!(
                            [400, 413, 422].contains(&status),
                            "{status} for too many signatures"
                        );
                        Ok(())
                    }));
                }
            }
            Self::Listings => views(target.address, &shown()?, &stop, &mut threads),
        }
        Ok(Running { stop, threads })
    }
}

fn upload_slowly(
    address: SocketAddr,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<anyhow::Result<u64>>> {
    let mut uploads = Vec::new();
    for number in 0..UPLOADS {
        let packing = if number % 2 == 0 { Packing::Zstd } else { Packing::Xz };
        let object = Object::new("slow", number, packing)?;
        let mut stream = connect(address, TIMEOUT)?;
        let length = object.nar.len();
        write!(
            stream,
            "PUT /{} HTTP/1.1\r\nHost: cache\r\nContent-Length: {length}\r\n\r\n",
            object.nar_path
        )?;
        stream.write_all(&object.nar[..AT_ONCE])?;
        uploads.push((stream, object.nar));
    }
    Ok(std::thread::spawn(move || {
        for at in AT_ONCE.. {
            for (stream, nar) in &mut uploads {
                if stop.load(Ordering::Relaxed) {
                    return Ok(0);
                }
                ensure!(at + 1 < nar.len(), "an upload that trickles is over");
                stream.write_all(&nar[at..=at])?;
            }
            std::thread::sleep(EVERY);
        }
        Ok(0)
    }))
}

fn read_slowly(
    target: Target<'_>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<anyhow::Result<u64>>> {
    let mut readers = Vec::new();
    for number in 0..READERS {
        let object = Object::new("slow", number, Packing::Zstd)?;
        target.upstream.add(&object, true);
        let status = request(target.address, "GET", &object.narinfo_path, "", b"")?.status;
        ensure!(status == 200, "{status} for a narinfo of the upstream");
        let mut stream = connect(target.address, TIMEOUT)?;
        write!(stream, "GET /{} HTTP/1.1\r\nHost: cache\r\n\r\n", object.nar_path)?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        ensure!(head.ends_with(b"200"), "no NAR comes from the upstream");
        readers.push(stream);
    }
    Ok(std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        for reader in &readers {
            reader.set_nonblocking(true)?;
        }
        while !stop.load(Ordering::Relaxed) {
            for mut reader in &readers {
                match reader.read(&mut buffer) {
                    Ok(count) => ensure!(count > 0, "the daemon ended a slow NAR"),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            std::thread::sleep(EVERY);
        }
        Ok(0)
    }))
}

/// The path whose page is requested.
fn shown() -> anyhow::Result<Object> {
    Object::new("shown", 0, Packing::Zstd)
}

/// Its narinfo with invalid signatures only: such an upload is refused after all signatures were
/// checked.
fn signed_often(object: &Object) -> String {
    let fields = object.narinfo.split_inclusive('\n').filter(|line| !line.starts_with("Sig:"));
    fields.map(str::to_owned).chain((0..SIGNATURES).map(false_signature)).collect()
}

fn listing() -> String {
    let files: Vec<String> = (0..FILES)
        .map(|number| format!("\"{number:06}\":{{\"type\":\"symlink\",\"target\":\"x\"}}"))
        .collect();
    let files = files.join(",");
    format!("{{\"version\":1,\"root\":{{\"type\":\"directory\",\"entries\":{{{files}}}}}}}")
}

fn views(
    address: SocketAddr,
    object: &Object,
    stop: &Arc<AtomicBool>,
    threads: &mut Vec<JoinHandle<anyhow::Result<u64>>>,
) {
    for _ in 0..VIEWERS {
        let path = format!("browse/{}", object.hash_part);
        threads.push(again_and_again(stop, move || {
            let status = request(address, "GET", &path, "Accept: text/html\r\n", b"")?.status;
            ensure!([200, 503].contains(&status), "{status} for a page");
            Ok(())
        }));
    }
}

/// Calls a function until it is stopped, on a thread of low priority so that the measured client is
/// not delayed. Returns the number of calls.
fn again_and_again(
    stop: &Arc<AtomicBool>,
    mut work: impl FnMut() -> anyhow::Result<()> + Send + 'static,
) -> JoinHandle<anyhow::Result<u64>> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        // On Linux this is the priority of the thread.
        rustix::process::setpriority_process(None, 19)?;
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            work()?;
            count += 1;
        }
        Ok(count)
    })
}
