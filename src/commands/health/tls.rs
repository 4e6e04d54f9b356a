//! TLS connection to a daemon, authenticated by its exact certificate or by host name and CA.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};
use rustls_platform_verifier::Verifier;

use super::address::Encryption;
use crate::config::authorities;

/// Starts TLS on `socket`.
pub(super) fn encrypt<S: Read + Write>(
    socket: S,
    encryption: &Encryption,
) -> io::Result<StreamOwned<ClientConnection, S>> {
    let provider = Arc::new(ring::default_provider());
    let (verifier, name): (Arc<dyn ServerCertVerifier>, ServerName<'static>) = match encryption {
        Encryption::CertificateFor(name) => {
            let more = authorities().map_err(io::Error::other)?;
            let verifier = Verifier::new_with_extra_roots(more, Arc::clone(&provider));
            (Arc::new(verifier.map_err(io::Error::other)?), name.clone())
        }
        Encryption::ExactCertificate(certificate) => {
            let certificate = certificate.clone();
            // rustls sends no SNI for an address, and `OneCertificate` ignores the name.
            let name = Ipv4Addr::LOCALHOST.into();
            (Arc::new(OneCertificate { certificate, provider: Arc::clone(&provider) }), name)
        }
        Encryption::None => return Err(io::ErrorKind::Unsupported.into()),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, socket))
}

/// Accepts exactly one server certificate.
#[derive(Debug)]
struct OneCertificate {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OneCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        let why = "the certificate of the server is not the one in NIX_STORED_TLS_CERT; send SIGHUP \
                   to the daemon to reload the file";
        Err(Error::General(why.to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
