//! PUT: accepted and refused uploads, error messages, and visibility.

use std::time::Duration;

use axum::body::Body;
use nix_stored::nix::narinfo;

use crate::support::cache::{SlowBody, TestCache, request};
use crate::support::objects::{ONE_OF_EACH, sample};

#[tokio::test]
async fn side_files_are_accepted_in_any_order_and_served() {
    let cache = TestCache::new();
    for path in [ONE_OF_EACH[2], ONE_OF_EACH[5], ONE_OF_EACH[6], ONE_OF_EACH[7]] {
        cache.put(path, "{\"a\": 1}").await.is(201);
        assert_eq!(cache.get(path).await.is(200).text(), "{\"a\": 1}");
        cache.put(path, "{}").await.is(200);
        assert_eq!(cache.get(path).await.is(200).text(), "{}");
    }
}

#[tokio::test]
async fn a_nar_must_have_the_hash_in_its_name() {
    let cache = TestCache::new();
    let sample = sample(1, b"hello");
    let mut flipped = sample.nar.clone();
    flipped[20] ^= 1;
    let short = sample.nar[..sample.nar.len() - 1].to_vec();
    let long = [sample.nar.clone(), vec![0]].concat();
    for wrong in [flipped, short, long, Vec::new()] {
        cache.put(&sample.nar_path, wrong).await.is(422).contains("its name has sha256:");
        cache.head(&sample.nar_path).await.is(404);
    }
    assert_eq!((cache.objects().len(), cache.staged()), (0, 0));
}

#[tokio::test]
async fn a_narinfo_must_be_valid_and_have_the_store_path_of_its_name() {
    let cache = TestCache::new();
    let (one, two) = (sample(1, b"x"), sample(2, b"x"));
    cache.put(&one.nar_path, one.nar.clone()).await.is(201);
    cache.put(&two.narinfo_path, one.narinfo.clone()).await.is(422).contains("hash part");
    cache.put(&one.narinfo_path, "<html>").await.is(400).contains("without a line feed");
    cache
        .put(&one.narinfo_path, one.narinfo.replace("NarSize", "Size"))
        .await
        .is(400)
        .contains("NarSize");
    let too_large = vec![b'x'; narinfo::MAX_SIZE as usize + 1];
    cache.put(&one.narinfo_path, too_large).await.is(413).contains("16777216 bytes");
    cache.head(&one.narinfo_path).await.is(404);
}

#[tokio::test]
async fn cache_info_is_accepted_for_the_configured_store_dir() {
    let cache = TestCache::new();
    cache.put("/nix-cache-info", "StoreDir: /nix/store\n").await.is(200);
    cache.put("/nix-cache-info", "StoreDir: /nix/store\nPriority: 1\n").await.is(200);
    cache.put("/nix-cache-info", "StoreDir: /gnu/store\n").await.is(422).contains("/gnu/store");
    cache.put("/nix-cache-info", "<html>\n").await.is(422).contains("/nix/store");
    assert!(cache.get("/nix-cache-info").await.text().contains("Priority: 30\n"));
    assert!(cache.objects().is_empty());
}

#[tokio::test]
async fn a_name_outside_the_grammar_is_refused_with_the_rule_it_broke() {
    let cache = TestCache::new();
    for (path, rule) in [
        ("/index.html", "not a name of a binary cache"),
        ("/%2e%2e%2fescaped.narinfo", "not a name of a binary cache"),
        ("/..%2fescaped.narinfo", "not a name of a binary cache"),
        ("/nar/..%2f..%2fescaped.nar", "52 characters of nix32"),
        ("/nar/%00.nar", "52 characters of nix32"),
        ("/short.narinfo", "32 characters of nix32"),
        ("/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee.narinfo", "32 characters of nix32"),
        ("/nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.rar", "extension"),
        ("/debuginfo/xyz", "build id"),
        ("/.nix-stored/staging/x", "not a name of a binary cache"),
    ] {
        cache.put(path, "x").await.is(400).contains(rule);
        cache.get(path).await.is(404);
    }
    cache.put("/", "x").await.is(400).contains("not a name of a binary cache");
    let long = format!("/log/8ha1dhmx807czjczmwy078s4r9s254il-{}", "a".repeat(212));
    cache.put(&long, "x").await.is(400).contains("211");
    assert!(cache.objects().is_empty());
    let around = std::fs::read_dir(cache.dir().parent().expect("a parent")).expect("readable");
    assert_eq!(around.count(), 1);
}

#[tokio::test]
async fn an_aborted_upload_leaves_nothing() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 100_000]);
    let (body, upload) = SlowBody::new();
    let upload = cache.put_in_the_background(&sample.nar_path, upload);
    body.send(&sample.nar[..50_000]).await;
    cache.head(&sample.nar_path).await.is(404);
    body.disconnect().await;
    assert_eq!(upload.await.expect("a response arrives"), 400);
    cache.head(&sample.nar_path).await.is(404);
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    assert_eq!(cache.staged(), 0);
}

#[tokio::test]
async fn an_upload_of_a_client_that_disconnects_leaves_nothing() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 100_000]);
    let (body, upload) = SlowBody::new();
    let upload = cache.put_in_the_background(&sample.nar_path, upload);
    body.send(&sample.nar[..50_000]).await;
    upload.abort();
    assert!(upload.await.is_err());
    // The thread that writes the upload notices the abort later. Its files are
    // removed after that.
    while cache.staged() > 0 {
        tokio::task::yield_now().await;
    }
    cache.head(&sample.nar_path).await.is(404);
}

#[tokio::test]
async fn concurrent_uploads_of_one_nar_both_succeed() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 100_000]);
    let (first, upload) = SlowBody::new();
    let slow = cache.put_in_the_background(&sample.nar_path, upload);
    first.send(&sample.nar[..10]).await;
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    first.send(b"this is not how it goes on").await;
    drop(first);
    assert_eq!(slow.await.expect("a response arrives"), 422);
    assert_eq!(cache.get(&sample.nar_path).await.is(200).body, sample.nar);
}

#[tokio::test]
async fn a_reader_gets_the_old_object_until_the_new_one_is_complete() {
    let cache = TestCache::new();
    let path = ONE_OF_EACH[5];
    cache.put(path, "the old log").await.is(201);
    let (body, upload) = SlowBody::new();
    let upload = cache.put_in_the_background(path, upload);
    body.send(b"the new ").await;
    assert_eq!(cache.get(path).await.is(200).text(), "the old log");
    body.send(b"log").await;
    drop(body);
    assert_eq!(upload.await.expect("a response arrives"), 200);
    assert_eq!(cache.get(path).await.is(200).text(), "the new log");
}

#[tokio::test]
async fn a_body_of_another_length_than_its_content_length_is_refused() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    for length in [sample.nar.len() - 1, sample.nar.len() + 1] {
        let body =
            http_body_util::StreamBody::new(futures_util::stream::iter([Ok::<_, std::io::Error>(
                http_body::Frame::data(bytes::Bytes::from(sample.nar.clone())),
            )]));
        let body = Body::new(DeclaredBody { body, length: length as u64 });
        let upload = request(http::Method::PUT, &sample.nar_path, body);
        cache.send(upload).await.is(400).contains("announced");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stalls_for_a_minute_is_aborted() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 100_000]);
    let (body, upload) = SlowBody::new();
    let upload = cache.put_in_the_background(&sample.nar_path, upload);
    body.send(&sample.nar[..10]).await;
    // Progress of a byte at a time is enough for any slow connection.
    for byte in &sample.nar[10..20] {
        tokio::time::advance(Duration::from_secs(59)).await;
        body.send(&[*byte]).await;
    }
    // The timeout starts when the cache waits for more bytes, which may be after it has written the
    // others.
    for _ in 0..100_000 {
        if upload.is_finished() {
            break;
        }
        tokio::time::advance(Duration::from_secs(61)).await;
    }
    assert!(upload.is_finished(), "the upload did not time out");
    assert_eq!(upload.await.expect("a response arrives"), 408);
    cache.head(&sample.nar_path).await.is(404);
}

#[tokio::test]
async fn an_encoding_that_cannot_be_decoded_is_415() {
    let cache = TestCache::new();
    let mut upload = request(http::Method::PUT, ONE_OF_EACH[2], Body::from("{}"));
    upload.headers_mut().insert("content-encoding", "rar".parse().expect("a value"));
    cache.send(upload).await.is(415).contains("rar");
}

/// A body with a declared length that can differ from the real one.
struct DeclaredBody<B> {
    body: B,
    length: u64,
}

impl<B: http_body::Body + Unpin> http_body::Body for DeclaredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.length)
    }
}

#[tokio::test]
async fn a_directory_at_the_path_of_an_object_is_404_and_named_by_refused_uploads() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 100_000]);
    let obstacles = [&sample.narinfo_path, &sample.nar_path, ONE_OF_EACH[2], ONE_OF_EACH[5]];
    for path in obstacles {
        std::fs::create_dir_all(cache.dir().join(&path[1..]).join("kept")).expect("created");
        cache.get(path).await.is(404);
        cache.head(path).await.is(404);
    }
    let in_the_way = "a directory has this name; move it away";
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(409).contains(in_the_way);
    for path in [ONE_OF_EACH[2], ONE_OF_EACH[5]] {
        cache.put(path, "{}").await.is(409).contains(in_the_way).contains(&path[1..]);
    }
    std::fs::remove_dir_all(cache.dir().join(&sample.nar_path[1..])).expect("present");
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(409).contains(in_the_way);
    std::fs::remove_dir_all(cache.dir().join(&sample.narinfo_path[1..])).expect("present");
    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(201);
    // The opposite: a file in the place of a folder.
    let log = cache.dir().join("log");
    std::fs::remove_dir_all(&log).expect("present");
    std::fs::write(&log, "").expect("written");
    cache.get(ONE_OF_EACH[5]).await.is(404);
    cache.put(ONE_OF_EACH[5], "{}").await.is(409).contains("a file has the name of its directory");
    assert_eq!(cache.staged(), 0);
}
