//! The bytes of a NAR, from whoever has them: where they break off they are taken up again, at the
//! same upstream or at the next one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tracing::info;

use super::client::{Answer, Client, Trouble};
use super::growing::Growing;
use crate::cache::BodyError;

/// How often an interrupted fetch is taken up again at the same upstream.
const TRIES: u32 = 3;

/// Where a NAR can be had.
pub(super) struct Source {
    pub client: Arc<Client>,
    pub url: String,
}

/// A NAR that begins to arrive.
pub(super) struct Begun {
    pub source: Source,
    pub others: VecDeque<Source>,
    pub answer: Answer,
    /// The length of its file in bytes, where anybody says it.
    pub size: Option<u64>,
}

/// The length of a NAR, which everybody who knows it must agree on.
pub(super) fn size(answer: &Answer, stated: Option<u64>) -> Result<Option<u64>, Trouble> {
    if let Some(encoding) = &answer.encoding {
        return Err(Trouble::Nonsense(format!("a NAR with Content-Encoding {encoding}")));
    }
    match (stated, answer.length) {
        (Some(stated), Some(length)) if stated != length => {
            Err(Trouble::Nonsense(format!("a NAR of {length} bytes whose narinfo says {stated}")))
        }
        (stated, length) => Ok(stated.or(length)),
    }
}

struct Resuming {
    source: Source,
    others: VecDeque<Source>,
    body: BoxStream<'static, io::Result<Bytes>>,
    at: u64,
    size: Option<u64>,
    tries: u32,
    growing: Arc<Growing>,
    kept: bool,
}

/// The whole of it. Where it is not `kept`, it ends in an error when nobody reads `growing` any more.
pub(super) fn resuming(
    begun: Begun,
    growing: Arc<Growing>,
    kept: bool,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    let Begun { source, others, answer, size } = begun;
    let body = answer.body;
    let state = Resuming { source, others, body, at: 0, size, tries: TRIES, growing, kept };
    stream::try_unfold(state, |mut state| async move {
        let next = state.next().await?;
        Ok(next.map(|chunk| (chunk, state)))
    })
}

impl Resuming {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if !self.kept && !self.growing.is_read() {
                return Err(BodyError::CutShort("nobody waits for it any more".into()));
            }
            let why = match self.body.next().await {
                Some(Ok(chunk)) => {
                    self.at += chunk.len() as u64;
                    if let Some(size) = self.size.filter(|size| self.at > *size) {
                        let why = format!("more than the {size} bytes that were promised");
                        return Err(BodyError::CutShort(why.into()));
                    }
                    return Ok(Some(chunk));
                }
                // Without a length, the protocol says where the end is.
                None if self.size.is_none_or(|size| self.at == size) => return Ok(None),
                None => "it ended too early".to_owned(),
                Some(Err(error)) => error.to_string(),
            };
            self.source.client.failed(&Trouble::Connection(why.clone()), None);
            self.resume(why).await?;
        }
    }

    /// Finds somebody who goes on where it broke off.
    async fn resume(&mut self, mut why: String) -> Result<(), BodyError> {
        loop {
            if self.tries == 0 {
                let next = self.others.pop_front();
                self.source = next.ok_or_else(|| BodyError::CutShort(why.clone().into()))?;
                self.tries = TRIES;
            }
            self.tries -= 1;
            info!("{why}; going on from byte {} at {}", self.at, self.source.client.name);
            match self.source.client.get(&self.source.url, self.at).await {
                Ok(Some(answer)) if size(&answer, self.size).is_ok() => {
                    self.body = answer.body;
                    return Ok(());
                }
                // It will not get better there.
                Ok(_) => self.tries = 0,
                Err(trouble @ Trouble::LeftAlone(_)) => {
                    why = trouble.to_string();
                    self.tries = 0;
                }
                Err(trouble) => why = trouble.to_string(),
            }
        }
    }
}
