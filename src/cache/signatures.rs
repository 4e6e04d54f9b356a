//! Selects the signatures that are valid, and those that are published.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tracing::warn;

use crate::config::Admission;
use crate::ingest::PutError;
use crate::nix::narinfo::MAX_SIGNATURES;
use crate::nix::{NarInfo, PublicKey, Signature};

/// The trusted keys, and which signatures they require. Clones share one policy.
#[derive(Debug, Clone)]
pub(crate) struct SignaturePolicy(Arc<Admission>);

impl SignaturePolicy {
    pub(super) fn new(admission: Arc<Admission>) -> Self {
        Self(admission)
    }

    /// Returns the names of the trusted keys that have signed an upload, or `None` if no keys are
    /// configured.
    pub(super) fn check_upload(&self, info: &NarInfo) -> Result<Option<String>, PutError> {
        check(&self.0.trusted_public_keys, info)
    }

    /// The keys that a stored narinfo must be signed by: those of the upstream that it was mirrored from,
    /// if that upstream is configured, otherwise those of this cache. Anyone can write an `Upstream:`
    /// line, so it never adds a key that is not configured.
    pub(crate) fn keys_for(&self, info: &NarInfo) -> &[PublicKey] {
        match self.configured_upstream(info) {
            Some(keys) => keys,
            None => &self.0.trusted_public_keys,
        }
    }

    /// Whether a narinfo was mirrored from a configured upstream without keys, so that its
    /// signatures cannot be verified.
    pub(crate) fn is_mirrored_without_keys(&self, info: &NarInfo) -> bool {
        self.configured_upstream(info).is_some_and(<[_]>::is_empty)
    }

    fn configured_upstream(&self, info: &NarInfo) -> Option<&[PublicKey]> {
        let url = info.upstream()?;
        let upstreams = &self.0.upstream_keys;
        upstreams.iter().find(|(known, _)| known == url).map(|(_, keys)| keys.as_slice())
    }

    /// Checks the signatures of a stored narinfo, see [`Self::keys_for`].
    pub(crate) fn check_stored(&self, info: &NarInfo) -> Result<(), PutError> {
        check(self.keys_for(info), info).map(drop)
    }

    /// Removes the signatures of `info` that must not be published, and adds those of `more` that may
    /// be; see [`select`].
    pub(super) fn select(&self, info: &mut NarInfo, more: &[Signature]) {
        let keys = self.keys_for(info);
        let (selected, dropped) = select(keys, &info.fingerprint(), &info.signatures, more);
        if dropped > 0 {
            warn!(
                store_path = %info.store_path,
                dropped,
                limit = MAX_SIGNATURES,
                "dropped signatures that are invalid or above the limit"
            );
        }
        info.signatures = selected;
    }
}

fn check(keys: &[PublicKey], info: &NarInfo) -> Result<Option<String>, PutError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let fingerprint = info.fingerprint();
    let valid = Validity::new(keys, &fingerprint, &info.signatures);
    let signed_by: Vec<&str> =
        keys.iter().filter(|key| valid.by_key.contains(key.name())).map(PublicKey::name).collect();
    if !signed_by.is_empty() {
        return Ok(Some(signed_by.join(" ")));
    }
    let list = |names: Vec<&str>| names.join(", ");
    let found = info.signatures.iter().take(MAX_SIGNATURES).map(Signature::key_name);
    Err(PutError::Signature {
        trusted: list(keys.iter().map(PublicKey::name).collect()),
        found: list(found.collect()),
    })
}

/// Returns the signatures to publish, in Nix's order, and the number of dropped ones. Signatures of
/// `ours` are dropped if they name a key of `keys` and are invalid. Signatures of `theirs` are dropped
/// if there are `keys` and they are not valid by one of them. Above [`MAX_SIGNATURES`], valid ones are
/// kept first, then `ours`.
fn select(
    keys: &[PublicKey],
    fingerprint: &str,
    ours: &[Signature],
    theirs: &[Signature],
) -> (Vec<Signature>, usize) {
    let from_ours: HashSet<&Signature> = ours.iter().collect();
    let new = theirs.iter().filter(|signature| !from_ours.contains(signature));
    let both: Vec<&Signature> = ours.iter().chain(new).collect();
    let valid = Validity::new(keys, fingerprint, both.iter().copied());
    let mut chosen: Vec<&Signature> =
        both.iter().copied().filter(|signature| valid.signatures.contains(signature)).collect();
    chosen.extend(both.iter().copied().filter(|signature| {
        let names_a_key = keys.iter().any(|key| key.name() == signature.key_name());
        let may_stay = keys.is_empty() || from_ours.contains(signature);
        !valid.signatures.contains(signature) && !names_a_key && may_stay
    }));
    chosen.truncate(MAX_SIGNATURES);
    let dropped = both.len() - chosen.len();
    let mut chosen: Vec<Signature> = chosen.into_iter().cloned().collect();
    chosen.sort();
    (chosen, dropped)
}

/// The valid signatures of a narinfo.
struct Validity<'a> {
    signatures: HashSet<&'a Signature>,
    by_key: HashSet<&'a str>,
}

impl<'a> Validity<'a> {
    /// Verifies at most [`MAX_SIGNATURES`] signatures for each key: each takes some 50 µs, and a narinfo
    /// can have a hundred thousand.
    fn new(
        keys: &'a [PublicKey],
        fingerprint: &str,
        signatures: impl IntoIterator<Item = &'a Signature>,
    ) -> Self {
        let mut valid = Self { signatures: HashSet::new(), by_key: HashSet::new() };
        let mut tried: HashMap<&str, usize> = HashMap::new();
        for signature in signatures {
            for key in keys.iter().filter(|key| key.name() == signature.key_name()) {
                let tried = tried.entry(key.name()).or_default();
                *tried += 1;
                if *tried <= MAX_SIGNATURES && key.verifies(fingerprint, signature) {
                    valid.signatures.insert(signature);
                    valid.by_key.insert(key.name());
                }
            }
        }
        valid
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    const FINGERPRINT: &str = "1;/nix/store/x;sha256:y;1;";

    /// A secret key with its public key.
    fn key(name: &str, seed: u8) -> (SigningKey, PublicKey) {
        let secret = SigningKey::from_bytes(&[seed; 32]);
        let public = STANDARD.encode(secret.verifying_key().as_bytes());
        (secret, format!("{name}:{public}").parse().unwrap())
    }

    fn signature(name: &str, secret: &SigningKey, fingerprint: &str) -> Signature {
        let bytes = secret.sign(fingerprint.as_bytes()).to_bytes();
        format!("{name}:{}", STANDARD.encode(bytes)).parse().unwrap()
    }

    /// Well-formed invalid signatures by a key of this name.
    fn junk(name: &str, count: usize) -> Vec<Signature> {
        let (secret, _) = key(name, 9);
        (0..count).map(|n| signature(name, &secret, &n.to_string())).collect()
    }

    #[test]
    fn an_invalid_signature_by_a_trusted_key_is_not_published() {
        let (secret, public) = key("a", 1);
        let right = signature("a", &secret, FINGERPRINT);
        let invalid = signature("a", &secret, "another path");
        let foreign = junk("b", 1);
        let ours = [vec![invalid.clone()], foreign.clone()].concat();
        let (selected, dropped) =
            select(&[public], FINGERPRINT, &ours, std::slice::from_ref(&right));
        assert_eq!(selected, [right, foreign[0].clone()]);
        assert_eq!(dropped, 1);
        // Without keys no signature is invalid.
        assert_eq!(select(&[], FINGERPRINT, &ours, &[]).1, 0);
    }

    #[test]
    fn with_trusted_keys_only_valid_signatures_are_merged() {
        let (secret, public) = key("a", 1);
        let right = signature("a", &secret, FINGERPRINT);
        let theirs = [junk("b", 3), vec![right.clone()]].concat();
        assert_eq!(select(&[public], FINGERPRINT, &[], &theirs), (vec![right], 3));
        assert_eq!(select(&[], FINGERPRINT, &[], &theirs).0.len(), 4);
    }

    #[test]
    fn above_the_limit_valid_signatures_are_kept_first_then_ours() {
        let (secret, public) = key("z", 1);
        let right = signature("z", &secret, FINGERPRINT);
        let ours = [junk("b", MAX_SIGNATURES + 5), vec![right.clone()]].concat();
        let (selected, dropped) = select(&[public], FINGERPRINT, &ours, &[]);
        assert_eq!((selected.len(), dropped), (MAX_SIGNATURES, 6));
        assert!(selected.contains(&right));
        let (before, after) = (junk("b", MAX_SIGNATURES - 1), junk("c", 3));
        let (selected, dropped) = select(&[], FINGERPRINT, &before, &after);
        assert_eq!(dropped, 2);
        assert!(before.iter().all(|signature| selected.contains(signature)));
    }

    #[test]
    fn at_most_max_signatures_are_verified_for_each_key() {
        let (secret, public) = key("a", 1);
        let mut many = junk("a", 5_000);
        many.insert(MAX_SIGNATURES - 1, signature("a", &secret, FINGERPRINT));
        let keys = [public];
        let valid = Validity::new(&keys, FINGERPRINT, &many);
        assert_eq!(valid.signatures.len(), 1);
        many.swap(MAX_SIGNATURES - 1, MAX_SIGNATURES);
        assert!(Validity::new(&keys, FINGERPRINT, &many).signatures.is_empty());
    }
}
