//! GET and HEAD: headers, ranges, entity tags, absent objects.

use crate::support::cache::TestCache;
use crate::support::objects::{ONE_OF_EACH, sample};

async fn with_a_nar(contents: &[u8]) -> (TestCache, crate::support::objects::Sample) {
    let cache = TestCache::new();
    let sample = sample(1, contents);
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(201);
    (cache, sample)
}

#[tokio::test]
async fn an_uploaded_object_is_served_byte_for_byte() {
    for size in [0, 1, 4000, 40_000, 3_000_000] {
        let contents: Vec<u8> = (0..size).map(|at: u32| (at * 7 + at / 251) as u8).collect();
        let (cache, sample) = with_a_nar(&contents).await;
        assert_eq!(cache.get(&sample.nar_path).await.is(200).body, sample.nar);
        assert_eq!(cache.get(&sample.narinfo_path).await.is(200).text(), sample.narinfo);
    }
}

#[tokio::test]
async fn head_answers_exactly_like_get() {
    let (cache, sample) = with_a_nar(&[7; 100_000]).await;
    let mut paths: Vec<&str> = ONE_OF_EACH.to_vec();
    paths.extend([sample.nar_path.as_str(), sample.narinfo_path.as_str(), "/", "/x"]);
    for path in paths {
        let (get, head) = (cache.get(path).await, cache.head(path).await);
        assert_eq!(get.status, head.status, "{path}");
        assert_eq!(get.headers, head.headers, "{path}");
        if get.status == 200 {
            assert_eq!(head.header("content-length"), get.body.len().to_string());
            assert!(head.body.is_empty());
        }
    }
}

#[tokio::test]
async fn every_kind_of_object_has_its_content_type_and_an_entity_tag() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    cache.put(&sample.nar_path, sample.nar).await.is(201);
    cache.put(&sample.narinfo_path, sample.narinfo).await.is(201);
    for (path, expected) in [
        ("/nix-cache-info", "text/x-nix-cache-info"),
        (sample.narinfo_path.as_str(), "text/x-nix-narinfo"),
        (ONE_OF_EACH[2], "application/json"),
        (sample.nar_path.as_str(), "application/x-nix-nar"),
        (ONE_OF_EACH[5], "text/plain; charset=utf-8"),
        (ONE_OF_EACH[6], "application/json"),
        (ONE_OF_EACH[7], "application/json"),
        (ONE_OF_EACH[8], "application/json"),
    ] {
        if cache.get(path).await.status == 404 {
            cache.put(path, "{}").await.is(201);
        }
        let response = cache.get(path).await.is(200);
        assert_eq!(response.header("content-type"), expected, "{path}");
        assert!(response.header("etag").len() > 4, "{path}");
        assert!(response.header("content-encoding").is_empty());
        assert!(httpdate::parse_http_date(response.header("last-modified")).is_ok(), "{path}");
    }
}

#[tokio::test]
async fn a_range_of_a_nar_is_served() {
    let contents: Vec<u8> = (0..600_000u32).map(|at| (at / 3) as u8).collect();
    let (cache, sample) = with_a_nar(&contents).await;
    let size = sample.nar.len();
    for (range, from, to) in [
        ("bytes=0-0".to_owned(), 0, 1),
        ("bytes=100-".to_owned(), 100, size),
        ("bytes=1000-299999".to_owned(), 1000, 300_000),
        ("bytes=-5".to_owned(), size - 5, size),
        (format!("bytes={}-{}", size - 1, size * 2), size - 1, size),
    ] {
        let response = cache.get_with(&sample.nar_path, &[("range", &range)]).await.is(206);
        assert_eq!(response.body, sample.nar[from..to], "{range}");
        assert_eq!(response.header("content-range"), format!("bytes {from}-{}/{size}", to - 1));
        assert_eq!(response.header("accept-ranges"), "bytes");
        assert_eq!(response.header("etag"), cache.head(&sample.nar_path).await.header("etag"));
    }
    let beyond = format!("bytes={size}-");
    let response = cache.get_with(&sample.nar_path, &[("range", &beyond)]).await.is(416);
    assert_eq!(response.header("content-range"), format!("bytes */{size}"));
    assert_eq!(response.header("accept-ranges"), "bytes");
}

#[tokio::test]
async fn an_unchanged_object_is_304() {
    let (cache, sample) = with_a_nar(b"x").await;
    for path in [&sample.nar_path, &sample.narinfo_path] {
        let response = cache.get(path).await;
        let tag = response.header("etag").to_owned();
        let date = response.header("last-modified").to_owned();
        for header in [("if-none-match", tag.as_str()), ("if-modified-since", date.as_str())] {
            let again = cache.get_with(path, &[header]).await.is(304);
            assert!(again.body.is_empty());
            assert_eq!(again.header("etag"), tag);
        }
        cache.get_with(path, &[("if-none-match", "\"other\"")]).await.is(200);
    }
}

#[tokio::test]
async fn a_replaced_object_has_another_entity_tag() {
    let cache = TestCache::new();
    let path = ONE_OF_EACH[5];
    cache.put(path, "one log").await.is(201);
    let before = cache.head(path).await.header("etag").to_owned();
    cache.put(path, "two log").await.is(200);
    let response = cache.get_with(path, &[("if-none-match", &before)]).await;
    response.is(200).contains("two log");
}

#[tokio::test]
async fn an_absent_object_is_404_and_not_cacheable() {
    let cache = TestCache::new();
    for path in &ONE_OF_EACH[1..] {
        let response = cache.get(path).await.is(404).contains("not found in this cache");
        assert_eq!(response.header("cache-control"), "no-store");
        assert_eq!(response.header("accept-ranges") == "bytes", path.starts_with("/nar/"));
    }
}

#[tokio::test]
async fn cache_info_is_always_served_as_text() {
    let vars = [("STORE_DIR", "/gnu/store"), ("PRIORITY", "7"), ("WANT_MASS_QUERY", "0")];
    let cache = TestCache::configured(&vars, true);
    let response = cache.get("/nix-cache-info").await.is(200);
    assert_eq!(response.text(), "StoreDir: /gnu/store\nWantMassQuery: 0\nPriority: 7\n");
    // The response is the same after `nix copy --to file://` has written other values.
    std::fs::write(cache.dir().join("nix-cache-info"), "StoreDir: /nix/store\n").expect("writable");
    assert_eq!(cache.get("/nix-cache-info").await.text(), response.text());
}

#[tokio::test]
async fn a_directory_or_a_pipe_is_not_served_as_an_object() {
    let cache = TestCache::new();
    let name = |path: &str| cache.dir().join(path.trim_start_matches('/'));
    std::fs::create_dir(name(ONE_OF_EACH[1])).expect("the folder is created");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        name(ONE_OF_EACH[3]),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("the pipe is created");
    cache.get(ONE_OF_EACH[1]).await.is(404);
    cache.get(ONE_OF_EACH[3]).await.is(404);
}

#[tokio::test]
async fn debug_info_is_absent_after_its_nar_was_removed() {
    let (cache, sample) = with_a_nar(b"symbols").await;
    let path = ONE_OF_EACH[8];
    let link = format!("{{\"archive\":\"..{}\",\"member\":\"lib/x.debug\"}}", sample.nar_path);
    cache.put(path, link.clone()).await.is(201);
    assert_eq!(cache.get(path.trim_end_matches(".debug")).await.is(200).text(), link);
    cache.head(path).await.is(200);
    std::fs::remove_file(cache.dir().join(&sample.nar_path[1..])).expect("present");
    cache.get(path).await.is(404);
    cache.head(path).await.is(404);
}
