//! An HTTP/2 client that controls how much of each response it reads.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificates::Authority;

/// Opens a TLS connection on which this protocol is negotiated.
pub async fn encrypted(
    address: &str,
    authority: &Authority,
    protocol: &[u8],
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(authority.file()).expect("valid");
    roots.add(authority).expect("valid");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("supported")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let connector = TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.expect("connected");
    let stream = connector.connect(name, stream).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    stream
}

/// One connection.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    /// Ends with the connection.
    pub result: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    /// A connection whose streams receive at most `window` bytes before they are read.
    pub async fn connect(address: &str, authority: &Authority, window: u32) -> Self {
        let stream = encrypted(address, authority, b"h2").await;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .handshake(stream)
            .await
            .expect("the server supports HTTP/2");
        Self { requests, result: tokio::spawn(connection) }
    }

    /// Sends a request without a body, as soon as the server allows another stream.
    pub async fn send(&mut self, method: &str, path: &str) -> ResponseFuture {
        let uri = format!("https://127.0.0.1{path}");
        let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
        let requests = &mut self.requests;
        std::future::poll_fn(|cx| requests.poll_ready(cx)).await.expect("connected");
        requests.send_request(request, true).expect("connected").0
    }

    /// Sends a GET request, and returns the head of the response.
    pub async fn get(&mut self, path: &str) -> Response<RecvStream> {
        self.send("GET", path).await.await.expect("a response")
    }
}

/// Reads a body to its end.
pub async fn whole(mut body: RecvStream) -> Result<Vec<u8>, Option<Reason>> {
    let mut whole = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|error| error.reason())?;
        whole.extend_from_slice(&chunk);
        body.flow_control().release_capacity(chunk.len()).map_err(|error| error.reason())?;
    }
    Ok(whole)
}
