//! Start, `100 Continue`, slow clients, and shutdown, over real sockets.

use std::sync::Arc;
use std::time::Duration;

use nix_stored::cache::Cache;
use nix_stored::config::{Config, Listen};
use nix_stored::http::AppState;
use nix_stored::net::{self, Drained, Listener};
use nix_stored::store::FsStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::support::daemon::Daemon;
use crate::support::objects::sample;
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

#[test]
fn the_first_log_lines_say_what_to_type() {
    let daemon = Daemon::start();
    let log = daemon.log();
    let url = daemon.url();
    daemon.wait_for_log(&format!("nix copy --to {url}"));
    daemon.wait_for_log(&format!("extra-substituters = {url}"));
    assert!(log.contains("anyone on this machine may upload"), "{log}");
}

#[test]
fn status_100_is_sent_only_for_accepted_uploads() {
    let daemon = Daemon::start();
    let sample = sample(1, b"x");
    let length = sample.nar.len();
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n",
        sample.nar_path
    ));
    assert_eq!(wire.head().status, 100);
    wire.send_bytes(&sample.nar);
    assert_eq!(wire.response().status, 201);
    // The connection can be used for the next request.
    assert_eq!(wire.request("GET", &sample.nar_path, b"").body, sample.nar);

    let mut wire = Wire::to(&daemon);
    wire.send("PUT /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(wire.head().status, 400);

    // Also not through a proxy on this machine, because no user is configured.
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nX-Forwarded-For: 203.0.113.9\r\n\
         Content-Length: {length}\r\n\r\n",
        sample.nar_path
    ));
    assert_eq!(wire.head().status, 401);
    daemon.wait_for_log("so it came through a proxy or from a web page");
}

#[test]
fn a_running_transfer_is_finished_before_the_daemon_exits() {
    let daemon = Daemon::start();
    let sample = sample(1, &[1; 300_000]);
    let length = sample.nar.len();
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n",
        sample.nar_path
    ));
    assert_eq!(wire.head().status, 100);
    wire.send_bytes(&sample.nar[..1000]);
    let mut idle = Wire::to(&daemon);
    assert_eq!(idle.request("GET", "/nix-cache-info", b"").status, 200);

    daemon.terminate();
    daemon.wait_for_log("no new connections");
    assert!(idle.rest().is_empty());
    daemon.wait_until("the daemon has stopped listening", || {
        std::net::TcpStream::connect(daemon.url().trim_start_matches("http://")).is_err()
    });
    wire.send_bytes(&sample.nar[1000..]);
    assert_eq!(wire.response().status, 201);
    daemon.wait_for_log("all transfers were finished");
    let dir = daemon.dir().join(&sample.nar_path[1..]);
    let stored = std::fs::read(dir).expect("present");
    assert!(stored == sample.nar);
    assert_eq!(daemon.stop().0.code(), Some(0));
}

#[test]
fn all_configuration_errors_are_reported_together_with_status_64() {
    let failed = Daemon::builder()
        .env("NIX_STORED_PRIORITY", "high")
        .env("NIX_STORED_USER_READ", "reader")
        .env("NIX_STORED_PRIORTY", "30")
        .start_fails();
    assert_eq!(failed.code, 64);
    for part in [
        "NIX_STORED_PRIORITY: “high” is not a whole number",
        "NIX_STORED_USER_READ: the user has no password",
        "NIX_STORED_PRIORTY: unknown variable; did you mean NIX_STORED_PRIORITY?",
    ] {
        assert!(failed.log.contains(part), "{part} is not in:\n{}", failed.log);
    }
}

/// The daemon in this test's runtime, whose clock is paused and advances when all tasks are idle.
async fn in_process()
-> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<Drained>, Scratch) {
    let scratch = Scratch::new();
    let listen = Listen::Tcp("127.0.0.1:0".to_owned());
    let (listener, stop, served) = serve_in_process(&listen, &scratch).await;
    let address = listener.trim_start_matches("http://").parse().expect("an address");
    (address, stop, served, scratch)
}

/// Like [`in_process`], with a socket of this kind. The first element is its address.
async fn serve_in_process(
    listen: &Listen,
    scratch: &Scratch,
) -> (String, CancellationToken, tokio::task::JoinHandle<Drained>) {
    let store = FsStore::open(&scratch.join("cache"), 0).expect("the store opens");
    let config = Config::from_vars([]).expect("the defaults are right");
    let cache = Cache::new(Arc::new(store.into()), config.cache_info, config.admission);
    let app = nix_stored::http::app(AppState::local(Arc::new(cache), config.users.access(true)));
    let listener = Listener::bind(listen).await.expect("free");
    let url = listener.to_string();
    let stop = CancellationToken::new();
    let served = tokio::spawn(net::serve(listener, app, stop.clone()));
    (url, stop, served)
}

async fn closed_after(mut stream: TcpStream) -> Duration {
    let started = tokio::time::Instant::now();
    let mut rest = Vec::new();
    // The connection may end with a reset or an orderly close.
    let _ = stream.read_to_end(&mut rest).await;
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_head_is_closed_after_half_a_minute() {
    let (address, _stop, _served, _scratch) = in_process().await;
    let silent = TcpStream::connect(address).await.expect("connected");
    assert!(closed_after(silent).await >= Duration::from_secs(29));
    let mut half = TcpStream::connect(address).await.expect("connected");
    half.write_all(b"GET /nix-cache-info HTTP/1.1\r\nHo").await.expect("the daemon reads");
    let waited = closed_after(half).await;
    assert!((29..=31).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_three_minutes_without_tls() {
    let (address, _stop, _served, _scratch) = in_process().await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream
        .write_all(b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("the daemon reads");
    let mut response = [0; 12];
    stream.read_exact(&mut response).await.expect("a response arrives");
    assert_eq!(&response, b"HTTP/1.1 200");
    let waited = closed_after(stream).await;
    assert!((179..=181).contains(&waited.as_secs()), "{waited:?}");
}

/// The size of an object that is larger than the socket buffers.
const LARGE: u64 = 4 << 20;

/// Requests a large object and reads nothing of the response. A Unix socket reports reads to the
/// other end at once. Over TCP the report takes real time, while the clock of the test is paused.
async fn request_large_nar(scratch: &Scratch) -> (UnixStream, CancellationToken) {
    let socket = scratch.join("socket");
    let listen = Listen::Unix { path: socket.clone(), mode: None };
    let (_, stop, _) = serve_in_process(&listen, scratch).await;
    let path = sample(1, b"x").nar_path;
    let file = std::fs::File::create(scratch.join("cache").join(&path[1..])).expect("writable");
    file.set_len(LARGE).expect("a file with nothing in it");
    let mut stream = UnixStream::connect(socket).await.expect("connected");
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("the daemon reads");
    (stream, stop)
}

/// Reads to the end. Returns the number of bytes.
async fn rest(mut stream: UnixStream) -> u64 {
    let mut scratch = vec![0; 1 << 20];
    let mut count = 0;
    while let Ok(more @ 1..) = stream.read(&mut scratch).await {
        count += more as u64;
    }
    count
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_read_for_a_minute_is_aborted() {
    for (seconds, is_whole) in [(55, true), (65, false)] {
        let scratch = Scratch::new();
        let (stream, _stop) = request_large_nar(&scratch).await;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert_eq!(rest(stream).await > LARGE, is_whole, "after {seconds} seconds");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_read_slowly_is_not_aborted() {
    let scratch = Scratch::new();
    let (mut slow, _stop) = request_large_nar(&scratch).await;
    // A socket becomes writable when most of its buffer was read, and this is a small part.
    let mut some = vec![0; 80 << 10];
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(55)).await;
        slow.read_exact(&mut some).await.expect("reading succeeds");
    }
    assert!(rest(slow).await + 40 * some.len() as u64 > LARGE);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_within_the_second_that_late_requests_have() {
    let (address, stop, served, _scratch) = in_process().await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream
        .write_all(b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("the daemon reads");
    let mut response = [0; 12];
    stream.read_exact(&mut response).await.expect("a response arrives");
    let started = tokio::time::Instant::now();
    stop.cancel();
    assert_eq!(served.await.expect("the process ends"), Drained { cut_off: 0 });
    assert!(started.elapsed() <= Duration::from_millis(1100), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_late_request_is_answered_on_a_connection_that_was_idle_for_long() {
    let (address, stop, served, _scratch) = in_process().await;
    let request = b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request).await.expect("the daemon reads");
    let mut response = vec![0; 4096];
    assert_ne!(stream.read(&mut response).await.expect("a response arrives"), 0);
    tokio::time::sleep(Duration::from_secs(100)).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(900)).await;
    stream.write_all(request).await.expect("the daemon reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("the response ends with the connection");
    assert!(
        response.starts_with("HTTP/1.1 200") && response.contains("connection: close"),
        "{response}"
    );
    assert_eq!(served.await.expect("the process ends"), Drained { cut_off: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_does_not_end_is_aborted_after_the_grace_period() {
    let (address, stop, served, _scratch) = in_process().await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        sample(1, b"x").nar_path
    );
    stream.write_all(head.as_bytes()).await.expect("the daemon reads");
    let mut interim = [0; 12];
    stream.read_exact(&mut interim).await.expect("a response arrives");
    assert_eq!(&interim, b"HTTP/1.1 100");
    stop.cancel();
    // The thread that writes the upload waits for the rest of the body, which keeps the clock from
    // advancing.
    let started = tokio::time::Instant::now();
    for _ in 0..100_000 {
        if served.is_finished() {
            break;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(started.elapsed() >= net::DRAIN_TIMEOUT, "the shutdown did not wait");
    assert_eq!(served.await.expect("the process ends"), Drained { cut_off: 1 });
}

#[test]
fn a_unix_socket_serves_and_is_removed_and_a_dead_one_is_replaced() {
    use std::io::{Read, Write};
    let scratch = Scratch::new();
    let socket = scratch.join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("the socket is created"));
    let daemon = Daemon::builder()
        .env("NIX_STORED_LISTEN_INTERFACE", &format!("unix:{}", socket.display()))
        .start();
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connected");
    stream
        .write_all(b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("the daemon reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response arrives");
    assert!(response.ends_with("Priority: 30\n"), "{response}");
    let second = Daemon::builder()
        .env("NIX_STORED_LISTEN_INTERFACE", &format!("unix:{}", socket.display()))
        .start_fails();
    assert_eq!(second.code, 1);
    assert!(second.log.contains("another process listens there"), "{}", second.log);
    assert_eq!(daemon.stop().0.code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn the_log_is_json_if_configured() {
    let daemon = Daemon::builder()
        .env("NIX_STORED_LOG_FORMAT", "json")
        .env("NIX_STORED_LOG_LEVEL", "debug")
        .start();
    assert_eq!(Wire::to(&daemon).request("GET", "/nix-cache-info", b"").status, 200);
    let line = daemon.wait_for_log("served");
    let parsed: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(parsed["method"], "GET");
    assert_eq!(parsed["status"], 200);
    assert_eq!(parsed["sent_bytes"], 51);
}

#[test]
fn reads_and_misses_are_quiet_and_uploads_and_refusals_are_not() {
    let daemon = Daemon::start();
    let sample = sample(1, b"x");
    assert_eq!(Wire::to(&daemon).request("GET", &sample.nar_path, b"").status, 404);
    assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
    assert_eq!(Wire::to(&daemon).request("GET", &sample.nar_path, b"").status, 200);
    assert_eq!(Wire::to(&daemon).request("PUT", &sample.narinfo_path, b"x").status, 400);
    daemon.wait_for_log("refused method=PUT");
    let log = daemon.stop().1;
    assert_eq!(log.matches("uploaded method=PUT").count(), 1, "{log}");
    assert_eq!(log.matches("method=GET").count(), 0, "{log}");
    assert_eq!(log.matches("method=").count(), 2, "{log}");
    let uploaded = log.lines().find(|line| line.contains("uploaded")).expect("checked above");
    for field in
        ["path=\"/nar/", "status=201", "received_bytes=", "duration_ms=", "client=\"127.0.0.1:"]
    {
        assert!(uploaded.contains(field), "{uploaded}");
    }
}

#[test]
fn a_closed_log_pipe_does_not_stop_the_daemon() {
    use std::io::{BufRead, BufReader};
    let scratch = Scratch::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_nix-stored"))
        .env("NIX_STORED_PATH", scratch.join("cache"))
        .env("NIX_STORED_LISTEN_INTERFACE", "127.0.0.1:0")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
    let address = log
        .find_map(|line| Some(line.ok()?.split_once("listening on http://")?.1.to_owned()))
        .expect("the listener accepts");
    drop(log);
    let mut wire = Wire::to_address(&address);
    let uploaded = wire.request("PUT", crate::support::objects::ONE_OF_EACH[5], b"x").status;
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("present");
    let status = child.wait().expect("the process ends");
    assert_eq!((uploaded, status.code()), (201, Some(0)));
}
