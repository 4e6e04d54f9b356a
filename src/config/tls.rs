//! TLS settings: the certificate and its key, and the CA of client certificates.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore, ServerConfig};

use super::values::Values;

/// ALPN protocols in the order of preference. Nix supports both.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate with its key, as rustls needs them.
#[derive(Clone)]
pub struct Tls {
    /// The rustls configuration.
    pub server: Arc<ServerConfig>,
    /// The server certificate, the first of the chain.
    pub certificate: CertificateDer<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Returns `has expired` or `is not valid yet` if the certificate is not valid at `time`.
    pub fn out_of_date(&self, time: SystemTime) -> Option<&'static str> {
        let time = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let parsed = ParsedCertificate::try_from(&self.certificate).ok()?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).ok()?;
        // The certificate need not be its own CA: the dates are checked before the signature.
        let verified = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            &[],
            UnixTime::since_unix_epoch(time),
            ring::default_provider().signature_verification_algorithms.all,
        );
        match verified {
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => Some("has expired"),
            Err(Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => Some("is not valid yet"),
            _ => None,
        }
    }
}

const CERT: &str = "NIX_STORED_TLS_CERT";
const KEY: &str = "NIX_STORED_TLS_KEY";
const CLIENT_CA: &str = "NIX_STORED_TLS_CLIENT_CA";

impl Tls {
    /// Reads the files of the certificate, its key and the CA of client certificates.
    pub(super) fn read(values: &mut Values) -> Option<Self> {
        let owned = |variable: &str| values.get(variable).map(str::to_owned);
        let client_ca = owned(CLIENT_CA);
        let (cert, key) = match (owned(CERT), owned(KEY)) {
            (Some(cert), Some(key)) => (cert, key),
            (Some(_), None) => {
                let why = format!("the certificate has no key; set {KEY} to its file");
                values.problem(CERT, why);
                return None;
            }
            (None, Some(_)) => {
                let why = format!("the key has no certificate; set {CERT} to its file");
                values.problem(KEY, why);
                return None;
            }
            (None, None) => {
                if client_ca.is_some() {
                    let why = format!("client certificates need TLS; set {CERT} and {KEY}");
                    values.problem(CLIENT_CA, why);
                }
                return None;
            }
        };
        // All files are read before the first return, so that all errors are reported.
        let mut or_problem = |variable: &str, why: String| values.problem(variable, why);
        let chain = certificates(&cert).map_err(|why| or_problem(CERT, why));
        let private = private_key(&key).map_err(|why| or_problem(KEY, why));
        let authorities = client_ca.map(|file| certificate_store(&file)).transpose();
        let authorities = authorities.map_err(|why| or_problem(CLIENT_CA, why));
        let (chain, private, authorities) = (chain.ok()?, private.ok()?, authorities.ok()?);
        let certificate = chain[0].clone();
        match server_config(chain, private, authorities) {
            Ok(server) => Some(Self { server: Arc::new(server), certificate }),
            Err(Error::InconsistentKeys(_)) => {
                let why = format!("“{key}” is not the key of the certificate in “{cert}”");
                values.problem(KEY, why);
                None
            }
            Err(error) => {
                values.problem(CERT, format!("cannot use “{cert}” with “{key}”: {error}"));
                None
            }
        }
    }
}

/// Reads the certificates in a PEM file, at least one.
fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let read = match read {
        Ok(none) if none.is_empty() => Err(PemError::NoItemsFound),
        read => read,
    };
    read.map_err(|error| explain(file, "certificate", error))
}

fn private_key(file: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| explain(file, "private key", error))
}

/// Reads the CA certificates in a PEM file.
fn certificate_store(file: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        let added = roots.add(certificate);
        added.map_err(|error| format!("“{file}” contains an invalid certificate: {error}"))?;
    }
    Ok(roots)
}

/// The problem with a PEM file that should contain `what`.
fn explain(file: &str, what: &str, error: PemError) -> String {
    match error {
        PemError::Io(error) => format!("cannot read “{file}”: {error}"),
        PemError::NoItemsFound => format!("“{file}” contains no {what} in PEM format"),
        error => format!("“{file}” is not in PEM format: {error}"),
    }
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Option<RootCertStore>,
) -> Result<ServerConfig, Error> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                    // Clients without a certificate may use a password, or may only read.
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_single_cert(chain, key)?;
    server.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(server)
}
