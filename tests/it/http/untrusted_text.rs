//! Text from clients, files and upstreams in responses, in the log and on a terminal: one line of limited length
//! without control characters.

use std::fs;

use nix_stored::nix::Compression;

use crate::support::daemon::{Daemon, on_cache};
use crate::support::objects::{Sample, sample};
use crate::support::packing::pack;
use crate::support::wire::{RawResponse, Wire};

/// The limit for the response to a refused upload and for a log line, in bytes.
const MAX_LENGTH: usize = 2 * 1024;
const LOG_LINE: usize = 8 * 1024;

/// Control characters for terminals, line ends, and characters that change the text direction.
const CONTROL_CHARACTERS: &str =
    "\r\u{b}\u{1b}[2J\u{7f}\u{9b}2J\u{85}\u{202e}\u{2066}\u{feff}\u{2028}";

fn is_unsafe(character: char) -> bool {
    character.is_control() || (!character.is_ascii() && CONTROL_CHARACTERS.contains(character))
}

#[track_caller]
fn is_one_clean_line(text: &str, limit: usize) {
    assert!(text.len() <= limit, "{} bytes: {}", text.len(), &text[..200]);
    assert!(!text.trim_end_matches('\n').contains(is_unsafe), "{text:?}");
}

/// Uploads a narinfo with this value in one field, compressed so that the request is small.
fn upload(daemon: &Daemon, sample: &Sample, field: &str, value: &str) -> RawResponse {
    let old =
        sample.narinfo.lines().find(|line| line.starts_with(field)).expect("the line is present");
    let narinfo = sample.narinfo.replace(old, &format!("{field}: {value}"));
    let body = pack(Compression::Zstd, narinfo.as_bytes()).expect("packed");
    let mut wire = Wire::to(daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Encoding: zstd\r\nContent-Length: {}\r\n\r\n",
        sample.narinfo_path,
        body.len()
    ));
    wire.send_bytes(&body);
    wire.response()
}

#[test]
fn a_small_upload_causes_no_large_response_and_no_large_log_line() {
    for format in ["text", "json"] {
        let daemon = Daemon::builder().env("NIX_STORED_LOG_FORMAT", format).start();
        let sample = sample(1, b"x");
        assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
        let long = "x".repeat(1_000_000);
        let fields = ["URL", "NarHash", "NarSize", "StorePath", "Compression", "FileHash"];
        for field in fields {
            for value in [&long, &format!("{CONTROL_CHARACTERS}{long}"), CONTROL_CHARACTERS] {
                let refused = upload(&daemon, &sample, field, value);
                assert!([400, 422].contains(&refused.status), "{field}: {}", refused.text());
                is_one_clean_line(&refused.text(), MAX_LENGTH);
            }
        }
        // The error is at the beginning and the remedy at the end; the omission between them is
        // marked.
        let refused = upload(&daemon, &sample, "URL", &long).text();
        assert!(refused.starts_with("the narinfo's URL is “xxx"), "{refused}");
        assert!(refused.contains("bytes omitted"), "{refused}");
        assert!(
            refused.ends_with("it must be the name of a NAR in this cache, nar/<file hash>.nar…\n")
        );
        let log = daemon.stop().1;
        assert!(log.matches("refused").count() >= 3 * fields.len(), "{log}");
        for line in log.lines() {
            is_one_clean_line(line, LOG_LINE);
            if format == "json" {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                assert!(line["message"] != "refused" || line["reason"].is_string());
            }
        }
        assert!(log.contains("bytes omitted") && log.contains("nar/<file hash>.nar…"));
    }
}

#[test]
fn a_requested_name_forges_no_log_line() {
    for format in ["text", "json"] {
        let daemon = Daemon::builder()
            .env("NIX_STORED_LOG_FORMAT", format)
            .env("NIX_STORED_LOG_LEVEL", "debug")
            .start();
        let forged =
            "%0a2026-01-01T00:00:00Z%20%20INFO%20all%20is%20well%1b%5b2J%7f%c2%9b%e2%80%ae";
        for path in
            [format!("/{forged}.narinfo"), format!("/nar/{forged}"), format!("/log/{forged}")]
        {
            for (method, status) in [("GET", 404), ("PUT", 400)] {
                let response = Wire::to(&daemon).request(method, &path, b"");
                assert_eq!(response.status, status, "{}", response.text());
                is_one_clean_line(&response.text(), MAX_LENGTH);
            }
        }
        let log = daemon.stop().1;
        log.lines().for_each(|line| is_one_clean_line(line, LOG_LINE));
        assert!(!log.lines().any(|line| line.starts_with("2026-01-01")), "{log}");
    }
}

#[test]
fn a_file_name_in_the_directory_sends_no_escape_sequence_to_the_terminal() {
    let daemon = Daemon::start();
    let name = format!("evil{CONTROL_CHARACTERS}\nok");
    fs::write(daemon.dir().join(&name), "").expect("the file system supports it");
    fs::write(daemon.dir().join("nar").join(&name), "").expect("the file system supports it");
    for args in [&["verify"][..], &["gc", "--dry-run"], &["stats"]] {
        for json in [false, true] {
            let args = [args, if json { &["--json"][..] } else { &[] }].concat();
            let output = on_cache(daemon.dir(), &args).output().expect("the process starts");
            let out = String::from_utf8(output.stdout).expect("UTF-8");
            let err = String::from_utf8(output.stderr).expect("UTF-8");
            if args[0] == "verify" {
                assert!(out.contains("evil"), "{out} {err}");
            }
            for line in out.lines().chain(err.lines()) {
                is_one_clean_line(line, LOG_LINE);
            }
            assert!(!out.lines().any(|line| line.starts_with("ok")), "{out}");
            if json {
                serde_json::from_str::<serde_json::Value>(&out).expect("JSON");
            }
        }
    }
    let output = on_cache(daemon.dir(), &["delete", &format!("/nix/store/{name}")]).output();
    let err = String::from_utf8(output.expect("the process starts").stderr).expect("UTF-8");
    assert!(!err.is_empty());
    err.lines().for_each(|line| is_one_clean_line(line, LOG_LINE));
}

#[cfg(feature = "upstream")]
#[test]
fn text_from_an_upstream_forges_no_log_line() {
    use crate::support::scripted_upstream::ScriptedUpstream;
    for format in ["text", "json"] {
        let upstream = ScriptedUpstream::start();
        let daemon = Daemon::builder()
            .env("NIX_STORED_UPSTREAMS", &upstream.url())
            .env("NIX_STORED_LOG_FORMAT", format)
            .env("NIX_STORED_LOG_LEVEL", "debug")
            .start();
        let fields = ["URL", "NarHash", "NarSize", "StorePath", "Compression", "References"];
        for (number, field) in (1..).zip(fields) {
            let sample = sample(number, b"x");
            let old = sample.narinfo.lines().find(|line| line.starts_with(field));
            let value = format!("{field}: {CONTROL_CHARACTERS}{}", "y".repeat(20_000));
            let narinfo = sample.narinfo.replace(old.expect("the line is present"), &value);
            upstream.has(&sample.narinfo_path, narinfo.as_bytes());
            upstream.has(&sample.nar_path, &sample.nar);
            let response = Wire::to(&daemon).request("GET", &sample.narinfo_path, b"");
            if response.status != 200 {
                is_one_clean_line(&response.text(), MAX_LENGTH);
            }
        }
        let log = daemon.stop().1;
        assert!(log.contains("of an upstream") || log.contains("the upstream"), "{log}");
        log.lines().for_each(|line| is_one_clean_line(line, LOG_LINE));
    }
}
