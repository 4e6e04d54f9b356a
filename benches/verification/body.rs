//! Upload bodies: a NAR of one file, compressed in one of Nix's ways.
//!
//! The file has the structure that decompressors are made for: bytes of an uneven distribution,
//! and copies of up to 32 KiB earlier bytes, which is the window of gzip. It compresses to about a
//! half, and exercises all parts of a decoder. Random data, or one repeated block, would only be
//! copied.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::bail;
use nix_stored::nix::cache_path::NarName;
use nix_stored::nix::{CachePath, Compression, Sha256Hash};
use sha2::{Digest, Sha256};

use crate::support::bench::Bench;
use crate::support::nar::{self, Noise};

/// A file to upload.
#[derive(Debug)]
pub struct Body {
    pub file: PathBuf,
    /// The name in the cache.
    pub key: String,
    hash: Sha256Hash,
    /// The length in bytes.
    pub size: u64,
    /// The length of the unpacked NAR, in bytes.
    pub nar_size: u64,
}

impl Body {
    /// Generates a body with a file of `contents` bytes, a multiple of 1 MiB, at Nix's usual
    /// levels.
    pub fn make(bench: &Bench, compression: Compression, contents: u64) -> anyhow::Result<Self> {
        let file = bench.fresh_dir("body")?.join("file");
        let to = Hashed { to: File::create(&file)?, hasher: Sha256::new(), size: 0 };
        let (hashed, nar_size) = match compression {
            Compression::None => {
                let mut to = to;
                let nar_size = write_nar(contents, &mut to)?;
                (to, nar_size)
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(to, 6);
                let nar_size = write_nar(contents, &mut encoder)?;
                (encoder.finish()?, nar_size)
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(to, 3)?;
                let nar_size = write_nar(contents, &mut encoder)?;
                (encoder.finish()?, nar_size)
            }
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::new(6));
                let nar_size = write_nar(contents, &mut encoder)?;
                (encoder.finish()?, nar_size)
            }
            Compression::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(to, bzip2::Compression::best());
                let nar_size = write_nar(contents, &mut encoder)?;
                (encoder.finish()?, nar_size)
            }
            Compression::Brotli => {
                // Nix's level 11 takes minutes, and the cost of decoding depends little on the
                // level.
                let mut encoder = brotli::CompressorWriter::new(to, 64 * 1024, 5, 22);
                let nar_size = write_nar(contents, &mut encoder)?;
                (encoder.into_inner(), nar_size)
            }
            Compression::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(to);
                let nar_size = write_nar(contents, &mut encoder)?;
                (encoder.finish()?, nar_size)
            }
            other => bail!("there is no encoder for {other}"),
        };
        let file_hash = Sha256Hash::new(hashed.hasher.finalize().into());
        let name = NarName { file_hash, extension: compression.extension() };
        bench.scratch.settle()?;
        let key = CachePath::Nar(name).key();
        Ok(Self { file, key, hash: file_hash, size: hashed.size, nar_size })
    }

    /// Whether the SHA-256 matches.
    pub fn is_named_by(&self, digest: [u8; 32]) -> bool {
        self.hash == Sha256Hash::new(digest)
    }
}

/// Hashes and counts the written bytes.
struct Hashed<W> {
    to: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes a NAR and returns its length.
fn write_nar(contents: u64, to: &mut impl Write) -> io::Result<u64> {
    let (head, tail) = (nar::head(contents), nar::tail());
    to.write_all(&head)?;
    let mut maker = Contents::new();
    for _ in 0..contents / BLOCK as u64 {
        to.write_all(maker.next_block())?;
    }
    to.write_all(&tail)?;
    Ok(contents + (head.len() + tail.len()) as u64)
}

/// The number of bytes generated at a time.
const BLOCK: usize = 1024 * 1024;

/// The maximum distance of copies.
const WINDOW: usize = 32 * 1024;

/// Generates the contents of the file, the same in every run.
struct Contents {
    noise: Noise,
    /// The window, and the block after it.
    bytes: Vec<u8>,
}

impl Contents {
    fn new() -> Self {
        let mut noise = Noise::new(1);
        let mut bytes = vec![0; WINDOW + BLOCK];
        noise.fill(&mut bytes);
        Self { noise, bytes }
    }

    fn next_block(&mut self) -> &[u8] {
        self.bytes.copy_within(BLOCK.., 0);
        let mut at = WINDOW;
        while at < self.bytes.len() {
            let mut random = [0; 8];
            self.noise.fill(&mut random);
            let random = u64::from_le_bytes(random);
            let rest = self.bytes.len() - at;
            let length;
            if random.is_multiple_of(2) {
                length = (4 + (random >> 8) as usize % 12).min(rest);
                let literals = &mut self.bytes[at..at + length];
                self.noise.fill(literals);
                // The product of two uniform distributions is not uniform.
                literals.iter_mut().for_each(|byte| *byte = (*byte & 15) * (*byte >> 4));
            } else {
                length = (6 + (random >> 8) as usize % 26).min(rest);
                let distance = 64 + (random >> 16) as usize % (WINDOW - 64);
                self.bytes.copy_within(at - distance..at - distance + length, at);
            }
            at += length;
        }
        &self.bytes[WINDOW..]
    }
}
