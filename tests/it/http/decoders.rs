//! Memory of decoders: the uploader chooses the window and the unpacked size, but not the memory that the daemon
//! needs.

use std::io::Write;
use std::time::{Duration, Instant};

use nix_stored::nix::Compression;

use crate::support::daemon::Daemon;
use crate::support::objects::{Sample, nar_of_file, sample};
use crate::support::packing::pack;
use crate::support::wire::{RawResponse, Wire};

const MIB: usize = 1024 * 1024;

/// The memory of all decoders, and the rest: the buffers of a busy daemon, and what the allocator
/// keeps.
const BUDGET: usize = 512 * MIB;
const AROUND: usize = 64 * MIB;

/// The limit for small requests of other clients meanwhile.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The NAR of a file of `length` zeros, without the zeros: the bytes before and after them.
fn around_zeros(length: usize) -> [Vec<u8>; 2] {
    let empty = nar_of_file(b"");
    let (head, tail) = (&empty[..empty.len() - 24], &empty[empty.len() - 16..]);
    [[head, &(length as u64).to_le_bytes()].concat(), tail.to_vec()]
}

/// Such a NAR, compressed by zstd with a window of 128 MiB.
fn zeros_with_a_large_window(length: usize) -> Vec<u8> {
    let [head, tail] = around_zeros(length);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.window_log(27).expect("allowed");
    encoder.write_all(&head).expect("packed");
    // If there were only one write, zstd would reduce the window to its size.
    let zeros = vec![0; MIB];
    (0..length / MIB).for_each(|_| encoder.write_all(&zeros).expect("packed"));
    encoder.write_all(&tail).expect("packed");
    encoder.finish().expect("packed")
}

/// Less than 64 KiB that unpack to 20 GB of zeros, in a NAR that declares more.
fn small_bomb() -> Vec<u8> {
    let [head, _] = around_zeros(100 << 30);
    let mut bomb = pack(Compression::Bzip2, &head).expect("packed");
    let zeros = pack(Compression::Bzip2, &vec![0; 40 * MIB]).expect("packed");
    (0..500).for_each(|_| bomb.extend_from_slice(&zeros));
    assert!(bomb.len() < 64 * 1024, "{}", bomb.len());
    bomb
}

/// Sends all requests concurrently, and waits for the responses.
fn send_concurrently(daemon: &Daemon, requests: &[(String, String, Vec<u8>)]) -> Vec<RawResponse> {
    let mut wires: Vec<Wire> = requests.iter().map(|_| Wire::to(daemon)).collect();
    for (wire, (path, headers, body)) in wires.iter_mut().zip(requests) {
        let length = body.len();
        wire.send(&format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n"
        ));
        wire.send_bytes(body);
    }
    wires.iter_mut().map(Wire::response).collect()
}

/// The increase of the daemon's peak memory during `work`.
fn memory_for(daemon: &Daemon, work: impl FnOnce()) -> usize {
    assert_eq!(Wire::to(daemon).request("GET", "/nix-cache-info", b"").status, 200);
    let before = daemon.memory();
    work();
    let grown = daemon.peak_memory().saturating_sub(before);
    eprintln!("{} MiB at rest and {} MiB more at the peak", before / MIB, grown / MIB);
    grown
}

fn nar_of(sample: &Sample) -> (String, String, Vec<u8>) {
    (sample.nar_path.clone(), String::new(), sample.nar.clone())
}

#[test]
fn a_brotli_window_of_a_gibibyte_is_refused_and_costs_nothing() {
    let daemon = Daemon::start();
    let [head, tail] = around_zeros(1 << 30);
    let parameters = brotli::enc::BrotliEncoderParams {
        quality: 5,
        lgwin: 30,
        large_window: true,
        ..Default::default()
    };
    let zeros = std::io::Read::take(std::io::repeat(0), 1 << 30);
    let mut nar = std::io::Read::chain(std::io::Read::chain(&head[..], zeros), &tail[..]);
    let mut packed = Vec::new();
    brotli::BrotliCompress(&mut nar, &mut packed, &parameters).expect("packed");
    let bomb = sample(1, b"").with_file(Compression::Brotli, packed);
    let grown = memory_for(&daemon, || {
        let refused = Wire::to(&daemon).request("PUT", &bomb.nar_path, &bomb.nar);
        assert_eq!(refused.status, 422, "{}", refused.text());
        assert!(refused.text().contains("smaller window"), "{}", refused.text());
    });
    assert!(grown < AROUND, "{grown} bytes");
}

#[test]
fn nars_with_large_windows_share_one_budget() {
    let daemon = Daemon::start();
    // As bodies that are verified in one step, and as streams; each is another NAR.
    let nars: Vec<_> = (1..=16)
        .map(|number| zeros_with_a_large_window((200 + number) * MIB))
        .map(|packed| sample(1, b"").with_file(Compression::Zstd, packed))
        .map(|sample| nar_of(&sample))
        .collect();
    assert!(nars.iter().all(|(_, _, body)| body.len() < 64 * 1024));
    let grown = memory_for(&daemon, || {
        let responses = send_concurrently(&daemon, &nars);
        assert!(responses.iter().all(|response| response.status == 201), "{responses:?}");
    });
    assert!(grown < BUDGET + AROUND, "{grown} bytes");
}

#[test]
fn streams_with_large_windows_share_one_budget() {
    let daemon = Daemon::start();
    let noise = crate::support::noise::Noise::new(1).bytes(200 * 1024);
    let nars: Vec<_> = (0..24)
        .map(|number: u8| {
            // Random data, so that the body is too large for one step, and then zeros.
            let contents = [&[number], &noise[..], &vec![0; 150 * MIB]].concat();
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("packed");
            encoder.window_log(27).expect("allowed");
            nar_of_file(&contents)
                .chunks(MIB)
                .for_each(|chunk| encoder.write_all(chunk).expect("packed"));
            let packed = encoder.finish().expect("packed");
            nar_of(&sample(1, b"").with_file(Compression::Zstd, packed))
        })
        .collect();
    let grown = memory_for(&daemon, || {
        let responses = send_concurrently(&daemon, &nars);
        assert!(responses.iter().all(|response| response.status == 201), "{responses:?}");
    });
    assert!(grown < BUDGET + AROUND, "{grown} bytes");
}

#[test]
fn side_files_are_not_unpacked_beyond_their_limit() {
    let daemon = Daemon::start();
    let zeros = zeros_with_a_large_window(200 * MIB);
    let listings: Vec<_> = (1..=24)
        .map(|number| {
            let path = sample(number, b"").narinfo_path.replace(".narinfo", ".ls");
            (path, "Content-Encoding: zstd\r\n".to_owned(), zeros.clone())
        })
        .collect();
    let grown = memory_for(&daemon, || {
        let responses = send_concurrently(&daemon, &listings);
        assert!(responses.iter().all(|response| response.status == 413), "{responses:?}");
    });
    assert!(grown < BUDGET + AROUND, "{grown} bytes");
    // Files of limited size are accepted even if they expand a thousandfold. JSON and logs have
    // different limits.
    let upload = |path: &str, body: &[u8]| {
        let mut wire = Wire::to(&daemon);
        let length = body.len();
        wire.send(&format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Encoding: xz\r\nContent-Length: {length}\r\n\r\n"
        ));
        wire.send_bytes(body);
        wire.response().status
    };
    let pack = |bytes: &[u8]| pack(Compression::Xz, bytes).expect("packed");
    let noise = crate::support::noise::Noise::new(1).bytes(200 * 1024);
    let (small, large) =
        (pack(&vec![b' '; 15 * MIB]), pack(&[noise, vec![b' '; 70 * MIB]].concat()));
    let log = "/log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv";
    assert_eq!(upload(&listings[0].0, &small), 201);
    assert_eq!(upload(&listings[1].0, &large), 413);
    assert_eq!(upload(log, &large), 201);
}

#[test]
fn hundreds_of_small_decompression_bombs_leave_the_daemon_healthy() {
    let daemon = Daemon::start();
    let bomb = sample(1, b"").with_file(Compression::Bzip2, small_bomb());
    let begin = |_| {
        let mut wire = Wire::to(&daemon);
        let (path, length) = (&bomb.nar_path, bomb.nar.len());
        wire.send(&format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        wire.send_bytes(&bomb.nar);
        wire
    };
    // More than the threads of the blocking pool.
    let bombs: Vec<Wire> = (0..520).map(begin).collect();
    for number in 10..14 {
        let started = Instant::now();
        assert_eq!(Wire::to(&daemon).request("GET", "/health", b"").status, 200);
        let sample = sample(number, &[number; 1000]).packed(Compression::Xz);
        let put = |path: &str, body: &[u8]| Wire::to(&daemon).request("PUT", path, body).status;
        assert_eq!(put(&sample.nar_path, &sample.nar), 201);
        assert_eq!(put(&sample.narinfo_path, sample.narinfo.as_bytes()), 201);
        assert!(started.elapsed() < TIMEOUT, "{:?}", started.elapsed());
    }
    assert!(daemon.peak_memory() < BUDGET + AROUND, "{}", daemon.peak_memory());
    drop(bombs);
}
