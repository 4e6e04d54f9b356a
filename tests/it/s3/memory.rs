//! Many large uploads at once need no more memory than a few, and many reads no more than the caches.

use nix_stored::nix::Sha256Hash;
use sha2::{Digest, Sha256};

use super::server::{TestServer, get, on_every_server, over, upload};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{nar_of_file, sample};
use crate::support::slow_uploads::raise_file_limit;
use crate::support::wire::Wire;

/// The documented limit for 32 concurrent uploads.
const LIMIT: usize = 512 << 20;

/// The number of concurrent uploads.
const UPLOADS: usize = 32;

/// The number of paths that are read, and the memory that may remain in use: a few times the length
/// of their narinfos, and a tenth of the buffers of their responses.
const READ: usize = 600;
const LEFT: usize = 8 << 20;

/// The number of concurrent slow downloads, and the limit for their memory. The daemon holds two
/// chunks of the store's response for each: the one being sent, and the next one. hyper's client
/// reads at most 408 KiB at a time, depending on how much the store has sent by then. At 1 MiB for
/// each client it would be 300 MiB.
const SLOW: usize = 300;
const FOR_SLOW: usize = 280 << 20;

on_every_server! {
    memory_does_not_grow_with_large_uploads
    memory_does_not_grow_with_paths_that_are_read
    clients_that_download_slowly_cost_little_memory
}

/// A NAR of this many MiB that is generated while it is sent.
struct Large<'a> {
    head: Vec<u8>,
    block: &'a [u8],
    blocks: usize,
    tail: Vec<u8>,
}

impl<'a> Large<'a> {
    fn new(number: u8, block: &'a [u8], blocks: usize) -> Self {
        // The contents begin with these bytes, unique for each NAR, of a length without padding.
        let first = [number; 8];
        let mut head = nar_of_file(&first);
        let tail = head.split_off(head.len() - 16);
        let length = (first.len() + block.len() * blocks) as u64;
        let at = head.len() - first.len() - 8;
        head[at..at + 8].copy_from_slice(&length.to_le_bytes());
        Self { head, block, blocks, tail }
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let blocks = std::iter::repeat_n(self.block, self.blocks);
        std::iter::once(&*self.head).chain(blocks).chain(std::iter::once(&*self.tail))
    }

    /// Uploads it, and returns the status.
    fn upload(&self, daemon: &Daemon) -> u16 {
        let mut hash = Sha256::new();
        self.pieces().for_each(|piece| hash.update(piece));
        let hash = Sha256Hash::new(hash.finalize().into()).to_nix32();
        let length: usize = self.pieces().map(<[u8]>::len).sum();
        let mut wire = Wire::to(daemon);
        wire.send(&format!(
            "PUT /nar/{hash}.nar HTTP/1.1\r\nHost: cache\r\nContent-Length: {length}\r\n\r\n"
        ));
        self.pieces().for_each(|piece| wire.send_bytes(piece));
        wire.head().status
    }
}

/// The total is larger than the limit; the variable can make it several times larger.
fn memory_does_not_grow_with_large_uploads(server: &TestServer) {
    let mib = crate::support::rounds::number("NIX_STORED_TEST_UPLOAD_MIB").unwrap_or(24);
    let bucket = server.bucket();
    let daemon = over(&bucket).start();
    let block = Noise::new(1).bytes(1 << 20);
    std::thread::scope(|scope| {
        for number in 0..UPLOADS {
            let large = Large::new(number as u8, &block, mib as usize);
            let daemon = &daemon;
            scope.spawn(move || assert_eq!(large.upload(daemon), 201));
        }
    });
    let peak = daemon.peak_memory();
    eprintln!("{} MiB for {UPLOADS} uploads of {mib} MiB", peak >> 20);
    assert!(peak < LIMIT);
    assert_eq!(server.unfinished(&bucket), 0);
    assert_eq!(bucket.keys().iter().filter(|key| key.starts_with("nar/")).count(), UPLOADS);
}

fn memory_does_not_grow_with_paths_that_are_read(server: &TestServer) {
    let daemon = over(&server.bucket()).start();
    let mut noise = Noise::new(2);
    let mut after_warming_up = 0;
    for number in 0..READ + READ / 4 {
        let new = sample(0, &noise.bytes(2_000)).named(&mut noise);
        upload(&daemon, &new);
        for path in [&new.narinfo_path, &new.nar_path] {
            assert_eq!(get(&daemon, path).status, 200, "{path}");
        }
        if number == READ / 4 {
            after_warming_up = daemon.memory();
        }
    }
    let grown = daemon.memory().saturating_sub(after_warming_up);
    assert!(grown < LEFT, "{} KiB for {READ} paths", grown >> 10);
}

fn clients_that_download_slowly_cost_little_memory(server: &TestServer) {
    raise_file_limit();
    let bucket = server.bucket();
    let large = sample(1, &Noise::new(3).bytes(8 << 20));
    bucket.put(&large.nar_path[1..], &large.nar);
    bucket.put(&large.narinfo_path[1..], large.narinfo.as_bytes());
    let daemon = over(&bucket).start();
    assert!(get(&daemon, &large.nar_path).body == large.nar);
    let before = daemon.memory();
    // A small receive buffer, because bytes in the kernel's buffers cost the daemon nothing.
    let mut clients: Vec<Wire> =
        (0..SLOW).map(|_| Wire::with_receive_buffer(&daemon, 16 << 10)).collect();
    for client in &mut clients {
        client.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", large.nar_path));
    }
    for client in &mut clients {
        assert_eq!(client.head().status, 200);
    }
    // Reads an eighth of each body in turn, so that all responses are in progress.
    let mut read = vec![0; SLOW];
    while read.iter().any(|&read| read < 1 << 20) {
        for (client, read) in clients.iter_mut().zip(&mut read) {
            *read += client.discard(64 << 10);
        }
    }
    let grown = daemon.peak_memory().saturating_sub(before);
    eprintln!("{} MiB for {SLOW} slow downloads", grown >> 20);
    assert!(grown < FOR_SLOW, "{} KiB for {SLOW} slow downloads", grown >> 10);
}
