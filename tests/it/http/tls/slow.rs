//! Slow clients over TLS. As without TLS, they have half a minute for the handshake and for the
//! first request, and three minutes between requests.
//!
//! The daemon is in this test's runtime, whose clock is paused and advances when all tasks are
//! idle.

use std::sync::Arc;
use std::time::Duration;

use nix_stored::cache::Cache;
use nix_stored::config::{Config, Listen};
use nix_stored::http::AppState;
use nix_stored::net::{self, Drained, Listener, TlsAcceptorHandle};
use nix_stored::store::FsStore;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::support::certificates::Authority;
use crate::support::http2;
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;

/// The first bytes of an HTTP/2 client: the preface and empty settings.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A complete request for `/nix-cache-info` (RFC 7541, appendix A: GET, https, a path, an
/// authority).
fn http_2_request() -> Vec<u8> {
    let path = b"/nix-cache-info";
    let mut block = vec![0x82, 0x87, 0x04, path.len() as u8];
    block.extend_from_slice(path);
    block.extend_from_slice(b"\x01\x01x");
    let mut frame = vec![0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1];
    frame.extend_from_slice(&block);
    frame
}

/// Sends the first request of a connection, and reads the response.
async fn ask(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(HTTP_2).await.expect("the daemon reads");
    stream.write_all(&http_2_request()).await.expect("the daemon reads");
    let mut response = Vec::new();
    while !String::from_utf8_lossy(&response).contains("StoreDir: /nix/store") {
        assert_ne!(stream.read_buf(&mut response).await.expect("a response arrives"), 0);
    }
}

struct TlsServer {
    address: std::net::SocketAddr,
    authority: Authority,
    stop: CancellationToken,
    served: JoinHandle<Drained>,
    _scratch: Scratch,
}

impl TlsServer {
    async fn start() -> Self {
        // A paused clock jumps to its next timer even if bytes are on their way. A timer that is
        // always near limits the jump.
        tokio::spawn(async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let (scratch, authority) = (Scratch::new(), Authority::new());
        let issued = authority.server("127.0.0.1");
        let vars = [("CERT", utf8(&issued.cert)), ("KEY", utf8(&issued.key))];
        let vars = vars.map(|(name, file)| (format!("NIX_STORED_TLS_{name}"), file.to_owned()));
        let config = Config::from_vars(vars).expect("the certificate is valid");
        let store = FsStore::open(&scratch.join("cache"), 0).expect("the store opens");
        let cache = Cache::new(Arc::new(store.into()), config.cache_info, config.admission);
        let app =
            nix_stored::http::app(AppState::local(Arc::new(cache), config.users.access(true)));
        let listen = Listen::Tcp("127.0.0.1:0".to_owned());
        let listener = Listener::bind(&listen).await.expect("a free port");
        let listener = listener.encrypted(config.tls.as_ref().map(TlsAcceptorHandle::from));
        let address = listener.to_string().trim_start_matches("https://").parse();
        let stop = CancellationToken::new();
        let served = tokio::spawn(net::serve(listener, app, stop.clone()));
        let address = address.expect("an address");
        Self { address, authority, stop, served, _scratch: scratch }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    /// Opens a connection on which this protocol is negotiated.
    async fn encrypted(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        http2::encrypted(&self.address.to_string(), &self.authority, protocol).await
    }
}

async fn closed_after(stream: &mut (impl AsyncRead + Unpin)) -> u64 {
    let started = Instant::now();
    // The connection may end with a reset or an orderly close. Only failing tests wait this long.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(3600), stream.read_to_end(&mut rest)).await;
    started.elapsed().as_secs()
}

/// Sends a byte per second until the connection ends.
async fn send_slowly(stream: &mut (impl AsyncRead + AsyncWriteExt + Unpin), bytes: &[u8]) -> u64 {
    let started = Instant::now();
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        let more = tokio::time::timeout(Duration::from_secs(1), async {
            while stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
        });
        if more.await.is_ok() {
            break;
        }
    }
    started.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_handshake_is_aborted_after_half_a_minute() {
    let served = TlsServer::start().await;
    let mut silent = served.connect().await;
    assert!((29..=31).contains(&closed_after(&mut silent).await));
    // The head of a TLS record that is never complete.
    let mut half = served.connect().await;
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.expect("the daemon reads");
    assert!((29..=31).contains(&closed_after(&mut half).await));
    let hello: Vec<u8> = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat();
    let mut slow = served.connect().await;
    assert!((29..=31).contains(&send_slowly(&mut slow, &hello).await));
    // No connection is left to delay the shutdown.
    served.stop.cancel();
    assert_eq!(served.served.await.expect("the process ends"), Drained { cut_off: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_first_request_is_closed_after_half_a_minute() {
    let served = TlsServer::start().await;
    // Measured from the start of the connection, because on a busy machine the handshake takes some
    // time of this clock.
    let half_a_minute = |started: Instant| (29..=32).contains(&started.elapsed().as_secs());
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let started = Instant::now();
        let mut silent = served.encrypted(protocol).await;
        closed_after(&mut silent).await;
        assert!(half_a_minute(started), "{:?}", started.elapsed());
    }

    let head = [b"GET /nix-cache-info HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 500]].concat();
    let started = Instant::now();
    let mut slow = served.encrypted(b"http/1.1").await;
    send_slowly(&mut slow, &head).await;
    assert!(half_a_minute(started), "{:?}", started.elapsed());

    let started = Instant::now();
    let mut slow = served.encrypted(b"h2").await;
    slow.write_all(HTTP_2).await.expect("the daemon reads");
    // The head of a frame with a header block that is never complete.
    let head = [vec![0, 1, 0xf4, 1, 4, 0, 0, 0, 1, 0x82], vec![0; 500]].concat();
    send_slowly(&mut slow, &head).await;
    assert!(half_a_minute(started), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_three_minutes() {
    let served = TlsServer::start().await;
    let mut stream = served.encrypted(b"h2").await;
    ask(&mut stream).await;
    let answered = Instant::now();
    // A window update is not the beginning of a request, which would have a timeout of half a
    // minute.
    stream.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]).await.expect("the daemon reads");
    closed_after(&mut stream).await;
    let closed = answered.elapsed().as_secs();
    assert!((175..=185).contains(&closed), "{closed}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_within_the_second_that_late_requests_have() {
    for protocol in [b"h2".to_vec(), b"http/1.1".to_vec()] {
        let served = TlsServer::start().await;
        let mut stream = served.encrypted(&protocol).await;
        if protocol == b"h2" {
            ask(&mut stream).await;
        } else {
            let request = b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(request).await.expect("the daemon reads");
            stream.read_exact(&mut [0; 12]).await.expect("a response arrives");
        }
        // In HTTP/2 the client gets a GOAWAY, and does not answer.
        let started = Instant::now();
        served.stop.cancel();
        assert_eq!(served.served.await.expect("the process ends"), Drained { cut_off: 0 });
        assert!(started.elapsed() <= Duration::from_millis(1200), "{:?}", started.elapsed());
    }
}

/// Sends a request whose response waits until its window is opened (RFC 9113, section 6.5.2).
async fn ask_without_a_window(stream: &mut TlsStream<TcpStream>) {
    let settings = [HTTP_2.split_at(24).0, &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]].concat();
    stream.write_all(&settings).await.expect("the daemon reads");
    stream.write_all(&http_2_request()).await.expect("the daemon reads");
}

/// Sends a frame at intervals until the connection ends or the count is reached. Returns the
/// duration and the received bytes.
async fn sending(
    stream: &mut TlsStream<TcpStream>,
    frame: &[u8],
    every: Duration,
    times: usize,
) -> (Duration, Vec<u8>) {
    let (started, mut came) = (Instant::now(), Vec::new());
    for _ in 0..times {
        let result = tokio::time::timeout(every, async {
            while stream.read_buf(&mut came).await.is_ok_and(|count| count > 0) {}
        });
        let result = result.await.is_ok();
        if result || stream.write_all(frame).await.is_err() || stream.flush().await.is_err() {
            break;
        }
    }
    (started.elapsed(), came)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_for_a_minute_is_cut_off_whatever_it_sends() {
    let served = TlsServer::start().await;
    let mut stream = served.encrypted(b"h2").await;
    ask_without_a_window(&mut stream).await;
    let ping = b"\0\0\x08\x06\0\0\0\0\0pingping";
    let (took, came) = sending(&mut stream, ping, Duration::from_secs(5), 100).await;
    assert!((58..=67).contains(&took.as_secs()), "{took:?}");
    assert!(
        came.windows(8).any(|window| window == b"pingping"),
        "the server did not answer the pings"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_a_byte_a_minute_is_not_cut_off() {
    let served = TlsServer::start().await;
    let mut stream = served.encrypted(b"h2").await;
    ask_without_a_window(&mut stream).await;
    let one_more = [0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    let (took, came) = sending(&mut stream, &one_more, Duration::from_secs(55), 40).await;
    assert_eq!(took.as_secs(), 40 * 55);
    // Each response is 51 bytes, in one frame.
    let frames = came.windows(9).filter(|head| **head == [0, 0, 1, 0, 0, 0, 0, 0, 1]).count();
    assert!((38..=40).contains(&frames), "{frames}");
}
