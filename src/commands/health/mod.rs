//! `nix-stored health`: whether a daemon can do what it is there for, asked as anybody would ask it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::argument::Unusable;
use super::output::size;
use crate::config::{Config, Listen, Problems};

/// The time for all of it. Longer than the daemon takes to find out that its disk hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer has some hundred bytes.
const LIMIT: u64 = 64 * 1024;

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 it is well; 1 it is not, or does not answer; 64 the configuration \
                        or the arguments are wrong."
)]
pub(super) struct Args {
    /// Where the daemon is, http://host:port or unix:/path; without it, where
    /// NIX_STORED_LISTEN_INTERFACE says
    url: Option<String>,
}

pub(super) fn run(args: &Args, config: Result<Config, Problems>) -> anyhow::Result<ExitCode> {
    let place = match &args.url {
        Some(url) => Place::parse(url)?,
        None => Place::of(&config?.listen)?,
    };
    let answer = ask(&place, Instant::now() + PATIENCE);
    let answer = answer.with_context(|| format!("{place} does not answer"))?;
    let Some(health) = Health::read(&answer) else {
        let line = answer.lines().next().unwrap_or_default();
        bail!("{place} does not answer as a nix-stored does: “{line}”");
    };
    super::output::write(io::stdout().lock(), &format!("{place} {health}\n"))?;
    Ok(if health.status == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where a daemon listens.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// `host:port`
    Tcp(String),
    Unix(PathBuf),
}

impl Place {
    fn parse(url: &str) -> Result<Self, Unusable> {
        if let Some(path) = url.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let Some(rest) = url.strip_prefix("http://") else {
            let what = "is neither http://host:port nor unix:/path";
            return Err(Unusable(format!("“{url}” {what}; https is not asked")));
        };
        let host = rest.split('/').next().unwrap_or_default();
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self::Tcp(if has_port { host.to_owned() } else { format!("{host}:80") }))
    }

    /// Where who listens there is reached from the same machine.
    fn of(listen: &Listen) -> Result<Self, Unusable> {
        let address = match listen {
            Listen::Unix { path, .. } => return Ok(Self::Unix(path.clone())),
            Listen::Tcp(address) => address,
        };
        let local = match address.parse::<SocketAddr>() {
            Ok(socket) if socket.port() == 0 => {
                let why = "NIX_STORED_LISTEN_INTERFACE has no port; say where the daemon is";
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
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn ask(place: &Place, until: Instant) -> io::Result<String> {
    match place {
        Place::Tcp(address) => {
            let stream = connect(address, until)?;
            stream.set_write_timeout(Some(left(until)?))?;
            request(&stream, address, until, |timeout| stream.set_read_timeout(timeout))
        }
        Place::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_write_timeout(Some(left(until)?))?;
            request(&stream, "localhost", until, |timeout| stream.set_read_timeout(timeout))
        }
    }
}

fn connect(address: &str, until: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The whole answer.
fn request(
    mut stream: impl Read + Write,
    host: &str,
    until: Instant,
    set_timeout: impl Fn(Option<Duration>) -> io::Result<()>,
) -> io::Result<String> {
    let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    let mut stream = stream.take(LIMIT);
    loop {
        set_timeout(Some(left(until)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What a timeout of a socket is called.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the daemon says.
#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    version: String,
    reason: Option<String>,
    store: Store,
}

#[derive(Debug, Deserialize)]
struct Store {
    free_bytes: Option<u64>,
}

impl Health {
    fn read(answer: &str) -> Option<Self> {
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "is {}: nix-stored {}", self.status, self.version)?;
        if let Some(bytes) = self.store.free_bytes {
            write!(f, ", {} free", size(bytes))?;
        }
        match &self.reason {
            Some(reason) => write!(f, "; {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> Place {
        Place::Tcp(address.to_owned())
    }

    #[test]
    fn a_daemon_is_asked_where_it_listens_on_this_machine() {
        for (listen, asked) in [
            ("127.0.0.1:8100", tcp("127.0.0.1:8100")),
            ("0.0.0.0:8100", tcp("127.0.0.1:8100")),
            ("[::]:8100", tcp("[::1]:8100")),
            ("[2001:db8::1]:80", tcp("[2001:db8::1]:80")),
            ("localhost:8100", tcp("localhost:8100")),
            ("unix:/run/x", Place::Unix("/run/x".into())),
        ] {
            assert_eq!(Place::of(&listen.parse().unwrap()).unwrap(), asked);
        }
        assert!(Place::of(&"127.0.0.1:0".parse().unwrap()).is_err());
    }

    #[test]
    fn a_url_may_leave_out_its_port() {
        for (url, asked) in [
            ("http://cache", tcp("cache:80")),
            ("http://cache:8100/", tcp("cache:8100")),
            ("http://[::1]/health", tcp("[::1]:80")),
            ("unix:/run/x", Place::Unix("/run/x".into())),
        ] {
            assert_eq!(Place::parse(url).unwrap(), asked);
        }
        assert!(Place::parse("https://cache").is_err());
        assert!(Place::parse("cache:8100").is_err());
    }
}
