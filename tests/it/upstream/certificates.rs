//! Upstreams behind TLS: their certificates are checked, and an operator can add an authority.

use std::path::Path;
use std::process::Command;

use super::mirror_of;
use crate::support::neighbour::Neighbour;
use crate::support::nix::utf8;
use crate::support::objects::sample;
use crate::support::scratch::Scratch;

/// Makes an authority, `ca.pem`, and a key and a certificate by it, `key.pem` and `cert.pem`, for
/// an address.
fn make_certificates(dir: &Path, address: &str) {
    let openssl = |args: &str| {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output();
        let output = output.expect("openssl is installed, or tests/run does that");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!("{new} -keyout ca.key -out ca.pem -subj /CN=authority"));
    openssl(&format!(
        "{new} -keyout key.pem -out cert.pem -subj /CN=server -CA ca.pem -CAkey ca.key \
         -addext subjectAltName=IP:{address} -addext basicConstraints=critical,CA:FALSE"
    ));
}

#[test]
fn a_certificate_must_be_by_an_authority_that_is_known() {
    let (root, sample) = (Scratch::new(), sample(1, b"some"));
    std::fs::create_dir(root.join("nar")).expect("a folder can be made");
    std::fs::write(root.join(&sample.nar_path[1..]), &sample.nar).expect("written");
    std::fs::write(root.join(&sample.narinfo_path[1..]), &sample.narinfo).expect("written");
    let own = Scratch::new();
    let make = |address: &str| make_certificates(own.path(), address);
    let nginx = Neighbour::nginx_with_tls(root.path(), own.path(), make);
    let url = format!("https://{}", nginx.address());

    let mirror = mirror_of(&[&url]).start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 502);
    let (_, log) = mirror.stop();
    assert!(log.contains("certificate"), "{log}");

    for variable in ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"] {
        let mirror = mirror_of(&[&url]).env(variable, utf8(&own.join("ca.pem"))).start();
        assert_eq!(mirror.get(&sample.narinfo_path).0, 200, "{variable}: {}", mirror.log());
        assert_eq!(mirror.get(&sample.nar_path), (200, sample.nar.clone()));
    }
    // By the same authority, for somebody else.
    let make = |_: &str| make_certificates(own.path(), "127.0.0.9");
    let nginx = Neighbour::nginx_with_tls(root.path(), own.path(), make);
    let url = format!("https://{}", nginx.address());
    let ca = own.join("ca.pem");
    let mirror = mirror_of(&[&url]).env("NIX_SSL_CERT_FILE", utf8(&ca)).start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 502);
}
