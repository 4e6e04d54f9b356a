//! The audit log: who uploaded and removed which objects.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::closures::last_used;
use crate::support::daemon::{Daemon, on_cache};
use crate::support::fixture::fixture;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

/// The audit lines of a JSON log.
fn audit_lines(log: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line["target"] == "audit").collect()
}

/// The audit lines of a command.
fn logged(dir: &Path, args: &[&str]) -> Vec<Value> {
    let mut command = on_cache(dir, args);
    let output = command.env("NIX_STORED_LOG_FORMAT", "json").output().expect("the process starts");
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.code() != Some(1), "{log}");
    audit_lines(&log)
}

fn put(daemon: &Daemon, sample: &Sample) {
    for (path, body) in
        [(&sample.nar_path, &*sample.nar), (&sample.narinfo_path, sample.narinfo.as_bytes())]
    {
        assert_eq!(Wire::to(daemon).request("PUT", path, body).status, 201, "{path}");
    }
}

#[test]
fn every_accepted_upload_is_one_log_line_with_all_known_facts() {
    let scratch = Scratch::new();
    let daemon = Daemon::builder()
        .dir(scratch.path())
        .env("NIX_STORED_LOG_FORMAT", "json")
        .env("NIX_STORED_TRUSTED_PUBLIC_KEYS", fixture().public_key())
        .env("NIX_STORED_USER_WRITE", "builder")
        .env("NIX_STORED_USER_WRITE_PASS", "secret")
        .start();
    let app = fixture().output("app");
    let nix = fixture().nix().with_netrc("builder", "secret");
    nix.copy_to(daemon.url(), std::slice::from_ref(&app));
    // A refused upload.
    let unsigned = sample(1, b"");
    let mut wire = Wire::to(&daemon);
    let login = "Authorization: Basic YnVpbGRlcjpzZWNyZXQ=";
    for (path, body, status) in [
        (&unsigned.nar_path, unsigned.nar.clone(), 201),
        (&unsigned.narinfo_path, unsigned.narinfo.clone().into_bytes(), 422),
    ] {
        let length = body.len();
        wire.send(&format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\n{login}\r\nContent-Length: {length}\r\n\r\n"
        ));
        wire.send_bytes(&body);
        assert_eq!(wire.response().status, status);
    }
    let log = daemon.stop().1;
    let (dir, lines) = (scratch.path(), audit_lines(&log));
    let paths: Vec<&str> = lines.iter().map(|line| line["path"].as_str().expect("text")).collect();
    let objects = crate::support::cache_dir::objects(dir);
    assert!(objects.len() > 4);
    for object in &objects {
        let count = paths.iter().filter(|path| path.trim_start_matches('/') == object).count();
        assert_eq!(count, 1, "{object} in {paths:?}");
    }
    assert_eq!(paths.len(), objects.len());
    for line in &lines {
        assert_eq!(line["message"], "uploaded");
        assert_eq!((&line["user"], &line["level"]), (&"builder".into(), &"INFO".into()));
        assert!(line["client"].as_str().expect("text").starts_with("127.0.0.1:"), "{line}");
        let key = line["path"].as_str().expect("text").trim_start_matches('/');
        let file = fs::read(dir.join(key)).expect("present");
        assert_eq!(line["size_bytes"], file.len(), "{line}");
        if !key.ends_with(".narinfo") {
            continue;
        }
        let text = String::from_utf8(file).expect("UTF-8");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.expect("Nix writes it").to_owned()
        };
        assert_eq!(line["store_path"], field("StorePath"));
        assert_eq!(line["file_hash"], field("FileHash"));
        assert_eq!(line["nar_hash"], field("NarHash"));
        assert_eq!(line["signed_by"], "fixture-1");
        // The NAR has a line of its own.
        let nar = lines.iter().find(|line| line["path"] == format!("/{}", field("URL")));
        let nar = nar.expect("uploaded");
        assert_eq!((&nar["file_hash"], &nar["nar_hash"]), (&line["file_hash"], &line["nar_hash"]));
    }
    assert!(lines.iter().any(|line| line["store_path"] == app));
    // Nothing is logged twice.
    assert_eq!(log.matches("\"uploaded\"").count(), lines.len());
}

#[test]
fn an_upload_without_user_is_anonymous_and_its_unverified_keys_are_marked() {
    let daemon = Daemon::builder().env("NIX_STORED_LOG_FORMAT", "json").start();
    let mut sample = sample(1, b"x");
    let signature = "A".repeat(86);
    sample.narinfo.push_str(&format!("Sig: somebody-1:{signature}==\n"));
    put(&daemon, &sample);
    let lines = audit_lines(&daemon.stop().1);
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line["user"] == "anonymous"));
    assert_eq!(lines[1]["unchecked_keys"], "somebody-1");
    assert!(lines[1].get("signed_by").is_none());
}

#[test]
fn every_object_that_the_daemon_collects_is_logged() {
    let day = Duration::from_secs(86_400);
    let daemon = Daemon::builder()
        .env("NIX_STORED_LOG_FORMAT", "json")
        .env("NIX_STORED_MAX_AGE", "30d")
        .env("NIX_STORED_GC_INTERVAL", "1s")
        .start();
    let old = sample(1, b"old");
    put(&daemon, &old);
    put(&daemon, &sample(2, b"new"));
    for path in [&old.narinfo_path, &old.nar_path] {
        last_used(daemon.dir(), path.trim_start_matches('/'), 40 * day);
    }
    daemon.wait_for_log("collected 1 paths");
    let lines = audit_lines(&daemon.stop().1);
    let gone: Vec<&Value> = lines.iter().filter(|line| line["message"] == "deleted").collect();
    assert_eq!(gone.len(), 2, "{lines:?}");
    assert!(gone.iter().all(|line| line["by"] == "collector" && line["reason"] == "age"));
    assert_eq!(gone[0]["path"], *old.narinfo_path);
    assert_eq!(gone[0]["store_path"], *old.store_path);
    assert_eq!(
        (&gone[1]["path"], &gone[1]["size_bytes"]),
        (&(*old.nar_path).into(), &old.nar.len().into())
    );
}

#[test]
fn removals_by_commands_are_logged_with_the_user() {
    let daemon = Daemon::start();
    let samples = [1, 2, 3].map(|number| sample(number, &[number; 100]));
    samples.iter().for_each(|sample| put(&daemon, sample));
    let user = rustix::process::getuid().as_raw();
    let [deleted, damaged, old] = &samples;

    let lines = logged(daemon.dir(), &["delete", &deleted.store_path]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        assert_eq!(line["by"], format!("nix-stored delete, user {user}"));
        assert_eq!((&line["message"], &line["reason"]), (&"deleted".into(), &"request".into()));
    }

    fs::write(daemon.dir().join(damaged.nar_path.trim_start_matches('/')), "x").expect("written");
    let lines = logged(daemon.dir(), &["verify", "--repair"]);
    let paths: Vec<&str> = lines.iter().map(|line| line["path"].as_str().expect("text")).collect();
    assert_eq!(paths, [&*damaged.narinfo_path, &*damaged.nar_path]);
    assert!(lines.iter().all(|line| line["message"] == "quarantined"));

    for path in [&old.narinfo_path, &old.nar_path] {
        last_used(daemon.dir(), path.trim_start_matches('/'), Duration::from_secs(40 * 86_400));
    }
    assert_eq!(logged(daemon.dir(), &["gc", "--max-age", "30d", "--dry-run"]).len(), 0);
    let lines = logged(daemon.dir(), &["gc", "--max-age", "30d"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["by"], format!("nix-stored gc, user {user}"));
}
