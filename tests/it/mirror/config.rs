//! The settings of upstreams, and errors in them.

use std::fs;

use super::mirror_of;
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;
use crate::support::scripted_upstream::ScriptedUpstream;

#[test]
fn an_invalid_setting_is_reported_with_an_example_and_without_the_password() {
    for (upstreams, printed) in [
        ("https://me:secret@cache.example.org?prioritty=3", "the unknown option “prioritty”"),
        ("https://cache.example.org?proxy=http://me:secret@proxy&x=1", "the unknown option “x”"),
        (
            "https://cache.example.org?proxy=http%3A%2F%2Fme%3Asecret%40proxy&x=1",
            "the unknown option “x”",
        ),
        ("https://cache.example.org?proxy=ftp://me:secret@proxy", "socks5h"),
        ("https://cache.example.org?proxy=//me:secret@proxy", "a proxy that is not a URL"),
        ("me:secret@cache.example.org", "http, https or file URL"),
        ("//me:secret@cache.example.org", "is not a URL"),
        ("https://me:secret@cache.example.org:port", "is not a URL"),
        ("https://secret@cache.example.org", "a user without a password"),
        ("https://me:secret@cache.example.org#here", "a fragment"),
        ("https://me:secret@cache.example.org?timeout=0s", "the timeout “0s”"),
        ("https://me:secret@cache.example.org?store=2", "neither 1 nor 0"),
        ("https://me:secret@cache.example.org?trusted-public-keys=x", "the invalid public key “x”"),
    ] {
        let failed = mirror_of(&[upstreams, "https://fine.example.org"]).start_fails();
        assert_eq!(failed.code, 64, "{upstreams}: {}", failed.log);
        assert_eq!(failed.log.lines().count(), 1, "{upstreams}: {}", failed.log);
        for part in ["NIX_STORED_UPSTREAMS", printed] {
            assert!(failed.log.contains(part), "{upstreams}: no {part} in {}", failed.log);
        }
        assert!(!failed.log.contains("secret"), "{upstreams}: {}", failed.log);
    }
}

#[test]
fn every_invalid_upstream_is_reported() {
    let failed = mirror_of(&["ftp://one", "https://two?store=2"])
        .env("NIX_STORED_UPSTREAM_ABSENT_TTL", "a while")
        .env("NIX_STORED_UPSTREAM_NETRC", "/does/not/exist")
        .start_fails();
    assert_eq!(failed.code, 64);
    for part in ["ftp://one", "https://two", "“a while”", "/does/not/exist"] {
        assert!(failed.log.contains(part), "no {part} in {}", failed.log);
    }
}

#[test]
fn a_password_of_an_upstream_is_never_logged() {
    let (upstream, scratch) = (ScriptedUpstream::start(), Scratch::new());
    let netrc = scratch.join("netrc");
    fs::write(&netrc, "machine 127.0.0.1 login me password netrc-secret\n").expect("written");
    let port = upstream.port();
    let url = format!("http://me:url-secret@127.0.0.1:{port}/a");
    upstream.stop();
    let proxied = format!("{url}?proxy=http://me:proxy-secret@127.0.0.1:{port}");
    let other = format!("http://127.0.0.1:{port}/b");
    let mirror = mirror_of(&[&url, &proxied, &other])
        .env("NIX_STORED_UPSTREAM_NETRC", utf8(&netrc))
        .env("NIX_STORED_LOG_LEVEL", "debug")
        .start();
    for digit in 1..=4 {
        let path = format!("/{}.narinfo", digit.to_string().repeat(32));
        let (status, body) = mirror.get(&path);
        assert_eq!(status, 502);
        assert!(!String::from_utf8_lossy(&body).contains("secret"));
    }
    let (_, log) = mirror.stop();
    assert!(log.contains(&format!("http://127.0.0.1:{port}/a")), "{log}");
    assert!(!log.contains("secret"), "{log}");
}
