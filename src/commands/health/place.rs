//! Address of a daemon, and whether it uses TLS.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::commands::argument::Unusable;
use crate::config::{Config, Listen};

/// Address of a daemon.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) socket: Socket,
    pub(super) encryption: Encryption,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Socket {
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
    Shows(rustls::pki_types::CertificateDer<'static>),
    /// TLS with a server certificate for this name, signed by a CA that the system trusts.
    #[cfg(feature = "tls")]
    CertifiedAs(rustls::pki_types::ServerName<'static>),
}

impl Place {
    pub(super) fn parse(url: &str) -> Result<Self, Unusable> {
        if let Some(path) = url.strip_prefix("unix:") {
            return Ok(Self { socket: Socket::Unix(path.into()), encryption: Encryption::None });
        }
        let (rest, port, https) = match (url.strip_prefix("http://"), url.strip_prefix("https://"))
        {
            (Some(rest), _) => (rest, 80, false),
            (_, Some(rest)) => (rest, 443, true),
            _ => {
                let what = "is not http://host:port, https://host:port or unix:/path";
                return Err(Unusable(format!("“{url}” {what}")));
            }
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, address) = match authority.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => (host, authority.to_owned()),
            _ => (authority, format!("{authority}:{port}")),
        };
        let encryption = if https { certified_as(url, host)? } else { Encryption::None };
        Ok(Self { socket: Socket::Tcp(address), encryption })
    }

    /// The address at which a daemon with this configuration is reachable from the same machine.
    pub(super) fn of(config: &Config) -> Result<Self, Unusable> {
        #[cfg(feature = "tls")]
        let encryption = match &config.tls {
            Some(tls) => Encryption::Shows(tls.certificate.clone()),
            None => Encryption::None,
        };
        #[cfg(not(feature = "tls"))]
        let encryption = Encryption::None;
        Ok(Self { socket: Socket::of(&config.listen)?, encryption })
    }
}

#[cfg(feature = "tls")]
fn certified_as(url: &str, host: &str) -> Result<Encryption, Unusable> {
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = rustls::pki_types::ServerName::try_from(name);
    let name = name.map_err(|_| Unusable(format!("“{url}” has an invalid host name")))?;
    Ok(Encryption::CertifiedAs(name))
}

#[cfg(not(feature = "tls"))]
fn certified_as(url: &str, _: &str) -> Result<Encryption, Unusable> {
    Err(Unusable(format!("“{url}” needs a build with the cargo feature tls")))
}

impl Socket {
    fn of(listen: &Listen) -> Result<Self, Unusable> {
        let address = match listen {
            Listen::Unix { path, .. } => return Ok(Self::Unix(path.clone())),
            Listen::Tcp(address) => address,
        };
        let local = match address.parse::<SocketAddr>() {
            Ok(socket) if socket.port() == 0 => {
                let why = "NIX_STORED_LISTEN_INTERFACE has port 0; pass the address of the daemon";
                return Err(Unusable(why.to_owned()));
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.socket, &self.encryption) {
            (Socket::Unix(path), _) => write!(f, "unix:{}", path.display()),
            (Socket::Tcp(address), Encryption::None) => write!(f, "http://{address}"),
            #[cfg(feature = "tls")]
            (Socket::Tcp(address), _) => write!(f, "https://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> Socket {
        Socket::Tcp(address.to_owned())
    }

    #[test]
    fn a_daemon_is_asked_where_it_listens_on_this_machine() {
        for (listen, asked) in [
            ("127.0.0.1:8100", tcp("127.0.0.1:8100")),
            ("0.0.0.0:8100", tcp("127.0.0.1:8100")),
            ("[::]:8100", tcp("[::1]:8100")),
            ("[2001:db8::1]:80", tcp("[2001:db8::1]:80")),
            ("localhost:8100", tcp("localhost:8100")),
            ("unix:/run/x", Socket::Unix("/run/x".into())),
        ] {
            assert_eq!(Socket::of(&listen.parse().unwrap()).unwrap(), asked);
        }
        assert!(Socket::of(&"127.0.0.1:0".parse().unwrap()).is_err());
    }

    #[test]
    fn a_url_may_leave_out_its_port() {
        for (url, asked) in [
            ("http://cache", tcp("cache:80")),
            ("http://cache:8100/", tcp("cache:8100")),
            ("http://[::1]/health", tcp("[::1]:80")),
            ("unix:/run/x", Socket::Unix("/run/x".into())),
        ] {
            let place = Place::parse(url).unwrap();
            assert_eq!((place.socket, place.encryption), (asked, Encryption::None));
        }
        assert!(Place::parse("cache:8100").is_err());
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_name_is_certified_without_its_port() {
        for (url, asked, name) in [
            ("https://cache", tcp("cache:443"), "cache"),
            ("https://cache:8100/", tcp("cache:8100"), "cache"),
            ("https://[::1]:8100", tcp("[::1]:8100"), "::1"),
        ] {
            let place = Place::parse(url).unwrap();
            let name = Encryption::CertifiedAs(name.try_into().unwrap());
            assert_eq!((place.socket, place.encryption), (asked, name));
        }
        assert!(Place::parse("https://").is_err());
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn a_build_without_tls_says_so() {
        assert!(Place::parse("https://cache").unwrap_err().0.contains("tls"));
    }
}
