//! Address of a daemon, and whether it uses TLS.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::commands::argument::UsageError;
use crate::config::{Config, Listen};

/// Address of a daemon.
#[derive(Debug)]
pub(super) struct DaemonAddress {
    pub(super) socket: DaemonSocket,
    pub(super) encryption: Encryption,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum DaemonSocket {
    /// `host:port`
    Tcp(String),
    Unix(PathBuf),
}

/// Encryption of the connection, and how the server is authenticated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    None,
    /// TLS with exactly this server certificate. The host name is not checked, because the command
    /// connects to the local address, not to the name that clients use.
    #[cfg(feature = "tls")]
    ExactCertificate(rustls::pki_types::CertificateDer<'static>),
    /// TLS with a server certificate for this name, signed by a CA that the system trusts.
    #[cfg(feature = "tls")]
    CertificateFor(rustls::pki_types::ServerName<'static>),
}

impl DaemonAddress {
    pub(super) fn parse(url: &str) -> Result<Self, UsageError> {
        if let Some(path) = url.strip_prefix("unix:") {
            return Ok(Self {
                socket: DaemonSocket::Unix(path.into()),
                encryption: Encryption::None,
            });
        }
        let (rest, port, https) = match (url.strip_prefix("http://"), url.strip_prefix("https://"))
        {
            (Some(rest), _) => (rest, 80, false),
            (_, Some(rest)) => (rest, 443, true),
            _ => {
                let what = "is not http://host:port, https://host:port or unix:/path";
                return Err(UsageError(format!("“{url}” {what}")));
            }
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, address) = match authority.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => (host, authority.to_owned()),
            _ => (authority, format!("{authority}:{port}")),
        };
        let encryption = if https { certificate_for(url, host)? } else { Encryption::None };
        Ok(Self { socket: DaemonSocket::Tcp(address), encryption })
    }

    /// The address at which a daemon with this configuration is reachable from the same machine.
    pub(super) fn of(config: &Config) -> Result<Self, UsageError> {
        #[cfg(feature = "tls")]
        let encryption = match &config.tls {
            Some(tls) => Encryption::ExactCertificate(tls.certificate.clone()),
            None => Encryption::None,
        };
        #[cfg(not(feature = "tls"))]
        let encryption = Encryption::None;
        Ok(Self { socket: DaemonSocket::of(&config.listen)?, encryption })
    }
}

#[cfg(feature = "tls")]
fn certificate_for(url: &str, host: &str) -> Result<Encryption, UsageError> {
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = rustls::pki_types::ServerName::try_from(name);
    let name = name.map_err(|_| UsageError(format!("“{url}” has an invalid host name")))?;
    Ok(Encryption::CertificateFor(name))
}

#[cfg(not(feature = "tls"))]
fn certificate_for(url: &str, _: &str) -> Result<Encryption, UsageError> {
    Err(UsageError(format!("“{url}” needs a build with the cargo feature tls")))
}

impl DaemonSocket {
    fn of(listen: &Listen) -> Result<Self, UsageError> {
        let address = match listen {
            Listen::Unix { path, .. } => return Ok(Self::Unix(path.clone())),
            Listen::Tcp(address) => address,
        };
        let local = match address.parse::<SocketAddr>() {
            Ok(socket) if socket.port() == 0 => {
                let why = "NIX_STORED_LISTEN_INTERFACE has port 0; pass the address of the daemon";
                return Err(UsageError(why.to_owned()));
            }
            Ok(socket) if socket.ip().is_unspecified() => {
                let here = match socket.ip() {
                    IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
                };
                SocketAddr::new(here, socket.port()).to_string()
            }
            _ => address.clone(),
        };
        Ok(Self::Tcp(local))
    }
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.socket, &self.encryption) {
            (DaemonSocket::Unix(path), _) => write!(f, "unix:{}", path.display()),
            (DaemonSocket::Tcp(address), Encryption::None) => write!(f, "http://{address}"),
            #[cfg(feature = "tls")]
            (DaemonSocket::Tcp(address), _) => write!(f, "https://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> DaemonSocket {
        DaemonSocket::Tcp(address.to_owned())
    }

    #[test]
    fn the_address_is_that_of_the_daemon_on_this_machine() {
        for (listen, expected) in [
            ("127.0.0.1:8100", tcp("127.0.0.1:8100")),
            ("0.0.0.0:8100", tcp("127.0.0.1:8100")),
            ("[::]:8100", tcp("[::1]:8100")),
            ("[2001:db8::1]:80", tcp("[2001:db8::1]:80")),
            ("localhost:8100", tcp("localhost:8100")),
            ("unix:/run/x", DaemonSocket::Unix("/run/x".into())),
        ] {
            assert_eq!(DaemonSocket::of(&listen.parse().unwrap()).unwrap(), expected);
        }
        assert!(DaemonSocket::of(&"127.0.0.1:0".parse().unwrap()).is_err());
    }

    #[test]
    fn a_url_without_a_port_has_the_default_port() {
        for (url, expected) in [
            ("http://cache", tcp("cache:80")),
            ("http://cache:8100/", tcp("cache:8100")),
            ("http://[::1]/health", tcp("[::1]:80")),
            ("unix:/run/x", DaemonSocket::Unix("/run/x".into())),
        ] {
            let address = DaemonAddress::parse(url).unwrap();
            assert_eq!((address.socket, address.encryption), (expected, Encryption::None));
        }
        assert!(DaemonAddress::parse("cache:8100").is_err());
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_certificate_is_for_the_host_name_without_the_port() {
        for (url, expected, name) in [
            ("https://cache", tcp("cache:443"), "cache"),
            ("https://cache:8100/", tcp("cache:8100"), "cache"),
            ("https://[::1]:8100", tcp("[::1]:8100"), "::1"),
        ] {
            let address = DaemonAddress::parse(url).unwrap();
            let name = Encryption::CertificateFor(name.try_into().unwrap());
            assert_eq!((address.socket, address.encryption), (expected, name));
        }
        assert!(DaemonAddress::parse("https://").is_err());
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn a_build_without_tls_refuses_https_urls() {
        assert!(DaemonAddress::parse("https://cache").unwrap_err().0.contains("tls"));
    }
}
