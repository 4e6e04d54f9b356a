//! NARs, compressed like other programs do it.

use std::io::{Read, Write};

use nix_stored::nix::{Compression, Sha256Hash};

use super::objects::Sample;

/// Compresses `bytes`. Returns none if the tests have no encoder for this compression.
pub fn pack(compression: Compression, bytes: &[u8]) -> Option<Vec<u8>> {
    use std::io::Cursor;
    let mut packed = Vec::new();
    match compression {
        Compression::None => packed.extend_from_slice(bytes),
        Compression::Xz => {
            let mut encoder = liblzma::read::XzEncoder::new(Cursor::new(bytes), 6);
            encoder.read_to_end(&mut packed).expect("packed");
        }
        Compression::Lzma => {
            let options = liblzma::stream::LzmaOptions::new_preset(6).expect("a preset");
            let stream = liblzma::stream::Stream::new_lzma_encoder(&options).expect("an encoder");
            let mut encoder = liblzma::read::XzEncoder::new_stream(Cursor::new(bytes), stream);
            encoder.read_to_end(&mut packed).expect("packed");
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::read::BzEncoder::new(bytes, bzip2::Compression::default());
            encoder.read_to_end(&mut packed).expect("packed");
        }
        Compression::Gzip => {
            let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::default());
            encoder.read_to_end(&mut packed).expect("packed");
        }
        Compression::Brotli => {
            let mut encoder = brotli::CompressorReader::new(bytes, 4096, 5, 22);
            encoder.read_to_end(&mut packed).expect("packed");
        }
        Compression::Zstd => packed = zstd::encode_all(bytes, 3).expect("packed"),
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(packed);
            encoder.write_all(bytes).expect("packed");
            packed = encoder.finish().expect("packed");
        }
        Compression::Lzip => {
            let mut child = std::process::Command::new("lzip")
                .arg("-c")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("lzip is installed");
            let mut input = child.stdin.take().expect("piped");
            let bytes = bytes.to_vec();
            let writer =
                std::thread::spawn(move || input.write_all(&bytes).expect("the daemon reads"));
            let output = child.wait_with_output().expect("the process ends");
            writer.join().expect("the encoder succeeds");
            packed = output.stdout;
        }
        Compression::Compress | Compression::Grzip | Compression::Lrzip | Compression::Lzop => {
            return None;
        }
    }
    Some(packed)
}

/// The compressions that Nix supports and the cache has no decoder for, and the first bytes of such
/// a file.
pub const WITHOUT_DECODER: [(Compression, &[u8]); 4] = [
    (Compression::Compress, b"\x1f\x9d"),
    (Compression::Grzip, b"GRZipII\0"),
    (Compression::Lrzip, b"LRZI"),
    (Compression::Lzop, b"\x89LZO"),
];

/// A file of `length` bytes with the first bytes of such a compression.
pub fn without_decoder(magic: &[u8], length: usize) -> Vec<u8> {
    let mut file = magic.to_vec();
    file.resize(length, b'x');
    file
}

impl Sample {
    /// The same store path with `file` as its NAR, and with this compression in its narinfo.
    pub fn with_file(&self, compression: Compression, file: Vec<u8>) -> Self {
        let hash = Sha256Hash::of(&file);
        let url = format!("nar/{}.nar{}", hash.to_nix32(), compression.extension().as_str());
        let lines = self.narinfo.lines().map(|line| match line.split_once(": ") {
            Some(("URL", _)) => format!("URL: {url}\n"),
            Some(("Compression", _)) => format!("Compression: {compression}\n"),
            Some(("FileHash", _)) => format!("FileHash: {hash}\n"),
            Some(("FileSize", _)) => format!("FileSize: {}\n", file.len()),
            _ => format!("{line}\n"),
        });
        Self { narinfo: lines.collect(), nar_path: format!("/{url}"), nar: file, ..self.clone() }
    }

    /// The same store path with a compressed NAR.
    pub fn packed(&self, compression: Compression) -> Self {
        let packed = pack(compression, &self.nar).expect("the tests have an encoder");
        self.with_file(compression, packed)
    }
}
