//! Upstreams with TLS: certificates are verified, and a private CA can be added.

use super::mirror_of;
use crate::support::certificates::Authority;
use crate::support::objects::sample;
use crate::support::scratch::Scratch;
use crate::support::server_process::ServerProcess;

#[test]
fn the_certificate_of_an_upstream_must_be_of_a_known_ca() {
    let (root, sample) = (Scratch::new(), sample(1, b"some"));
    std::fs::create_dir(root.join("nar")).expect("the folder is created");
    std::fs::write(root.join(&sample.nar_path[1..]), &sample.nar).expect("written");
    std::fs::write(root.join(&sample.narinfo_path[1..]), &sample.narinfo).expect("written");
    let authority = Authority::new();
    let nginx = ServerProcess::nginx_with_tls(root.path(), |address| authority.server(address));
    let url = format!("https://{}", nginx.address());

    let mirror = mirror_of(&[&url]).start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 502);
    let (_, log) = mirror.stop();
    assert!(log.contains("certificate"), "{log}");

    for variable in ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"] {
        let mirror = mirror_of(&[&url]).env(variable, authority.file()).start();
        assert_eq!(mirror.get(&sample.narinfo_path).0, 200, "{variable}: {}", mirror.log());
        assert_eq!(mirror.get(&sample.nar_path), (200, sample.nar.clone()));
    }
    // A certificate from the same CA for another host.
    let nginx = ServerProcess::nginx_with_tls(root.path(), |_| authority.server("127.0.0.9"));
    let url = format!("https://{}", nginx.address());
    let mirror = mirror_of(&[&url]).env("NIX_SSL_CERT_FILE", authority.file()).start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 502);
}
