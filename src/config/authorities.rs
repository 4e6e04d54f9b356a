//! Whom to trust over TLS besides the authorities of the system.

use std::ffi::OsString;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use thiserror::Error;

/// Where Nix has them.
const VARIABLE: &str = "NIX_SSL_CERT_FILE";

/// Why the file cannot be used.
#[derive(Debug, Error)]
#[error("{VARIABLE}={}", file.display())]
pub struct AuthoritiesError {
    file: OsString,
    source: PemError,
}

/// The certificate authorities that Nix is told to trust, for everything that is asked over TLS.
pub fn authorities() -> Result<Vec<CertificateDer<'static>>, AuthoritiesError> {
    let Some(file) = std::env::var_os(VARIABLE).filter(|file| !file.is_empty()) else {
        return Ok(Vec::new());
    };
    let read = CertificateDer::pem_file_iter(&file).and_then(Iterator::collect);
    read.map_err(|source| AuthoritiesError { file, source })
}
