//! Checks at start, each reported in one sentence.

use super::server::{at, get, over, put, upload};
use crate::support::certificates::Authority;
use crate::support::daemon::{Builder, Failed};
use crate::support::noise::Noise;
use crate::support::objects::sample;
use crate::support::s3::{NO_RIGHTS, READER, S3Server};
use crate::support::s3_bucket::Keys;
use crate::support::s3_faults::{Action, FaultProxy};
use crate::support::server_process::ServerProcess;

/// Checks that the start fails with this message and the bucket's name, in one line.
#[track_caller]
fn assert_start_fails(builder: Builder, parts: &[&str]) {
    let Failed { code, log } = builder.start_fails();
    assert_eq!(code, 1, "{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("nix-stored: ")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    for part in parts.iter().chain(&["s3://cache"]) {
        assert!(errors[0].contains(part), "“{part}” is not in {log}");
    }
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn a_missing_bucket_is_reported() {
    let server = S3Server::start();
    let bucket = server.missing_bucket("cache");
    assert_start_fails(over(&bucket), &["the bucket does not exist", "NoSuchBucket"]);
}

#[test]
fn missing_rights_of_a_key_are_listed() {
    let server = S3Server::start();
    let bucket = server.bucket("cache").as_user(NO_RIGHTS);
    assert_start_fails(over(&bucket), &["s3:ListBucket", "s3:GetObject", "AccessDenied"]);
}

#[test]
fn a_wrong_key_is_reported() {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let wrong = Keys { id: READER.id, secret: "not-the-readers" };
    assert_start_fails(over(&bucket.as_user(wrong)), &["cannot be read", "SignatureDoesNotMatch"]);
    let unknown = Keys { id: "AKIASTRANGER", secret: "x" };
    assert_start_fails(over(&bucket.as_user(unknown)), &["cannot be read"]);
}

#[test]
fn an_unreachable_server_is_reported() {
    let mut server = S3Server::start();
    let bucket = server.bucket("cache");
    server.stop();
    assert_start_fails(over(&bucket), &["cannot be read"]);
}

#[test]
fn a_read_only_key_serves_and_logs_that_uploads_are_impossible() {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let (one, two) = (sample(1, b"one"), sample(2, b"two"));
    upload(&over(&bucket).start(), &one);
    let daemon = over(&bucket.as_user(READER)).start();
    daemon.wait_for_log("the key may not write to the bucket");
    daemon.wait_for_log("not protected from collection");
    for (path, bytes) in [(&one.narinfo_path, one.narinfo.as_bytes()), (&one.nar_path, &one.nar)] {
        let response = get(&daemon, path);
        assert_eq!((response.status, response.body.as_slice()), (200, bytes), "{path}");
    }
    let response = put(&daemon, &two.nar_path, &two.nar);
    assert!(response.status >= 500, "{}", response.head);
    assert_eq!(get(&daemon, &two.nar_path).status, 404);
    // The health check reports the same, unless uploads are disabled.
    let health = get(&daemon, "/health");
    assert_eq!(health.status, 503);
    assert!(health.text().contains("\"writable\":false"), "{}", health.text());
    let only_read = over(&bucket.as_user(READER)).env("NIX_STORED_ANONYMOUS_WRITE", "0").start();
    let health = get(&only_read, "/health");
    assert_eq!(health.status, 200);
    assert!(health.text().contains("not protected from collection"), "{}", health.text());
}

#[test]
fn nothing_is_deleted_in_bulk() {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let faults = FaultProxy::in_front_of(server.address());
    let through = bucket.through(faults.address());
    let daemon = over(&through).start();
    upload(&daemon, &sample(1, b"one"));
    daemon.stop();
    super::commands::run(&through, &["delete", &sample(1, b"one").store_path]).is(0);
    assert_eq!(bucket.keys(), ["nix-cache-info"]);
    let asked = faults.requests();
    assert!(asked.iter().any(|line| line.starts_with("DELETE ")), "{asked:#?}");
    assert!(!asked.iter().any(|line| line.contains("?delete")), "{asked:#?}");
}

/// The error of a start if the server answers matching requests like this.
fn start_error(
    responses: impl Fn(&str) -> bool + Send + 'static,
    status: u16,
    code: &'static str,
) -> String {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let faults = FaultProxy::in_front_of(server.address());
    faults.on(move |head| if responses(head) { Action::Error(status, code) } else { Action::Pass });
    let builder = over(&bucket.through(faults.address()));
    let Failed { code, log } = builder.start_fails();
    assert_eq!(code, 1, "{log}");
    log.lines()
        .find(|line| line.starts_with("nix-stored: "))
        .expect("the reason is printed")
        .to_owned()
}

#[test]
fn the_error_starts_with_the_reason_and_lists_only_missing_rights() {
    let printed = start_error(|_| true, 403, "RequestTimeTooSkewed");
    assert!(printed.contains("the clocks of this machine and of the server differ"), "{printed}");
    assert!(!printed.contains("the permissions"), "{printed}");
    let printed = start_error(|_| true, 403, "InvalidAccessKeyId");
    assert!(
        printed.contains("the server rejected the key") && !printed.contains("the permissions"),
        "{printed}"
    );
    let printed = start_error(|_| true, 500, "InternalError");
    assert!(
        printed.contains("cannot be read") && !printed.contains("the permissions"),
        "{printed}"
    );
}

#[test]
fn a_missing_right_to_delete_is_reported_and_leaves_one_object() {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let faults = FaultProxy::in_front_of(server.address());
    faults.on(|head| match head.starts_with("DELETE ") {
        true => Action::Error(403, "AccessDenied"),
        false => Action::Pass,
    });
    for _ in 0..3 {
        assert_start_fails(
            over(&bucket.through(faults.address())),
            &["s3:DeleteObject", "AccessDenied"],
        );
    }
    assert_eq!(bucket.all_keys().len(), 1, "{:?}", bucket.all_keys());
    // The message disappears when the permission is granted.
    faults.all(Action::Pass);
    over(&bucket.through(faults.address())).start().stop();
    assert_eq!(bucket.all_keys(), ["nix-cache-info"]);
}

#[test]
fn a_missing_right_to_abort_uploads_is_reported() {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let faults = FaultProxy::in_front_of(server.address());
    faults.on(|head| match head.starts_with("DELETE ") && head.contains("uploadId=") {
        true => Action::Error(403, "AccessDenied"),
        false => Action::Pass,
    });
    let daemon = over(&bucket.through(faults.address())).start();
    daemon.wait_for_log("s3:AbortMultipartUpload");
}

#[test]
fn conditional_writes_are_tested_at_start() {
    let server = S3Server::start();
    let bucket = server.bucket("cache");
    let daemon = over(&bucket).env("NIX_STORED_LOG_LEVEL", "debug").start();
    daemon.wait_for_log("conditional_writes");
    // The objects of the check are removed.
    let probes = bucket.all_keys().into_iter().filter(|key| key.contains("probe"));
    assert_eq!(probes.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn an_invalid_bucket_url_is_a_configuration_error() {
    for (url, why) in [
        ("s3://", "has no valid bucket name"),
        ("s3://cache?compression=xz", "“compression”"),
        ("s3://cache?scheme=ftp", "neither http nor https"),
    ] {
        let builder = crate::support::daemon::Daemon::builder().env("NIX_STORED_PATH", url);
        let Failed { code, log } = builder.start_fails();
        assert_eq!(code, 64, "{log}");
        assert!(log.contains("NIX_STORED_PATH") && log.contains(why), "{log}");
    }
}

#[test]
fn a_server_certificate_of_a_private_ca_is_accepted_if_nix_accepts_it() {
    let (server, authority) = (S3Server::start(), Authority::new());
    let bucket = server.bucket("cache");
    let address = server.address().to_string();
    let nginx = ServerProcess::tls_in_front_of(&address, |address| authority.server(address));
    let url = bucket.through(nginx.address().parse().expect("an address")).url();
    let url = url.replace("http://", "https://");
    let one = sample(1, &Noise::new(1).bytes(6 << 20));
    let daemon = at(&bucket, &url)
        .env("NIX_SSL_CERT_FILE", authority.file())
        .env("NIX_STORED_LOG_LEVEL", "debug")
        .start();
    upload(&daemon, &one);
    assert!(get(&daemon, &one.nar_path).body == one.nar);
    // Presigned URLs are requested over TLS, too. This server cannot answer them.
    daemon.wait_for_log("the server cannot list unfinished uploads");
    let Failed { code, log } = at(&bucket, &url).start_fails();
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("certificate"), "{log}");
}
