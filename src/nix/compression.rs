//! Compression methods of NARs, with Nix's names
//! (Nix's `src/libutil/include/nix/util/compression-algo.hh`).

use std::fmt;
use std::str::FromStr;

use super::cache_path::NarExtension;

/// A compression method that Nix supports for NARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// `none`
    None,
    /// `xz`
    Xz,
    /// `bzip2`
    Bzip2,
    /// `br`
    Brotli,
    /// `zstd`
    Zstd,
    /// `gzip`
    Gzip,
    /// `lz4`
    Lz4,
    /// `lzip`
    Lzip,
    /// `compress`
    Compress,
    /// `grzip`
    Grzip,
    /// `lrzip`
    Lrzip,
    /// `lzma`
    Lzma,
    /// `lzop`
    Lzop,
}

impl Compression {
    /// All methods.
    pub const ALL: [Self; 13] = [
        Self::None,
        Self::Xz,
        Self::Bzip2,
        Self::Brotli,
        Self::Zstd,
        Self::Gzip,
        Self::Lz4,
        Self::Lzip,
        Self::Compress,
        Self::Grzip,
        Self::Lrzip,
        Self::Lzma,
        Self::Lzop,
    ];

    /// Nix's name of the method.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Lzip => "lzip",
            Self::Compress => "compress",
            Self::Grzip => "grzip",
            Self::Lrzip => "lrzip",
            Self::Lzma => "lzma",
            Self::Lzop => "lzop",
        }
    }

    /// The extension that Nix gives to a NAR with this compression.
    pub const fn extension(self) -> NarExtension {
        match self {
            Self::Xz => NarExtension::Xz,
            Self::Bzip2 => NarExtension::Bz2,
            Self::Brotli => NarExtension::Br,
            Self::Zstd => NarExtension::Zst,
            Self::Lz4 => NarExtension::Lz4,
            Self::Lzip => NarExtension::Lzip,
            Self::None
            | Self::Gzip
            | Self::Compress
            | Self::Grzip
            | Self::Lrzip
            | Self::Lzma
            | Self::Lzop => NarExtension::Bare,
        }
    }

    /// Detects the compression of a file by its extension, or, without an extension, by the magic number
    /// in its first bytes. Returns `None` for an unknown magic number.
    pub fn detect(extension: NarExtension, beginning: &[u8]) -> Option<Self> {
        let magic = |(bytes, compression): &(&[u8], Self)| {
            beginning.starts_with(bytes).then_some(*compression)
        };
        match extension {
            NarExtension::Xz => Some(Self::Xz),
            NarExtension::Bz2 => Some(Self::Bzip2),
            NarExtension::Br => Some(Self::Brotli),
            NarExtension::Zst => Some(Self::Zstd),
            NarExtension::Lz4 => Some(Self::Lz4),
            NarExtension::Lzip => Some(Self::Lzip),
            NarExtension::Bare => BARE_MAGIC.iter().find_map(magic),
        }
    }
}

/// Magic numbers of files without an extension.
const BARE_MAGIC: [(&[u8], Compression); 7] = [
    // The length of the string "nix-archive-1", and the string.
    (b"\x0d\0\0\0\0\0\0\0nix-archive-1", Compression::None),
    (b"\x1f\x8b", Compression::Gzip),
    (b"\x1f\x9d", Compression::Compress),
    (b"GRZipII\0", Compression::Grzip),
    (b"LRZI", Compression::Lrzip),
    (b"\x5d\0\0", Compression::Lzma),
    (b"\x89LZO", Compression::Lzop),
];

impl FromStr for Compression {
    /// The unknown name.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or_else(|| text.to_owned())
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_nix() {
        for compression in Compression::ALL {
            assert_eq!(compression.as_str().parse(), Ok(compression));
        }
        assert_eq!("rar".parse::<Compression>(), Err("rar".to_owned()));
    }

    #[test]
    fn without_an_extension_the_first_bytes_decide() {
        use Compression as C;
        let detect = |bytes: &[u8]| C::detect(NarExtension::Bare, bytes);
        assert_eq!(detect(b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0"), Some(C::None));
        assert_eq!(detect(b"\x1f\x8b\x08"), Some(C::Gzip));
        assert_eq!(detect(b"hello"), None);
        assert_eq!(detect(b""), None);
        assert_eq!(C::detect(NarExtension::Xz, b""), Some(C::Xz));
    }
}
