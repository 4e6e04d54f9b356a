//! Requests for NARs to one upstream after the other.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use super::error::{UpstreamError, UpstreamFailure};
use super::provisional::Provisional;
use super::remote::Remote;
use super::resuming_body::{Source, Started, size};
use super::upstreams::{Fetches, Upstreams};
use crate::nix::CachePath;
use crate::nix::cache_path::NarName;

impl Upstreams {
    pub(super) fn fetches(&self) -> std::sync::MutexGuard<'_, Fetches> {
        // A map is whole after every step.
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The upstream that spoke of the NAR, then the others, where it has its usual name if they
    /// have it.
    fn sources(&self, name: NarName, remote: Option<&Remote>) -> VecDeque<Source> {
        let known = remote.map(|it| Source { client: Arc::clone(&it.client), url: it.url.clone() });
        let others = self
            .clients
            .iter()
            .filter(|client| remote.is_none_or(|remote| !Arc::ptr_eq(client, &remote.client)));
        let url = CachePath::Nar(name).key();
        let others = others.map(|client| Source { client: Arc::clone(client), url: url.clone() });
        // No other cache has a NAR under a provisional name of this one.
        let others = others.filter(|_| Provisional::of(name).is_none());
        known.into_iter().chain(others).collect()
    }

    /// Requests the NAR from one source after the other.
    pub(super) async fn request_nar(
        &self,
        name: NarName,
        remote: Option<&Remote>,
    ) -> Result<Option<Started>, UpstreamError> {
        let stated = remote.and_then(|remote| remote.file_size);
        let mut sources = self.sources(name, remote);
        let mut failed = None;
        while let Some(source) = sources.pop_front() {
            let answer = match source.client.check_trust(name) {
                Ok(()) => source.client.get(&source.url, 0).await,
                Err(failure) => Err(failure),
            };
            let failure = match answer {
                Ok(None) => continue,
                Ok(Some(answer)) => match size(&answer, stated) {
                    Ok(None) if remote.is_none() => UpstreamFailure::InvalidResponse(
                        "the NAR has neither a length nor a narinfo".to_owned(),
                    ),
                    Ok(size) => return Ok(Some(Started { source, others: sources, answer, size })),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            let upstream = source.client.name.clone();
            failed.get_or_insert(UpstreamError { upstream, failure });
        }
        failed.map_or(Ok(None), Err)
    }

    /// Requests the length of a NAR from one source after the other. Returns also whether objects
    /// of that upstream are stored.
    pub(super) async fn request_nar_size(
        &self,
        name: NarName,
        remote: Option<&Remote>,
    ) -> Result<Option<(bool, Option<u64>)>, UpstreamError> {
        let stated = remote.and_then(|remote| remote.file_size);
        let mut failed = None;
        for source in self.sources(name, remote) {
            let answer = match source.client.check_trust(name) {
                Ok(()) => source.client.head(&source.url).await,
                Err(failure) => Err(failure),
            };
            let failure = match answer {
                Ok(None) => continue,
                Ok(Some(answer)) => match size(&answer, stated) {
                    Ok(size) => return Ok(Some((source.client.store, size))),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            let upstream = source.client.name.clone();
            failed.get_or_insert(UpstreamError { upstream, failure });
        }
        failed.map_or(Ok(None), Err)
    }
}
