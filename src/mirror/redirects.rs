//! The redirect policy of upstreams.
//!
//! Caches redirect to object stores and CDNs, which have public addresses and use https. Without a
//! policy, an upstream could redirect the daemon into the network behind it, and the daemon would
//! fetch and store objects from there. So redirects may lead to public addresses; to private or
//! loopback addresses only if the upstream itself has such an address; never to link-local
//! addresses (clouds serve credentials at 169.254.169.254); and to plain http only if the upstream
//! uses plain http.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Action, Attempt, Policy};

/// How many redirects are followed.
const REDIRECTS: usize = 5;

/// The network that an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Network {
    Public = 0,
    Private,
    Loopback,
    /// Link-local, multicast and everything else that no cache has.
    Unreachable,
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }
}

fn of_v4(address: Ipv4Addr) -> Network {
    let [first, second, ..] = address.octets();
    if address.is_loopback() || address.is_unspecified() {
        Network::Loopback
    // 100.64.0.0/10 is shared by a provider's customers (RFC 6598).
    } else if address.is_private() || (first == 100 && second & 0xc0 == 64) {
        Network::Private
    } else if address.is_link_local() || address.is_multicast() || first == 0 || first >= 240 {
        Network::Unreachable
    } else {
        Network::Public
    }
}

fn of_v6(address: Ipv6Addr) -> Network {
    let segments = address.segments();
    if address.is_loopback() || address.is_unspecified() {
        Network::Loopback
    } else if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        // An IPv4 address behind a translator (RFC 6052).
        of_v4(Ipv4Addr::from_bits(u32::from(segments[6]) << 16 | u32::from(segments[7])))
    } else if address.is_unique_local() {
        Network::Private
    } else if address.is_unicast_link_local() || address.is_multicast() {
        Network::Unreachable
    } else {
        Network::Public
    }
}

/// The permitted redirect targets of an upstream.
#[derive(Debug, Clone)]
pub(super) struct Redirects(Arc<Origin>);

#[derive(Debug)]
struct Origin {
    url: Url,
    /// The network of the address that the upstream had last, as [`Network`].
    network: AtomicU8,
}

/// A refused redirect.
#[derive(Debug, thiserror::Error)]
#[error("redirect to {target} refused: {why}")]
pub(super) struct Refused {
    target: String,
    why: &'static str,
}

impl Redirects {
    /// What the upstream at `url` may redirect to.
    pub(super) fn of(url: &Url) -> Self {
        let network = literal(url).map_or(Network::Public, Network::from);
        Self(Arc::new(Origin { url: url.clone(), network: AtomicU8::new(network as u8) }))
    }

    /// The policy for the client of this upstream.
    pub(super) fn policy(&self) -> Policy {
        let this = self.clone();
        Policy::custom(move |attempt| this.decide(attempt))
    }

    fn decide(&self, attempt: Attempt<'_>) -> Action {
        if attempt.previous().len() > REDIRECTS {
            let target = shown(attempt.url());
            return attempt.error(Refused { target, why: "too many redirects" });
        }
        match self.check(attempt.url()) {
            Ok(()) => attempt.follow(),
            Err(refused) => attempt.error(refused),
        }
    }

    /// Checks what can be known of a target before its name is resolved.
    fn check(&self, target: &Url) -> Result<(), Refused> {
        let refuse = |why| Err(Refused { target: shown(target), why });
        match target.scheme() {
            "https" => {}
            "http" if self.0.url.scheme() == "http" => {}
            "http" => return refuse("plain http, but the upstream uses https"),
            _ => return refuse("neither https nor http"),
        }
        match literal(target) {
            Some(address) if !self.may_reach(address) => refuse(OUTSIDE),
            _ => Ok(()),
        }
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        match Network::from(address) {
            Network::Public => true,
            Network::Unreachable => false,
            network => self.0.network.load(Ordering::Relaxed) == network as u8,
        }
    }

    /// The addresses of a host that may be connected to. The upstream itself may have any.
    fn allowed(&self, host: &str, addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        if self.0.url.host_str().is_some_and(|own| own.eq_ignore_ascii_case(host)) {
            if let Some(first) = addresses.first() {
                self.0.network.store(Network::from(first.ip()) as u8, Ordering::Relaxed);
            }
            return Ok(addresses);
        }
        let allowed: Vec<SocketAddr> =
            addresses.into_iter().filter(|address| self.may_reach(address.ip())).collect();
        if allowed.is_empty() {
            return Err(io::Error::other(Refused { target: host.to_owned(), why: OUTSIDE }));
        }
        Ok(allowed)
    }
}

const OUTSIDE: &str = "its address is neither public nor in the network of the upstream";

/// Names are checked when they are resolved; an HTTP or socks5h proxy resolves them itself.
impl Resolve for Redirects {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = this.allowed(name.as_str(), found.collect())?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The address in a URL, if it has one in place of a name.
fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// A URL without its query, which can have a signature in it.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirects(url: &str) -> Redirects {
        Redirects::of(&url.parse().unwrap())
    }

    fn follows(redirects: &Redirects, target: &str) -> bool {
        redirects.check(&target.parse().unwrap()).is_ok()
    }

    #[test]
    fn a_redirect_stays_in_the_networks_of_its_upstream() {
        let public = "https://1.2.3.4/x";
        let private = [
            "https://10.0.0.1/",
            "https://192.168.1.1/",
            "https://[fd00::1]/",
            "https://100.64.1.1/",
        ];
        let loopback = [
            "https://127.0.0.1/",
            "https://0.0.0.0/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
        ];
        let never = [
            "https://169.254.169.254/latest/meta-data/",
            "https://[fe80::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://224.0.0.1/",
            "https://255.255.255.255/",
            "ftp://1.2.3.4/",
        ];
        for (upstream, reaches_private, reaches_loopback) in [
            ("https://1.2.3.4/", false, false),
            ("https://cache.example.org/", false, false),
            ("https://10.1.1.1/", true, false),
            ("https://127.0.0.1:8080/", false, true),
        ] {
            let redirects = redirects(upstream);
            assert!(follows(&redirects, public), "{upstream}");
            for target in private {
                assert_eq!(follows(&redirects, target), reaches_private, "{upstream} {target}");
            }
            for target in loopback {
                assert_eq!(follows(&redirects, target), reaches_loopback, "{upstream} {target}");
            }
            for target in never {
                assert!(!follows(&redirects, target), "{upstream} {target}");
            }
        }
    }

    #[test]
    fn only_a_plain_upstream_may_redirect_to_plain_http() {
        assert!(!follows(&redirects("https://1.2.3.4/"), "http://1.2.3.5/"));
        assert!(follows(&redirects("http://1.2.3.4/"), "http://1.2.3.5/"));
        assert!(follows(&redirects("http://1.2.3.4/"), "https://1.2.3.5/"));
    }

    #[test]
    fn a_name_is_judged_by_its_addresses() {
        let socket = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let redirects = redirects("http://cache.example.org/");
        let allowed = |host: &str, addresses: &[&str]| {
            redirects.allowed(host, addresses.iter().map(|it| socket(it)).collect())
        };
        let (inside, outside) = (socket("10.0.0.1"), socket("1.2.3.4"));
        assert_eq!(allowed("cdn.example.org", &["10.0.0.1", "1.2.3.4"]).unwrap(), [outside]);
        assert!(allowed("rebound.example.org", &["169.254.169.254", "127.0.0.1"]).is_err());
        // The upstream itself is where the configuration says, and that may be inside.
        assert_eq!(allowed("Cache.example.org", &["10.0.0.1"]).unwrap(), [inside]);
        assert_eq!(allowed("cdn.example.org", &["10.0.0.1", "127.0.0.1"]).unwrap(), [inside]);
        assert!(allowed("cdn.example.org", &["169.254.169.254"]).is_err());
    }
}
