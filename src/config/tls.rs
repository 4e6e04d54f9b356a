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

use super::PREFIX;
use super::parse::Parser;

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

impl Parser {
    /// Reads the files of the certificate, its key and the CA of client certificates.
    pub(super) fn tls(
        &mut self,
        cert: Option<String>,
        key: Option<String>,
        client_ca: Option<String>,
    ) -> Option<Tls> {
        let (cert, key) = match (cert, key) {
            (Some(cert), Some(key)) => (cert, key),
            (Some(_), None) => {
                let why = format!("the certificate has no key; set {PREFIX}TLS_KEY to its file");
                self.problem("TLS_CERT", why);
                return None;
            }
            (None, Some(_)) => {
                let why = format!("the key has no certificate; set {PREFIX}TLS_CERT to its file");
                self.problem("TLS_KEY", why);
                return None;
            }
            (None, None) => {
                if client_ca.is_some() {
                    let why = format!(
                        "client certificates need TLS; set {PREFIX}TLS_CERT and {PREFIX}TLS_KEY"
                    );
                    self.problem("TLS_CLIENT_CA", why);
                }
                return None;
            }
        };
        // All files are read before the first return, so that all errors are reported.
        let chain = self.certificates("TLS_CERT", &cert);
        let private = self.private_key(&key);
        let authorities = client_ca.map(|file| self.authorities(&file));
        let (chain, private) = (chain?, private?);
        let authorities = match authorities {
            None => None,
            Some(authorities) => Some(authorities?),
        };
        let certificate = chain[0].clone();
        match server_config(chain, private, authorities) {
            Ok(server) => Some(Tls { server: Arc::new(server), certificate }),
            Err(Error::InconsistentKeys(_)) => {
                let why = format!("“{key}” is not the key of the certificate in “{cert}”");
                self.problem("TLS_KEY", why);
                None
            }
            Err(error) => {
                self.problem("TLS_CERT", format!("cannot use “{cert}” with “{key}”: {error}"));
                None
            }
        }
    }

    fn certificates(&mut self, suffix: &str, file: &str) -> Option<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
        self.unless_empty(suffix, file, "certificate", read)
    }

    fn private_key(&mut self, file: &str) -> Option<PrivateKeyDer<'static>> {
        let read = PrivateKeyDer::from_pem_file(file);
        self.read_pem("TLS_KEY", file, "private key", read)
    }

    fn authorities(&mut self, file: &str) -> Option<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates("TLS_CLIENT_CA", file)? {
            if let Err(error) = roots.add(certificate) {
                let why = format!("“{file}” contains an invalid certificate: {error}");
                self.problem("TLS_CLIENT_CA", why);
                return None;
            }
        }
        Some(roots)
    }

    fn unless_empty<T>(
        &mut self,
        suffix: &str,
        file: &str,
        what: &str,
        read: Result<Vec<T>, PemError>,
    ) -> Option<Vec<T>> {
        let read = match read {
            Ok(none) if none.is_empty() => Err(PemError::NoItemsFound),
            read => read,
        };
        self.read_pem(suffix, file, what, read)
    }

    fn read_pem<T>(
        &mut self,
        suffix: &str,
        file: &str,
        what: &str,
        read: Result<T, PemError>,
    ) -> Option<T> {
        let why = match read {
            Ok(read) => return Some(read),
            Err(PemError::Io(error)) => format!("cannot read “{file}”: {error}"),
            Err(PemError::NoItemsFound) => format!("“{file}” contains no {what} in PEM format"),
            Err(error) => format!("“{file}” is not in PEM format: {error}"),
        };
        self.problem(suffix, why);
        None
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
