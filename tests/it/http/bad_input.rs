//! Invalid requests over real sockets: each gets a response, and the daemon continues.

use nix_stored::nix::narinfo::MAX_SIZE;

use crate::support::daemon::Daemon;
use crate::support::objects::{ONE_OF_EACH, sample};
use crate::support::wire::Wire;

/// Checks that the daemon still accepts uploads and serves them.
#[track_caller]
fn assert_still_works(daemon: &Daemon) {
    let sample = sample(9, b"still here");
    assert_eq!(Wire::to(daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
    assert_eq!(Wire::to(daemon).request("GET", &sample.nar_path, b"").body, sample.nar);
}

#[test]
fn encoded_path_traversal_is_404_for_reads_and_refused_for_writes() {
    let daemon = Daemon::start();
    for path in [
        "/%2e%2e%2fetc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/../../etc/passwd",
        "/./nix-cache-info",
        "/nar/%2e%2e/%2e%2e/x.nar",
        "/%00",
        "/nar/%00.nar",
        "/%2e%2e%5cx.narinfo",
        "/log/..%2fx",
        "/log/%2e%2e",
        "/.nix-stored/lock",
        "/%2enix-stored%2flock",
        "/build-trace-v2/../x/out.doi",
        "/nix-cache-info/",
        "/nar/../nix-cache-info",
    ] {
        assert_eq!(Wire::to(&daemon).request("GET", path, b"").status, 404, "{path}");
        assert_eq!(Wire::to(&daemon).request("HEAD", path, b"").status, 404, "{path}");
        assert_eq!(Wire::to(&daemon).request("PUT", path, b"x").status, 400, "{path}");
    }
    assert_still_works(&daemon);
}

#[test]
fn wrong_lengths_and_alphabets_break_a_rule_that_is_named() {
    let daemon = Daemon::start();
    for (path, rule) in [
        (format!("/{}.narinfo", "a".repeat(31)), "32 characters"),
        (format!("/{}.narinfo", "a".repeat(33)), "32 characters"),
        (format!("/{}.narinfo", "u".repeat(32)), "32 characters"),
        (format!("/{}.narinfo", "A".repeat(32)), "32 characters"),
        (format!("/nar/{}.nar.xz", "0".repeat(51)), "52 characters"),
        (format!("/nar/{}.nar.xz", "0".repeat(53)), "52 characters"),
        (format!("/nar/{}.nar.xz", "e".repeat(52)), "52 characters"),
        (format!("/nar/{}.nar.exe", "0".repeat(52)), "extension"),
        (format!("/{}.narinfo", "a".repeat(10_000)), "32 characters"),
        (format!("/log/{}-{}", "a".repeat(32), "x".repeat(5_000)), "211"),
    ] {
        assert_eq!(Wire::to(&daemon).request("GET", &path, b"").status, 404, "{path}");
        let refused = Wire::to(&daemon).request("PUT", &path, b"x");
        assert_eq!(refused.status, 400, "{path}");
        assert!(refused.text().contains(rule), "{}", refused.text());
    }
    assert_still_works(&daemon);
}

#[test]
fn a_truncated_body_is_logged_and_leaves_nothing() {
    let daemon = Daemon::start();
    for path in &ONE_OF_EACH[..] {
        let mut wire = Wire::to(&daemon);
        wire.send(&format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nbeginning"
        ));
        drop(wire);
        daemon.wait_for_log(&format!("path=\"{path}\" status=400"));
        let absent = if *path == "/nix-cache-info" { 200 } else { 404 };
        assert_eq!(Wire::to(&daemon).request("GET", path, b"").status, absent);
    }
    assert_still_works(&daemon);
}

#[test]
fn a_narinfo_that_is_too_large_is_refused_before_it_is_sent() {
    let daemon = Daemon::start();
    let size = MAX_SIZE as usize + 1;
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n",
        ONE_OF_EACH[1]
    ));
    assert_eq!(wire.head().status, 413);
    // A client without `Expect: 100-continue` also gets the response, and no reset.
    let refused = Wire::to(&daemon).request("PUT", ONE_OF_EACH[1], &vec![b'x'; size]);
    assert_eq!(refused.status, 413);
    assert!(refused.text().contains(&MAX_SIZE.to_string()), "{}", refused.text());
    assert_still_works(&daemon);
}

#[test]
fn a_head_that_is_too_large_is_431() {
    let daemon = Daemon::start();
    let mut wire = Wire::to(&daemon);
    wire.send("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n");
    for number in 0..20 {
        wire.send_or_give_up(format!("X-{number}: {}\r\n", "y".repeat(8 * 1024)).as_bytes());
    }
    wire.send_or_give_up(b"\r\n");
    assert_eq!(wire.head().status, 431);
    assert_still_works(&daemon);
}

#[test]
fn other_methods_are_405_and_name_those_that_are_served() {
    let daemon = Daemon::start();
    for method in ["POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL"] {
        for path in ["/nix-cache-info", ONE_OF_EACH[3]] {
            let refused = Wire::to(&daemon).request(method, path, b"");
            assert_eq!(refused.status, 405, "{method}");
            assert_eq!(refused.header("allow"), "GET, HEAD, PUT");
        }
    }
    assert_still_works(&daemon);
}

#[test]
fn a_request_that_is_not_http_is_400_and_the_connection_is_closed() {
    let daemon = Daemon::start();
    for noise in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"hello\r\n\r\n", b"GET\r\n\r\n"]
    {
        let mut wire = Wire::to(&daemon);
        wire.send_bytes(noise);
        assert_eq!(wire.head().status, 400);
        assert!(wire.rest().is_empty());
    }
    assert_still_works(&daemon);
}

#[test]
fn a_refused_body_is_not_read_as_requests() {
    let daemon = Daemon::builder()
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "w")
        .start();
    let mut wire = Wire::to(&daemon);
    let smuggled = "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3000);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        ONE_OF_EACH[3],
        smuggled.len()
    ));
    wire.send_or_give_up(smuggled.as_bytes());
    assert_eq!(wire.response().status, 401);
    assert!(wire.rest().is_empty(), "the body was parsed as requests");
}

#[test]
fn chunked_uploads_are_accepted_and_broken_chunks_refused() {
    let daemon = Daemon::start();
    let path = ONE_OF_EACH[5];
    let mut wire = Wire::to(&daemon);
    let head = format!("PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    wire.send(&format!("{head}5\r\nhello\r\n0\r\n\r\n"));
    assert_eq!(wire.response().status, 201);
    assert_eq!(wire.request("GET", path, b"").text(), "hello");
    let mut wire = Wire::to(&daemon);
    wire.send(&format!("{head}zz\r\nhello\r\n0\r\n\r\n"));
    assert_eq!(wire.response().status, 400);
    assert_eq!(Wire::to(&daemon).request("GET", path, b"").text(), "hello");
}
