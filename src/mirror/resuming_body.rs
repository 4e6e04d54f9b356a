//! The bytes of a NAR: an interrupted transfer is resumed at the same upstream or at the next one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tracing::info;

use super::client::{Answer, Client};
use super::error::UpstreamFailure;
use super::partial_nar::PartialNar;
use crate::ingest::BodyError;

/// How often an interrupted fetch is resumed at the same upstream.
const TRIES: u32 = 3;

/// An upstream and the URL of a NAR in it.
pub(super) struct Source {
    pub client: Arc<Client>,
    pub url: String,
}

/// A started response with a NAR.
pub(super) struct Started {
    pub source: Source,
    pub others: VecDeque<Source>,
    pub answer: Answer,
    /// The length of the file in bytes, if it is known.
    pub size: Option<u64>,
}

/// Returns the length of a NAR. The narinfo and the response must agree on it.
pub(super) fn size(answer: &Answer, stated: Option<u64>) -> Result<Option<u64>, UpstreamFailure> {
    if let Some(encoding) = &answer.encoding {
        return Err(UpstreamFailure::InvalidResponse(format!(
            "the NAR has the Content-Encoding {encoding}"
        )));
    }
    match (stated, answer.length) {
        (Some(stated), Some(length)) if stated != length => {
            let why = format!("the NAR has {length} bytes, but its narinfo states {stated}");
            Err(UpstreamFailure::InvalidResponse(why))
        }
        (stated, length) => Ok(stated.or(length)),
    }
}

struct ResumingBody {
    source: Source,
    others: VecDeque<Source>,
    body: BoxStream<'static, io::Result<Bytes>>,
    at: u64,
    size: Option<u64>,
    tries: u32,
    growing: Arc<PartialNar>,
    kept: bool,
}

/// Returns the bytes of the whole NAR. If the NAR is not `kept`, they end with an error when
/// `growing` has no readers left.
pub(super) fn resuming(
    started: Started,
    growing: Arc<PartialNar>,
    kept: bool,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    let Started { source, others, answer, size } = started;
    let body = answer.body;
    let state = ResumingBody { source, others, body, at: 0, size, tries: TRIES, growing, kept };
    stream::try_unfold(state, |mut state| async move {
        let next = state.next().await?;
        Ok(next.map(|chunk| (chunk, state)))
    })
}

impl ResumingBody {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if !self.kept && !self.growing.is_read() {
                return Err(BodyError::CutShort("all clients have disconnected".into()));
            }
            let why = match self.body.next().await {
                Some(Ok(chunk)) => {
                    self.at += chunk.len() as u64;
                    if let Some(size) = self.size.filter(|size| self.at > *size) {
                        let why = format!("the upstream sent more than the announced {size} bytes");
                        return Err(BodyError::CutShort(why.into()));
                    }
                    return Ok(Some(chunk));
                }
                // Without a length, the protocol marks the end.
                None if self.size.is_none_or(|size| self.at == size) => return Ok(None),
                None => "the response ended early".to_owned(),
                Some(Err(error)) => error.to_string(),
            };
            self.source.client.failed(&UpstreamFailure::Connection(why.clone()), None);
            self.resume(why).await?;
        }
    }

    /// Continues the transfer at the same upstream or at the next one.
    async fn resume(&mut self, mut why: String) -> Result<(), BodyError> {
        loop {
            if self.tries == 0 {
                let next = self.others.pop_front();
                self.source = next.ok_or_else(|| BodyError::CutShort(why.clone().into()))?;
                self.tries = TRIES;
            }
            self.tries -= 1;
            let upstream = &self.source.client.name;
            info!(%upstream, from = self.at, error = %why, "resuming the fetch of a NAR");
            match self.source.client.get(&self.source.url, self.at).await {
                Ok(Some(answer)) if size(&answer, self.size).is_ok() => {
                    self.body = answer.body;
                    return Ok(());
                }
                // It will not get better there.
                Ok(_) => self.tries = 0,
                Err(failure @ UpstreamFailure::CircuitOpen(_)) => {
                    why = failure.to_string();
                    self.tries = 0;
                }
                Err(failure) => why = failure.to_string(),
            }
        }
    }
}
