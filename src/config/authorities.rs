//! Certificate authorities to trust in addition to those of the system.

use std::ffi::OsString;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use thiserror::Error;

/// The variable from which Nix reads its CA file.
const VARIABLE: &str = "NIX_SSL_CERT_FILE";

/// Error of reading the CA file.
#[derive(Debug, Error)]
#[error("{VARIABLE}={}", file.display())]
pub struct AuthoritiesError {
    file: OsString,
    source: PemError,
}

/// Reads the certificate authorities in the file that `NIX_SSL_CERT_FILE` names; empty if unset. All TLS
/// clients of the program trust them.
pub fn authorities() -> Result<Vec<CertificateDer<'static>>, AuthoritiesError> {
    let Some(file) = std::env::var_os(VARIABLE).filter(|file| !file.is_empty()) else {
        return Ok(Vec::new());
    };
    let read = CertificateDer::pem_file_iter(&file).and_then(Iterator::collect);
    read.map_err(|source| AuthoritiesError { file, source })
}
