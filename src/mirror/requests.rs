//! Requests for NARs to one upstream after the other.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use super::error::{UpstreamError, UpstreamFailure};
use super::provisional::ProvisionalName;
use super::remote::RemotePath;
use super::resuming_body::{NarSource, StartedTransfer, agreed_size};
use super::upstreams::{RunningFetches, Upstreams};
use crate::nix::CachePath;
use crate::nix::cache_path::NarName;

impl Upstreams {
    /// Locks and returns the running fetches.
    pub(super) fn fetches(&self) -> std::sync::MutexGuard<'_, RunningFetches> {
        // The map is consistent after every step, so a panic does not matter.
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the sources of a NAR: first the upstream of its narinfo, then the other upstreams,
    /// which may have the NAR under its usual name.
    fn sources(&self, name: NarName, remote: Option<&RemotePath>) -> VecDeque<NarSource> {
        let known = remote.map(|remote| NarSource {
            client: Arc::clone(&remote.client),
            url: remote.url.clone(),
        });
        let others = self
            .clients
            .iter()
            .filter(|client| remote.is_none_or(|remote| !Arc::ptr_eq(client, &remote.client)));
        let url = CachePath::Nar(name).key();
        let others =
            others.map(|client| NarSource { client: Arc::clone(client), url: url.clone() });
        // Other caches do not know the provisional names of this cache.
        let others = others.filter(|_| ProvisionalName::of(name).is_none());
        known.into_iter().chain(others).collect()
    }

    /// Requests the NAR from one source after the other.
    pub(super) async fn request_nar(
        &self,
        name: NarName,
        remote: Option<&RemotePath>,
    ) -> Result<Option<StartedTransfer>, UpstreamError> {
        let stated = remote.and_then(|remote| remote.file_size);
        let mut sources = self.sources(name, remote);
        let mut failed = None;
        while let Some(source) = sources.pop_front() {
            let response = match source.client.check_not_bad(name) {
                Ok(()) => source.client.get(&source.url, 0).await,
                Err(failure) => Err(failure),
            };
            let failure = match response {
                Ok(None) => continue,
                Ok(Some(response)) => match agreed_size(&response, stated) {
                    Ok(None) if remote.is_none() => UpstreamFailure::InvalidResponse(
                        "the response has no Content-Length, and the NAR has no narinfo".to_owned(),
                    ),
                    Ok(size) => {
                        return Ok(Some(StartedTransfer {
                            source,
                            remaining_sources: sources,
                            response,
                            size,
                        }));
                    }
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            let upstream = source.client.name.clone();
            failed.get_or_insert(UpstreamError { upstream, failure });
        }
        failed.map_or(Ok(None), Err)
    }

    /// Requests the length of a NAR from one source after the other. Returns it with whether objects
    /// of the upstream that answered are stored.
    pub(super) async fn request_nar_size(
        &self,
        name: NarName,
        remote: Option<&RemotePath>,
    ) -> Result<Option<(bool, Option<u64>)>, UpstreamError> {
        let stated = remote.and_then(|remote| remote.file_size);
        let mut failed = None;
        for source in self.sources(name, remote) {
            let response = match source.client.check_not_bad(name) {
                Ok(()) => source.client.head(&source.url).await,
                Err(failure) => Err(failure),
            };
            let failure = match response {
                Ok(None) => continue,
                Ok(Some(response)) => match agreed_size(&response, stated) {
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
