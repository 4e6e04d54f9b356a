//! Valid NARs, each of one regular file, generated on demand.

use std::io::{self, Write};

use nix_stored::nix::Sha256Hash;
use sha2::{Digest, Sha256};

/// Appends a length and a string, padded to eight bytes: the element of a NAR.
fn string(nar: &mut Vec<u8>, string: &[u8]) {
    nar.extend((string.len() as u64).to_le_bytes());
    nar.extend(string);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

/// The part of a NAR before the contents of a file of `size` bytes.
pub fn head(size: u64) -> Vec<u8> {
    let mut nar = Vec::new();
    for word in ["nix-archive-1", "(", "type", "regular", "contents"] {
        string(&mut nar, word.as_bytes());
    }
    nar.extend(size.to_le_bytes());
    nar
}

/// The part of a NAR after contents without padding.
pub fn tail() -> Vec<u8> {
    let mut nar = Vec::new();
    string(&mut nar, b")");
    nar
}

/// A generator of incompressible bytes, the same in every run.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        // The state of such a generator must not be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A NAR of `size` bytes in total, a multiple of eight.
pub fn small(seed: u64, size: usize) -> Vec<u8> {
    let tail = tail();
    let mut nar = head(0);
    let contents = size - nar.len() - tail.len();
    nar = head(contents as u64);
    let begin = nar.len();
    nar.resize(begin + contents, 0);
    Noise::new(seed).fill(&mut nar[begin..]);
    nar.extend(tail);
    nar
}

/// The name of a NAR with this hash.
pub fn name(hash: Sha256Hash) -> String {
    format!("nar/{}.nar", hash.to_nix32())
}

/// A NAR that is too large for memory. Its contents are one block repeated, so that generating it
/// costs the client little.
#[derive(Debug)]
pub struct Large {
    head: Vec<u8>,
    block: Vec<u8>,
    blocks: u64,
    tail: Vec<u8>,
    pub hash: Sha256Hash,
}

impl Large {
    const BLOCK: u64 = 1024 * 1024;

    /// The NAR of a file of `size` bytes, a multiple of 1 MiB.
    pub fn new(size: u64) -> Self {
        let mut block = vec![0; Self::BLOCK as usize];
        Noise::new(7).fill(&mut block);
        let mut nar = Self {
            head: head(size),
            block,
            blocks: size / Self::BLOCK,
            tail: tail(),
            hash: Sha256Hash::new([0; 32]),
        };
        nar.hash = nar.digest();
        nar
    }

    /// The length in bytes.
    pub fn length(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.blocks * Self::BLOCK
    }

    /// The bytes, piece by piece.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let blocks = (0..self.blocks).map(|_| self.block.as_slice());
        std::iter::once(self.head.as_slice()).chain(blocks).chain([self.tail.as_slice()])
    }

    /// The SHA-256, computed at each call.
    pub fn digest(&self) -> Sha256Hash {
        let mut hasher = Sha256::new();
        self.pieces().for_each(|piece| hasher.update(piece));
        Sha256Hash::new(hasher.finalize().into())
    }

    /// Writes the file in the NAR.
    pub fn write_contents_to(&self, mut to: impl Write) -> io::Result<()> {
        (0..self.blocks).try_for_each(|_| to.write_all(&self.block))
    }

    pub fn write_to(&self, mut to: impl Write) -> io::Result<()> {
        self.pieces().try_for_each(|piece| to.write_all(piece))
    }
}
