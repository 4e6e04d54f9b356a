//! HTTP/2, where many requests share one connection.
//!
//! An HTTP/2 client decides for each response how much of it may be sent (its flow-control window),
//! which can be nothing. hyper polls a body for its next part before it has window, so here h2
//! sends the responses itself, in the other order: nothing is opened or read for a response that
//! cannot be sent.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use axum::body::Body;
use bytes::{Buf, Bytes};
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::connection::{BUFFER, QUIET, Requests};
use super::connection_timeouts::{Sending, Waiting};
use super::unread_body::UnreadBody;
use crate::http::OnDemand;

/// How many requests may be under way on one connection. libcurl asks for 100 at a time.
const STREAMS: u32 = 128;

/// An answer that is made in memory counts as a chunk of a file from this size on. It is made before
/// its window is known, and narinfos, which are most of them, are smaller.
const COUNTED: u64 = 4 * 1024;

/// How much of an upload may be on its way here, and how much of all uploads of a connection. An
/// upload that waits for its turn keeps what it has sent: the second is a multiple of the first, so
/// that it does not keep others from sending.
const WINDOW: u32 = 1024 * 1024;
const WINDOWS: u32 = 16 * WINDOW;

/// A stream is given the next part of its answer when less than this waits for its window.
const UNSENT: usize = 256 * 1024;

/// Serves a connection until it ends, takes too long, or `draining` is cancelled and every request
/// has been answered.
pub async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    requests: Requests,
    draining: CancellationToken,
) {
    let (activity, peer) = (Arc::clone(requests.activity()), requests.peer());
    activity.carries_many();
    let mut expired = pin!(activity.expired());
    let mut settled = pin!(async {
        draining.cancelled().await;
        activity.late_requests(QUIET).await;
    });
    let handshake = server::Builder::new()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(BUFFER as u32)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOWS)
        .max_send_buffer_size(UNSENT)
        .handshake::<_, Part>(io);
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
    // Once the client is told that the connection ends, it says that it has heard of it. One that
    // has only put the connection aside does not look, and is not waited for.
    let mut left = pin!(activity.late_requests(QUIET));
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::spawn(answer(Arc::clone(&requests), request, respond));
                }
                Some(Err(error)) => {
                    info!(client = %peer, reason = %error, "lost a connection");
                    return;
                }
                None => return,
            },
            () = &mut expired => {
                if activity.tries_once_more() {
                    expired.set(activity.expired());
                    continue;
                }
                debug!(client = %peer, "closed an idle connection");
                return;
            }
            () = draining.cancelled(), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = activity.closes_idle(), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = &mut left, if leaving => return,
        }
    }
}

/// The client wants no answer any more, or the connection is gone.
struct Gone;

/// Answers one request.
async fn answer(
    requests: Arc<Requests>,
    request: Request<RecvStream>,
    respond: SendResponse<Part>,
) {
    // An answer that does not arrive is logged by the layer that counts its bytes.
    let _ = try_to_answer(&requests, request, respond).await;
}

async fn try_to_answer(
    requests: &Requests,
    request: Request<RecvStream>,
    mut respond: SendResponse<Part>,
) -> Result<(), Gone> {
    let sending = Arc::new(requests.activity().send());
    let (parts, stream) = request.into_parts();
    let (response, permit) = if parts.method == Method::GET {
        let answer = answer_within_budget(requests, parts);
        unless_reset(answer, |cx| respond.poll_reset(cx).map(drop)).await?
    } else {
        let leftover = UnreadBody::default();
        let body = match stream.is_end_stream() {
            true => Body::empty(),
            false => Body::new(leftover.of(Upload::new(stream, &parts.headers))),
        };
        let answer = requests.answer(Request::from_parts(parts, body));
        let Ok(response) = unless_reset(answer, |cx| respond.poll_reset(cx).map(drop)).await?;
        leftover.discard();
        (response, None)
    };
    let is_on_demand = OnDemand::is(&response);
    let (head, body) = split(response);
    let is_empty = body.is_end_stream();
    let stream = respond.send_response(head, is_empty).map_err(|_| Gone)?;
    if is_empty {
        return Ok(());
    }
    Sender { stream, requests, sending, is_on_demand }.send(body, permit).await
}

/// The answer to a GET, and room for it if it takes memory. Where there is none the answer is given
/// up and made again later, so that nothing is held while room is waited for.
async fn answer_within_budget(
    requests: &Requests,
    request: Parts,
) -> (Response<Body>, Option<OwnedSemaphorePermit>) {
    let request = || Request::from_parts(request.clone(), Body::empty());
    let Ok(response) = requests.answer(request()).await;
    let is_small = response.body().size_hint().exact().is_some_and(|length| length < COUNTED);
    if is_small || OnDemand::is(&response) {
        return (response, None);
    }
    if let Some(permit) = requests.budget().chunk_at_once() {
        return (response, Some(permit));
    }
    drop(response);
    let permit = requests.budget().chunk().await;
    let Ok(response) = requests.answer(request()).await;
    (response, Some(permit))
}

/// What `work` comes to, unless the client resets its stream before.
async fn unless_reset<T>(
    work: impl Future<Output = T>,
    mut poll_reset: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<T, Gone> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = poll_fn(|cx| poll_reset(cx)) => Err(Gone),
    }
}

/// The head of an answer as HTTP/2 has it, and the body.
fn split(response: Response<Body>) -> (Response<()>, Body) {
    let (mut head, body) = response.into_parts();
    // What it says of connections is said by frames here (RFC 9113, section 8.2.2).
    head.headers.remove(header::CONNECTION);
    if let (Some(length), false) = (body.size_hint().exact(), body.is_end_stream()) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
    let now = httpdate::fmt_http_date(SystemTime::now());
    let now = HeaderValue::try_from(now).expect("an HTTP date is a header value");
    head.headers.entry(header::DATE).or_insert(now);
    (Response::from_parts(head, ()), body)
}

/// The body of an answer on its way.
struct Sender<'a> {
    stream: SendStream<Part>,
    requests: &'a Requests,
    sending: Arc<Sending>,
    is_on_demand: bool,
}

impl Sender<'_> {
    /// Sends all of it. It may come with room for its first part.
    async fn send(
        mut self,
        mut body: Body,
        mut permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Gone> {
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
                    // Trailers, which no answer has.
                    Err(_) => continue,
                },
                None => (Bytes::new(), true),
                Some(Err(_)) => {
                    // The client must not take what it has for the whole.
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Err(Gone);
                }
            };
            let part = Part {
                waiting: (!bytes.is_empty()).then(|| self.requests.activity().wait()),
                bytes,
                _permit: permit.take(),
                _sending: Arc::clone(&self.sending),
            };
            self.stream.send_data(part, is_last).map_err(|_| Gone)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Waits until something can be sent.
    async fn window(&mut self) -> Result<(), Gone> {
        let activity = self.requests.activity();
        let stream = &mut self.stream;
        let mut waiting = None;
        stream.reserve_capacity(1);
        let window = poll_fn(|cx| {
            loop {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Gone));
                }
                if stream.capacity() > 0 {
                    return Poll::Ready(Ok(()));
                }
                match stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Gone)),
                    Poll::Pending => {
                        waiting.get_or_insert_with(|| activity.wait());
                        return Poll::Pending;
                    }
                }
            }
        });
        window.await?;
        // Until there is something to send, others may use the connection's window.
        stream.reserve_capacity(0);
        Ok(())
    }
}

/// A part of an answer, which waits in queues for its turn, and is dropped when it has left.
struct Part {
    bytes: Bytes,
    waiting: Option<Waiting>,
    _permit: Option<OwnedSemaphorePermit>,
    _sending: Arc<Sending>,
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(waiting) = &self.waiting {
            waiting.taken();
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct Upload {
    stream: RecvStream,
    /// How much of it is still to come, where the client has said it.
    rest: Option<u64>,
}

impl Upload {
    fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        Self { stream, rest: length.and_then(|length| length.parse().ok()) }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(bytes) = ready!(self.stream.poll_data(cx)).transpose()? else {
            // What may follow are trailers, which nothing is known of.
            return Poll::Ready(None);
        };
        // The client may send as much again.
        self.stream.flow_control().release_capacity(bytes.len())?;
        self.rest = self.rest.map(|rest| rest.saturating_sub(bytes.len() as u64));
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
