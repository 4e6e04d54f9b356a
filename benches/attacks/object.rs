//! Paths with a NAR that is compressed, signed by a key that the daemon trusts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use nix_stored::nix::Sha256Hash;

use crate::support::cache_dir::hash_part;
use crate::support::nar;

/// The name of the signing key.
const KEY: &str = "attacks-1";

/// The length of an unpacked NAR: too large for the daemon to verify it in one step.
const NAR: usize = 300_000;

/// A store path, and its objects in a cache.
#[derive(Debug)]
pub struct Object {
    pub hash_part: String,
    pub narinfo_path: String,
    pub narinfo: String,
    pub nar_path: String,
    pub nar: Vec<u8>,
}

/// The compression of a NAR.
#[derive(Debug, Clone, Copy)]
pub enum Packing {
    Zstd,
    Xz,
}

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// The public key, in the format of the configuration.
pub fn public_key() -> String {
    format!("{KEY}:{}", STANDARD.encode(signing_key().verifying_key().as_bytes()))
}

/// A line with an invalid signature by that key, different for each number.
pub fn false_signature(number: u64) -> String {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    format!("Sig: {KEY}:{}\n", STANDARD.encode(bytes))
}

impl Object {
    /// The path with this number among those of a kind.
    pub fn new(kind: &str, number: usize, packing: Packing) -> anyhow::Result<Self> {
        let hash_part = hash_part(kind, number);
        let seed =
            u64::from_le_bytes(Sha256Hash::of(hash_part.as_bytes()).as_bytes()[..8].try_into()?);
        let unpacked = nar::small(seed, NAR.next_multiple_of(8));
        let (compression, extension, packed) = match packing {
            Packing::Zstd => ("zstd", "zst", zstd::encode_all(&unpacked[..], 1)?),
            Packing::Xz => {
                let mut encoder = liblzma::read::XzEncoder::new(&unpacked[..], 0);
                let mut packed = Vec::new();
                std::io::Read::read_to_end(&mut encoder, &mut packed)?;
                ("xz", "xz", packed)
            }
        };
        let store_path = format!("/nix/store/{hash_part}-{kind}-{number}");
        let nar_path = format!("{}.{extension}", nar::name(Sha256Hash::of(&packed)));
        let (nar_hash, file_hash) = (Sha256Hash::of(&unpacked), Sha256Hash::of(&packed));
        let (nar_size, file_size) = (unpacked.len(), packed.len());
        let fingerprint = format!("1;{store_path};{nar_hash};{nar_size};");
        let signature = signing_key().sign(fingerprint.as_bytes());
        let narinfo = format!(
            "StorePath: {store_path}\nURL: {nar_path}\nCompression: {compression}\n\
             FileHash: {file_hash}\nFileSize: {file_size}\nNarHash: {nar_hash}\nNarSize: {nar_size}\n\
             References: \nSig: {KEY}:{}\n",
            STANDARD.encode(signature.to_bytes())
        );
        let narinfo_path = format!("{hash_part}.narinfo");
        Ok(Self { hash_part, narinfo_path, narinfo, nar_path, nar: packed })
    }
}
