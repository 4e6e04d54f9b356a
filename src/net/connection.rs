//! Serves one connection, from its first byte to its last: the TLS handshake, then HTTP/1 or HTTP/2.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::connection_limit::Slot;
use super::connection_timeouts::ConnectionTimeouts;
use super::http1;
use super::io::ServerIo;
use super::listener::Connection;
use super::requests::Requests;
use super::sendfile::MappedFiles;
use crate::http::{App, ConnInfo, ConnectionBudget};

/// Serves a connection until it ends or times out, or until `draining` is cancelled and its requests
/// have been answered. The connection keeps its `slot` until then.
pub(super) async fn serve(
    connection: Connection,
    app: App,
    budget: ConnectionBudget,
    draining: CancellationToken,
    slot: Slot,
) {
    let timeouts = ConnectionTimeouts::new(slot.contention.clone());
    slot.register(&timeouts);
    let files = Arc::new(MappedFiles::default());
    let metrics = Arc::clone(app.metrics());
    let _open = metrics.open();
    let io = ServerIo::new(connection.stream, Arc::clone(&timeouts), Arc::clone(&files), metrics);
    let conn_info = ConnInfo {
        peer: connection.peer,
        files: Some(Arc::new(files)),
        encrypted: false,
        multiplexed: false,
        budget,
        certificate: None,
    };
    #[cfg(feature = "tls")]
    if let Some(acceptor) = &connection.tls {
        // On the heap, so that the future of a plain connection stays small.
        let served = encrypted::serve(acceptor, io, conn_info, app, timeouts, draining);
        return Box::pin(served).await;
    }
    http1::serve(io, Requests::new(app, conn_info, timeouts), draining).await;
}

#[cfg(feature = "tls")]
mod encrypted {
    use std::io::ErrorKind;
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;
    use tracing::{debug, info};

    use crate::http::{App, ConnInfo};
    use crate::net::close::close;
    use crate::net::connection_timeouts::ConnectionTimeouts;
    use crate::net::io::ServerIo;
    use crate::net::requests::Requests;
    use crate::net::tls::{Session, TlsAcceptorHandle, handshake};
    use crate::net::{http1, http2};

    /// Serves a TLS connection. The handshake has the time of a request head.
    pub(super) async fn serve(
        acceptor: &TlsAcceptorHandle,
        io: ServerIo,
        mut conn_info: ConnInfo,
        app: App,
        timeouts: Arc<ConnectionTimeouts>,
        draining: CancellationToken,
    ) {
        let client = conn_info.peer;
        let session = tokio::select! {
            session = handshake(acceptor, io) => session,
            () = timeouts.expired() => {
                debug!(%client, "closed a connection whose TLS handshake timed out");
                return;
            }
        };
        let Session { stream, http2, client: certificate } = match session {
            Ok(session) => session,
            Err((error, io)) => {
                match error.kind() {
                    // A port scan, or a client that uses another connection.
                    ErrorKind::UnexpectedEof
                    | ErrorKind::ConnectionReset
                    | ErrorKind::BrokenPipe => {
                        debug!(%client, "a client disconnected during the TLS handshake");
                    }
                    _ => info!(%client, reason = %error, "a TLS handshake failed"),
                }
                // Bytes that the client sent meanwhile must not prevent it from reading the alert.
                close(io, true).await;
                return;
            }
        };
        debug!(
            %client,
            protocol = if http2 { "HTTP/2" } else { "HTTP/1" },
            certificate = certificate.as_deref(),
            "TLS connection established"
        );
        // Only the daemon can encrypt a file, so the kernel cannot send it.
        conn_info.files = None;
        conn_info.encrypted = true;
        conn_info.multiplexed = http2;
        conn_info.certificate = certificate;
        let requests = Requests::new(app, conn_info, timeouts);
        if http2 {
            http2::serve(stream, requests, draining).await;
        } else {
            http1::serve(stream, requests, draining).await;
        }
    }
}
