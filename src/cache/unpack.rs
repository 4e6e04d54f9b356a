//! From a compressed NAR to what is true of it.

use std::cell::Cell;
use std::io::{self, BufRead, Read};

use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::nix::cache_path::NarExtension;
use crate::nix::nar::{NarChecker, NarError};
use crate::nix::{Compression, Sha256Hash};

/// What a decoder may take at most. `xz -9` needs 65 MiB, the `xz` that Nix uses 9 MiB.
const DECODER_MEMORY: u64 = 192 * 1024 * 1024;

/// zstd's `windowLog`: 128 MiB, as much as `zstd -d` takes without being asked.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What unpacks to more than this and to more than [`BOMB_RATIO`] times its size is not unpacked
/// further. The largest honest ratios are those of sparse disk images, and they are smaller or
/// less extreme. The floor is what a hostile upload costs: some seconds of one core.
const BOMB_FLOOR: u64 = 8 << 30;
const BOMB_RATIO: u64 = 1000;

/// How much is unpacked at a time.
const BUFFER: usize = 64 * 1024;

/// What is true of a NAR when it is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// How the file is compressed.
    pub compression: Compression,
    /// SHA-256 of the NAR; none where it is not compressed, and so that of the file.
    pub nar_hash: Option<Sha256Hash>,
    /// Its length in bytes.
    pub nar_size: u64,
}

/// Why a NAR could not be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// There is no decoder for it, and so it may be all right.
    #[error("this cache has no decoder for {0}")]
    NoDecoder(Compression),
    /// A name without extension, and no known beginning.
    #[error(
        "the file is neither a NAR nor compressed by gzip or lzma, and its name says nothing else"
    )]
    Unknown,
    /// The decoder gave up.
    #[error("the file is not what {compression} writes, or is damaged")]
    Decode {
        /// What it should be.
        compression: Compression,
        /// What the decoder said.
        source: io::Error,
    },
    /// What was unpacked is not a NAR.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// It hardly ends.
    #[error(
        "the first {packed} bytes of the file unpack to {unpacked}: it is taken for a bomb and not \
         unpacked further"
    )]
    Bomb {
        /// Bytes read.
        packed: u64,
        /// Bytes that came of them.
        unpacked: u64,
    },
}

/// Unpacks `input` and checks that it is a NAR. Its first buffer must have the file's magic number.
pub fn unpack(input: impl BufRead, extension: NarExtension) -> Result<Unpacked, UnpackError> {
    let packed = Cell::new(0);
    let mut input = Counted { inner: input, count: &packed };
    let beginning = input
        .fill_buf()
        .map_err(|source| UnpackError::Decode { compression: Compression::None, source })?;
    let compression = Compression::detect(extension, beginning).ok_or(UnpackError::Unknown)?;
    let failed = |source| UnpackError::Decode { compression, source };
    let mut checker = NarChecker::default();
    let mut nar_size = 0;

    if compression == Compression::None {
        loop {
            let bytes = input.fill_buf().map_err(failed)?;
            if bytes.is_empty() {
                break;
            }
            checker.push(bytes)?;
            let count = bytes.len();
            nar_size += count as u64;
            input.consume(count);
        }
        checker.finish()?;
        return Ok(Unpacked { compression, nar_hash: None, nar_size });
    }

    let mut decoder = match decoder(compression, input) {
        Ok(decoder) => decoder,
        Err(None) => return Err(UnpackError::NoDecoder(compression)),
        Err(Some(source)) => return Err(failed(source)),
    };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hasher.update(&buffer[..count]);
        checker.push(&buffer[..count])?;
        nar_size += count as u64;
        if nar_size > BOMB_FLOOR && nar_size / BOMB_RATIO > packed.get() {
            return Err(UnpackError::Bomb { packed: packed.get(), unpacked: nar_size });
        }
    }
    checker.finish()?;
    let nar_hash = Some(Sha256Hash::new(hasher.finalize().into()));
    Ok(Unpacked { compression, nar_hash, nar_size })
}

/// A reader of what `input` is when it is decompressed. The error is none where there is no decoder.
pub fn decoder<'a>(
    compression: Compression,
    input: impl BufRead + 'a,
) -> Result<Box<dyn Read + 'a>, Option<io::Error>> {
    let lzma = |stream: Result<Stream, liblzma::stream::Error>| {
        stream.map_err(|error| Some(io::Error::from(error)))
    };
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Xz => {
            let stream = lzma(Stream::new_stream_decoder(DECODER_MEMORY, CONCATENATED))?;
            Box::new(XzDecoder::new_stream(input, stream))
        }
        Compression::Lzip => {
            let stream = lzma(Stream::new_lzip_decoder(DECODER_MEMORY, CONCATENATED))?;
            Box::new(XzDecoder::new_stream(input, stream))
        }
        Compression::Lzma => {
            let stream = lzma(Stream::new_lzma_decoder(DECODER_MEMORY))?;
            Box::new(XzDecoder::new_stream(input, stream))
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(Some)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(Some)?;
            Box::new(decoder)
        }
        Compression::Brotli => Box::new(brotli::Decompressor::new(input, BUFFER)),
        Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
        Compression::Compress | Compression::Grzip | Compression::Lrzip | Compression::Lzop => {
            return Err(None);
        }
    })
}

/// Counts what is read of the input.
struct Counted<'a, R> {
    inner: R,
    count: &'a Cell<u64>,
}

impl<R: BufRead> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.count.set(self.count.get() + count as u64);
        self.inner.consume(count);
    }
}
