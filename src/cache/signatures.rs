//! Selects the signatures that are valid, and those that are published.

use std::collections::{HashMap, HashSet};

use tracing::warn;

use super::{Cache, PutError};
use crate::nix::narinfo::MAX_SIGNATURES;
use crate::nix::{NarInfo, PublicKey, Signature};

impl Cache {
    /// The names of the trusted keys that have signed an upload; none where no keys are configured.
    pub(super) fn check_signatures(&self, info: &NarInfo) -> Result<Option<String>, PutError> {
        check(&self.admission.trusted_public_keys, info)
    }

    /// The keys by which a narinfo in a store is judged: those of the upstream that it was mirrored
    /// from, if that is configured, else this cache's own. The line that names the upstream is text
    /// like any other, so it gives no trust that the configuration does not give.
    pub(super) fn keys_for(&self, info: &NarInfo) -> &[PublicKey] {
        match self.configured_upstream(info) {
            Some(keys) => keys,
            None => &self.admission.trusted_public_keys,
        }
    }

    /// Whether a narinfo was mirrored from a configured upstream without keys, so that its
    /// signatures cannot be verified.
    pub(super) fn is_mirrored_without_keys(&self, info: &NarInfo) -> bool {
        self.configured_upstream(info).is_some_and(<[_]>::is_empty)
    }

    fn configured_upstream(&self, info: &NarInfo) -> Option<&[PublicKey]> {
        let url = info.upstream()?;
        let upstreams = &self.admission.upstream_keys;
        upstreams.iter().find(|(known, _)| known == url).map(|(_, keys)| keys.as_slice())
    }

    /// Checks a narinfo in a store by [`Self::keys_for`].
    pub(super) fn check_stored_signatures(&self, info: &NarInfo) -> Result<(), PutError> {
        check(self.keys_for(info), info).map(drop)
    }

    /// Leaves out the signatures that are not to be published with `info`, and adds those of `more`
    /// that are: see [`select`].
    pub(super) fn select_signatures(&self, info: &mut NarInfo, more: &[Signature]) {
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

/// The signatures to publish, in Nix's order, and the number of others: of `ours`, those that are
/// not false; of `theirs`, all where there are no `keys`, and where there are, only those that are
/// valid. Of more than [`MAX_SIGNATURES`], valid ones stay first, then `ours`.
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

/// Which signatures are valid.
struct Validity<'a> {
    signatures: HashSet<&'a Signature>,
    by_key: HashSet<&'a str>,
}

impl<'a> Validity<'a> {
    /// Verifies the first [`MAX_SIGNATURES`] that name each key: each costs some 50 µs, and a narinfo
    /// can come with a hundred thousand.
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

    /// A secret key with its public half.
    fn key(name: &str, seed: u8) -> (SigningKey, PublicKey) {
        let secret = SigningKey::from_bytes(&[seed; 32]);
        let public = STANDARD.encode(secret.verifying_key().as_bytes());
        (secret, format!("{name}:{public}").parse().unwrap())
    }

    fn signature(name: &str, secret: &SigningKey, fingerprint: &str) -> Signature {
        let bytes = secret.sign(fingerprint.as_bytes()).to_bytes();
        format!("{name}:{}", STANDARD.encode(bytes)).parse().unwrap()
    }

    /// Signatures that look right, by keys with such names.
    fn junk(name: &str, count: usize) -> Vec<Signature> {
        let (secret, _) = key(name, 9);
        (0..count).map(|n| signature(name, &secret, &n.to_string())).collect()
    }

    #[test]
    fn what_is_false_by_a_trusted_key_is_not_published() {
        let (secret, public) = key("a", 1);
        let right = signature("a", &secret, FINGERPRINT);
        let false_one = signature("a", &secret, "another path");
        let foreign = junk("b", 1);
        let ours = [vec![false_one.clone()], foreign.clone()].concat();
        let (selected, dropped) =
            select(&[public], FINGERPRINT, &ours, std::slice::from_ref(&right));
        assert_eq!(selected, [right, foreign[0].clone()]);
        assert_eq!(dropped, 1);
        // Without keys nothing is false.
        assert_eq!(select(&[], FINGERPRINT, &ours, &[]).1, 0);
    }

    #[test]
    fn only_valid_signatures_are_merged_where_there_are_keys() {
        let (secret, public) = key("a", 1);
        let right = signature("a", &secret, FINGERPRINT);
        let theirs = [junk("b", 3), vec![right.clone()]].concat();
        assert_eq!(select(&[public], FINGERPRINT, &[], &theirs), (vec![right], 3));
        assert_eq!(select(&[], FINGERPRINT, &[], &theirs).0.len(), 4);
    }

    #[test]
    fn of_too_many_signatures_valid_ones_and_then_ours_stay() {
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
    fn the_cost_of_verifying_is_bounded() {
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
