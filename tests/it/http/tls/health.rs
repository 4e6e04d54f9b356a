//! `nix-stored health` over TLS.

use super::{showing, signed_by};
use crate::lifecycle::health::asked;
use crate::support::certificates::{Authority, Issued};
use crate::support::daemon::Daemon;
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;

/// Asks the daemon of this machine, with its configuration.
fn asked_here(daemon: &Daemon, issued: &Issued) -> (i32, String) {
    let listen = daemon.url().trim_start_matches("https://");
    let vars = [
        ("NIX_STORED_LISTEN_INTERFACE", listen),
        ("NIX_STORED_TLS_CERT", utf8(&issued.cert)),
        ("NIX_STORED_TLS_KEY", utf8(&issued.key)),
    ];
    asked(&vars, &[])
}

#[test]
fn the_health_command_accepts_the_configured_certificate_whatever_its_name() {
    let authority = Authority::new();
    let elsewhere = authority.server("192.0.2.1");
    let daemon = showing(&elsewhere).start();
    let (code, told) = asked_here(&daemon, &elsewhere);
    assert_eq!(code, 0, "{told}");
    assert!(told.starts_with(&format!("{} is ok: nix-stored ", daemon.url())), "{told}");
    // Whoever asks by name gets to hear that it is another one.
    let (code, told) = asked(&[("NIX_SSL_CERT_FILE", authority.file())], &[daemon.url()]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("not valid for name"), "{told}");
}

#[test]
fn the_health_command_reports_another_certificate_than_the_configured_one() {
    let authority = Authority::new();
    let (old, new) = (authority.server("127.0.0.1"), authority.server("127.0.0.1"));
    let (code, told) = asked_here(&showing(&old).start(), &new);
    assert_eq!(code, 1, "{told}");
    assert!(
        told.contains("not the one in NIX_STORED_TLS_CERT") && told.contains("SIGHUP"),
        "{told}"
    );
}

#[test]
fn the_health_command_verifies_the_certificate_of_a_url() {
    let authority = Authority::new();
    let daemon = signed_by(&authority).start();
    let (code, told) = asked(&[("NIX_SSL_CERT_FILE", authority.file())], &[daemon.url()]);
    assert_eq!(code, 0, "{told}");
    let stranger = Authority::new();
    let (code, told) = asked(&[("NIX_SSL_CERT_FILE", stranger.file())], &[daemon.url()]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("does not respond: invalid peer certificate"), "{told}");
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
    let (code, told) = asked(&vars, &[]);
    assert_eq!(code, 0, "{told}");
    drop(daemon);
}
