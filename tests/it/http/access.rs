//! Access control: the whole table of method, path, credentials and configuration.

use axum::body::Body;
use base64::Engine;
use http::Method;

use crate::support::cache::{TestCache, request};
use crate::support::objects::ONE_OF_EACH;

const READ: &[(&str, &str)] = &[("USER_READ", "reader"), ("USER_READ_PASS", "r-secret")];
const WRITE: &[(&str, &str)] = &[("USER_WRITE", "writer"), ("USER_WRITE_PASS", "w-secret")];
const ANYONE: &[(&str, &str)] = &[("ANONYMOUS_WRITE", "1")];
const NO_RIGHTS: &[(&str, &str)] = &[("ANONYMOUS_WRITE", "0")];

fn basic(user: &str, password: &str) -> Option<String> {
    let digits = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    Some(format!("Basic {digits}"))
}

/// The credentials of the columns of the table.
fn credentials() -> Vec<(&'static str, Vec<Option<String>>)> {
    let bearer = |password: &str| Some(format!("Bearer {password}"));
    let wrong = vec![
        basic("reader", "w-secret"),
        basic("writer", "r-secret"),
        basic("reader", "r-secre"),
        basic("reader", "r-secret "),
        basic("READER", "r-secret"),
        basic("", ""),
        basic("reader", ""),
        basic("", "r-secret"),
        bearer("wrong"),
        bearer(""),
        Some("Basic".to_owned()),
        Some("Basic !!!".to_owned()),
        Some("Digest username=\"reader\"".to_owned()),
        Some("\u{e9}".to_owned()),
    ];
    vec![
        ("none", vec![None]),
        ("wrong", wrong),
        ("reader", vec![basic("reader", "r-secret"), bearer("r-secret")]),
        ("writer", vec![basic("writer", "w-secret"), bearer("w-secret")]),
    ]
}

/// A row: the settings, whether the socket is local, and the results of a read and a write for each
/// kind of credentials.
type Row = (&'static [&'static [(&'static str, &'static str)]], bool, [&'static str; 4]);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    //                         local   none       wrong      reader     writer
    (&[],                      true,  ["ok ok",   "ok ok",   "ok ok",   "ok ok"]),
    (&[],                      false, ["ok 403",  "ok 403",  "ok 403",  "ok 403"]),
    (&[NO_RIGHTS],                true,  ["ok 403",  "ok 403",  "ok 403",  "ok 403"]),
    (&[NO_RIGHTS],                false, ["ok 403",  "ok 403",  "ok 403",  "ok 403"]),
    (&[ANYONE],                true,  ["ok ok",   "ok ok",   "ok ok",   "ok ok"]),
    (&[ANYONE],                false, ["ok ok",   "ok ok",   "ok ok",   "ok ok"]),
    (&[READ],                  true,  ["401 403", "401 403", "ok 403",  "401 403"]),
    (&[READ],                  false, ["401 403", "401 403", "ok 403",  "401 403"]),
    (&[READ, ANYONE],          false, ["401 ok",  "401 ok",  "ok ok",   "401 ok"]),
    (&[READ, NO_RIGHTS],          true,  ["401 403", "401 403", "ok 403",  "401 403"]),
    (&[WRITE],                 true,  ["ok 401",  "ok 401",  "ok 401",  "ok ok"]),
    (&[WRITE],                 false, ["ok 401",  "ok 401",  "ok 401",  "ok ok"]),
    (&[WRITE, ANYONE],         true,  ["ok 401",  "ok 401",  "ok 401",  "ok ok"]),
    (&[WRITE, NO_RIGHTS],         true,  ["ok 401",  "ok 401",  "ok 401",  "ok ok"]),
    (&[READ, WRITE],           true,  ["401 401", "401 401", "ok 403",  "ok ok"]),
    (&[READ, WRITE],           false, ["401 401", "401 401", "ok 403",  "ok ok"]),
    (&[READ, WRITE, ANYONE],   false, ["401 401", "401 401", "ok 403",  "ok ok"]),
    (&[READ, WRITE, NO_RIGHTS],   true,  ["401 401", "401 401", "ok 403",  "ok ok"]),
];

#[tokio::test]
async fn every_method_and_path_has_the_status_of_the_access_table() {
    let reads = [Method::GET, Method::HEAD];
    let writes = [
        Method::PUT,
        Method::POST,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::from_bytes(b"PROPFIND").expect("a method"),
    ];
    let outside = [
        "/",
        "/browse",
        "/browse/8ha1dhmx807czjczmwy078s4r9s254il",
        "/index.html",
        "/%2e%2e%2fetc%2fpasswd",
    ];
    for (variables, local, expected) in TABLE {
        let cache = TestCache::configured(&variables.concat(), *local);
        for ((who, spellings), expected) in credentials().iter().zip(expected) {
            let (read, write) = expected.split_once(' ').expect("two outcomes");
            for spelling in spellings {
                for path in ONE_OF_EACH.iter().chain(&outside) {
                    for (methods, expected) in [(&reads[..], read), (&writes[..], write)] {
                        for method in methods {
                            let mut request = request(method.clone(), path, Body::empty());
                            if let Some(value) = spelling {
                                let value = http::HeaderValue::from_bytes(value.as_bytes());
                                request
                                    .headers_mut()
                                    .insert("authorization", value.expect("a value"));
                            }
                            let response = cache.send(request).await;
                            let got = match response.status.as_u16() {
                                status @ (401 | 403) => status.to_string(),
                                _ => "ok".to_owned(),
                            };
                            assert_eq!(
                                got, expected,
                                "{variables:?} local={local} {who} {spelling:?} {method} {path}"
                            );
                            let challenge = response.header("www-authenticate");
                            assert_eq!(challenge.starts_with("Basic realm="), got == "401");
                        }
                    }
                }
            }
        }
        // The allowed requests had no body, so they stored no object.
        assert!(
            cache
                .objects()
                .iter()
                .all(|name| !name.ends_with(".narinfo") && !name.starts_with("nar/"))
        );
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_is_never_cached() {
    let cache = TestCache::configured(&[READ, WRITE].concat(), true);
    let response = cache.get("/nix-cache-info").await.is(401).contains("netrc");
    assert_eq!(response.header("cache-control"), "no-store");
    let nar = ONE_OF_EACH[3];
    let response = cache.put(nar, "x").await.is(401);
    assert_eq!(response.header("accept-ranges"), "bytes");
    let reader = basic("reader", "r-secret").expect("credentials");
    let mut upload = request(Method::PUT, nar, Body::from("x"));
    upload.headers_mut().insert("authorization", reader.parse().expect("a value"));
    cache.send(upload).await.is(403).contains("reader").contains("write user");
    let off = TestCache::configured(NO_RIGHTS, true);
    off.put(nar, "x").await.is(403).contains("NIX_STORED_USER_WRITE");
}

#[tokio::test]
async fn a_refused_upload_is_refused_before_its_body_is_read() {
    let cache = TestCache::configured(WRITE, true);
    let body = Body::from_stream(futures_util::stream::poll_fn(
        |_| -> std::task::Poll<Option<std::io::Result<bytes::Bytes>>> {
            panic!("the body was read")
        },
    ));
    cache.put(ONE_OF_EACH[3], body).await.is(401);
}

/// Headers added by proxies and by browsers.
const FROM_ELSEWHERE: &[(&str, &str)] = &[
    ("X-Forwarded-For", "203.0.113.9"),
    ("x-forwarded-host", "cache.example.org"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Prefix", "/cache"),
    ("Forwarded", "for=203.0.113.9"),
    ("Via", "1.1 proxy"),
    ("X-Real-IP", "203.0.113.9"),
    ("CF-Connecting-IP", "203.0.113.9"),
    ("True-Client-IP", "203.0.113.9"),
    ("Origin", "https://example.org"),
    ("Origin", "null"),
    ("Sec-Fetch-Site", "cross-site"),
    ("X-Forwarded-For", ""),
];

async fn upload(
    cache: &TestCache,
    headers: &[(&str, &str)],
) -> crate::support::cache::TestResponse {
    let mut upload = request(Method::PUT, ONE_OF_EACH[5], Body::from("x"));
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a header's name");
        upload.headers_mut().insert(name, value.parse().expect("a header's value"));
    }
    cache.send(upload).await
}

#[tokio::test]
async fn an_upload_through_a_proxy_or_from_a_web_page_is_not_local() {
    let cache = TestCache::new();
    for header in FROM_ELSEWHERE {
        let refused = upload(&cache, &[*header]).await.is(401);
        assert!(refused.header("www-authenticate").starts_with("Basic realm="), "{header:?}");
        let refused = refused.contains("set NIX_STORED_USER_WRITE").contains("through a proxy");
        refused.contains(&header.0.to_ascii_lowercase());
        // Reading is allowed for everyone.
        cache.get_with("/nix-cache-info", &[*header]).await.is(200);
    }
    // The headers of Nix, and headers that do not say where a request is from.
    let nix = [("user-agent", "curl/8.14.1 Nix/2.26.3"), ("accept-encoding", "zstd, br")];
    upload(&cache, &nix).await.is(201);
    upload(&cache, &[("x-request-id", "1"), ("referer", "x")]).await.is(200);
}

#[tokio::test]
async fn a_proxy_does_not_change_access_where_anyone_or_a_user_may_upload() {
    let anyone = TestCache::configured(ANYONE, true);
    let users = TestCache::configured(WRITE, true);
    let writer = basic("writer", "w-secret").expect("credentials");
    for header in FROM_ELSEWHERE {
        assert!(upload(&anyone, &[*header]).await.status.is_success());
        let known = upload(&users, &[*header, ("authorization", &writer)]).await;
        assert!(known.status.is_success(), "{header:?}");
        upload(&users, &[*header]).await.is(401).contains("needs a user and a password");
    }
}
