//! The daemon is killed during uploads, and started again.
//!
//! The time of the kill is random. A failing round prints its seed, and
//! `NIX_STORED_TEST_KILL_SEED=<seed> NIX_STORED_TEST_KILL_ROUNDS=1` starts with it, though threads
//! are scheduled differently. The long run is `NIX_STORED_TEST_KILL_ROUNDS=200 cargo test --test it
//! durability::kill`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix_stored::nix::StorePathHash;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::cache_dir::{assert_consistent, assert_staging_is_empty, staging};
use crate::support::daemon::{Daemon, requests};
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::rounds::{KillRounds, SeedOfFailure};
use crate::support::scratch::{KillAtExit, Scratch};
use crate::support::wire::Wire;

/// The number of connections that upload samples, besides those of Nix.
const CONNECTIONS: usize = 4;

/// The size of the pieces in which a body is sent. The daemon may be killed after each.
const PIECE: usize = 16 * 1024;

/// Every other connection uploads samples of this length up to twice this length, so that nearly
/// always an upload is in progress. The others upload small ones.
const LARGE: u64 = 300 * 1024;

/// The maximum number of pieces and acknowledgements before the kill.
const MOMENTS: u64 = 400;

/// The maximum number of samples before the kill, even if each is one piece.
const SAMPLES: usize = MOMENTS as usize + CONNECTIONS;

#[test]
fn a_killed_daemon_has_no_damaged_objects_and_all_acknowledged_ones() {
    let kills = KillRounds::from_env();
    let source = Source::new();
    let mut total = Round::default();
    for seed in kills.seeds() {
        let _seed = SeedOfFailure(seed);
        let round = kill_and_restart(seed, &source);
        total.acknowledged += round.acknowledged;
        total.torn += round.torn;
    }
    let KillRounds { rounds, first } = kills;
    eprintln!("{rounds} rounds from seed {first}: {total:?}");
    assert!(rounds == 0 || total.acknowledged > 0, "every kill came before the first upload");
    // In ten rounds it can happen that no kill hits an upload. In fifty it does not.
    assert!(rounds < 50 || total.torn > 0, "no kill hit an upload on its way");
}

/// The result of one round, or of all.
#[derive(Debug, Default)]
struct Round {
    /// The number of acknowledged uploads.
    acknowledged: usize,
    /// The number of uploads that the kill left in the staging folder.
    torn: usize,
}

/// A store to copy from: a closure, small paths and a large one, the same in all rounds.
struct Source {
    nix: Nix,
    paths: Vec<String>,
}

impl Source {
    fn new() -> Self {
        let nix = fixture().reader();
        let shared = fixture().all();
        nix.copy_from_store(&fixture().nix(), &shared);
        let tiny = nix.add_tiny_files("kill", 12);
        let large = nix.add_big_file(3);
        let paths = nix.closure(&[shared, tiny, vec![large]].concat());
        Self { nix, paths }
    }
}

/// Kills the daemon after a number of steps.
struct Trigger {
    daemon: Pid,
    moments_left: AtomicU64,
}

impl Trigger {
    /// Counts a sent piece or a received response.
    fn moment(&self) {
        let left = self.moments_left.fetch_sub(1, Ordering::SeqCst);
        if left == 1 {
            kill_process(self.daemon, Signal::KILL).expect("the daemon is still there");
        }
    }
}

fn kill_and_restart(seed: u64, source: &Source) -> Round {
    let mut noise = Noise::new(seed);
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let address = daemon.url().trim_start_matches("http://").to_owned();
    let trigger =
        Trigger { daemon: daemon.pid(), moments_left: AtomicU64::new(1 + noise.below(MOMENTS)) };
    let seeds: Vec<u64> = (0..CONNECTIONS).map(|_| noise.next()).collect();
    // The number of paths that Nix has uploaded when the other clients start; may be 0.
    let nix_is_at = noise.below(source.paths.len() as u64 + 1) as usize;

    let home = source.nix.fresh_home();
    let mut nix = home.command("nix");
    nix.args(with_paths(
        &["copy", "--to", &format!("{}?compression=zstd", daemon.url())],
        &source.paths,
    ));
    let mut nix = nix.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("Nix starts");
    let guard = KillAtExit::new(Pid::from_child(&nix));
    let start = Barrier::new(CONNECTIONS + 1);
    let acknowledged: Vec<Object> = std::thread::scope(|scope| {
        let uploaders: Vec<_> = seeds
            .into_iter()
            .enumerate()
            .map(|(number, seed)| {
                let (trigger, start, address) = (&trigger, &start, &address);
                let samples = Samples { noise: Noise::new(seed), large: number % 2 == 0 };
                scope.spawn(move || upload_until_killed(samples, address, start, trigger))
            })
            .collect();
        if let Some(path) = source.paths.get(nix_is_at) {
            let hash_part = &path["/nix/store/".len()..][..32];
            daemon.wait_for_log(&format!("/{hash_part}.narinfo"));
        }
        start.wait();
        let joined =
            uploaders.into_iter().map(|one| one.join().expect("the uploader does not panic"));
        joined.flatten().collect()
    });
    // The daemon is dead before the last uploader noticed it, so this is not a second kill. Nix is
    // killed too, as in a crash of its machine.
    let _ = nix.kill();
    nix.wait().expect("a child process");
    drop(guard);
    let address_of_dead = daemon.url().to_owned();
    let (status, log) = daemon.stop();
    assert!(status.code().is_none(), "{address_of_dead} ended by itself, {status}:\n{log}");

    let torn = staging(&dir).iter().filter(|name| !name.ends_with('/')).count();
    // The cache is consistent even before the daemon has started again.
    assert_consistent(&dir);
    let daemon = Daemon::builder().dir(&dir).start();
    assert_staging_is_empty(&dir);
    let narinfos = assert_consistent(&dir);
    for object in &acknowledged {
        let response = Wire::to(&daemon).request("GET", &object.path, b"");
        assert_eq!(response.status, 200, "{} was acknowledged", object.path);
        assert!(response.body == object.bytes, "{} is not what was uploaded", object.path);
    }
    // The responses to Nix are in the log.
    let printed = requests(&log);
    let printed = printed.iter().filter(|one| one.method == "PUT" && one.status.starts_with('2'));
    for request in printed.filter(|request| request.path != "/nix-cache-info") {
        let file = dir.join(&request.path[1..]);
        assert!(file.exists(), "{} was acknowledged", request.path);
    }

    let again = source.nix.fresh_home();
    again.copy_to(&format!("{}?compression=zstd", daemon.url()), &source.paths);
    let reader = Nix::new().substituting_from(daemon.url(), fixture().public_key());
    reader.realise(&source.paths);
    reader.assert_has_the_same(&source.nix, &source.paths);
    assert!(assert_consistent(&dir) >= narinfos.max(source.paths.len()));
    assert_staging_is_empty(&dir);
    Round { acknowledged: acknowledged.len(), torn }
}

/// An acknowledged upload.
struct Object {
    path: String,
    bytes: Vec<u8>,
}

/// Uploads samples, each a NAR and then its narinfo, until the daemon is killed.
fn upload_until_killed(
    samples: Samples,
    address: &str,
    start: &Barrier,
    trigger: &Trigger,
) -> Vec<Object> {
    let stream = TcpStream::connect(address).expect("the daemon accepts connections");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("the timeout is set");
    let mut acknowledged = Vec::new();
    start.wait();
    for sample in samples.take(SAMPLES) {
        let uploads =
            [(sample.nar_path, sample.nar), (sample.narinfo_path, sample.narinfo.into_bytes())];
        for (path, bytes) in uploads {
            match put(&stream, &path, &bytes, trigger) {
                Ok(status) => {
                    assert!((200..300).contains(&status), "{path}: {status}");
                    acknowledged.push(Object { path, bytes });
                    trigger.moment();
                }
                Err(error) => {
                    let patience = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
                    assert!(!patience.contains(&error.kind()), "{path}: no answer");
                    return acknowledged;
                }
            }
        }
    }
    panic!("{SAMPLES} samples were uploaded, and the daemon was not killed")
}

/// Generates unique paths.
struct Samples {
    noise: Noise,
    large: bool,
}

impl Iterator for Samples {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        let noise = &mut self.noise;
        let length = if self.large {
            LARGE + noise.below(LARGE)
        } else {
            let most = [100, 20_000, 100_000][noise.below(3) as usize];
            noise.below(most)
        };
        let contents = noise.bytes(length as usize);
        let mut sample = sample(0, &contents);
        let nobody = StorePathHash::new([0; 20]).to_string();
        let mut own = [0; 20];
        own.copy_from_slice(&noise.bytes(20));
        let own = StorePathHash::new(own).to_string();
        for text in [&mut sample.store_path, &mut sample.narinfo_path, &mut sample.narinfo] {
            *text = text.replace(&nobody, &own);
        }
        Some(sample)
    }
}

/// Uploads an object, and returns the status of the response. An error means that the daemon was
/// killed.
fn put(mut stream: &TcpStream, path: &str, body: &[u8], trigger: &Trigger) -> io::Result<u16> {
    let length = body.len();
    write!(stream, "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")?;
    for piece in body.chunks(PIECE) {
        stream.write_all(piece)?;
        trigger.moment();
    }
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        response.push(byte[0]);
    }
    let head = String::from_utf8(response).expect("a head is ASCII");
    let lower = head.to_ascii_lowercase();
    let rest = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; rest.map_or(0, |digits| digits.parse().expect("digits"))];
    stream.read_exact(&mut body)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(status.expect("a response has a status"))
}
