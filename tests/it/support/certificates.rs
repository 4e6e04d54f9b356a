//! A private CA and its certificates, made by openssl.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::nix::utf8;
use super::scratch::Scratch;

/// The options of openssl for a new key.
const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// A certificate authority.
pub struct Authority {
    dir: Scratch,
    file: PathBuf,
    issued: Cell<u32>,
}

/// The files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct CertFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let dir = Scratch::new();
        let authority = Self { file: dir.join("ca.pem"), dir, issued: Cell::new(0) };
        authority.openssl(&format!(
            "req -x509 {NEW_KEY} -days 2 -keyout ca.key -out ca.pem -subj /CN=authority"
        ));
        authority
    }

    /// The file of the CA's certificate.
    pub fn file(&self) -> &str {
        utf8(&self.file)
    }

    /// Issues a certificate for a server at an address.
    pub fn server(&self, address: &str) -> CertFiles {
        self.issue("server", &format!("subjectAltName=IP:{address}"), 2)
    }

    /// Issues a certificate for a server that expired yesterday.
    pub fn expired_server(&self, address: &str) -> CertFiles {
        self.issue("server", &format!("subjectAltName=IP:{address}"), -1)
    }

    /// Issues a client certificate for a name.
    pub fn client(&self, name: &str) -> CertFiles {
        self.issue(name, "extendedKeyUsage=clientAuth", 2)
    }

    /// Issues a client certificate that expired yesterday.
    pub fn expired_client(&self, name: &str) -> CertFiles {
        self.issue(name, "extendedKeyUsage=clientAuth", -1)
    }

    fn issue(&self, name: &str, extension: &str, days: i32) -> CertFiles {
        let number = self.issued.get();
        self.issued.set(number + 1);
        let file = |kind: &str| self.dir.join(&format!("{number}.{kind}"));
        let issued = CertFiles { cert: file("pem"), key: file("key") };
        let extensions = format!("basicConstraints=critical,CA:FALSE\n{extension}\n");
        fs::write(file("extensions"), extensions).expect("written");
        self.openssl(&format!(
            "req -new {NEW_KEY} -keyout {number}.key -out {number}.request -subj /O=tests/CN={name}"
        ));
        self.openssl(&format!(
            "x509 -req -in {number}.request -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} \
             -extfile {number}.extensions -out {number}.pem"
        ));
        issued
    }

    fn openssl(&self, args: &str) {
        let output =
            Command::new("openssl").args(args.split(' ')).current_dir(self.dir.path()).output();
        let output = output.expect("openssl is installed, or tests/run does that");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
