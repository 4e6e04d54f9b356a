//! Web pages: which clients get a page and which the text for Nix, what the pages show, and what they cost others.
//!
//! Programs: chromium, nix.

/// The pages in Chromium.
mod browser;
/// Expensive pages.
mod busy;

use crate::support::cache::{TestCache, TestResponse};
use crate::support::objects::{Sample, sample};

/// The `Accept` header of Chromium.
const BROWSER: (&str, &str) =
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8");

async fn upload(cache: &TestCache, sample: &Sample) {
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(201);
}

/// The path of a store path's page.
fn page_of(sample: &Sample) -> String {
    format!("/browse/{}", &sample.narinfo_path[1..33])
}

/// Text of a page while the index is being built. The index is built only on idle processors, so this can
/// take some time.
const NOT_YET: &str = "index is being built";

async fn page(cache: &TestCache, path: &str) -> TestResponse {
    loop {
        let response = cache.get_with(path, &[BROWSER, ("host", "cache.test:8100")]).await;
        if !response.text().contains(NOT_YET) && !response.text().contains("try again in a moment")
        {
            return response;
        }
    }
}

#[tokio::test]
async fn browsers_get_a_page_and_other_clients_nix_cache_info() {
    let cache = TestCache::new();
    let text = cache.get("/nix-cache-info").await.text();
    for accept in [&[][..], &[("accept", "*/*")], &[("accept", "text/plain, text/html;q=0.5")]] {
        let response = cache.get_with("/", accept).await.is(200);
        assert_eq!(response.header("content-type"), "text/x-nix-cache-info");
        assert_eq!(response.header("vary"), "accept");
        assert_eq!(response.text(), text);
    }
    let response = page(&cache, "/")
        .await
        .is(200)
        .contains("<!DOCTYPE html>")
        .contains("http://cache.test:8100");
    assert_eq!(response.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(response.header("vary"), "accept");
    assert_eq!(response.header("cache-control"), "private, no-cache");
}

#[tokio::test]
async fn every_page_forbids_other_resources_and_frames() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    upload(&cache, &sample).await;
    for (path, status) in
        [("/", 200), ("/browse", 200), ("/browse/nothing", 404), (&page_of(&sample), 200)]
    {
        let response = page(&cache, path).await.is(status);
        let policy = response.header("content-security-policy");
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "script-src 'sha256-",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(response.header("x-content-type-options"), "nosniff");
        assert_eq!(response.header("referrer-policy"), "no-referrer");
        // The content security policy forbids handlers and styles in attributes, and links to other
        // sites should not be needed.
        for part in [" onclick", " style=", "src=", "href=\"http", "javascript:"] {
            assert!(!response.text().contains(part), "{path}: {part}");
        }
    }
}

#[tokio::test]
async fn head_of_a_page_matches_get() {
    let cache = TestCache::new();
    for path in ["/", "/browse?q=x", "/browse/nothing"] {
        let get = page(&cache, path).await;
        let mut request =
            crate::support::cache::request(http::Method::HEAD, path, axum::body::Body::empty());
        request.headers_mut().insert("accept", BROWSER.1.parse().expect("a value"));
        request.headers_mut().insert("host", "cache.test:8100".parse().expect("a value"));
        let head = cache.send(request).await;
        assert_eq!((get.status, &get.headers), (head.status, &head.headers), "{path}");
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn uploads_to_the_paths_of_pages_are_refused() {
    let cache = TestCache::new();
    for path in ["/", "/browse", "/browse/8ha1dhmx807czjczmwy078s4r9s254il"] {
        cache.put(path, "x").await.is(400);
    }
    // A name that only begins with the name of a page is not one.
    page(&cache, "/browser").await.is(404).contains("not a name of a binary cache");
}

#[tokio::test]
async fn a_path_is_found_by_its_hash_part_and_in_full() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    upload(&cache, &sample).await;
    for query in [&sample.store_path, &sample.store_path[11..], &sample.store_path[11..43]] {
        let query = query.replace('/', "%2F");
        let response = page(&cache, &format!("/browse?q={query}")).await.is(303);
        assert_eq!(response.header("location"), page_of(&sample));
    }
    page(&cache, &page_of(&sample)).await.is(200).contains(&sample.store_path[44..]);
    page(&cache, &format!("/browse/{}", &sample.store_path[11..])).await.is(200);
    page(&cache, "/browse/8ha1dhmx807czjczmwy078s4r9s254il")
        .await
        .is(404)
        .contains("not in the cache");
}

#[tokio::test]
async fn viewing_a_path_does_not_count_as_use() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    upload(&cache, &sample).await;
    let narinfo = &sample.narinfo_path[1..];
    let ago = std::time::Duration::from_secs(20 * 86_400);
    for key in [narinfo, &sample.nar_path[1..]] {
        crate::support::closures::last_used(&cache.dir(), key, ago);
    }
    let before = std::fs::metadata(cache.dir().join(narinfo)).expect("present");
    page(&cache, &page_of(&sample)).await.is(200).contains("20 days ago");
    page(&cache, "/").await.is(200);
    let after = std::fs::metadata(cache.dir().join(narinfo)).expect("present");
    assert_eq!(before.accessed().ok(), after.accessed().ok());
}

#[tokio::test]
async fn files_are_listed_from_the_listing_or_else_from_the_nar() {
    let cache = TestCache::new();
    let sample = sample(1, b"twelve bytes");
    upload(&cache, &sample).await;
    page(&cache, &page_of(&sample)).await.is(200).contains("the path itself").contains("12 B");
    let listing = r#"{"version":1,"root":{"type":"directory","entries":{"bin":{"type":"directory","entries":{
        "tool":{"type":"regular","size":77,"executable":true}}}}}}"#;
    cache.put(&sample.narinfo_path.replace(".narinfo", ".ls"), listing).await.is(201);
    let response = page(&cache, &page_of(&sample)).await.is(200).contains("77 B");
    response.contains(&format!(
        "nix shell --extra-substituters http://cache.test:8100 {} --command tool",
        sample.store_path
    ));
}

#[tokio::test]
async fn the_page_of_a_path_without_its_nar_says_so() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    upload(&cache, &sample).await;
    std::fs::remove_file(cache.dir().join(&sample.nar_path[1..])).expect("present");
    page(&cache, &page_of(&sample))
        .await
        .is(200)
        .contains("the path cannot be fetched")
        .contains("the NAR is not in this cache");
}

#[tokio::test]
async fn the_commands_to_paste_have_the_keys_and_the_netrc_if_needed() {
    let key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let vars = [
        ("TRUSTED_PUBLIC_KEYS", key),
        ("USER_READ", "reader"),
        ("USER_READ_PASS", "hush"),
        ("USER_WRITE", "writer"),
        ("USER_WRITE_PASS", "quiet"),
    ];
    let cache = TestCache::configured(&vars, false);
    page(&cache, "/").await.is(401);
    page(&cache, "/browse").await.is(401);
    let headers = [
        BROWSER,
        ("host", "cache.test"),
        ("x-forwarded-proto", "https"),
        ("authorization", "Basic cmVhZGVyOmh1c2g="),
    ];
    let response = cache.get_with("/", &headers).await.is(200);
    let text = response.text();
    for part in [
        "extra-substituters = https://cache.test\n".to_owned(),
        format!("extra-trusted-public-keys = {key}\nnetrc-file = /etc/nix/netrc"),
        format!("trusted-public-keys = [ &quot;{key}&quot; ];"),
        "machine cache.test login reader password …".to_owned(),
        "nix copy --to https://cache.test ./result".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} in {text}");
    }
    assert!(!text.contains("hush") && !text.contains("quiet"));
    let open = page(&TestCache::new(), "/").await.text();
    assert!(!open.contains("netrc") && open.contains("# extra-trusted-public-keys"));
}

#[tokio::test]
async fn lists_come_in_pages() {
    let cache = TestCache::new();
    for number in 0..60 {
        upload(&cache, &sample(number, &[number])).await;
    }
    let first =
        page(&cache, "/browse?q=sample").await.is(200).contains("60 paths").contains("page 1 of 2");
    assert_eq!(first.text().matches("href=\"/browse/").count(), 50);
    let first = first.contains("/browse?q=sample&amp;page=2");
    assert!(!first.text().contains("Previous"));
    let second = page(&cache, "/browse?q=sample&page=2").await.is(200).contains("page=1");
    assert_eq!(second.text().matches("href=\"/browse/").count(), 10);
    // A page after the last one shows the last one.
    page(&cache, "/browse?q=sample&page=99").await.is(200).contains("page 2 of 2");
    page(&cache, "/browse?q=nothing+here").await.is(200).contains("No path has all these words");
}
