//! TLS: the handshake, and what it negotiated.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::subject;
use crate::config::Tls;

/// The TLS settings of new connections. They can be replaced; clones share them.
#[derive(Debug, Clone)]
pub struct TlsAcceptorHandle(Arc<ArcSwap<ServerConfig>>);

impl From<&Tls> for TlsAcceptorHandle {
    fn from(tls: &Tls) -> Self {
        Self(Arc::new(ArcSwap::new(Arc::clone(&tls.server))))
    }
}

impl TlsAcceptorHandle {
    /// Uses these settings for new connections. Established connections continue.
    pub fn replace(&self, tls: &Tls) {
        self.0.store(Arc::clone(&tls.server));
    }
}

/// An established TLS connection.
pub(super) struct Session<S> {
    pub stream: TlsStream<S>,
    /// Whether the client chose HTTP/2 (ALPN).
    pub http2: bool,
    /// The name in the client's certificate, which rustls has verified; `None` without a certificate.
    pub client: Option<Arc<str>>,
}

/// Performs the handshake. After an error, returns the stream as well.
pub(super) async fn handshake<S>(
    acceptor: &TlsAcceptorHandle,
    stream: S,
) -> Result<Session<S>, (io::Error, S)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(acceptor.0.load_full());
    let stream = acceptor.accept(stream).into_fallible().await?;
    let (_, session) = stream.get_ref();
    let http2 = session.alpn_protocol() == Some(b"h2");
    let client = client_name(session);
    Ok(Session { stream, http2, client })
}

fn client_name(session: &ServerConnection) -> Option<Arc<str>> {
    let certificate = session.peer_certificates()?.first()?;
    let name = subject::common_name(certificate);
    Some(name.map_or_else(|| "a client certificate".into(), |name| format!("CN={name}").into()))
}
