//! `/health` and `nix-stored health`.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;

use crate::support::daemon::{Daemon, command};
use crate::support::disk::Disk;
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

fn health(daemon: &Daemon) -> (u16, Value) {
    let (status, body) = daemon.get("/health");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

/// Runs `nix-stored health`. Returns its exit status and output.
pub fn check_health(vars: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    let mut command = command(env!("CARGO_BIN_EXE_nix-stored"), &[&["health"], args].concat());
    let output = command.envs(vars.iter().copied()).stdout(std::process::Stdio::piped()).output();
    let output = output.expect("the binary starts");
    let printed = [output.stdout, output.stderr].concat();
    (
        output.status.code().expect("not ended by a signal"),
        String::from_utf8(printed).expect("UTF-8"),
    )
}

#[test]
fn a_working_cache_is_healthy() {
    let daemon = Daemon::start();
    let (status, health) = health(&daemon);
    assert_eq!((status, health["status"].as_str()), (200, Some("ok")));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["store"]["writable"], true);
    assert!(health["store"]["free_bytes"].as_u64().expect("a number") > 0);
    assert!(health.get("reason").is_none());
    let mut wire = Wire::to(&daemon);
    let get = wire.request("GET", "/health", b"");
    let head = wire.request("HEAD", "/health", b"");
    assert_eq!(head.status, 200);
    for name in ["content-type", "content-length", "cache-control"] {
        assert!(!get.header(name).is_empty(), "{name}");
        assert_eq!(head.header(name), get.header(name));
    }
    // A response to HEAD has no body, so the connection can be reused.
    assert_eq!(wire.request("GET", "/nix-cache-info", b"").status, 200);
    let (code, printed) = check_health(&[], &[daemon.url()]);
    assert_eq!(code, 0, "{printed}");
    let expected = format!("{} is ok: nix-stored {}, ", daemon.url(), env!("CARGO_PKG_VERSION"));
    assert!(printed.starts_with(&expected) && printed.ends_with(" free\n"), "{printed}");
}

#[test]
fn a_read_only_disk_is_reported_where_uploads_are_allowed() {
    let mut disk = Disk::new("size=8m");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let only_read = Daemon::builder()
        .dir(&disk.path().join("cache"))
        .env("NIX_STORED_ANONYMOUS_WRITE", "0")
        .start();
    assert_eq!(health(&daemon).0, 200);
    disk.remount("ro");
    daemon.wait_until("the change is noticed", || health(&daemon).0 == 503);
    let (_, printed) = health(&daemon);
    assert_eq!(printed["status"], "unavailable");
    assert_eq!(printed["store"]["writable"], false);
    assert!(
        printed["reason"].as_str().expect("a reason").contains("Read-only file system"),
        "{printed}"
    );
    let (code, line) = check_health(&[], &[daemon.url()]);
    assert_eq!(code, 1);
    assert!(line.contains("is unavailable: ") && line.contains("Read-only"), "{line}");
    only_read
        .wait_until("the change is noticed", || health(&only_read).1["store"]["writable"] == false);
    assert_eq!(health(&only_read).0, 200);
    disk.remount("rw");
    daemon.wait_until("the change is noticed", || health(&daemon).0 == 200);
    // The failure is logged with its reason.
    assert!(daemon.log().contains("Read-only file system"), "{}", daemon.log());
}

#[test]
fn a_disk_without_space_above_the_reserve_is_reported() {
    let disk = Disk::new("size=8m");
    let daemon = Daemon::builder()
        .dir(&disk.path().join("cache"))
        .env("NIX_STORED_MIN_FREE_SPACE", "4M")
        .start();
    assert_eq!(health(&daemon).0, 200);
    fs::write(disk.path().join("ballast"), vec![1; 5 << 20]).expect("there is enough space");
    daemon.wait_until("the change is noticed", || health(&daemon).0 == 503);
    let (_, printed) = health(&daemon);
    assert!(printed["reason"].as_str().expect("a reason").contains("MIN_FREE_SPACE"), "{printed}");
    assert!(printed["store"]["free_bytes"].as_u64().expect("a number") < 4 << 20);
    // The check wrote no file: there are only those from the start.
    let mut names: Vec<_> = fs::read_dir(daemon.dir())
        .expect("present")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".nix-stored", "nar", "nix-cache-info"]);
}

#[test]
fn a_missing_directory_is_reported_to_every_client() {
    let scratch = Scratch::new();
    let daemon = Daemon::builder()
        .dir(&scratch.join("cache"))
        .env("NIX_STORED_ANONYMOUS_WRITE", "0")
        .start();
    assert_eq!(health(&daemon).0, 200);
    fs::rename(scratch.join("cache"), scratch.join("elsewhere")).expect("renamed");
    fs::write(scratch.join("cache"), "something else").expect("written");
    daemon.wait_until("the change is noticed", || health(&daemon).0 == 503);
    let (_, printed) = health(&daemon);
    assert!(
        printed["reason"].as_str().expect("a reason").contains("the cache's directory"),
        "{printed}"
    );
    fs::remove_file(scratch.join("cache")).expect("removed");
    fs::rename(scratch.join("elsewhere"), scratch.join("cache")).expect("renamed");
    daemon.wait_until("the change is noticed", || health(&daemon).0 == 200);
}

#[test]
fn the_health_command_uses_the_configured_address() {
    let scratch = Scratch::new();
    let socket = format!("unix:{}", scratch.join("socket").display());
    let daemon = Daemon::builder().env("NIX_STORED_LISTEN_INTERFACE", &socket).start();
    let (code, printed) = check_health(&[("NIX_STORED_LISTEN_INTERFACE", &socket)], &[]);
    assert_eq!(code, 0, "{printed}");
    assert!(printed.starts_with(&format!("{socket} is ok")), "{printed}");
    drop(daemon);
    let (code, printed) = check_health(&[("NIX_STORED_LISTEN_INTERFACE", &socket)], &[]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("does not respond"), "{printed}");
    assert_eq!(check_health(&[], &["cache.example.org"]).0, 64);
    assert_eq!(check_health(&[("NIX_STORED_LISTEN_INTERFACE", "127.0.0.1:0")], &[]).0, 64);
    assert_eq!(check_health(&[("NIX_STORED_PRIORITY", "x")], &[]).0, 64);
}

#[test]
fn another_http_server_is_not_a_healthy_daemon() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let responses = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        let mut head = [0; 1024];
        let count = std::io::Read::read(&mut stream, &mut head).expect("the request arrives");
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            .expect("the daemon reads");
        String::from_utf8_lossy(&head[..count]).into_owned()
    });
    let (code, printed) = check_health(&[], &[&url]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("is not a nix-stored daemon"), "{printed}");
    assert!(responses.join().expect("no panic").starts_with("GET /health HTTP/1.1\r\nHost: 127."));
}
