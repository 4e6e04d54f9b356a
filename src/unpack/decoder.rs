//! Decoders of all compressions that Nix uses, each within an [`Allowance`].

use std::io::{self, BufRead, Read};

use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use thiserror::Error;

use super::budget::Allowance;
use crate::nix::Compression;

/// The maximum memory of a decoder besides its window, in bytes.
const OVERHEAD: u64 = 1 << 20;

/// The size of the brotli decoder's buffer, in bytes.
const BROTLI_BUFFER_SIZE: usize = 64 * 1024;

/// A decoder needs more memory than allowed.
#[derive(Debug, Error)]
#[error("a larger window than allowed is needed")]
struct NeedsMemory;

/// Whether a decoder failed because it needs more memory.
pub(super) fn needs_memory(error: &io::Error) -> bool {
    let known = error.get_ref().is_some_and(|inner| {
        inner.is::<NeedsMemory>()
            || matches!(inner.downcast_ref(), Some(liblzma::stream::Error::MemLimit))
    });
    // The crate converts zstd's error code `ZSTD_error_frameParameter_windowTooLarge` to text.
    known || error.to_string() == "Frame requires too much memory for decoding"
}

/// The allowance for another attempt after `error`, if the decoder failed for want of memory.
pub(crate) fn more_memory(error: &io::Error, allowance: Allowance) -> Option<Allowance> {
    if needs_memory(error) { allowance.with_more_memory() } else { None }
}

/// Whether there is no decoder for a compression.
pub(crate) const fn has_no_decoder(compression: Compression) -> bool {
    matches!(
        compression,
        Compression::Compress | Compression::Grzip | Compression::Lrzip | Compression::Lzop
    )
}

/// Returns a reader of the decompressed `input` that stays within its allowance of memory. The first
/// buffer of `input` must contain the magic number. The error is `None` if there is no decoder.
pub(crate) fn decoder<'a>(
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
        // These take 3.6 MiB, and 32 KiB.
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
            Box::new(brotli::Decompressor::new(input, BROTLI_BUFFER_SIZE))
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

/// The memory of the brotli decoder for a stream with these first bytes, in bytes: its window, half of
/// that while the window grows, and its tables. `None` for a window above 24 bits ("large window"): RFC
/// 7932 does not define such streams, and Nix does not read them, but the decoder does. Source: RFC
/// 7932, section 9.1, `WBITS`.
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

/// The memory of the LZ4 decoder for a frame with these first bytes, in bytes: one block, and two more
/// if blocks refer to earlier ones. The decoder reads one frame.
fn lz4_memory(beginning: &[u8]) -> u64 {
    // Blocks of the legacy format have 8 MiB, which is also assumed for an unknown format.
    match beginning {
        [0x04, 0x22, 0x4d, 0x18, _, sizes, ..] => 3 * (1 << (8 + 2 * (sizes >> 4 & 7))),
        _ => 2 * (8 << 20),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The unpacked length: zeros.
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
        // In small writes: an encoder that knows the whole length would choose a smaller window.
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
    fn the_window_of_a_stream_determines_its_allowance() {
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
    fn a_later_frame_with_a_larger_window_than_allowed_fails() {
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
    fn a_damaged_stream_does_not_need_more_memory() {
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
    fn the_memory_for_lz4_follows_the_block_size_of_the_frame() {
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
