//! Parsers and printers of Nix's formats. Pure: no I/O, no async runtime, no HTTP.
//!
//! Names, hashes and narinfos from requests, files and variables are parsed here once, into types that
//! have no invalid values, and are printed from the parsed parts.

pub mod base32;
pub mod cache_info;
pub mod cache_path;
pub mod compression;
pub mod hash;
mod kind;
pub mod lenient;
pub mod nar;
pub mod narinfo;
pub mod signature;
pub mod store_path;

pub use cache_info::CacheInfo;
pub use cache_path::CachePath;
pub use compression::Compression;
pub use hash::Sha256Hash;
pub use kind::ObjectKind;
pub use lenient::LenientNarInfo;
pub use narinfo::NarInfo;
pub use signature::{PublicKey, Signature};
pub use store_path::{StoreDir, StorePath, StorePathHash};
