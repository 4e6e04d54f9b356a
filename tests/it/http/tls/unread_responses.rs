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

struct TlsSetup {
    authority: Authority,
    daemon: Daemon,
    runtime: Runtime,
}

impl TlsSetup {
    /// A daemon with the default limit of open files of most systems.
    fn new() -> Self {
        let authority = Authority::new();
        let daemon = signed_by(&authority).file_limit(1024).start();
        Self { authority, daemon, runtime: Runtime::new().expect("the runtime starts") }
    }

    fn address(&self) -> &str {
        self.daemon.url().trim_start_matches("https://")
    }

    fn store(&self, sample: &Sample) {
        let file = tempfile::NamedTempFile::new().expect("created");
        std::fs::write(file.path(), &sample.nar).expect("written");
        let name = file.path().to_str().expect("UTF-8");
        let url = format!("{}{}", self.daemon.url(), sample.nar_path);
        curl(&self.authority, &url, &["-T", name]).is(201);
    }

    /// Requests an object on every stream of every connection, with this window for each response.
    fn ask(&self, path: &str, window: u32) -> Vec<(Http2, Vec<ResponseFuture>)> {
        let connection = async || {
            let mut client = Http2::connect(self.address(), &self.authority, window).await;
            let mut responses = Vec::new();
            for _ in 0..STREAMS {
                responses.push(client.send("GET", path).await);
            }
            (client, responses)
        };
        self.runtime.block_on(join_all((0..CONNECTIONS).map(|_| connection())))
    }

    /// The heads of all responses, whose bodies are not read.
    fn heads(&self, requests: &mut [(Http2, Vec<ResponseFuture>)]) -> Vec<RecvStream> {
        let responses = requests.iter_mut().flat_map(|(_, responses)| responses.drain(..));
        let responses = self.runtime.block_on(join_all(responses));
        let body = |response: Result<Response<RecvStream>, h2::Error>| {
            let response = response.expect("a response arrives");
            assert_eq!(response.status(), 200);
            response.into_body()
        };
        responses.into_iter().map(body).collect()
    }

    /// Checks that other clients are served.
    #[track_caller]
    fn assert_serves(&self, sample: &Sample) {
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
    let setup = TlsSetup::new();
    let large = sample(1, &Noise::new(1).bytes(2 << 20));
    setup.store(&large);
    setup.assert_serves(&large);
    let (files, memory) = (setup.daemon.open_files(), setup.daemon.peak_memory());
    let mut requests = setup.ask(&large.nar_path, 0);
    let bodies = setup.heads(&mut requests);
    assert_eq!(bodies.len(), CONNECTIONS * STREAMS);
    setup.assert_serves(&large);
    let more = setup.daemon.open_files().saturating_sub(files);
    assert!(more < CONNECTIONS + 16, "{more} more files are open");
    let cost = setup.daemon.peak_memory() - memory;
    assert!(cost < 32 << 20, "{cost} bytes");
}

#[test]
fn responses_that_are_read_by_a_byte_share_one_budget() {
    let setup = TlsSetup::new();
    let large = sample(1, &Noise::new(1).bytes(2 << 20));
    setup.store(&large);
    setup.assert_serves(&large);
    let (files, memory) = (setup.daemon.open_files(), setup.daemon.peak_memory());
    let mut requests = setup.ask(&large.nar_path, 1);
    let _bodies = setup.heads(&mut requests);
    setup.assert_serves(&large);
    // Half of the 256 descriptors that are not for connections.
    let more = setup.daemon.open_files().saturating_sub(files);
    assert!(more < 128 + CONNECTIONS + 32, "{more} more files are open");
    // 64 MiB for all connections, a chunk for each, and the memory for other requests.
    let cost = setup.daemon.peak_memory() - memory;
    assert!(cost < 128 << 20, "{cost} bytes");
}

#[test]
fn unread_responses_from_memory_are_made_when_there_is_room() {
    let setup = TlsSetup::new();
    let small = sample(1, &Noise::new(1).bytes(30 << 10));
    setup.store(&small);
    setup.assert_serves(&small);
    let (files, memory) = (setup.daemon.open_files(), setup.daemon.peak_memory());
    let _asked = setup.ask(&small.nar_path, 0);
    setup.assert_serves(&small);
    let more = setup.daemon.open_files().saturating_sub(files);
    assert!(more < CONNECTIONS + 32, "{more} more files are open");
    let cost = setup.daemon.peak_memory() - memory;
    assert!(cost < 48 << 20, "{cost} bytes");
}

#[test]
fn at_the_connection_limit_the_longest_idle_http_2_connection_gets_goaway() {
    let authority = Authority::new();
    // This allows 16 connections.
    let daemon = signed_by(&authority).file_limit(272).start();
    let setup =
        TlsSetup { authority, daemon, runtime: Runtime::new().expect("the runtime starts") };
    setup.runtime.block_on(async {
        let mut idle = Vec::new();
        for _ in 0..16 {
            let mut client = Http2::connect(setup.address(), &setup.authority, 1 << 20).await;
            assert_eq!(client.get("/nix-cache-info").await.status(), 200);
            idle.push(client);
            // So that the order of idle times is unambiguous.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut newcomer = Http2::connect(setup.address(), &setup.authority, 1 << 20).await;
        assert_eq!(newcomer.get("/nix-cache-info").await.status(), 200);
        let longest = idle.remove(0);
        // The last frame may be sent to a closed connection.
        let result = longest.result.await.expect("no panic");
        assert!(result.err().is_none_or(|error| error.is_io()));
        for client in idle.iter_mut().chain([&mut newcomer]) {
            assert_eq!(client.get("/nix-cache-info").await.status(), 200);
        }
    });
}
