//! HTTP/2, where many requests share one connection.
//!
//! An HTTP/2 client limits how much of each response may be sent (its flow-control window). The
//! window can be empty. hyper reads the next chunk of a body before there is window to send it. So
//! this module sends the responses with h2, and waits for the window first: no file is opened or
//! read for a response that cannot be sent.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::body::Body;
use bytes::{Buf, Bytes};
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::connection_timeouts::{DRAIN_QUIET_PERIOD, ResponseInProgress, WindowWait};
use super::http2_upload::{Http2Upload, UnreadBody};
use super::requests::{BUFFER_SIZE, Requests};
use crate::http::OnDemandBody;

/// The number of concurrent requests on one connection. libcurl sends up to 100.
const MAX_STREAMS: u32 = 128;

/// The size in bytes from which a response in memory counts towards the chunk budget, because it
/// is in memory before the window of the client allows sending it. Most responses are narinfos, which are smaller.
const COUNTED_FROM: u64 = 4 * 1024;

/// The number of bytes of one upload that may be unread (its flow-control window).
const STREAM_WINDOW: u32 = 1024 * 1024;

/// The number of bytes of all uploads of a connection that may be unread. It is a multiple of
/// [`STREAM_WINDOW`], so that an upload that is not read does not block the others.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// The number of bytes of a response that may wait in h2 for the window of its stream.
const UNSENT_LIMIT: usize = 256 * 1024;

/// Serves a connection until it ends or times out, or until `draining` is cancelled and its requests
/// have been answered.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    requests: Requests,
    draining: CancellationToken,
) {
    let (timeouts, peer) = (Arc::clone(requests.timeouts()), requests.peer());
    timeouts.set_multiplexed();
    let mut expired = pin!(timeouts.expired());
    let mut settled = pin!(async {
        draining.cancelled().await;
        timeouts.until_late_requests_end(DRAIN_QUIET_PERIOD).await;
    });
    let handshake = server::Builder::new()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(BUFFER_SIZE as u32)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(UNSENT_LIMIT)
        .handshake::<_, Chunk>(io);
    let connection = tokio::select! {
        connection = handshake => connection,
        () = &mut expired => {
            debug!(client = %peer, "closed an idle connection");
            return;
        }
        () = &mut settled => return,
    };
    let mut connection = match connection {
        Ok(connection) => connection,
        Err(error) => {
            info!(client = %peer, reason = %error, "lost a connection, or received invalid HTTP/2");
            return;
        }
    };
    let requests = Arc::new(requests);
    // A client acknowledges the end of the connection (GOAWAY). A client that keeps an idle connection
    // without reading it does not, so the wait is limited.
    let mut closed = pin!(timeouts.until_late_requests_end(DRAIN_QUIET_PERIOD));
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::spawn(serve_request(Arc::clone(&requests), request, respond));
                }
                Some(Err(error)) => {
                    info!(client = %peer, reason = %error, "lost a connection");
                    return;
                }
                None => return,
            },
            () = &mut expired => {
                if timeouts.grant_write_retry() {
                    expired.set(timeouts.expired());
                    continue;
                }
                debug!(client = %peer, "closed an idle connection");
                return;
            }
            () = draining.cancelled(), if !closing => {
                closing = true;
                connection.graceful_shutdown();
            }
            () = timeouts.until_idle_close(), if !closing => {
                closing = true;
                connection.graceful_shutdown();
            }
            () = &mut closed, if closing => return,
        }
    }
}

/// The client cancelled the request, or the connection ended.
struct Cancelled;

/// Serves one request.
async fn serve_request(
    requests: Arc<Requests>,
    request: Request<RecvStream>,
    respond: SendResponse<Chunk>,
) {
    // `http::observe`, which counts the sent bytes, logs an incomplete response.
    let _ = try_to_serve_request(&requests, request, respond).await;
}

async fn try_to_serve_request(
    requests: &Requests,
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
) -> Result<(), Cancelled> {
    let sending = Arc::new(requests.timeouts().start_response());
    let (parts, stream) = request.into_parts();
    let (response, permit) = if parts.method == Method::GET {
        let response = respond_within_budget(requests, parts);
        unless_reset(response, |cx| respond.poll_reset(cx).map(drop)).await?
    } else {
        let unread = UnreadBody::default();
        let body = match stream.is_end_stream() {
            true => Body::empty(),
            false => Body::new(unread.wrap(Http2Upload::new(stream, &parts.headers))),
        };
        let response = requests.respond(Request::from_parts(parts, body));
        let Ok(response) = unless_reset(response, |cx| respond.poll_reset(cx).map(drop)).await?;
        unread.discard();
        (response, None)
    };
    let is_on_demand = OnDemandBody::is(&response);
    let (head, body) = split(response);
    let is_empty = body.is_end_stream();
    let stream = respond.send_response(head, is_empty).map_err(|_| Cancelled)?;
    if is_empty {
        return Ok(());
    }
    Sender { stream, requests, sending, is_on_demand }.send(body, permit).await
}

/// Returns the response to a GET, with a permit if the response takes memory. If no permit is free,
/// drops the response, waits for a permit, and requests the response again, so that it takes no
/// memory meanwhile.
async fn respond_within_budget(
    requests: &Requests,
    request: Parts,
) -> (Response<Body>, Option<OwnedSemaphorePermit>) {
    let request = || Request::from_parts(request.clone(), Body::empty());
    let Ok(response) = requests.respond(request()).await;
    let is_small = response.body().size_hint().exact().is_some_and(|length| length < COUNTED_FROM);
    if is_small || OnDemandBody::is(&response) {
        return (response, None);
    }
    if let Some(permit) = requests.budget().chunk_at_once() {
        return (response, Some(permit));
    }
    drop(response);
    let permit = requests.budget().chunk().await;
    let Ok(response) = requests.respond(request()).await;
    (response, Some(permit))
}

/// Returns the result of `work`, unless the client resets the stream first.
async fn unless_reset<T>(
    work: impl Future<Output = T>,
    mut poll_reset: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<T, Cancelled> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = poll_fn(|cx| poll_reset(cx)) => Err(Cancelled),
    }
}

/// Splits a response into its head, with the headers of HTTP/2, and its body.
fn split(response: Response<Body>) -> (Response<()>, Body) {
    let (mut head, body) = response.into_parts();
    // HTTP/2 has no connection-specific headers (RFC 9113, section 8.2.2).
    head.headers.remove(header::CONNECTION);
    if let (Some(length), false) = (body.size_hint().exact(), body.is_end_stream()) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
    let now = httpdate::fmt_http_date(SystemTime::now());
    let now = HeaderValue::try_from(now).expect("an HTTP date is a header value");
    head.headers.entry(header::DATE).or_insert(now);
    (Response::from_parts(head, ()), body)
}

/// Sends the body of a response.
struct Sender<'a> {
    stream: SendStream<Chunk>,
    requests: &'a Requests,
    sending: Arc<ResponseInProgress>,
    is_on_demand: bool,
}

impl Sender<'_> {
    /// Sends the whole body. `permit` is for its first chunk.
    async fn send(
        mut self,
        mut body: Body,
        mut permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Cancelled> {
        loop {
            self.window().await?;
            let stream = &mut self.stream;
            if permit.is_none() && self.is_on_demand {
                let chunk = self.requests.budget().chunk();
                permit = Some(unless_reset(chunk, |cx| stream.poll_reset(cx).map(drop)).await?);
            }
            let frame = unless_reset(body.frame(), |cx| stream.poll_reset(cx).map(drop)).await?;
            let (bytes, is_last) = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => (bytes, body.is_end_stream()),
                    // Trailers, which no response has.
                    Err(_) => continue,
                },
                None => (Bytes::new(), true),
                Some(Err(_)) => {
                    // The client must not take an incomplete body for a complete one.
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Err(Cancelled);
                }
            };
            let chunk = Chunk {
                waiting: (!bytes.is_empty()).then(|| self.requests.timeouts().wait_for_window()),
                bytes,
                _permit: permit.take(),
                _sending: Arc::clone(&self.sending),
            };
            self.stream.send_data(chunk, is_last).map_err(|_| Cancelled)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Waits until the window allows at least one byte.
    async fn window(&mut self) -> Result<(), Cancelled> {
        let timeouts = self.requests.timeouts();
        let stream = &mut self.stream;
        let mut waiting = None;
        stream.reserve_capacity(1);
        let window = poll_fn(|cx| {
            loop {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Cancelled));
                }
                if stream.capacity() > 0 {
                    return Poll::Ready(Ok(()));
                }
                match stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Cancelled)),
                    Poll::Pending => {
                        waiting.get_or_insert_with(|| timeouts.wait_for_window());
                        return Poll::Pending;
                    }
                }
            }
        });
        window.await?;
        // Other streams may use the connection's window until there are bytes to send.
        stream.reserve_capacity(0);
        Ok(())
    }
}

/// A chunk of a response in the queues of h2, dropped when it is sent.
struct Chunk {
    bytes: Bytes,
    waiting: Option<WindowWait>,
    _permit: Option<OwnedSemaphorePermit>,
    _sending: Arc<ResponseInProgress>,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(waiting) = &self.waiting {
            waiting.record_sent();
        }
    }
}
