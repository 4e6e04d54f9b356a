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

/// The maximum number of redirects of one request.
const MAX_REDIRECTS: usize = 5;

/// The network that an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Network {
    Public = 0,
    Private,
    Loopback,
    /// Link-local, multicast and reserved addresses, which no cache has.
    Unreachable,
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => network_of_v4(address),
            IpAddr::V6(address) => network_of_v6(address),
        }
    }
}

fn network_of_v4(address: Ipv4Addr) -> Network {
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

fn network_of_v6(address: Ipv6Addr) -> Network {
    let segments = address.segments();
    if address.is_loopback() || address.is_unspecified() {
        Network::Loopback
    } else if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        // An IPv4 address behind a NAT64 translator (RFC 6052).
        network_of_v4(Ipv4Addr::from_bits(u32::from(segments[6]) << 16 | u32::from(segments[7])))
    } else if address.is_unique_local() {
        Network::Private
    } else if address.is_unicast_link_local() || address.is_multicast() {
        Network::Unreachable
    } else {
        Network::Public
    }
}

/// The permitted redirect targets of an upstream. Clones share the network of the upstream.
#[derive(Debug, Clone)]
pub(super) struct RedirectPolicy(Arc<UpstreamNetwork>);

#[derive(Debug)]
struct UpstreamNetwork {
    url: Url,
    /// The network of the last resolved address of the upstream, as [`Network`].
    network: AtomicU8,
}

/// A refused redirect.
#[derive(Debug, thiserror::Error)]
#[error("redirect to {target} refused: {reason}")]
pub(super) struct RefusedRedirect {
    target: String,
    reason: &'static str,
}

impl RedirectPolicy {
    /// Creates the policy for the upstream at `url`.
    pub(super) fn of(url: &Url) -> Self {
        let network = ip_literal(url).map_or(Network::Public, Network::from);
        Self(Arc::new(UpstreamNetwork { url: url.clone(), network: AtomicU8::new(network as u8) }))
    }

    /// Converts the policy for the HTTP client of the upstream.
    pub(super) fn policy(&self) -> Policy {
        let this = self.clone();
        Policy::custom(move |attempt| this.decide(attempt))
    }

    fn decide(&self, attempt: Attempt<'_>) -> Action {
        if attempt.previous().len() > MAX_REDIRECTS {
            let target = without_query(attempt.url());
            return attempt.error(RefusedRedirect { target, reason: "too many redirects" });
        }
        match self.check(attempt.url()) {
            Ok(()) => attempt.follow(),
            Err(refused) => attempt.error(refused),
        }
    }

    /// Checks the parts of a target that do not depend on resolving its name.
    fn check(&self, target: &Url) -> Result<(), RefusedRedirect> {
        let refuse = |reason| Err(RefusedRedirect { target: without_query(target), reason });
        match target.scheme() {
            "https" => {}
            "http" if self.0.url.scheme() == "http" => {}
            "http" => return refuse("plain http, but the upstream uses https"),
            _ => return refuse("neither https nor http"),
        }
        match ip_literal(target) {
            Some(address) if !self.is_permitted(address) => refuse(OUTSIDE_OF_NETWORK),
            _ => Ok(()),
        }
    }

    fn is_permitted(&self, address: IpAddr) -> bool {
        match Network::from(address) {
            Network::Public => true,
            Network::Unreachable => false,
            network => self.0.network.load(Ordering::Relaxed) == network as u8,
        }
    }

    /// Returns the addresses of a host that the policy permits. The upstream itself may have any.
    fn permitted(&self, host: &str, addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        if self.0.url.host_str().is_some_and(|own| own.eq_ignore_ascii_case(host)) {
            if let Some(first) = addresses.first() {
                self.0.network.store(Network::from(first.ip()) as u8, Ordering::Relaxed);
            }
            return Ok(addresses);
        }
        let permitted: Vec<SocketAddr> =
            addresses.into_iter().filter(|address| self.is_permitted(address.ip())).collect();
        if permitted.is_empty() {
            return Err(io::Error::other(RefusedRedirect {
                target: host.to_owned(),
                reason: OUTSIDE_OF_NETWORK,
            }));
        }
        Ok(permitted)
    }
}

const OUTSIDE_OF_NETWORK: &str = "its address is neither public nor in the network of the upstream";

/// Checks the addresses of names. With an HTTP or socks5h proxy nothing is checked here, because
/// the proxy resolves names itself.
impl Resolve for RedirectPolicy {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let permitted = this.permitted(name.as_str(), found.collect())?;
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// Returns the IP address in a URL, or `None` if the URL has a name.
fn ip_literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// Formats a URL without its query, which can contain a signature.
fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirects(url: &str) -> RedirectPolicy {
        RedirectPolicy::of(&url.parse().unwrap())
    }

    fn follows(redirects: &RedirectPolicy, target: &str) -> bool {
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
    fn a_redirect_to_a_name_is_judged_by_its_addresses() {
        let socket = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let redirects = redirects("http://cache.example.org/");
        let permitted = |host: &str, addresses: &[&str]| {
            redirects.permitted(host, addresses.iter().map(|address| socket(address)).collect())
        };
        let (inside, outside) = (socket("10.0.0.1"), socket("1.2.3.4"));
        assert_eq!(permitted("cdn.example.org", &["10.0.0.1", "1.2.3.4"]).unwrap(), [outside]);
        assert!(permitted("rebound.example.org", &["169.254.169.254", "127.0.0.1"]).is_err());
        // The configured upstream itself may have a private address.
        assert_eq!(permitted("Cache.example.org", &["10.0.0.1"]).unwrap(), [inside]);
        assert_eq!(permitted("cdn.example.org", &["10.0.0.1", "127.0.0.1"]).unwrap(), [inside]);
        assert!(permitted("cdn.example.org", &["169.254.169.254"]).is_err());
    }
}
