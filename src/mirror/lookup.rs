//! Lookups of narinfos in the upstreams, remembered for a while.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::client::UpstreamClient;
use super::error::{UpstreamError, UpstreamFailure};
use super::provisional::ProvisionalName;
use super::remote::{LookupResult, RemotePath};
use super::upstreams::Upstreams;
use crate::ingest::{self, MEMORY_BODY_LIMIT};
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, Compression, NarInfo, Signature, StoreDir, StorePathHash, narinfo};
use crate::store::Metadata;
use crate::unpack::{DecodeBudget, has_no_decoder};

/// The time for which a failure is remembered, so that concurrent requests need not wait for the
/// same failure.
const FAILURE_TTL: Duration = Duration::from_secs(1);

impl Upstreams {
    /// Returns the path with this hash part from the first upstream that has it.
    pub(super) async fn lookup(
        &self,
        hash: &StorePathHash,
        store_dir: &StoreDir,
        decoders: &DecodeBudget,
    ) -> LookupResult {
        let request = async || {
            let result = self.request_from_all(hash, store_dir, decoders).await;
            let ttl = match &result {
                Ok(Some(_)) => self.present_ttl,
                Ok(None) => self.absent_ttl,
                Err(_) => FAILURE_TTL,
            };
            if let Ok(Some(remote)) = &result {
                self.nars.insert(remote.nar, Arc::clone(remote));
            }
            (result, ttl)
        };
        self.paths.get_or_compute(hash, request).await
    }

    /// Records that a NAR of this upstream failed verification. Another upstream may have a correct
    /// one.
    pub(super) fn mark_bad(&self, client: &UpstreamClient, name: NarName) {
        client.mark_bad(name, self.absent_ttl);
        self.forget(name);
    }

    /// Forgets a NAR and its narinfo, so that the narinfo is requested again.
    pub(super) fn forget(&self, name: NarName) {
        if let Some((_, remote)) = self.nars.remove(&name) {
            self.paths.remove(&remote.store_path.hash());
        }
    }

    async fn request_from_all(
        &self,
        hash: &StorePathHash,
        store_dir: &StoreDir,
        decoders: &DecodeBudget,
    ) -> Result<Option<Arc<RemotePath>>, UpstreamError> {
        let request = |client: Arc<UpstreamClient>| {
            async move {
                let path = CachePath::NarInfo(*hash);
                let Some(text) = client.get_bytes(&path, narinfo::MAX_SIZE as usize).await? else {
                    return Ok(None);
                };
                let parsed = read_narinfo(&client, text, hash, store_dir, decoders).await;
                if let Err(failure) = &parsed {
                    let upstream = &client.name;
                    warn!(%upstream, %path, error = %failure, "rejected a narinfo of an upstream");
                }
                parsed
            }
            .boxed()
        };
        self.first(request).await
    }

    /// Returns the result of `request` from the first upstream that has the object. Fails if no
    /// upstream has the object and at least one failed.
    pub(super) async fn first<'a, T>(
        &self,
        request: impl Fn(Arc<UpstreamClient>) -> BoxFuture<'a, Result<Option<T>, UpstreamFailure>>,
    ) -> Result<Option<T>, UpstreamError> {
        let mut failed = None;
        for client in &self.clients {
            match request(Arc::clone(client)).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(failure) => {
                    let upstream = client.name.clone();
                    failed.get_or_insert(UpstreamError { upstream, failure });
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

/// Parses and checks the narinfo of an upstream.
async fn read_narinfo(
    client: &Arc<UpstreamClient>,
    (text, encoding): (Bytes, Option<String>),
    hash: &StorePathHash,
    store_dir: &StoreDir,
    decoders: &DecodeBudget,
) -> Result<Option<Arc<RemotePath>>, UpstreamFailure> {
    let invalid = |reason: String| UpstreamFailure::InvalidResponse(reason);
    let text = match encoding {
        None => text,
        // Nix compresses narinfos if `narinfo-compression` is set.
        Some(encoding) => {
            let unknown = |_| invalid(format!("unsupported Content-Encoding “{encoding}”"));
            let encoding = encoding.parse().map_err(unknown)?;
            let decoded = ingest::decode(decoders, encoding, text).await;
            decoded.map_err(|error| invalid(error.to_string()))?
        }
    };
    let (reader, dir) = (Arc::clone(client), store_dir.clone());
    let is_large = text.len() as u64 > MEMORY_BODY_LIMIT;
    let parse = move || {
        let mut info = NarInfo::parse_as_nix(&text, &dir).map_err(|error| error.to_string())?;
        let keys = &reader.trusted_public_keys;
        let fingerprint = info.fingerprint();
        let is_by_trusted_key =
            |sig: &&Signature| keys.iter().any(|key| key.name() == sig.key_name());
        let mut signed =
            info.signatures.iter().filter(is_by_trusted_key).take(narinfo::MAX_SIGNATURES);
        let is_valid = |sig| keys.iter().any(|key| key.verifies(&fingerprint, sig));
        let trusted = keys.is_empty() || signed.any(is_valid);
        // If there are too many signatures, those by trusted keys are kept.
        info.signatures.sort_by_key(|signature| !is_by_trusted_key(&signature));
        info.signatures.truncate(narinfo::MAX_SIGNATURES);
        Ok((info, trusted))
    };
    let parsed = if is_large { ingest::joined(spawn_blocking(parse)).await } else { parse() };
    let (mut info, trusted) = parsed.map_err(invalid)?;
    // Removes the upstream from which this upstream mirrored the path.
    info.set_upstream(None);
    if info.store_path.hash() != *hash {
        return Err(invalid(format!("it is the narinfo of {}", info.store_path)));
    }
    if !trusted {
        // Nix treats a path without a trusted signature as absent, too.
        warn!(
            upstream = %client.name,
            store_path = %info.store_path,
            "ignored a narinfo without a signature by a trusted key"
        );
        return Ok(None);
    }
    let url = std::mem::take(&mut info.url);
    if !is_within_cache(&url) {
        return Err(invalid(format!("the URL “{url}” is outside of the cache")));
    }
    let nar = nar_name(&mut info).ok_or_else(|| {
        let compression = &info.compression;
        invalid(format!("no FileHash, and no decoder for the Compression “{compression}”"))
    })?;
    client.check_not_bad(nar)?;
    info.url = CachePath::Nar(nar).key();
    let text = Bytes::from(info.to_string());
    let (store_path, file_size) = (info.store_path, info.file_size);
    let client = Arc::clone(client);
    let object = (Metadata::of(&text), text);
    Ok(Some(Arc::new(RemotePath { store_path, file_size, object, nar, client, url })))
}

/// Whether a relative URL stays within the cache.
fn is_within_cache(url: &str) -> bool {
    // A query may contain any characters.
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let segments = || path.split('/');
    !path.is_empty()
        // URL parsers remove tabs and line feeds, which could separate two slashes or dots.
        && !url.contains(|c: char| c.is_whitespace() || c.is_control())
        && !path.contains(['\\', '%', ':'])
        && segments().all(|segment| !segment.is_empty() && segment != "." && segment != "..")
}

/// Returns the name of the NAR in this cache, or `None` if the NAR could not be verified. The name
/// is the file hash if it is known, and otherwise provisional. The file hash of an uncompressed NAR
/// is its NAR hash.
fn nar_name(info: &mut NarInfo) -> Option<NarName> {
    let compression: Compression = info.compression.parse().ok()?;
    if info.file_hash.is_none() && compression == Compression::None {
        info.file_hash = Some(info.nar_hash);
        info.file_size = Some(info.nar_size);
    }
    let extension = compression.extension();
    match info.file_hash {
        Some(file_hash) => Some(NarName { file_hash, extension }),
        // Without a file hash only the NAR hash can verify the file, and that needs a decoder.
        None if has_no_decoder(compression) => None,
        None => Some(ProvisionalName::new(info, extension).name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nar_url_must_stay_within_its_cache() {
        for url in
            ["nar/x.nar.xz", "nar/x.nar?hash=abc&x=/..", "nar/x.nar?token=a%2Fb%3D&at=12:00#%", "x"]
        {
            assert!(is_within_cache(url), "{url}");
        }
        for url in [
            "",
            "/nar/x",
            "//host/nar/x",
            "http://host/nar/x",
            "../x",
            "nar/../../x",
            "nar//x",
            "nar/./x",
            "nar\\x",
            "nar/%2e%2e/x",
            "file:x",
            "?x",
            "nar/",
            " /x",
            " /\t/host/x",
            "nar/.\t./x",
            "\u{1}/x",
        ] {
            assert!(!is_within_cache(url), "{url}");
        }
    }
}
