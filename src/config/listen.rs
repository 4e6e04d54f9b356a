//! Address to listen on: TCP or a Unix socket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `host:port` or `[v6]:port`; with port 0, the kernel chooses a free port.
    Tcp(String),
    /// `unix:/path`, or `unix:/path?mode=0660`
    Unix {
        /// File of the socket.
        path: PathBuf,
        /// Permissions of the file; `None`: as the umask allows.
        mode: Option<u32>,
    },
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let (path, mode) = match path.split_once('?') {
                Some((path, options)) => (path, Some(socket_mode(options)?)),
                None => (path, None),
            };
            if !path.starts_with('/') {
                return Err("has no absolute path after “unix:”");
            }
            return Ok(Self::Unix { path: path.into(), mode });
        }
        let (host, port) =
            text.rsplit_once(':').ok_or("is not host:port, [v6]:port or unix:/path")?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() {
            Err("has no host before the port; use 0.0.0.0 or [::] for all addresses")
        } else if host.contains(':') && !bracketed {
            Err("has an IPv6 address without brackets")
        } else if port.parse::<u16>().is_err() {
            Err("has no port from 0 to 65535 at the end")
        } else {
            Ok(Self::Tcp(text.to_owned()))
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix { path, mode: None } => write!(f, "unix:{}", path.display()),
            Self::Unix { path, mode: Some(mode) } => {
                write!(f, "unix:{}?mode={mode:04o}", path.display())
            }
        }
    }
}

/// Parses `mode=0660`, the only option of a socket.
fn socket_mode(options: &str) -> Result<u32, &'static str> {
    let mode = options.strip_prefix("mode=").and_then(|mode| u32::from_str_radix(mode, 8).ok());
    mode.filter(|mode| *mode <= 0o777)
        .ok_or("has an invalid option after “?”; use a mode in octal digits, such as mode=0660")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_addresses_are_printed_as_they_were_parsed_and_invalid_ones_refused() {
        for text in [
            "127.0.0.1:8100",
            "[::1]:80",
            "localhost:0",
            "unix:/run/x.sock",
            "unix:/run/x.sock?mode=0660",
            "unix:/run/x.sock?mode=0007",
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "8100",
            ":8100",
            "::1:80",
            "host:",
            "host:99999",
            "unix:x",
            "unix:/x?",
            "unix:/x?mode=",
            "unix:/x?mode=0680",
            "unix:/x?mode=1777",
            "unix:/x?mode=0660&owner=me",
            "unix:/x?owner=me",
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
