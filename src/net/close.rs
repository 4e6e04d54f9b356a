//! Closes a connection so that the client receives the last response.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The time for which the bytes of a client are read and discarded after the last response. Closing
/// a socket with unread bytes resets it, and the reset can overtake the response: the client would
/// see a broken connection instead of the reason why its upload was refused.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of bytes that are discarded at most.
pub(super) const LINGER_LIMIT: usize = 16 * 1024 * 1024;

/// Closes the direction to the client. If the client may have sent bytes that were not read
/// (`unread`), reads and discards them until the client closes, [`LINGER_TIMEOUT`] passes, or
/// [`LINGER_LIMIT`] bytes have come.
pub(super) async fn close(mut io: impl AsyncRead + AsyncWrite + Unpin, unread: bool) {
    let drain = async {
        io.shutdown().await?;
        if !unread {
            return Ok(());
        }
        // On the heap, so that the future of an idle connection stays small.
        let mut scratch = vec![0; 8 * 1024];
        let mut rest = LINGER_LIMIT;
        while rest > 0 {
            match io.read(&mut scratch).await? {
                0 => break,
                count => rest = rest.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    // The connection is closed in any case.
    let _ = tokio::time::timeout(LINGER_TIMEOUT, drain).await;
}
