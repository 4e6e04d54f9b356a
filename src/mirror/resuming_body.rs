//! The bytes of a NAR: an interrupted transfer is resumed at the same upstream or at the next one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tracing::info;

use super::client::{UpstreamClient, UpstreamResponse};
use super::error::UpstreamFailure;
use super::partial_nar::PartialNar;
use crate::ingest::BodyError;

/// The number of attempts to resume an interrupted fetch at the same upstream.
const MAX_ATTEMPTS: u32 = 3;

/// An upstream, and the URL of a NAR there.
pub(super) struct NarSource {
    pub client: Arc<UpstreamClient>,
    pub url: String,
}

/// A started response with a NAR.
pub(super) struct StartedTransfer {
    pub source: NarSource,
    pub remaining_sources: VecDeque<NarSource>,
    pub response: UpstreamResponse,
    /// The size of the NAR file in bytes, if it is known.
    pub size: Option<u64>,
}

/// Returns the size of a NAR file, if it is known. Fails if the response contradicts the narinfo.
pub(super) fn agreed_size(
    response: &UpstreamResponse,
    stated: Option<u64>,
) -> Result<Option<u64>, UpstreamFailure> {
    if let Some(encoding) = &response.encoding {
        return Err(UpstreamFailure::InvalidResponse(format!(
            "the NAR has the Content-Encoding {encoding}"
        )));
    }
    match (stated, response.length) {
        (Some(stated), Some(length)) if stated != length => {
            let error = format!("the NAR has {length} bytes, but its narinfo states {stated}");
            Err(UpstreamFailure::InvalidResponse(error))
        }
        (stated, length) => Ok(stated.or(length)),
    }
}

struct ResumingBody {
    source: NarSource,
    remaining_sources: VecDeque<NarSource>,
    body: BoxStream<'static, io::Result<Bytes>>,
    position: u64,
    size: Option<u64>,
    attempts_left: u32,
    partial: Arc<PartialNar>,
    is_stored: bool,
}

/// Returns the bytes of the complete NAR. Unless `is_stored`, they end with an error when `partial`
/// has no readers left.
pub(super) fn resuming(
    started: StartedTransfer,
    partial: Arc<PartialNar>,
    is_stored: bool,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    let StartedTransfer { source, remaining_sources, response, size } = started;
    let body = response.body;
    let state = ResumingBody {
        source,
        remaining_sources,
        body,
        position: 0,
        size,
        attempts_left: MAX_ATTEMPTS,
        partial,
        is_stored,
    };
    stream::try_unfold(state, |mut state| async move {
        let next = state.next().await?;
        Ok(next.map(|chunk| (chunk, state)))
    })
}

impl ResumingBody {
    /// Returns the next bytes, or `None` at the end of the NAR.
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if !self.is_stored && !self.partial.has_readers() {
                return Err(BodyError::CutShort("all clients have disconnected".into()));
            }
            let error = match self.body.next().await {
                Some(Ok(chunk)) => {
                    self.position += chunk.len() as u64;
                    if let Some(size) = self.size.filter(|size| self.position > *size) {
                        let error =
                            format!("the upstream sent more than the announced {size} bytes");
                        return Err(BodyError::CutShort(error.into()));
                    }
                    return Ok(Some(chunk));
                }
                // Without a length, the protocol marks the end.
                None if self.size.is_none_or(|size| self.position == size) => return Ok(None),
                None => "the response ended early".to_owned(),
                Some(Err(error)) => error.to_string(),
            };
            self.source.client.record_failure(&UpstreamFailure::Connection(error.clone()), None);
            self.resume(error).await?;
        }
    }

    /// Continues the transfer at the same upstream or at the next one.
    async fn resume(&mut self, mut error: String) -> Result<(), BodyError> {
        loop {
            if self.attempts_left == 0 {
                let next = self.remaining_sources.pop_front();
                self.source = next.ok_or_else(|| BodyError::CutShort(error.clone().into()))?;
                self.attempts_left = MAX_ATTEMPTS;
            }
            self.attempts_left -= 1;
            let upstream = &self.source.client.name;
            info!(%upstream, from = self.position, %error, "resuming the fetch of a NAR");
            match self.source.client.get(&self.source.url, self.position).await {
                Ok(Some(response)) if agreed_size(&response, self.size).is_ok() => {
                    self.body = response.body;
                    return Ok(());
                }
                // The NAR has changed or was removed, so further attempts are useless.
                Ok(_) => self.attempts_left = 0,
                Err(failure @ UpstreamFailure::CircuitOpen(_)) => {
                    error = failure.to_string();
                    self.attempts_left = 0;
                }
                Err(failure) => error = failure.to_string(),
            }
        }
    }
}
