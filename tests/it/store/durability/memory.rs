//! Large uploads are not kept in memory.

use std::sync::Barrier;

use nix_stored::nix::Sha256Hash;
use sha2::{Digest, Sha256};

use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::nar_of_file;
use crate::support::wire::Wire;

const UPLOADS: u64 = 8;

const MIB: usize = 1024 * 1024;

/// The length of each NAR's file, without the eight bytes that make it unique.
const LENGTH: usize = 64 * MIB;

/// The limit for the memory of an upload of any length: chunks on their way from the socket to the
/// disk, and the buffers for hashing and unpacking. It holds for uncompressed NARs; a decompressor
/// adds its window.
const EACH: usize = 2 * MIB;

/// A NAR in three parts, of which the middle one is the same for all.
struct Parts<'a>([Vec<u8>; 2], &'a [u8]);

impl Parts<'_> {
    fn new(number: u64, middle: &[u8]) -> Parts<'_> {
        let empty = nar_of_file(b"");
        // A NAR ends with the length of the contents, eight bytes, and a closing parenthesis,
        // sixteen.
        let (head, tail) = (&empty[..empty.len() - 24], &empty[empty.len() - 16..]);
        let length = (8 + middle.len()) as u64;
        let head = [head, &length.to_le_bytes(), &number.to_le_bytes()].concat();
        Parts([head, tail.to_vec()], middle)
    }

    fn all(&self) -> [&[u8]; 3] {
        [&self.0[0], self.1, &self.0[1]]
    }

    fn len(&self) -> usize {
        self.all().iter().map(|part| part.len()).sum()
    }

    fn path(&self) -> String {
        let mut hasher = Sha256::new();
        self.all().iter().for_each(|part| hasher.update(part));
        let hash = Sha256Hash::new(hasher.finalize().into());
        format!("/nar/{}.nar", hash.to_nix32())
    }
}

#[test]
fn uploads_of_64_mib_cost_a_few_mib_each() {
    let middle = Noise::new(1).bytes(LENGTH);
    let daemon = Daemon::start();
    assert_eq!(Wire::to(&daemon).request("GET", "/nix-cache-info", b"").status, 200);
    let before = daemon.peak_memory();
    let together = Barrier::new(UPLOADS as usize);
    std::thread::scope(|scope| {
        for number in 0..UPLOADS {
            let (daemon, together, nar) = (&daemon, &together, Parts::new(number, &middle));
            scope.spawn(move || {
                let (path, length) = (nar.path(), nar.len());
                let mut wire = Wire::to(daemon);
                wire.send(&format!(
                    "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
                ));
                let [head, middle, tail] = nar.all();
                let (first, second) = middle.split_at(LENGTH / 2);
                wire.send_bytes(head);
                wire.send_bytes(first);
                // All uploads are in progress.
                together.wait();
                wire.send_bytes(second);
                wire.send_bytes(tail);
                assert_eq!(wire.response().status, 201);
            });
        }
    });
    let grown = daemon.peak_memory().saturating_sub(before);
    eprintln!("{} MiB at rest, {grown} bytes more for {UPLOADS} uploads", before / MIB);
    assert!(grown < UPLOADS as usize * EACH, "{grown} bytes for {UPLOADS} uploads");
}
