//! TLS connections: the handshake, and its results.

use std::io::ErrorKind;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::connection::{self, Requests};
use super::connection_timeouts::ConnectionTimeouts;
use super::io::ServerIo;
use super::{http2, subject};
use crate::config::Tls;
use crate::http::{App, ConnInfo};

/// How connections are encrypted, which can be changed for those to come. A clone is the same.
#[derive(Debug, Clone)]
pub struct TlsAcceptorHandle(Arc<ArcSwap<ServerConfig>>);

impl From<&Tls> for TlsAcceptorHandle {
    fn from(tls: &Tls) -> Self {
        Self(Arc::new(ArcSwap::new(Arc::clone(&tls.server))))
    }
}

impl TlsAcceptorHandle {
    /// Shows this certificate from now on. Connections that have seen another go on.
    pub fn replace(&self, tls: &Tls) {
        self.0.store(Arc::clone(&tls.server));
    }
}

/// Serves a connection that begins with a handshake, which has the time of a request's head.
pub async fn serve(
    secure: &TlsAcceptorHandle,
    io: ServerIo,
    mut origin: ConnInfo,
    app: App,
    activity: Arc<ConnectionTimeouts>,
    draining: CancellationToken,
) {
    let peer = origin.peer;
    let handshake = TlsAcceptor::from(secure.0.load_full()).accept(io);
    let agreed = tokio::select! {
        agreed = handshake.into_fallible() => agreed,
        () = activity.expired() => {
            debug!(client = %peer, "closed a connection whose TLS handshake timed out");
            return;
        }
    };
    let stream = match agreed {
        Ok(stream) => stream,
        Err((error, io)) => {
            match error.kind() {
                // Who only looks whether somebody is here, or has another connection by now.
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                    debug!(client = %peer, "a client disconnected during the TLS handshake");
                }
                _ => info!(client = %peer, reason = %error, "a TLS handshake failed"),
            }
            // What the client sent in the meantime must not keep it from reading why.
            connection::close(io, true).await;
            return;
        }
    };
    let (_, session) = stream.get_ref();
    // Files have to pass through the program to be encrypted.
    origin.files = None;
    origin.encrypted = true;
    origin.certificate = holder(session);
    let http2 = session.alpn_protocol() == Some(b"h2");
    debug!(
        client = %peer,
        protocol = if http2 { "HTTP/2" } else { "HTTP/1" },
        certificate = origin.certificate.as_deref(),
        "TLS connection established"
    );
    origin.multiplexed = http2;
    let requests = Requests::new(app, origin, activity);
    if http2 {
        http2::serve(stream, requests, draining).await;
    } else {
        connection::serve_http1(stream, requests, draining).await;
    }
}

/// Who the client is by its certificate, which rustls has verified.
fn holder(session: &ServerConnection) -> Option<Arc<str>> {
    let certificate = session.peer_certificates()?.first()?;
    let name = subject::common_name(certificate);
    Some(name.map_or_else(|| "a client certificate".into(), |name| format!("CN={name}").into()))
}
