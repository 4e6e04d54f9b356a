//! Nix's vocabulary, pure: no I/O, no runtime, no HTTP.
//!
//! Everything that a request, a file or a variable says about Nix is parsed here once, into a type
//! whose values are right by construction, and rendered back from the parsed parts.

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
pub use kind::Kind;
pub use lenient::LenientNarInfo;
pub use narinfo::NarInfo;
pub use signature::{PublicKey, Signature};
pub use store_path::{StoreDir, StorePath, StorePathHash};
