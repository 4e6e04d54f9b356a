//! Unpacks compressed NARs, and determines their format, hash and size.

use std::cell::Cell;
use std::io::{self, BufRead, Read};

use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::decode_budget::Allowance;
use super::inspect_reader::InspectReader;
use crate::nix::cache_path::NarExtension;
use crate::nix::nar::{NarChecker, NarError};
use crate::nix::{Compression, Sha256Hash};

/// What a decoder takes beside its window, at most.
const OVERHEAD: u64 = 1 << 20;

/// How much is unpacked at a time.
const BUFFER: usize = 64 * 1024;

/// The facts about an unpacked NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// How the file is compressed.
    pub compression: Compression,
    /// SHA-256 of the NAR; none where it is not compressed, and so that of the file.
    pub nar_hash: Option<Sha256Hash>,
    /// Its length in bytes.
    pub nar_size: u64,
}

/// The reason why a NAR cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// There is no decoder, so the NAR may be intact.
    #[error("there is no decoder for {0}")]
    NoDecoder(Compression),
    /// The name has no extension, and the format is not recognized.
    #[error(
        "the file is neither a NAR nor compressed by gzip or lzma, and its name has no other \
         extension"
    )]
    Unknown,
    /// The decoder failed.
    #[error("the file is not valid {compression} data")]
    Decode {
        /// The expected compression.
        compression: Compression,
        /// The error of the decoder.
        source: io::Error,
    },
    /// The unpacked file is not a NAR.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// Unpacking needs more than the allowance; it must be retried with this one. Callers do that,
    /// so no client gets this error.
    #[error("unpacking the file needs more memory than allowed")]
    Exceeded(Allowance),
    /// The window is larger than the largest allowed one.
    #[error(
        "unpacking the file needs more than 128 MiB of memory, or a window that {0} does not \
         allow; compress it with a smaller window"
    )]
    Window(Compression),
    /// The unpacked size is out of proportion.
    #[error(
        "the first {packed} bytes of the file unpack to {unpacked} bytes: refused as a \
         decompression bomb"
    )]
    Bomb {
        /// Bytes read.
        packed: u64,
        /// Bytes unpacked from them.
        unpacked: u64,
    },
}

/// Unpacks `input` and checks that it is a NAR. Its first buffer must have the file's magic number.
/// `length` is that of the whole input, where all of it is there. Where unpacking takes more than is
/// allowed, it ends in [`UnpackError::Exceeded`].
pub fn unpack(
    input: impl BufRead,
    length: Option<u64>,
    extension: NarExtension,
    allowance: Allowance,
) -> Result<Unpacked, UnpackError> {
    let packed = Cell::new(0);
    let count = |bytes: &[u8]| packed.set(packed.get() + bytes.len() as u64);
    let mut input = InspectReader::new(input, count);
    let beginning = input
        .fill_buf()
        .map_err(|source| UnpackError::Decode { compression: Compression::None, source })?;
    let compression = Compression::detect(extension, beginning).ok_or(UnpackError::Unknown)?;
    let failed = |source: io::Error| match more_memory(&source, allowance) {
        Some(more) => UnpackError::Exceeded(more),
        None if needs_memory(&source) => UnpackError::Window(compression),
        None => UnpackError::Decode { compression, source },
    };
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

    let mut decoder = match decoder(compression, input, allowance) {
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
        if nar_size > allowance.output_of(length.unwrap_or(packed.get())) {
            let bomb = UnpackError::Bomb { packed: packed.get(), unpacked: nar_size };
            return Err(allowance.with_more_output().map_or(bomb, UnpackError::Exceeded));
        }
    }
    checker.finish()?;
    let nar_hash = Some(Sha256Hash::new(hasher.finalize().into()));
    Ok(Unpacked { compression, nar_hash, nar_size })
}

/// A decoder needs more memory than allowed.
#[derive(Debug, Error)]
#[error("a larger window than allowed is needed")]
struct NeedsMemory;

/// Whether a decoder failed because it needs more memory.
fn needs_memory(error: &io::Error) -> bool {
    let known = error.get_ref().is_some_and(|inner| {
        inner.is::<NeedsMemory>()
            || matches!(inner.downcast_ref(), Some(liblzma::stream::Error::MemLimit))
    });
    // The crate makes a text of zstd's error code, `ZSTD_error_frameParameter_windowTooLarge`.
    known || error.to_string() == "Frame requires too much memory for decoding"
}

/// What a decoder that failed with `error` is to be tried again with, if that can help.
pub fn more_memory(error: &io::Error, allowance: Allowance) -> Option<Allowance> {
    if needs_memory(error) { allowance.with_more_memory() } else { None }
}

/// Whether there is no decoder for it.
pub const fn has_no_decoder(compression: Compression) -> bool {
    matches!(
        compression,
        Compression::Compress | Compression::Grzip | Compression::Lrzip | Compression::Lzop
    )
}

/// A reader of what `input` is when it is decompressed, which takes no more memory than it may. Its
/// first buffer must have the file's magic number. The error is none where there is no decoder.
pub fn decoder<'a>(
    compression: Compression,
    mut input: impl BufRead + 'a,
    allowance: Allowance,
) -> Result<Box<dyn Read + 'a>, Option<io::Error>> {
    let lzma = |stream: Result<Stream, liblzma::stream::Error>| {
        stream.map_err(|error| Some(io::Error::from(error)))
    };
    let window = allowance.memory() - OVERHEAD;
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Xz => {
            let stream = lzma(Stream::new_stream_decoder(window, CONCATENATED))?;
            Box::new(XzDecoder::new_stream(input, stream))
        }
        Compression::Lzip => {
            let stream = lzma(Stream::new_lzip_decoder(window, CONCATENATED))?;
            Box::new(XzDecoder::new_stream(input, stream))
        }
        Compression::Lzma => {
            let stream = lzma(Stream::new_lzma_decoder(window))?;
            Box::new(XzDecoder::new_stream(input, stream))
        }
        // 3.6 MiB, and 32 KiB.
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(Some)?;
            decoder.window_log_max(window.ilog2()).map_err(Some)?;
            Box::new(decoder)
        }
        Compression::Brotli => {
            let beginning = input.fill_buf().map_err(Some)?;
            if brotli_memory(beginning).is_none_or(|needed| needed > window) {
                return Err(Some(io::Error::other(NeedsMemory)));
            }
            Box::new(brotli::Decompressor::new(input, BUFFER))
        }
        Compression::Lz4 => {
            let beginning = input.fill_buf().map_err(Some)?;
            if lz4_memory(beginning) > window {
                return Err(Some(io::Error::other(NeedsMemory)));
            }
            Box::new(lz4_flex::frame::FrameDecoder::new(input))
        }
        Compression::Compress | Compression::Grzip | Compression::Lrzip | Compression::Lzop => {
            return Err(None);
        }
    })
}

/// What the brotli decoder needs for a stream that begins so: its window, half of that while it
/// grows, and its tables. None where the window is larger than 24 bits: such a stream is not that of
/// RFC 7932, and Nix does not read it, but the decoder would. (RFC 7932, section 9.1, `WBITS`; what
/// the RFC leaves undefined there begins a "large window".)
fn brotli_memory(beginning: &[u8]) -> Option<u64> {
    const TABLES: u64 = 4 << 20;
    let first = beginning.first().copied().unwrap_or_default();
    let bits = match (first & 1, first >> 1 & 7, first >> 4 & 7) {
        (0, _, _) => 16,
        (_, 0, 0) => 17,
        (_, 0, 1) => return None,
        (_, 0, more) => 8 + more,
        (_, more, _) => 17 + more,
    };
    let window = 1_u64 << bits;
    Some(window + window / 2 + TABLES)
}

/// What the LZ4 decoder needs for a frame that begins so: a block, and where blocks refer to those
/// before them two more. It reads one frame.
fn lz4_memory(beginning: &[u8]) -> u64 {
    // The block sizes of the frame format; 8 MiB are those of the legacy one.
    match beginning {
        [0x04, 0x22, 0x4d, 0x18, _, sizes, ..] => 3 * (1 << (8 + 2 * (sizes >> 4 & 7))),
        _ => 2 * (8 << 20),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// So much of zeros.
    const LENGTH: usize = 1 << 20;

    fn unpacks(compression: Compression, packed: &[u8], allowance: Allowance) -> io::Result<u64> {
        let decoder = decoder(compression, packed, allowance);
        io::copy(&mut decoder.map_err(|error| error.unwrap())?, &mut io::sink())
    }

    /// Returns how often a stream needs a larger allowance until it is unpacked, or `None` if it
    /// never is.
    fn steps(compression: Compression, packed: &[u8]) -> Option<usize> {
        let mut allowance = Allowance::USUAL;
        for step in 0.. {
            match unpacks(compression, packed, allowance) {
                Ok(length) => {
                    assert_eq!(length, LENGTH as u64);
                    return Some(step);
                }
                Err(error) => {
                    assert!(needs_memory(&error), "{compression}: {error}");
                    allowance = more_memory(&error, allowance)?;
                }
            }
        }
        None
    }

    fn zstd(window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        // Unknown to the encoder, so that it does not choose a smaller window.
        vec![0; LENGTH].chunks(1000).for_each(|chunk| encoder.write_all(chunk).unwrap());
        encoder.finish().unwrap()
    }

    fn lzma_options(dictionary: u32) -> liblzma::stream::LzmaOptions {
        let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
        options.dict_size(dictionary);
        options
    }

    fn lzma_packed(stream: Stream) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(&vec![0; LENGTH]).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(dictionary: u32) -> Vec<u8> {
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&lzma_options(dictionary));
        let check = liblzma::stream::Check::Crc64;
        lzma_packed(Stream::new_stream_encoder(&filters, check).unwrap())
    }

    fn lzma(dictionary: u32) -> Vec<u8> {
        lzma_packed(Stream::new_lzma_encoder(&lzma_options(dictionary)).unwrap())
    }

    fn brotli(bits: u32, large_window: bool) -> Vec<u8> {
        let parameters = brotli::enc::BrotliEncoderParams {
            quality: 5,
            lgwin: bits as i32,
            large_window,
            ..Default::default()
        };
        let mut packed = Vec::new();
        brotli::BrotliCompress(&mut &vec![0; LENGTH][..], &mut packed, &parameters).unwrap();
        packed
    }

    #[test]
    fn the_window_of_a_stream_decides_what_it_is_allowed() {
        let mib = 1 << 20;
        for (compression, packed, expected) in [
            (Compression::Zstd, zstd(21), Some(0)),
            (Compression::Zstd, zstd(23), Some(0)),
            (Compression::Zstd, zstd(24), Some(1)),
            (Compression::Zstd, zstd(27), Some(2)),
            (Compression::Zstd, zstd(28), None),
            (Compression::Xz, xz(8 * mib), Some(0)),
            (Compression::Xz, xz(64 * mib), Some(1)),
            (Compression::Xz, xz(128 * mib), Some(2)),
            (Compression::Xz, xz(192 * mib), None),
            (Compression::Lzma, lzma(8 * mib), Some(0)),
            (Compression::Lzma, lzma(64 * mib), Some(1)),
            (Compression::Lzma, lzma(192 * mib), None),
            (Compression::Brotli, brotli(10, false), Some(0)),
            (Compression::Brotli, brotli(16, false), Some(0)),
            (Compression::Brotli, brotli(17, false), Some(0)),
            (Compression::Brotli, brotli(22, false), Some(0)),
            (Compression::Brotli, brotli(24, false), Some(1)),
            (Compression::Brotli, brotli(24, true), None),
            (Compression::Brotli, brotli(30, true), None),
        ] {
            let beginning = &packed[..packed.len().min(16)];
            assert_eq!(steps(compression, &packed), expected, "{compression}: {beginning:x?}");
        }
    }

    #[test]
    fn a_later_frame_may_not_have_a_larger_window_than_was_allowed() {
        let mut frames = zstd(21);
        frames.extend(zstd(27));
        let error = unpacks(Compression::Zstd, &frames, Allowance::USUAL).unwrap_err();
        assert!(needs_memory(&error), "{error}");
        let mut streams = xz(1 << 20);
        streams.extend(xz(64 << 20));
        let error = unpacks(Compression::Xz, &streams, Allowance::USUAL).unwrap_err();
        assert!(needs_memory(&error), "{error}");
    }

    #[test]
    fn what_is_damaged_does_not_need_more_memory() {
        for (compression, mut packed) in [
            (Compression::Zstd, zstd(21)),
            (Compression::Xz, xz(1 << 20)),
            (Compression::Brotli, brotli(22, false)),
        ] {
            packed.truncate(packed.len() / 2);
            let error = unpacks(compression, &packed, Allowance::USUAL).unwrap_err();
            assert!(!needs_memory(&error), "{compression}: {error}");
        }
    }

    #[test]
    fn blocks_of_lz4_have_the_size_in_the_frame() {
        use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
        for (size, linked, needed) in [
            (BlockSize::Max64KB, BlockMode::Independent, 3 << 16),
            (BlockSize::Max4MB, BlockMode::Linked, 3 << 22),
        ] {
            let info = FrameInfo::new().block_size(size).block_mode(linked);
            let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
            encoder.write_all(&vec![0; LENGTH]).unwrap();
            let packed = encoder.finish().unwrap();
            assert_eq!(lz4_memory(&packed), needed);
            assert_eq!(steps(Compression::Lz4, &packed), Some(0));
        }
        assert_eq!(lz4_memory(b"\x02\x21\x4c\x18"), 16 << 20);
    }
}
