//! HTTP/2 clients that read nothing or almost nothing of many responses at a time.

use std::time::Duration;

use futures_util::future::join_all;
use h2::RecvStream;
use h2::client::ResponseFuture;
use http::Response;
use tokio::runtime::Runtime;

use super::{curl, signed_by};
use crate::support::certificates::Authority;
use crate::support::daemon::Daemon;
use crate::support::http2::Http2;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};

const CONNECTIONS: usize = 8;
const STREAMS: usize = 128;

struct World {
    authority: Authority,
    daemon: Daemon,
    runtime: Runtime,
}

impl World {
    /// A daemon that may have as many files open as most systems allow without being asked.
    fn new() -> Self {
        let authority = Authority::new();
        let daemon = signed_by(&authority).file_limit(1024).start();
        Self { authority, daemon, runtime: Runtime::new().expect("a runtime starts") }
    }

    fn address(&self) -> &str {
        self.daemon.url().trim_start_matches("https://")
    }

    fn store(&self, sample: &Sample) {
        let file = tempfile::NamedTempFile::new().expect("it can be made");
        std::fs::write(file.path(), &sample.nar).expect("written");
        let name = file.path().to_str().expect("UTF-8");
        let url = format!("{}{}", self.daemon.url(), sample.nar_path);
        curl(&self.authority, &url, &["-T", name]).is(201);
    }

    /// Asks for an object as often as can be, with this window for each answer.
    fn ask(&self, path: &str, window: u32) -> Vec<(Http2, Vec<ResponseFuture>)> {
        let connection = async || {
            let mut client = Http2::connect(self.address(), &self.authority, window).await;
            let mut answers = Vec::new();
            for _ in 0..STREAMS {
                answers.push(client.send("GET", path).await);
            }
            (client, answers)
        };
        self.runtime.block_on(join_all((0..CONNECTIONS).map(|_| connection())))
    }

    /// The heads of all answers, whose bodies nobody takes.
    fn heads(&self, asked: &mut [(Http2, Vec<ResponseFuture>)]) -> Vec<RecvStream> {
        let answers = asked.iter_mut().flat_map(|(_, answers)| answers.drain(..));
        let answers = self.runtime.block_on(join_all(answers));
        let body = |answer: Result<Response<RecvStream>, h2::Error>| {
            let answer = answer.expect("it answers");
            assert_eq!(answer.status(), 200);
            answer.into_body()
        };
        answers.into_iter().map(body).collect()
    }

    /// Others get what they want.
    #[track_caller]
    fn serves(&self, sample: &Sample) {
        let url = self.daemon.url();
        for version in ["--http1.1", "--http2"] {
            let nar = curl(&self.authority, &format!("{url}{}", sample.nar_path), &[version]);
            assert!(nar.is(200).body == sample.nar, "{version}");
            let health = curl(&self.authority, &format!("{url}/health"), &[version]).is(200);
            assert!(health.text().contains("\"status\":\"ok\""), "{}", health.text());
        }
    }
}

#[test]
fn unread_responses_hold_no_file_and_no_content() {
    let world = World::new();
    let large = sample(1, &Noise::new(1).bytes(2 << 20));
    world.store(&large);
    world.serves(&large);
    let (files, memory) = (world.daemon.open_files(), world.daemon.peak_memory());
    let mut asked = world.ask(&large.nar_path, 0);
    let bodies = world.heads(&mut asked);
    assert_eq!(bodies.len(), CONNECTIONS * STREAMS);
    world.serves(&large);
    let more = world.daemon.open_files().saturating_sub(files);
    assert!(more < CONNECTIONS + 16, "{more} more files are open");
    let cost = world.daemon.peak_memory() - memory;
    assert!(cost < 32 << 20, "{cost} bytes");
}

#[test]
fn responses_that_are_read_by_a_byte_share_one_budget() {
    let world = World::new();
    let large = sample(1, &Noise::new(1).bytes(2 << 20));
    world.store(&large);
    world.serves(&large);
    let (files, memory) = (world.daemon.open_files(), world.daemon.peak_memory());
    let mut asked = world.ask(&large.nar_path, 1);
    let _bodies = world.heads(&mut asked);
    world.serves(&large);
    // Half of the 256 that are not for connections.
    let more = world.daemon.open_files().saturating_sub(files);
    assert!(more < 128 + CONNECTIONS + 32, "{more} more files are open");
    // 64 MiB for all, a chunk for each connection, and what the others take.
    let cost = world.daemon.peak_memory() - memory;
    assert!(cost < 128 << 20, "{cost} bytes");
}

#[test]
fn unread_responses_from_memory_are_made_when_there_is_room() {
    let world = World::new();
    let small = sample(1, &Noise::new(1).bytes(30 << 10));
    world.store(&small);
    world.serves(&small);
    let (files, memory) = (world.daemon.open_files(), world.daemon.peak_memory());
    let _asked = world.ask(&small.nar_path, 0);
    world.serves(&small);
    let more = world.daemon.open_files().saturating_sub(files);
    assert!(more < CONNECTIONS + 32, "{more} more files are open");
    let cost = world.daemon.peak_memory() - memory;
    assert!(cost < 48 << 20, "{cost} bytes");
}

#[test]
fn at_the_connection_limit_the_longest_idle_http_2_connection_gets_goaway() {
    let authority = Authority::new();
    // Room for 16 connections.
    let daemon = signed_by(&authority).file_limit(272).start();
    let world = World { authority, daemon, runtime: Runtime::new().expect("a runtime starts") };
    world.runtime.block_on(async {
        let mut idle = Vec::new();
        for _ in 0..16 {
            let mut client = Http2::connect(world.address(), &world.authority, 1 << 20).await;
            assert_eq!(client.get("/nix-cache-info").await.status(), 200);
            idle.push(client);
            // So that it is clear which one has been idle for longer.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut newcomer = Http2::connect(world.address(), &world.authority, 1 << 20).await;
        assert_eq!(newcomer.get("/nix-cache-info").await.status(), 200);
        let longest = idle.remove(0);
        // Its last word may find nobody who listens.
        let ended = longest.ended.await.expect("no panic");
        assert!(ended.err().is_none_or(|error| error.is_io()));
        for client in idle.iter_mut().chain([&mut newcomer]) {
            assert_eq!(client.get("/nix-cache-info").await.status(), 200);
        }
    });
}
