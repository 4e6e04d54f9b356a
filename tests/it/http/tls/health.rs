//! `nix-stored health` over TLS.

use super::{showing, signed_by};
use crate::lifecycle::health::check_health;
use crate::support::certificates::{Authority, CertFiles};
use crate::support::daemon::Daemon;
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;

/// Runs the health check with the configuration of the daemon on this machine.
fn check_health_with(daemon: &Daemon, issued: &CertFiles) -> (i32, String) {
    let listen = daemon.url().trim_start_matches("https://");
    let vars = [
        ("NIX_STORED_LISTEN_INTERFACE", listen),
        ("NIX_STORED_TLS_CERT", utf8(&issued.cert)),
        ("NIX_STORED_TLS_KEY", utf8(&issued.key)),
    ];
    check_health(&vars, &[])
}

#[test]
fn the_health_command_accepts_the_configured_certificate_whatever_its_name() {
    let authority = Authority::new();
    let elsewhere = authority.server("192.0.2.1");
    let daemon = showing(&elsewhere).start();
    let (code, printed) = check_health_with(&daemon, &elsewhere);
    assert_eq!(code, 0, "{printed}");
    assert!(printed.starts_with(&format!("{} is ok: nix-stored ", daemon.url())), "{printed}");
    // With a URL, the certificate of another server is an error.
    let (code, printed) = check_health(&[("NIX_SSL_CERT_FILE", authority.file())], &[daemon.url()]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("not valid for name"), "{printed}");
}

#[test]
fn the_health_command_reports_another_certificate_than_the_configured_one() {
    let authority = Authority::new();
    let (old, new) = (authority.server("127.0.0.1"), authority.server("127.0.0.1"));
    let (code, printed) = check_health_with(&showing(&old).start(), &new);
    assert_eq!(code, 1, "{printed}");
    assert!(
        printed.contains("not the one in NIX_STORED_TLS_CERT") && printed.contains("SIGHUP"),
        "{printed}"
    );
}

#[test]
fn the_health_command_verifies_the_certificate_of_a_url() {
    let authority = Authority::new();
    let daemon = signed_by(&authority).start();
    let (code, printed) = check_health(&[("NIX_SSL_CERT_FILE", authority.file())], &[daemon.url()]);
    assert_eq!(code, 0, "{printed}");
    let other_authority = Authority::new();
    let (code, printed) =
        check_health(&[("NIX_SSL_CERT_FILE", other_authority.file())], &[daemon.url()]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("does not respond: invalid peer certificate"), "{printed}");
}

#[test]
fn the_health_command_uses_tls_over_a_unix_socket() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let issued = authority.server("127.0.0.1");
    let socket = format!("unix:{}", scratch.join("socket").display());
    let daemon = showing(&issued).env("NIX_STORED_LISTEN_INTERFACE", &socket).start();
    let vars = [
        ("NIX_STORED_LISTEN_INTERFACE", socket.as_str()),
        ("NIX_STORED_TLS_CERT", utf8(&issued.cert)),
        ("NIX_STORED_TLS_KEY", utf8(&issued.key)),
    ];
    let (code, printed) = check_health(&vars, &[]);
    assert_eq!(code, 0, "{printed}");
    drop(daemon);
}
