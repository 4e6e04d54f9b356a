//! SIGHUP reloads passwords from their files.

use std::path::PathBuf;

use crate::support::daemon::{Builder, Daemon};
use crate::support::nix::utf8;
use crate::support::objects::sample;
use crate::support::scratch::Scratch;
use crate::support::wire::{RawResponse, Wire};

/// The two password files.
struct Files(Scratch);

impl Files {
    fn new() -> Self {
        let files = Self(Scratch::new());
        files.write("read", "r1\n");
        files.write("write", "w1\n");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn daemon(&self) -> Builder {
        Daemon::builder()
            .env("NIX_STORED_USER_READ", "reader")
            .env("NIX_STORED_USER_READ_PASSFILE", utf8(&self.path("read")))
            .env("NIX_STORED_USER_WRITE", "writer")
            .env("NIX_STORED_USER_WRITE_PASSFILE", utf8(&self.path("write")))
    }
}

/// Sends a request with a password and an empty user name.
fn request_with_password(
    wire: &mut Wire,
    password: &str,
    method: &str,
    path: &str,
    body: &[u8],
) -> RawResponse {
    let length = body.len();
    wire.send(&format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {password}\r\n\
         Content-Length: {length}\r\n\r\n"
    ));
    wire.send_bytes(body);
    wire.response()
}

#[test]
fn new_passwords_apply_from_the_next_request() {
    let files = Files::new();
    let daemon = files.daemon().start();
    let mut wire = Wire::to(&daemon);
    let mut reads =
        |password| request_with_password(&mut wire, password, "GET", "/nix-cache-info", b"").status;
    assert_eq!((reads("r1"), reads("w1"), reads("r2"), reads("w2")), (200, 200, 401, 401));
    files.write("read", "r2\n");
    files.write("write", "w2\n");
    // The passwords change on SIGHUP and not before, also for open connections.
    assert_eq!((reads("r1"), reads("r2")), (200, 401));
    daemon.reload();
    assert_eq!((reads("r1"), reads("w1"), reads("r2"), reads("w2")), (401, 401, 200, 200));
    assert!(daemon.log().contains("reloaded passwords, certificates and keys"));
}

#[test]
fn an_unusable_password_file_keeps_the_old_password_and_the_other_file_is_reloaded() {
    let files = Files::new();
    let daemon = files.daemon().start();
    let reads = |password| {
        request_with_password(&mut Wire::to(&daemon), password, "GET", "/nix-cache-info", b"")
            .status
    };
    std::fs::remove_file(files.path("write")).expect("present");
    files.write("read", "r2\n");
    daemon.reload();
    // An unreadable file does not mean that there is no such user.
    let nar = sample(1, b"x");
    assert_eq!(Wire::to(&daemon).request("PUT", &nar.nar_path, &nar.nar).status, 401);
    assert_eq!((reads("r1"), reads("r2"), reads("w1")), (401, 200, 200));
    let printed = "the previous value stays in use: NIX_STORED_USER_WRITE_PASSFILE: cannot read ";
    assert_eq!(daemon.log().matches(printed).count(), 1, "{}", daemon.log());
    files.write("write", "\n");
    daemon.reload();
    assert_eq!((reads("w1"), reads("")), (200, 401));
    files.write("write", "w2");
    daemon.reload();
    assert_eq!((reads("w1"), reads("w2")), (401, 200));
}

#[test]
fn a_running_upload_is_finished_with_the_old_password() {
    let files = Files::new();
    let daemon = files.daemon().start();
    let sample = sample(1, &[7; 300_000]);
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer w1\r\nExpect: 100-continue\r\n\
         Content-Length: {}\r\n\r\n",
        sample.nar_path,
        sample.nar.len()
    ));
    assert_eq!(wire.head().status, 100);
    wire.send_bytes(&sample.nar[..100_000]);
    files.write("write", "w2\n");
    daemon.reload();
    wire.send_bytes(&sample.nar[100_000..]);
    assert_eq!(wire.response().status, 201);
    assert_eq!(request_with_password(&mut wire, "w1", "GET", &sample.nar_path, b"").status, 401);
}

#[cfg(feature = "upstream")]
#[test]
fn passwords_for_upstreams_are_reloaded() {
    let files = Files::new();
    let upstream = files.daemon().start();
    for number in [1, 2] {
        let sample = sample(number, b"x");
        for (path, body) in
            [(&sample.nar_path, &sample.nar[..]), (&sample.narinfo_path, sample.narinfo.as_bytes())]
        {
            assert!(
                request_with_password(&mut Wire::to(&upstream), "w1", "PUT", path, body).status
                    < 300
            );
        }
    }
    let netrc = |password: &str| {
        files.write("netrc", &format!("machine 127.0.0.1 login reader password {password}\n"));
    };
    netrc("r1");
    let mirror = Daemon::builder()
        .env("NIX_STORED_UPSTREAMS", upstream.url())
        .env("NIX_STORED_UPSTREAM_NETRC", utf8(&files.path("netrc")))
        .start();
    assert_eq!(mirror.get(&sample(1, b"x").narinfo_path).0, 200);
    files.write("read", "r2\n");
    upstream.reload();
    netrc("r2");
    mirror.reload();
    assert_eq!(mirror.get(&sample(2, b"x").narinfo_path).0, 200, "{}", mirror.log());
}
