//! A private CA and its certificates, made by openssl.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::nix::utf8;
use super::scratch::Scratch;

/// A new key that nobody else has.
const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// Who signs certificates.
pub struct Authority {
    dir: Scratch,
    file: PathBuf,
    issued: Cell<u32>,
}

/// A certificate and its key, in files.
#[derive(Debug, Clone)]
pub struct Issued {
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

    /// Its own certificate, by which others know it.
    pub fn file(&self) -> &str {
        utf8(&self.file)
    }

    /// For a server at an address.
    pub fn server(&self, address: &str) -> Issued {
        self.issue("server", &format!("subjectAltName=IP:{address}"), 2)
    }

    /// For a server at an address, until yesterday.
    pub fn expired_server(&self, address: &str) -> Issued {
        self.issue("server", &format!("subjectAltName=IP:{address}"), -1)
    }

    /// For a client with a name.
    pub fn client(&self, name: &str) -> Issued {
        self.issue(name, "extendedKeyUsage=clientAuth", 2)
    }

    /// For a client with a name, until yesterday.
    pub fn expired_client(&self, name: &str) -> Issued {
        self.issue(name, "extendedKeyUsage=clientAuth", -1)
    }

    fn issue(&self, name: &str, extension: &str, days: i32) -> Issued {
        let number = self.issued.get();
        self.issued.set(number + 1);
        let file = |kind: &str| self.dir.join(&format!("{number}.{kind}"));
        let issued = Issued { cert: file("pem"), key: file("key") };
        let extensions = format!("basicConstraints=critical,CA:FALSE\n{extension}\n");
        fs::write(file("extensions"), extensions).expect("it is written");
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
