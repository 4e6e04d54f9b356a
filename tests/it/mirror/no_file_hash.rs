//! Caches that compress NARs on request: their narinfos have neither `FileHash` nor `FileSize`, and responses often
//! have no length.

use std::fs;

use nix_stored::nix::{Compression, Sha256Hash};

use super::mirror_of;
use crate::support::cache_dir::{assert_consistent, objects, staging};
use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::utf8;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;
use crate::support::scripted_upstream::{Gate, ScriptedUpstream};
use crate::support::server_process::ServerProcess;
use crate::support::wire::{RawResponse, Wire};

/// The compressions that the cache can decode and the tests can encode.
const COMPRESSIONS: [Compression; 8] = [
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
    Compression::Brotli,
    Compression::Gzip,
    Compression::Lz4,
    Compression::Lzip,
    Compression::Lzma,
];

/// The URL of the NAR in such a narinfo.
const URL: &str = "nar/made-up?token=a%2Fb%3D%3D";

fn without_file_fields(narinfo: &str) -> String {
    let line = |line: &&str| !line.starts_with("File");
    narinfo.lines().filter(line).map(|line| format!("{line}\n")).collect()
}

/// The narinfo of a sample without hash and size of the file.
fn unnamed(sample: &Sample) -> String {
    without_file_fields(&sample.narinfo).replace(&sample.nar_path[1..], URL)
}

/// Such an upstream, which sends the NAR without its length.
fn upstream_with(sample: &Sample) -> ScriptedUpstream {
    let upstream = ScriptedUpstream::start();
    upstream.has(&sample.narinfo_path, unnamed(sample).as_bytes());
    let nar = sample.nar.clone();
    upstream.on(&format!("/{URL}"), move |exchange| {
        exchange.chunked();
        for part in nar.chunks(100_000) {
            exchange.chunk(part);
        }
        exchange.chunk(b"");
    });
    upstream
}

fn get(mirror: &Daemon, path: &str) -> RawResponse {
    Wire::to(mirror).request("GET", path, b"")
}

/// The URL in the mirror's narinfo of a sample.
fn url(mirror: &Daemon, sample: &Sample) -> String {
    let narinfo = get(mirror, &sample.narinfo_path);
    assert_eq!(narinfo.status, 200, "{}", narinfo.text());
    let text = narinfo.text();
    let url =
        text.lines().find_map(|line| line.strip_prefix("URL: ")).expect("the narinfo has a URL");
    format!("/{url}")
}

fn sized(number: u8, size: usize) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(size))
}

#[test]
fn every_compression_is_stored_under_its_file_hash() {
    for (number, compression) in (1..).zip(COMPRESSIONS) {
        let sample = sized(number, 300_000).packed(compression);
        let upstream = upstream_with(&sample);
        let mirror = mirror_of(&[&upstream.url()]).start();
        let first = url(&mirror, &sample);
        assert_ne!(first, sample.nar_path);
        let nar = get(&mirror, &first);
        assert_eq!((nar.status, nar.body == sample.nar), (200, true), "{compression}");

        // The narinfo is complete now, and the earlier URL still leads to the NAR.
        assert_eq!(url(&mirror, &sample), sample.nar_path, "{compression}");
        let narinfo = get(&mirror, &sample.narinfo_path).text();
        let hash = Sha256Hash::of(&sample.nar);
        assert!(narinfo.contains(&format!("FileHash: {hash}\n")), "{narinfo}");
        assert!(narinfo.contains(&format!("FileSize: {}\n", sample.nar.len())), "{narinfo}");
        for path in [&first, &sample.nar_path] {
            assert!(get(&mirror, path).body == sample.nar, "{compression} {path}");
            let head = Wire::to(&mirror).request("HEAD", path, b"");
            assert_eq!(head.header("content-length"), sample.nar.len().to_string());
        }
        assert_eq!(upstream.count(&format!("/{URL}")), 1);
        assert_eq!(assert_consistent(mirror.dir()), 1);
        mirror.wait_until("nothing is staged", || staging(mirror.dir()).len() == 1);
    }
}

#[test]
fn a_nar_url_that_a_client_remembers_works_after_a_restart() {
    let sample = sized(1, 300_000).packed(Compression::Zstd);
    let upstream = upstream_with(&sample);
    let dir = Scratch::new();
    let start = || mirror_of(&[&upstream.url()]).dir(dir.path()).start();
    let before = start();
    let remembered = url(&before, &sample);
    before.stop();
    // A new daemon without cached facts, in whose store the NAR never was.
    let mirror = start();
    assert!(get(&mirror, &remembered).body == sample.nar);
    mirror.stop();
    // Stored paths are served without any upstream.
    upstream.stop();
    let alone = Daemon::builder().dir(dir.path()).start();
    assert!(get(&alone, &remembered).body == sample.nar);
    let part = format!(
        "GET {remembered} HTTP/1.1\r\nHost: x\r\nRange: bytes=1000-1999\r\nConnection: close\r\n\r\n"
    );
    let mut wire = Wire::to(&alone);
    wire.send(&part);
    let part = wire.response();
    assert_eq!((part.status, part.body.as_slice()), (206, &sample.nar[1000..2000]));
}

#[test]
fn the_nar_url_of_an_absent_path_is_absent() {
    let sample = sized(1, 300_000).packed(Compression::Zstd);
    let upstream = upstream_with(&sample);
    let mirror = mirror_of(&[&upstream.url()]).start();
    let name = url(&mirror, &sample);
    for other in [mirror_of(&[&ScriptedUpstream::start().url()]).start(), Daemon::start()] {
        let response = get(&other, &name);
        assert!([404, 502].contains(&response.status), "{}", response.status);
        assert_eq!(objects(other.dir()), [""; 0]);
    }
    // Another path has other contents, so it is not served for this one.
    let other = sized(2, 1000).packed(Compression::Zstd);
    let narinfo = other.narinfo.replace(&other.store_path, &sample.store_path);
    let daemon = Daemon::start();
    let mut wire = Wire::to(&daemon);
    assert_eq!(wire.request("PUT", &other.nar_path, &other.nar).status, 201);
    let put = wire.request("PUT", &sample.narinfo_path, narinfo.as_bytes());
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(get(&daemon, &name).status, 404);
}

#[test]
fn a_nar_that_differs_from_its_narinfo_is_not_served_to_its_end() {
    let sample = sized(1, 300_000).packed(Compression::Zstd);
    let other = sized(2, 300_000).packed(Compression::Zstd);
    for with_a_length in [true, false] {
        let upstream = upstream_with(&other);
        upstream.has(&sample.narinfo_path, unnamed(&sample).as_bytes());
        if with_a_length {
            upstream.has(&format!("/{URL}"), &other.nar);
        }
        let mirror = mirror_of(&[&upstream.url()]).start();
        let response = get(&mirror, &url(&mirror, &sample));
        match with_a_length {
            true => assert!(response.status == 200 && response.body.len() < other.nar.len()),
            false => assert_eq!(response.status, 502, "{}", response.text()),
        }
        mirror.wait_for_log("fetch of a NAR failed");
        assert_eq!(objects(mirror.dir()), [""; 0]);
    }
}

#[test]
fn nothing_is_stored_from_an_upstream_without_storage() {
    let sample = sized(1, 300_000).packed(Compression::Xz);
    let upstream = upstream_with(&sample);
    let mirror = mirror_of(&[&format!("{}?store=0", upstream.url())]).start();
    let name = url(&mirror, &sample);
    for _ in 0..2 {
        assert!(get(&mirror, &name).body == sample.nar);
    }
    assert_eq!(url(&mirror, &sample), name);
    assert_eq!(objects(mirror.dir()), [""; 0]);
    assert_eq!(upstream.count(&format!("/{URL}")), 2);
}

#[test]
fn all_readers_that_wait_for_the_length_share_one_fetch() {
    let sample = sized(1, 300_000).packed(Compression::Xz);
    let upstream = upstream_with(&sample);
    let (gate, nar) = (Gate::default(), sample.nar.clone());
    let opened = gate.clone();
    upstream.on(&format!("/{URL}"), move |exchange| {
        exchange.chunked();
        exchange.chunk(&nar[..1000]);
        opened.wait(1);
        exchange.chunk(&nar[1000..]);
        exchange.chunk(b"");
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    let name = url(&mirror, &sample);
    let request = format!("GET {name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut wires: Vec<Wire> = (0..8).map(|_| Wire::to(&mirror)).collect();
    wires.iter_mut().for_each(|wire| wire.send(&request));
    upstream.wait_for(&format!("/{URL}"), 1);
    gate.open();
    for mut wire in wires {
        let response = wire.response();
        assert_eq!((response.status, response.body == sample.nar), (200, true));
    }
    assert_eq!(upstream.count(&format!("/{URL}")), 1);
    assert_eq!(assert_consistent(mirror.dir()), 1);
}

#[test]
fn an_endless_nar_is_aborted() {
    let sample = sized(1, 1000).packed(Compression::Xz);
    let upstream = upstream_with(&sample);
    upstream.on(&format!("/{URL}"), |exchange| {
        exchange.chunked();
        // Much more than the NAR of a kilobyte can have.
        let part = vec![0; 1 << 20];
        let mut left = 1000;
        while left > 0 && exchange.chunk(&part) {
            left -= 1;
        }
        exchange.close();
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &url(&mirror, &sample)).status, 502);
    mirror.wait_for_log("fetch of a NAR failed");
    assert_eq!(objects(mirror.dir()), [""; 0]);
}

#[test]
fn a_narinfo_that_nix_accepts_is_accepted() {
    let sample = sized(1, 1000).packed(Compression::Xz);
    let signature = format!("Sig: some-1:{}==\n", "A".repeat(86));
    let cases = [
        format!("{}{signature}{signature}", sample.narinfo),
        format!("{}Sig: some-1:short\n{signature}", sample.narinfo),
        format!("{}Sig: no signature\n{signature}", sample.narinfo),
        format!("{}FileHash: sha512:abc\n{signature}", without_file_fields(&sample.narinfo)),
        format!("Compression: bzip2\n{}{signature}", sample.narinfo),
    ];
    for narinfo in cases {
        let upstream = ScriptedUpstream::start();
        upstream.has(&sample.narinfo_path, narinfo.as_bytes());
        upstream.has(&sample.nar_path, &sample.nar);
        let mirror = mirror_of(&[&upstream.url()]).start();
        assert!(get(&mirror, &url(&mirror, &sample)).body == sample.nar, "{narinfo}");
        let kept = get(&mirror, &sample.narinfo_path).text();
        assert_eq!(kept.matches("Sig: ").count(), 1, "{kept}");
        assert!(kept.contains(&signature), "{kept}");
        assert_eq!(assert_consistent(mirror.dir()), 1);
    }
}

#[test]
fn nix_substitutes_a_closure_from_a_cache_without_file_hashes() {
    let paths = fixture().outputs("app");
    let directory = Scratch::new();
    let parameters = "?compression=zstd";
    fixture().nix().copy_to(&format!("file://{}{parameters}", utf8(directory.path())), &paths);
    for key in objects(directory.path()).iter().filter(|key| key.ends_with(".narinfo")) {
        let file = directory.join(key);
        let narinfo = fs::read_to_string(&file).expect("present");
        fs::write(&file, without_file_fields(&narinfo)).expect("written");
    }
    let upstream = ServerProcess::nginx(directory.path());
    let mirror = mirror_of(&[&format!("http://{}", upstream.address())]).start();
    let substitute = || {
        let reader = fixture().reader();
        reader.copy_from(mirror.url(), &paths);
        reader.assert_has_the_same(&fixture().nix(), &paths);
    };
    substitute();
    drop(upstream);
    // The path is stored now, with a complete narinfo.
    substitute();
    assert!(assert_consistent(mirror.dir()) >= paths.len());
}
