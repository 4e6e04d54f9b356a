//! Lookups of narinfos in the upstreams, remembered for a while.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::client::Client;
use super::error::{UpstreamError, UpstreamFailure};
use super::provisional::Provisional;
use super::remote::{LookupResult, Remote};
use super::upstreams::Upstreams;
use crate::ingest::{self, SMALL};
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, Compression, NarInfo, Signature, StoreDir, StorePathHash, narinfo};
use crate::store::Metadata;
use crate::unpack::{DecodeBudget, has_no_decoder};

/// The time for which a failure is remembered, so that concurrent requests need not wait for the
/// same failure.
const FAILURE_TTL: Duration = Duration::from_secs(1);

impl Upstreams {
    /// The path with this hash part, from the first upstream that has it.
    pub(super) async fn lookup(
        &self,
        hash: &StorePathHash,
        store_dir: &StoreDir,
        decoders: &DecodeBudget,
    ) -> LookupResult {
        let ask = async || {
            let answer = self.ask_all(hash, store_dir, decoders).await;
            let ttl = match &answer {
                Ok(Some(_)) => self.present_ttl,
                Ok(None) => self.absent_ttl,
                Err(_) => FAILURE_TTL,
            };
            if let Ok(Some(remote)) = &answer {
                self.nars.insert(remote.nar, Arc::clone(remote));
            }
            (answer, ttl)
        };
        self.paths.get_or_compute(hash, ask).await
    }

    /// Records that a NAR of this upstream failed verification. Another upstream may have a correct
    /// one.
    pub(super) fn mark_bad(&self, client: &Client, name: NarName) {
        client.mark_bad(name, self.absent_ttl);
        self.forget(name);
    }

    /// Forgets a NAR, so that its narinfo is requested again.
    pub(super) fn forget(&self, name: NarName) {
        if let Some((_, remote)) = self.nars.remove(&name) {
            self.paths.remove(&remote.store_path.hash());
        }
    }

    async fn ask_all(
        &self,
        hash: &StorePathHash,
        store_dir: &StoreDir,
        decoders: &DecodeBudget,
    ) -> Result<Option<Arc<Remote>>, UpstreamError> {
        let ask = |client: Arc<Client>| {
            async move {
                let path = CachePath::NarInfo(*hash);
                let Some(text) = client.get_whole(&path, narinfo::MAX_SIZE as usize).await? else {
                    return Ok(None);
                };
                let read = read_narinfo(&client, text, hash, store_dir, decoders).await;
                if let Err(failure) = &read {
                    let upstream = &client.name;
                    warn!(%upstream, %path, error = %failure, "rejected a narinfo of an upstream");
                }
                read
            }
            .boxed()
        };
        self.first(ask).await
    }

    /// Returns the first result of `ask` from an upstream that has the object. Fails if no upstream
    /// has it and one failed.
    pub(super) async fn first<'a, T>(
        &self,
        ask: impl Fn(Arc<Client>) -> BoxFuture<'a, Result<Option<T>, UpstreamFailure>>,
    ) -> Result<Option<T>, UpstreamError> {
        let mut failed = None;
        for client in &self.clients {
            match ask(Arc::clone(client)).await {
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
    client: &Arc<Client>,
    (text, encoding): (Bytes, Option<String>),
    hash: &StorePathHash,
    store_dir: &StoreDir,
    decoders: &DecodeBudget,
) -> Result<Option<Arc<Remote>>, UpstreamFailure> {
    let nonsense = |why: String| UpstreamFailure::InvalidResponse(why);
    let text = match encoding {
        None => text,
        // As Nix may have stored it, with `narinfo-compression`.
        Some(encoding) => {
            let unknown = |_| nonsense(format!("unsupported Content-Encoding “{encoding}”"));
            let encoding = encoding.parse().map_err(unknown)?;
            let decoded = ingest::decode(decoders, encoding, text).await;
            decoded.map_err(|error| nonsense(error.to_string()))?
        }
    };
    let (reader, dir) = (Arc::clone(client), store_dir.clone());
    let is_large = text.len() as u64 > SMALL;
    let parse = move || {
        let mut info = NarInfo::parse_as_nix(&text, &dir).map_err(|error| error.to_string())?;
        let keys = &reader.trusted_public_keys;
        let fingerprint = info.fingerprint();
        let by = |sig: &&Signature| keys.iter().any(|key| key.name() == sig.key_name());
        let mut signed = info.signatures.iter().filter(by).take(narinfo::MAX_SIGNATURES);
        let is_valid = |sig| keys.iter().any(|key| key.verifies(&fingerprint, sig));
        let trusted = keys.is_empty() || signed.any(is_valid);
        // Of too many signatures, those that readers of this cache may need are kept first.
        info.signatures.sort_by_key(|signature| !by(&signature));
        info.signatures.truncate(narinfo::MAX_SIGNATURES);
        Ok((info, trusted))
    };
    let parsed = if is_large { ingest::joined(spawn_blocking(parse)).await } else { parse() };
    let (mut info, trusted) = parsed.map_err(nonsense)?;
    // Where the upstream has it from is its own affair.
    info.set_upstream(None);
    if info.store_path.hash() != *hash {
        return Err(nonsense(format!("it is the narinfo of {}", info.store_path)));
    }
    if !trusted {
        // As for a client, a path without a trusted signature counts as absent.
        warn!(
            upstream = %client.name,
            store_path = %info.store_path,
            "ignored a narinfo without a signature by a trusted key"
        );
        return Ok(None);
    }
    let url = std::mem::take(&mut info.url);
    if !is_below(&url) {
        return Err(nonsense(format!("the URL “{url}” is outside of the cache")));
    }
    let nar = name(&mut info).ok_or_else(|| {
        let compression = &info.compression;
        nonsense(format!("no FileHash, and no decoder for the Compression “{compression}”"))
    })?;
    client.check_trust(nar)?;
    info.url = CachePath::Nar(nar).key();
    let text = Bytes::from(info.to_string());
    let (store_path, file_size) = (info.store_path, info.file_size);
    let client = Arc::clone(client);
    let object = (Metadata::of(&text), text);
    Ok(Some(Arc::new(Remote { store_path, file_size, object, nar, client, url })))
}

/// Whether a relative URL stays within the cache.
fn is_below(url: &str) -> bool {
    // What comes after a question mark is not a path, whatever is in it.
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let steps = || path.split('/');
    !path.is_empty()
        // A URL's parser takes white space out, and with it what keeps two slashes or dots apart.
        && !url.contains(|c: char| c.is_whitespace() || c.is_control())
        && !path.contains(['\\', '%', ':'])
        && steps().all(|step| !step.is_empty() && step != "." && step != "..")
}

/// The name that the NAR has here: the hash of its file, or a provisional one where that is not known.
/// Where it is not compressed, the NAR is the file.
fn name(info: &mut NarInfo) -> Option<NarName> {
    let compression: Compression = info.compression.parse().ok()?;
    if info.file_hash.is_none() && compression == Compression::None {
        info.file_hash = Some(info.nar_hash);
        info.file_size = Some(info.nar_size);
    }
    let extension = compression.extension();
    match info.file_hash {
        Some(file_hash) => Some(NarName { file_hash, extension }),
        // Without a hash of the file, only its contents can be verified.
        None if has_no_decoder(compression) => None,
        None => Some(Provisional::new(info, extension).name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_stays_below_its_cache() {
        for url in
            ["nar/x.nar.xz", "nar/x.nar?hash=abc&x=/..", "nar/x.nar?token=a%2Fb%3D&at=12:00#%", "x"]
        {
            assert!(is_below(url), "{url}");
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
            assert!(!is_below(url), "{url}");
        }
    }
}
