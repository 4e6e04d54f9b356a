//! The stream of a connection, which records its timeouts and can send files.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;

use super::connection_timeouts::ConnectionTimeouts;
use super::sendfile::{FileSlice, MappedFiles};
use super::stream::Stream;
use crate::metrics::Metrics;

/// A stream that reports every transfer to its [`ConnectionTimeouts`], and sends files that are in
/// its [`MappedFiles`] with `sendfile`.
#[derive(Debug)]
pub(super) struct ServerIo {
    stream: Stream,
    timeouts: Arc<ConnectionTimeouts>,
    files: Arc<MappedFiles>,
    metrics: Arc<Metrics>,
    /// Whether the kernel holds back packets that are not full (`TCP_CORK`), so that the head of a
    /// response and the beginning of a file arrive in the same packet.
    corked: bool,
    /// The addresses of the last slice that is known to be in the page cache.
    cached: Range<usize>,
    /// The task that reads this slice into the page cache.
    reading_ahead: Option<JoinHandle<()>>,
}

impl ServerIo {
    pub(super) fn new(
        stream: Stream,
        timeouts: Arc<ConnectionTimeouts>,
        files: Arc<MappedFiles>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { stream, timeouts, files, metrics, corked: false, cached: 0..0, reading_ahead: None }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some(at) = bufs.iter().position(|buf| !buf.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let bufs = &bufs[at..];
        if let Some(mut slice) = self.files.find(&bufs[0]) {
            ready!(self.poll_cached(cx, &mut slice, bufs[0].as_ptr().addr()));
            self.cork(true);
            let sent =
                ready!(self.poll_socket(|stream, at_once| {
                    stream.poll_send_slice(cx, &slice, at_once)
                }))?;
            if sent == bufs[0].len() {
                self.cork(false);
            }
            return Poll::Ready(Ok(sent));
        }
        let plain =
            bufs.iter().position(|buf| self.files.find(buf).is_some()).unwrap_or(bufs.len());
        if plain < bufs.len() {
            self.cork(true);
        }
        // This is the head of another response, whose file may be mapped at the same addresses.
        self.cached = 0..0;
        self.poll_socket(|stream, at_once| stream.poll_write_vectored(cx, &bufs[..plain], at_once))
    }

    /// Writes to the socket, and reports whether it accepted bytes.
    fn poll_socket(
        &mut self,
        write: impl FnOnce(&mut Stream, bool) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let wrote = write(&mut self.stream, self.timeouts.take_write_retry());
        match &wrote {
            Poll::Ready(wrote) => {
                self.timeouts.record_write();
                self.metrics.traffic.sent(*wrote.as_ref().unwrap_or(&0));
            }
            Poll::Pending => self.timeouts.record_blocked(),
        }
        wrote
    }

    /// Waits until the beginning of `slice`, which is mapped at `address`, is in the page cache,
    /// and shortens `slice` to the cached part.
    fn poll_cached(
        &mut self,
        cx: &mut Context<'_>,
        slice: &mut FileSlice,
        address: usize,
    ) -> Poll<()> {
        if self.reading_ahead.is_none() {
            if self.cached.contains(&address) {
                // The page cache is not probed again after every partial write.
                slice.truncate(self.cached.end - address);
                return Poll::Ready(());
            }
            self.cached = address..address + slice.len();
            if slice.is_cached() {
                return Poll::Ready(());
            }
            let slice = slice.clone();
            self.reading_ahead = Some(tokio::task::spawn_blocking(move || slice.read_ahead()));
        }
        if let Some(reading) = &mut self.reading_ahead {
            // If reading failed, sending fails with the same error.
            let _ = ready!(Pin::new(reading).poll(cx));
            self.reading_ahead = None;
        }
        Poll::Ready(())
    }

    fn cork(&mut self, corked: bool) {
        if let (Stream::Tcp(stream), true) = (&self.stream, self.corked != corked) {
            // The call is only advice, so errors are ignored.
            let _ = rustix::net::sockopt::set_tcp_cork(stream, corked);
            self.corked = corked;
        }
    }
}

impl AsyncRead for ServerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.timeouts.record_read();
            self.metrics.traffic.received(buf.filled().len() - before);
        }
        read
    }
}

impl AsyncWrite for ServerIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.files.is_empty() {
            self.poll_socket(|stream, at_once| stream.poll_write_vectored(cx, bufs, at_once))
        } else {
            self.poll_send(cx, bufs)
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
