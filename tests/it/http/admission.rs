//! Verification of uploads: wrong content is refused, however it is compressed.

use axum::body::Body;
use http::Method;
use nix_stored::nix::Compression;

use crate::support::cache::{SlowBody, TestCache, request};
use crate::support::objects::{ONE_OF_EACH, Sample, nar_of_file, sample};
use crate::support::packing::{WITHOUT_DECODER, pack, without_decoder};

/// The compressions that the cache can decode and the tests can encode.
const PACKED: [Compression; 9] = [
    Compression::None,
    Compression::Xz,
    Compression::Bzip2,
    Compression::Brotli,
    Compression::Zstd,
    Compression::Gzip,
    Compression::Lz4,
    Compression::Lzip,
    Compression::Lzma,
];

/// Bytes that compress to about three quarters of their size.
fn contents(length: u32) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 & 0x3f
    };
    (0..length).map(|_| next()).collect()
}

async fn upload(cache: &TestCache, sample: &Sample) -> u16 {
    let nar = cache.put(&sample.nar_path, sample.nar.clone()).await;
    if nar.status != 201 {
        return nar.status.as_u16();
    }
    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.status.as_u16()
}

#[tokio::test]
async fn every_compression_is_unpacked_and_verified() {
    let cache = TestCache::new();
    let mut number = 0;
    for compression in PACKED {
        for size in [0, 100, 300_000] {
            number += 1;
            let plain = sample(number, &contents(size));
            let good = plain.packed(compression);
            assert_eq!(upload(&cache, &good).await, 201, "{compression} {size}");
            assert_eq!(cache.get(&good.nar_path).await.is(200).body, good.nar);

            // The NAR under the narinfo of another path, which only unpacking reveals.
            number += 1;
            let other = sample(number, &contents(size + 1)).packed(compression);
            let mut mismatched = other.with_file(compression, good.nar.clone());
            mismatched.narinfo_path.clone_from(&other.narinfo_path);
            let refused =
                cache.put(&mismatched.narinfo_path, mismatched.narinfo.clone()).await.is(422);
            refused.contains("NarHash is sha256:").contains("that of its NAR is sha256:");
            cache.get(&mismatched.narinfo_path).await.is(404);
        }
    }
}

#[tokio::test]
async fn verify_file_checks_only_the_hash_of_the_file() {
    let cache = TestCache::configured(&[("VERIFY", "file")], true);
    let good = sample(1, &contents(100_000)).packed(Compression::Xz);
    let not_a_nar = sample(2, b"").with_file(Compression::Xz, contents(200_000));
    assert_eq!(upload(&cache, &good).await, 201);
    assert_eq!(upload(&cache, &not_a_nar).await, 201);
    let size = good.narinfo.replace("FileSize: ", "FileSize: 1");
    cache.put(&sample(3, b"").narinfo_path, "x").await.is(400);
    let other = TestCache::configured(&[("VERIFY", "file")], true);
    other.put(&good.nar_path, good.nar.clone()).await.is(201);
    other.put(&good.narinfo_path, size).await.is(422).contains("FileSize");
}

#[tokio::test]
async fn an_invalid_nar_is_refused_with_the_reason() {
    let cache = TestCache::new();
    let plain = sample(1, &contents(100_000));
    let packed = pack(Compression::Zstd, &plain.nar).expect("packed");
    for (what, compression, file) in [
        ("neither a NAR nor", Compression::None, b"hello".to_vec()),
        ("in the middle", Compression::None, plain.nar[..plain.nar.len() - 8].to_vec()),
        ("goes on after its end", Compression::None, [plain.nar.as_slice(), &[0; 8]].concat()),
        ("is not valid xz data", Compression::Xz, b"hello".to_vec()),
        ("is not valid xz data", Compression::Xz, packed.clone()),
        ("is not valid zstd data", Compression::Zstd, packed[..packed.len() - 9].to_vec()),
        (
            "there is a string of",
            Compression::Zstd,
            pack(Compression::Zstd, &contents(9_000)).expect("packed"),
        ),
        (
            "there is a string of",
            Compression::Zstd,
            pack(Compression::Zstd, &[7; 9_000]).expect("packed"),
        ),
        ("in the middle", Compression::Xz, pack(Compression::Xz, b"").expect("packed")),
    ] {
        let bad = plain.with_file(compression, file);
        cache.put(&bad.nar_path, bad.nar.clone()).await.is(422).contains(what);
        cache.get(&bad.nar_path).await.is(404);
    }
    assert_eq!((cache.objects().len(), cache.staged()), (0, 0));
}

#[tokio::test]
async fn a_compression_without_a_decoder_excuses_no_other_compression() {
    let cache = TestCache::new();
    let mut number = 0;
    for (compression, magic) in WITHOUT_DECODER {
        // Verified in one step, during the transfer, and when the narinfo arrives.
        for (length, is_there) in [(1000, false), (200_000, false), (200_001, true)] {
            number += 1;
            let file = without_decoder(magic, length);
            let honest = sample(number, b"").with_file(compression, file.clone());
            if is_there {
                std::fs::write(cache.dir().join(&honest.nar_path[1..]), &file).expect("writable");
            } else {
                cache.put(&honest.nar_path, file.clone()).await.is(201);
            }
            let others = [Compression::None, Compression::Gzip, Compression::Lzma];
            let unread = WITHOUT_DECODER.map(|(other, _)| other);
            for stated in others.into_iter().chain(unread).filter(|other| *other != compression) {
                let mismatched = honest.with_file(stated, file.clone());
                assert_eq!(mismatched.nar_path, honest.nar_path);
                let refused = cache.put(&mismatched.narinfo_path, mismatched.narinfo).await.is(422);
                refused.contains(&format!(
                    "Compression is {stated} and that of its NAR is {compression}"
                ));
                cache.get(&honest.narinfo_path).await.is(404);
            }
            cache.put(&honest.narinfo_path, honest.narinfo.clone()).await.is(201);
        }
    }
}

#[tokio::test]
async fn a_nar_with_a_wrong_bit_or_byte_is_refused_at_every_size() {
    let cache = TestCache::new();
    for size in [100, 100_000, 1_000_000] {
        for compression in [Compression::None, Compression::Xz] {
            let good = sample(1, &contents(size)).packed(compression);
            let mut flipped = good.nar.clone();
            flipped[good.nar.len() / 2] ^= 0x10;
            let short = good.nar[..good.nar.len() - 1].to_vec();
            let long = [good.nar.as_slice(), b"\0"].concat();
            for wrong in [flipped, short, long] {
                let refused = cache.put(&good.nar_path, wrong).await.is(422);
                refused.contains("the uploaded file has the hash").contains("upload it again");
                cache.head(&good.nar_path).await.is(404);
            }
        }
    }
    assert_eq!((cache.objects().len(), cache.staged()), (0, 0));
}

/// One MB that unpacks to 100 GB: memory does not grow, and the cache soon refuses it.
#[tokio::test]
async fn a_decompression_bomb_is_not_unpacked_to_its_end() {
    let cache = TestCache::new();
    // The beginning of the NAR of a 100 GB file, and zeros: a zstd frame of 16 MB of zeros has
    // about 500 bytes.
    let mut head = nar_of_file(b"");
    head.truncate(head.len() - 24);
    head.extend_from_slice(&(100u64 << 30).to_le_bytes());
    let mut bomb = pack(Compression::Zstd, &head).expect("packed");
    let zeros = pack(Compression::Zstd, &vec![0; 16 << 20]).expect("packed");
    for _ in 0..(100 << 30) / (16u64 << 20) {
        bomb.extend_from_slice(&zeros);
    }
    assert!(bomb.len() > 1_000_000 && bomb.len() < 10_000_000, "{}", bomb.len());
    let bomb = sample(1, b"").with_file(Compression::Zstd, bomb);
    cache
        .put(&bomb.nar_path, bomb.nar.clone())
        .await
        .is(422)
        .contains("refused as a decompression bomb");
    assert_eq!((cache.objects().len(), cache.staged()), (0, 0));
}

#[tokio::test]
async fn a_narinfo_must_fit_its_nar_in_every_field() {
    let cache = TestCache::new();
    let good = sample(1, &contents(1000)).packed(Compression::Xz);
    let other = sample(2, &contents(1001)).packed(Compression::Xz);
    cache.put(&good.narinfo_path, good.narinfo.clone()).await.is(422).contains("upload it first");
    cache.put(&good.nar_path, good.nar.clone()).await.is(201);
    let line = |text: &str, key: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(key)).expect("the line is present");
        line.to_owned()
    };
    for (key, becomes, printed) in [
        ("URL", line(&other.narinfo, "URL"), "is not in this cache; upload it first"),
        ("URL", "URL: ../other/x.nar.xz".to_owned(), "nar/<file hash>.nar"),
        ("URL", format!("URL: http://elsewhere{}", good.nar_path), "nar/<file hash>.nar"),
        ("FileHash", line(&other.narinfo, "FileHash"), "the narinfo's FileHash is sha256:"),
        (
            "FileSize",
            "FileSize: 1".to_owned(),
            "the narinfo's FileSize is 1 and that of its NAR is",
        ),
        ("NarHash", line(&other.narinfo, "NarHash"), "the narinfo's NarHash is sha256:"),
        ("NarSize", "NarSize: 7".to_owned(), "the narinfo's NarSize is 7 and that of its NAR is"),
        (
            "Compression",
            "Compression: bzip2".to_owned(),
            "Compression is bzip2 and that of its NAR is xz",
        ),
        ("Compression", "Compression: none".to_owned(), "Compression is none"),
        ("Compression", "Compression: rar".to_owned(), "Compression is rar"),
        ("StorePath", line(&other.narinfo, "StorePath"), "hash part"),
    ] {
        let mismatched = good.narinfo.replace(&line(&good.narinfo, key), &becomes);
        assert_ne!(mismatched, good.narinfo);
        cache.put(&good.narinfo_path, mismatched).await.is(422).contains(printed);
        cache.head(&good.narinfo_path).await.is(404);
    }
    cache.put(&good.narinfo_path, good.narinfo.clone()).await.is(201);
}

#[tokio::test]
async fn file_hash_and_size_are_filled_in() {
    let cache = TestCache::new();
    let good = sample(1, b"x");
    cache.put(&good.nar_path, good.nar.clone()).await.is(201);
    let without: String = good
        .narinfo
        .lines()
        .filter(|line| !line.starts_with("File"))
        .map(|line| format!("{line}\n"))
        .collect();
    cache.put(&good.narinfo_path, without).await.is(201);
    assert_eq!(cache.get(&good.narinfo_path).await.text(), good.narinfo);
}

#[tokio::test]
async fn a_nar_stored_earlier_is_read_when_its_narinfo_is_uploaded() {
    let cache = TestCache::new();
    let good = sample(1, &contents(200_000)).packed(Compression::Zstd);
    let file = cache.dir().join(&good.nar_path[1..]);
    std::fs::write(&file, &good.nar).expect("writable");
    let mismatched = good.narinfo.replace("NarSize: ", "NarSize: 1");
    cache.put(&good.narinfo_path, mismatched).await.is(422).contains("NarSize");
    cache.put(&good.narinfo_path, good.narinfo.clone()).await.is(201);
}

#[tokio::test]
async fn a_damaged_nar_is_quarantined_so_that_nix_uploads_it_again() {
    let cache = TestCache::new();
    let good = sample(1, &contents(200_000)).packed(Compression::Zstd);
    let file = cache.dir().join(&good.nar_path[1..]);
    std::fs::write(&file, &good.nar[..100_000]).expect("writable");
    cache.head(&good.nar_path).await.is(200);
    cache.put(&good.narinfo_path, good.narinfo.clone()).await.is(422).contains("quarantined");
    cache.head(&good.nar_path).await.is(404);
    let aside = cache.dir().join(".nix-stored/quarantine").join(&good.nar_path[1..]);
    assert_eq!(std::fs::read(aside).expect("kept").len(), 100_000);
    assert_eq!(upload(&cache, &good).await, 201);
}

#[tokio::test]
async fn references_must_be_stored_first_where_that_is_required() {
    let cache = TestCache::configured(&[("REQUIRE_REFERENCES", "1")], true);
    let leaf = sample(1, b"leaf");
    let mut top = sample(2, b"top");
    let references = format!("References: {} {}", &leaf.store_path[11..], &top.store_path[11..]);
    top.narinfo = top.narinfo.replace("References: ", &references);
    cache.put(&top.nar_path, top.nar.clone()).await.is(201);
    let refused = cache.put(&top.narinfo_path, top.narinfo.clone()).await.is(422);
    refused.contains(&format!("upload {} first", &leaf.store_path[11..]));
    assert_eq!(upload(&cache, &leaf).await, 201);
    cache.put(&top.narinfo_path, top.narinfo.clone()).await.is(201);
}

/// A key for this test, made by `nix key generate-secret`.
const KEY: &str = "test-1:Q50WW5eEQ+zEAmyYW6qFkj+SuOGipY/hpNhJkXYQOKo=";

/// A NAR packed by Nix, and a narinfo that Nix signed with [`KEY`].
fn signed() -> Sample {
    let nar = nar_of_file(b"hello\n");
    let plain = Sample {
        store_path: "/nix/store/pi8axnzkz80qa3x5smwjwxcc9n9hjik0-h".to_owned(),
        nar_path: String::new(),
        narinfo_path: "/pi8axnzkz80qa3x5smwjwxcc9n9hjik0.narinfo".to_owned(),
        narinfo: "StorePath: /nix/store/pi8axnzkz80qa3x5smwjwxcc9n9hjik0-h\nURL: x\nCompression: x\n\
             FileHash: x\nFileSize: x\n\
             NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\nNarSize: 120\nReferences: \n\
             Sig: test-1:hvRfXMOeqTWyzN1LYkGC5IWcvhJn95Zt086YK+C8j7GJtDObE+6aT+UD7aET+CwxXEKL3oioBprSAKu7rG5jCQ==\n"
            .to_owned(),
        nar,
    };
    let nar = plain.nar.clone();
    plain.with_file(Compression::None, nar)
}

#[tokio::test]
async fn only_paths_signed_by_a_trusted_key_are_accepted() {
    let signed = signed();
    let nixos = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let keys = format!("{nixos} {KEY}");
    let cache = TestCache::configured(&[("TRUSTED_PUBLIC_KEYS", &keys)], true);
    cache.put(&signed.nar_path, signed.nar.clone()).await.is(201);
    let sig =
        signed.narinfo.lines().find(|line| line.starts_with("Sig")).expect("the line is present");
    let zeros = format!("{}==", "A".repeat(86));
    for (becomes, printed) in [
        (String::new(), "none at all"),
        (format!("Sig: test-1:{zeros}\n"), "no valid signature by a key that this cache trusts"),
        (sig.replace("test-1", "other-1") + "\n", "it has other-1"),
        (sig.replace("test-1", "cache.nixos.org-1") + "\n", "cache.nixos.org-1"),
    ] {
        let bad = signed.narinfo.replace(&format!("{sig}\n"), &becomes);
        cache.put(&signed.narinfo_path, bad).await.is(422).contains(printed).contains("test-1");
    }
    for (becomes, printed) in [
        ("Sig: test-1\n".to_owned(), "is not “<key name>:<base 64>”"),
        ("Sig: test-1:AAAA\n".to_owned(), "is not 64 bytes"),
    ] {
        let bad = signed.narinfo.replace(&format!("{sig}\n"), &becomes);
        cache.put(&signed.narinfo_path, bad).await.is(400).contains(printed);
    }
    cache.head(&signed.narinfo_path).await.is(404);
    // One valid signature is enough, whatever the others are.
    let both = signed.narinfo.replace(sig, &format!("Sig: a-1:{zeros}\n{sig}\n{sig}"));
    cache.put(&signed.narinfo_path, both).await.is(201);
    // Nix keeps signatures in a set, too.
    assert_eq!(cache.get(&signed.narinfo_path).await.text().matches("Sig: test-1").count(), 1);

    let elsewhere = TestCache::configured(&[("TRUSTED_PUBLIC_KEYS", nixos)], true);
    elsewhere.put(&signed.nar_path, signed.nar.clone()).await.is(201);
    elsewhere
        .put(&signed.narinfo_path, signed.narinfo.clone())
        .await
        .is(422)
        .contains("it has test-1");
}

#[tokio::test]
async fn a_second_upload_of_a_narinfo_adds_its_signatures_and_nothing_else() {
    let cache = TestCache::new();
    let signed = signed();
    assert_eq!(upload(&cache, &signed).await, 201);
    cache.put(&signed.nar_path, signed.nar.clone()).await.is(200);
    cache.put(&signed.narinfo_path, signed.narinfo.clone()).await.is(200);
    assert_eq!(cache.get(&signed.narinfo_path).await.text(), signed.narinfo);

    let zeros = format!("{}==", "A".repeat(86));
    let sig =
        signed.narinfo.lines().find(|line| line.starts_with("Sig")).expect("the line is present");
    // A cached narinfo of a client: an old URL, without the old signature, with two new ones.
    let stale = signed
        .narinfo
        .replace(
            &signed.nar_path[1..],
            "nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar",
        )
        .replace(sig, &format!("Sig: z-1:{zeros}\nSig: b-1:{zeros}"));
    cache.put(&signed.narinfo_path, stale).await.is(200);
    let merged = signed.narinfo.replace(sig, &format!("Sig: b-1:{zeros}\n{sig}\nSig: z-1:{zeros}"));
    assert_eq!(cache.get(&signed.narinfo_path).await.text(), merged);
    // Uploading it again duplicates no signature.
    cache.put(&signed.narinfo_path, signed.narinfo.clone()).await.is(200);
    assert_eq!(cache.get(&signed.narinfo_path).await.text(), merged);
}

#[tokio::test]
async fn signatures_uploaded_at_the_same_time_are_all_kept() {
    let cache = TestCache::new();
    let plain = sample(1, b"x");
    assert_eq!(upload(&cache, &plain).await, 201);
    let zeros = format!("{}==", "A".repeat(86));
    let uploads: Vec<_> = (0..20)
        .map(|number| {
            let text = format!("{}Sig: key-{number:02}:{zeros}\n", plain.narinfo);
            cache.put_in_the_background(&plain.narinfo_path, Body::from(text))
        })
        .collect();
    for upload in uploads {
        assert_eq!(upload.await.expect("a response arrives"), 200);
    }
    let text = cache.get(&plain.narinfo_path).await.text();
    assert_eq!(text.matches("\nSig: key-").count(), 20, "{text}");
}

#[tokio::test]
async fn another_build_of_a_path_replaces_the_narinfo_and_keeps_the_first_nar() {
    let cache = TestCache::new();
    let (first, mut second) = (sample(1, b"first"), sample(2, b"second"));
    second.narinfo = second.narinfo.replace(&second.store_path, &first.store_path);
    second.narinfo_path.clone_from(&first.narinfo_path);
    assert_eq!(upload(&cache, &first).await, 201);
    cache.put(&second.nar_path, second.nar.clone()).await.is(201);
    cache.put(&second.narinfo_path, second.narinfo.clone()).await.is(200);
    assert_eq!(cache.get(&first.narinfo_path).await.text(), second.narinfo);
    assert_eq!(cache.get(&first.nar_path).await.is(200).body, first.nar);
}

#[tokio::test]
async fn a_narinfo_whose_nar_was_lost_is_replaced_completely() {
    let cache = TestCache::new();
    let plain = sample(1, &contents(100));
    assert_eq!(upload(&cache, &plain).await, 201);
    std::fs::remove_file(cache.dir().join(&plain.nar_path[1..])).expect("present");
    let packed = plain.packed(Compression::Xz);
    cache.put(&packed.nar_path, packed.nar.clone()).await.is(201);
    cache.put(&packed.narinfo_path, packed.narinfo.clone()).await.is(200);
    assert_eq!(cache.get(&packed.narinfo_path).await.text(), packed.narinfo);
}

#[tokio::test]
async fn a_narinfo_is_refused_until_its_nar_is_stored() {
    let cache = TestCache::new();
    let good = sample(1, &contents(200_000));
    let (body, upload) = SlowBody::new();
    let upload = cache.put_in_the_background(&good.nar_path, upload);
    body.send(&good.nar[..100_000]).await;
    cache.put(&good.narinfo_path, good.narinfo.clone()).await.is(422).contains("upload it first");
    body.send(&good.nar[100_000..]).await;
    drop(body);
    assert_eq!(upload.await.expect("a response arrives"), 201);
    cache.put(&good.narinfo_path, good.narinfo.clone()).await.is(201);
}

async fn put_encoded(
    cache: &TestCache,
    path: &str,
    encoding: &str,
    body: Vec<u8>,
) -> crate::support::cache::TestResponse {
    let mut upload = request(Method::PUT, path, Body::from(body));
    upload.headers_mut().insert("content-encoding", encoding.parse().expect("a value"));
    cache.send(upload).await
}

#[tokio::test]
async fn an_encoded_narinfo_listing_or_log_is_stored_plain() {
    let cache = TestCache::new();
    let good = sample(1, b"x");
    cache.put(&good.nar_path, good.nar.clone()).await.is(201);
    let log = contents(300_000);
    for compression in PACKED.into_iter().filter(|one| *one != Compression::Lzma) {
        let name = compression.as_str();
        let packed = pack(compression, good.narinfo.as_bytes()).expect("packed");
        let status = put_encoded(&cache, &good.narinfo_path, name, packed.clone()).await.status;
        assert!(status.is_success(), "{name}");
        assert_eq!(cache.get(&good.narinfo_path).await.text(), good.narinfo);
        let packed_log = pack(compression, &log).expect("packed");
        assert!(put_encoded(&cache, ONE_OF_EACH[5], name, packed_log).await.status.is_success());
        let response = cache.get(ONE_OF_EACH[5]).await.is(200);
        assert_eq!(response.body, log);
        assert!(response.header("content-encoding").is_empty());
        assert!(put_encoded(&cache, ONE_OF_EACH[2], name, packed).await.status.is_success());
        assert_eq!(cache.get(ONE_OF_EACH[2]).await.text(), good.narinfo);
    }
    put_encoded(&cache, ONE_OF_EACH[2], "identity", b"{}".to_vec()).await.is(200);
}

#[tokio::test]
async fn a_wrong_content_encoding_is_refused() {
    let cache = TestCache::new();
    let good = sample(1, b"x");
    put_encoded(&cache, ONE_OF_EACH[2], "br, gzip", b"{}".to_vec()).await.is(415);
    put_encoded(&cache, ONE_OF_EACH[2], "lzop", b"{}".to_vec()).await.is(415);
    put_encoded(&cache, ONE_OF_EACH[2], "xz", b"{}".to_vec()).await.is(400).contains("xz");
    put_encoded(&cache, &good.narinfo_path, "zstd", b"{}".to_vec()).await.is(400).contains("zstd");
    put_encoded(&cache, &good.nar_path, "gzip", good.nar.clone()).await.is(415);
    let bomb = pack(Compression::Zstd, &vec![b'x'; 50_000_000]).expect("packed");
    put_encoded(&cache, &good.narinfo_path, "zstd", bomb).await.is(413);
    assert_eq!((cache.objects().len(), cache.staged()), (0, 0));
}

#[tokio::test]
async fn a_limit_on_uploads_holds_with_and_without_a_declared_length() {
    let cache = TestCache::configured(&[("MAX_UPLOAD_SIZE", "100K")], true);
    let large = sample(1, &contents(200_000));
    cache.put(&large.nar_path, large.nar.clone()).await.is(413).contains("102400");
    for path in [large.nar_path.as_str(), ONE_OF_EACH[5]] {
        let (body, upload) = SlowBody::new();
        let upload = cache.put_in_the_background(path, upload);
        for chunk in large.nar.chunks(50_000).take(2) {
            body.send(chunk).await;
        }
        body.send(&large.nar[..50_000]).await;
        drop(body);
        assert_eq!(upload.await.expect("a response arrives"), 413, "{path}");
    }
    assert_eq!((cache.objects().len(), cache.staged()), (0, 0));
    let small = sample(2, b"x");
    assert_eq!(upload(&cache, &small).await, 201);
}

#[tokio::test]
async fn the_configured_free_space_stays_free() {
    let cache = TestCache::configured(&[("MIN_FREE_SPACE", "1000T")], true);
    let small = sample(1, b"x");
    let refused = cache.put(&small.nar_path, small.nar.clone()).await.is(413);
    refused.contains("NIX_STORED_MIN_FREE_SPACE").contains("bytes free");
    let large = sample(1, &contents(200_000));
    cache
        .put(&large.nar_path, large.nar.clone())
        .await
        .is(413)
        .contains("NIX_STORED_MIN_FREE_SPACE");
    cache.put(ONE_OF_EACH[5], "x").await.is(413);
}

/// The signature line of a narinfo.
fn sig(narinfo: &str) -> String {
    narinfo.lines().find(|line| line.starts_with("Sig")).expect("the line is present").to_owned()
}

#[tokio::test]
async fn an_honest_upload_replaces_a_narinfo_with_other_references() {
    let cache = TestCache::new();
    let signed = signed();
    cache.put(&signed.nar_path, signed.nar.clone()).await.is(201);
    // The signature covers the references, so the narinfo with other references is not signed.
    let other = sample(7, b"").store_path.replace("/nix/store/", "");
    let poisoned = signed.narinfo.replace("References: ", &format!("References: {other}"));
    assert_ne!(poisoned, signed.narinfo);
    cache.put(&signed.narinfo_path, poisoned.clone()).await.is(201);
    assert_eq!(cache.get(&signed.narinfo_path).await.text(), poisoned);
    cache.put(&signed.narinfo_path, signed.narinfo.clone()).await.is(200);
    assert_eq!(cache.get(&signed.narinfo_path).await.text(), signed.narinfo);
}

#[tokio::test]
async fn a_signature_that_is_served_is_valid_where_its_key_is_trusted() {
    let signed = signed();
    let open = TestCache::new();
    open.put(&signed.nar_path, signed.nar.clone()).await.is(201);
    let other = sample(7, b"").store_path.replace("/nix/store/", "");
    let poisoned = signed.narinfo.replace("References: ", &format!("References: {other}"));
    open.put(&signed.narinfo_path, poisoned).await.is(201);

    // The same cache with a trusted key: the signed upload replaces the stored narinfo.
    let cache = open.reconfigured(&[("TRUSTED_PUBLIC_KEYS", KEY)]);
    cache.put(&signed.narinfo_path, signed.narinfo.clone()).await.is(200);
    assert_eq!(cache.get(&signed.narinfo_path).await.text(), signed.narinfo);

    // An invalid signature with the name of the trusted key is neither published nor merged.
    let zeros = format!("{}==", "A".repeat(86));
    let false_sig = format!("Sig: test-1:{zeros}");
    let both = signed
        .narinfo
        .replace(&sig(&signed.narinfo), &format!("{false_sig}\n{}", sig(&signed.narinfo)));
    cache.put(&signed.narinfo_path, both.clone()).await.is(200);
    assert_eq!(cache.get(&signed.narinfo_path).await.text(), signed.narinfo);
    let fresh = TestCache::configured(&[("TRUSTED_PUBLIC_KEYS", KEY)], true);
    fresh.put(&signed.nar_path, signed.nar.clone()).await.is(201);
    fresh.put(&signed.narinfo_path, both).await.is(201);
    assert_eq!(fresh.get(&signed.narinfo_path).await.text(), signed.narinfo);
}

#[tokio::test]
async fn a_false_narinfo_with_the_right_fingerprint_is_replaced_by_the_next_upload() {
    let signed = signed();
    let cache = TestCache::new();
    assert_eq!(upload(&cache, &signed).await, 201);
    // A user edits the file. Size and compression are not part of the fingerprint.
    let file = cache.dir().join(&signed.narinfo_path[1..]);
    for (from, to) in [("FileSize: ", "FileSize: 1"), ("Compression: none", "Compression: gzip")] {
        let edited = signed.narinfo.replace(from, to);
        assert_ne!(edited, signed.narinfo);
        std::fs::write(&file, edited).unwrap();
        cache.put(&signed.narinfo_path, signed.narinfo.clone()).await.is(200);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), signed.narinfo, "{to}");
    }
}

#[tokio::test]
async fn a_narinfo_has_64_signatures_at_most_and_the_trusted_one_among_them() {
    let signed = signed();
    let junk = |from: usize, count: usize| {
        let lines = (from..from + count).map(|number| {
            let bytes = base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                [number.to_le_bytes(); 8].concat(),
            );
            format!("Sig: a-1:{bytes}\n")
        });
        lines.collect::<String>()
    };
    let count = |text: &str| text.matches("Sig: ").count();
    for keys in [&[][..], &[("TRUSTED_PUBLIC_KEYS", KEY)]] {
        let cache = TestCache::configured(keys, true);
        cache.put(&signed.nar_path, signed.nar.clone()).await.is(201);
        let many = junk(0, 10_500) + &sig(&signed.narinfo) + "\n";
        let many = signed.narinfo.replace(&(sig(&signed.narinfo) + "\n"), &many);
        cache.put(&signed.narinfo_path, many.clone()).await.is(201);
        cache.put(&signed.narinfo_path, many).await.is(200);
        let more = signed.narinfo.replace(&(sig(&signed.narinfo) + "\n"), &(junk(20_000, 10_500)));
        if keys.is_empty() {
            cache.put(&signed.narinfo_path, more).await.is(200);
        } else {
            cache.put(&signed.narinfo_path, more).await.is(422);
        }
        let served = cache.get(&signed.narinfo_path).await.text();
        assert_eq!(count(&served), 64);
        assert_eq!(served.contains(&sig(&signed.narinfo)), !keys.is_empty());
    }
}
