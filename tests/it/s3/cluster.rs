//! Three servers with three replicas, two daemons, and a balancer in front of each. One server and one daemon are
//! killed and restarted repeatedly while clients upload and substitute.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::commands::run;
use super::server::{assert_consistent, over};
use crate::support::daemon::Daemon;
use crate::support::nix::Nix;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::rounds::number;
use crate::support::s3_bucket::Bucket;
use crate::support::s3_garage::Garage;
use crate::support::server_process::ServerProcess;

/// The default of `NIX_STORED_TEST_CLUSTER_SECONDS`.
const SECONDS: u64 = 30;

/// How long a server or daemon is stopped, and how long all of them run between.
const AWAY: Duration = Duration::from_millis(2500);
const BACK: Duration = Duration::from_millis(1500);

/// The number of clients besides Nix.
const CLIENTS: u64 = 3;

/// The default of Nix's `download-attempts`.
const ATTEMPTS: usize = 5;

/// The daemons, each with a fixed address.
struct Daemons {
    bucket: Bucket,
    addresses: Vec<String>,
    running: Vec<Option<Daemon>>,
}

impl Daemons {
    fn start(bucket: Bucket, count: usize) -> Self {
        let first: Vec<Daemon> = (0..count).map(|_| over(&bucket).start()).collect();
        let address = |daemon: &Daemon| daemon.url().trim_start_matches("http://").to_owned();
        let addresses = first.iter().map(address).collect();
        Self { bucket, addresses, running: first.into_iter().map(Some).collect() }
    }

    fn kill(&mut self, which: usize) {
        self.running[which].take().expect("the process runs").kill();
    }

    fn restart(&mut self, which: usize) {
        let listen = &self.addresses[which];
        let daemon = over(&self.bucket).env("NIX_STORED_LISTEN_INTERFACE", listen).start();
        self.running[which] = Some(daemon);
    }
}

/// The results of the clients.
#[derive(Default)]
struct Work {
    stop: AtomicBool,
    acknowledged: Mutex<Vec<Sample>>,
    /// Closures copied by Nix in both directions.
    by_nix: AtomicUsize,
    /// Failures of clients, of which there should be none.
    failures: Mutex<Vec<String>>,
}

/// Ends the work on drop, also in a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Work {
    fn is_running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn failed(&self, what: String) {
        self.failures.lock().expect("the lock is not poisoned").push(what);
    }
}

/// Sends a request over a new connection. An incomplete response is an error.
fn request(address: &str, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response)?;
        Ok(response)
    };
    let response = ask().map_err(|error| format!("{method} {path}: {error}"))?;
    let end = response.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| format!("{method} {path}: no answer"))?;
    let head = String::from_utf8_lossy(&response[..end]).to_ascii_lowercase();
    let status = head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut lines = head.lines();
    let length: Option<usize> =
        lines.find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let body = response[end + 4..].to_vec();
    match length {
        Some(length) if body.len() != length => Err(format!("{method} {path}: cut short")),
        _ => Ok((status, body)),
    }
}

/// Downloads like Nix: errors are retried, and a 404 is not.
fn download(address: &str, path: &str) -> Result<Vec<u8>, String> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        match request(address, "GET", path, b"") {
            Ok((200, body)) => return Ok(body),
            Ok((status @ 400..500, _)) => return Err(format!("GET {path}: {status}")),
            Ok((status, _)) => last = format!("GET {path}: {status}"),
            Err(error) => last = error,
        }
        std::thread::sleep(Duration::from_millis(250 << attempt));
    }
    Err(last)
}

/// Uploads are not retried, because most versions of Nix cannot.
fn upload(address: &str, sample: &Sample) -> Result<(), String> {
    for (path, body) in [
        (&sample.nar_path, sample.nar.as_slice()),
        (&sample.narinfo_path, sample.narinfo.as_bytes()),
    ] {
        let (status, printed) = request(address, "PUT", path, body)?;
        if !matches!(status, 200 | 201) {
            return Err(format!("PUT {path}: {status} {}", String::from_utf8_lossy(&printed)));
        }
    }
    Ok(())
}

fn substitute(address: &str, sample: &Sample) -> Result<(), String> {
    if download(address, &sample.narinfo_path)? != sample.narinfo.as_bytes()
        || download(address, &sample.nar_path)? != sample.nar
    {
        return Err(format!("{} came out otherwise", sample.store_path));
    }
    Ok(())
}

/// Uploads paths of all sizes, and reads them and older ones.
fn client(address: &str, seed: u64, work: &Work) {
    let mut noise = Noise::new(seed);
    let mut mine: Vec<Sample> = Vec::new();
    while work.is_running() {
        let length = 100 + noise.below(if mine.len() % 8 == 7 { 8 << 20 } else { 200_000 });
        let contents = noise.bytes(length as usize);
        let new = sample(0, &contents).named(&mut noise);
        match upload(address, &new) {
            Ok(()) => {
                work.acknowledged.lock().expect("the lock is not poisoned").push(new.clone());
                mine.push(new);
            }
            Err(error) => work.failed(error),
        }
        for _ in 0..3.min(mine.len()) {
            let old = &mine[noise.below(mine.len() as u64) as usize];
            if let Err(error) = substitute(address, old) {
                work.failed(error);
            }
        }
    }
}

/// Copies small closures in both directions.
fn nix_client(url: &str, work: &Work) {
    for round in 0.. {
        if !work.is_running() {
            return;
        }
        let source = Nix::new();
        let paths = source.add_tiny_files(&format!("cluster-{round}"), 8);
        let copied = Nix::new();
        for (nix, direction) in [(&source, "--to"), (&copied, "--from")] {
            let words = ["nix", "copy", direction, url];
            let output = nix.run(&crate::support::nix::with_paths(&words, &paths));
            if !output.status.success() {
                work.failed(format!(
                    "nix copy {direction}: {}",
                    String::from_utf8_lossy(&output.stderr)
                ));
                return;
            }
        }
        copied.assert_has_the_same(&source, &paths);
        work.by_nix.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
#[ignore = "needs Garage: tests/run --garage"]
fn no_client_fails_and_nothing_is_lost_while_servers_and_daemons_restart() {
    let mut garage = Garage::start(3);
    let bucket = garage.bucket("cache");
    let nodes: Vec<String> = garage.addresses().iter().map(ToString::to_string).collect();
    let servers = ServerProcess::balancer(&nodes);
    let bucket = bucket.through(servers.address().parse().expect("an address"));
    let mut daemons = Daemons::start(bucket.clone(), 2);
    let balancer = ServerProcess::balancer(&daemons.addresses);
    let (address, url) = (balancer.address(), format!("http://{}", balancer.address()));

    let seconds = number("NIX_STORED_TEST_CLUSTER_SECONDS").unwrap_or(SECONDS);
    let work = Work::default();
    std::thread::scope(|scope| {
        for seed in 1..=CLIENTS {
            let (address, work) = (&address, &work);
            scope.spawn(move || client(address, seed, work));
        }
        scope.spawn(|| nix_client(&url, &work));
        let _stop = Stop(&work.stop);
        let started = Instant::now();
        let mut noise = Noise::new(Noise::random_seed());
        while started.elapsed() < Duration::from_secs(seconds) {
            let (node, daemon) = (noise.below(3) as usize, noise.below(2) as usize);
            garage.kill(node);
            std::thread::sleep(AWAY / 2);
            daemons.kill(daemon);
            std::thread::sleep(AWAY / 2);
            daemons.restart(daemon);
            std::thread::sleep(BACK);
            // Waits until the node is healthy, because stopping another one before would leave no
            // quorum.
            garage.restart(node);
            std::thread::sleep(BACK);
        }
    });

    let failures = work.failures.into_inner().expect("the lock is not poisoned");
    assert!(failures.is_empty(), "{failures:#?}\n{}\n{}", balancer.log(), servers.log());
    let acknowledged = work.acknowledged.into_inner().expect("the lock is not poisoned");
    assert!(acknowledged.len() > 10, "{} paths in {seconds} s", acknowledged.len());
    assert!(work.by_nix.load(Ordering::SeqCst) > 0, "Nix did not finish");
    for address in &daemons.addresses {
        for sample in &acknowledged {
            substitute(address, sample).unwrap();
        }
    }
    assert!(assert_consistent(&bucket) >= acknowledged.len());
    run(&bucket, &["verify", "--deep"]).is(0).prints("no damage");
    eprintln!(
        "{} paths by clients, {} closures by Nix, in {seconds} s",
        acknowledged.len(),
        work.by_nix.load(Ordering::SeqCst)
    );
}
