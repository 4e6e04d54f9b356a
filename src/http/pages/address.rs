//! The address that the browser used, for the configuration to copy.

use http::header;
use http::request::Parts;

use crate::http::conn_info::ConnInfo;

/// The address under which a client reaches this cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `http://cache.example.org:8100`
    pub url: String,
    /// The host without scheme and port, as in a netrc file.
    pub host: String,
}

/// Shown if the request has no valid host.
const EXAMPLE: &str = "cache.example.org";

/// Maximum length of a host name with a port and brackets.
const HOST_LENGTH_LIMIT: usize = 253 + 8;

impl Address {
    /// The address of a request, from the headers of a reverse proxy or the `Host` header. The proxy need
    /// not be trusted: pages are not cached, so only the sender of the headers sees the result.
    pub(super) fn of(request: &Parts) -> Self {
        let header = |name: &str| {
            let text = request.headers.get(name)?.to_str().ok()?;
            // The first value is from the proxy that the client connected to.
            text.split(',').next().map(str::trim)
        };
        let authority = || request.uri.authority().map(http::uri::Authority::as_str);
        let named = [header("x-forwarded-host"), authority(), header(header::HOST.as_str())];
        let host = named.into_iter().flatten().find(|host| is_host(host)).unwrap_or(EXAMPLE);
        let encrypted = request.extensions.get().is_some_and(|origin: &ConnInfo| origin.encrypted);
        let https = header("x-forwarded-proto").map_or(encrypted, |scheme| scheme == "https");
        let (scheme, usual) = if https { ("https", ":443") } else { ("http", ":80") };
        let host = host.strip_suffix(usual).unwrap_or(host);
        Self { url: format!("{scheme}://{host}"), host: without_port(host).to_owned() }
    }
}

/// Whether `text` is a host name or an address, optionally with a port. It then has no special
/// characters, so it is safe to paste into a shell, a netrc file or Nix code.
fn is_host(text: &str) -> bool {
    let name = without_port(text);
    let port = &text[name.len()..];
    let plain = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    let digits = port.bytes().skip(1).all(|byte| byte.is_ascii_digit());
    let port = port.is_empty() || port[1..].parse::<u16>().is_ok_and(|port| port > 0);
    text.len() <= HOST_LENGTH_LIMIT
        && !name.is_empty()
        && !name.starts_with('-')
        && plain
        && digits
        && port
}

fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use crate::http::ResponseBudget;

    use http::Request;

    use super::*;
    use crate::http::conn_info::Peer;

    fn of(headers: &[(&str, &str)]) -> String {
        over(false, headers)
    }

    fn over(encrypted: bool, headers: &[(&str, &str)]) -> String {
        let origin = ConnInfo {
            peer: Peer::Unix,
            files: None,
            encrypted,
            multiplexed: false,
            budget: ResponseBudget::new(0).connection(),
            certificate: None,
        };
        let mut request = Request::builder().uri("/").extension(origin);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let address = Address::of(&request.body(()).unwrap().into_parts().0);
        format!("{} {}", address.url, address.host)
    }

    #[test]
    fn the_address_is_the_one_that_the_browser_used() {
        assert_eq!(of(&[("host", "c.org:8100")]), "http://c.org:8100 c.org");
        assert_eq!(of(&[("host", "[::1]:8100")]), "http://[::1]:8100 [::1]");
        assert_eq!(of(&[("host", "[::1]")]), "http://[::1] [::1]");
        assert_eq!(of(&[("host", "10.0.0.1:80")]), "http://10.0.0.1 10.0.0.1");
        let proxied = [
            ("host", "127.0.0.1:8100"),
            ("x-forwarded-host", "c.org, inner"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(of(&proxied), "https://c.org c.org");
        assert_eq!(over(true, &[("host", "c.org:443")]), "https://c.org c.org");
        // The proxy knows the scheme that the browser used, even if it connects to the daemon with TLS.
        let inside = [("host", "c.org"), ("x-forwarded-proto", "http")];
        assert_eq!(over(true, &inside), "http://c.org c.org");
    }

    #[test]
    fn an_invalid_host_is_not_shown() {
        for host in [
            "",
            "a b",
            "a\"b",
            "<b>",
            "a;reboot",
            "$(reboot)",
            "a/b",
            "user@c.org",
            "-v",
            ":8100",
            "c.org:",
            "c.org:x",
            "c.org:0",
            "c.org:+1",
            "c.org:99999",
            "[::1",
            "[x]",
            "::1",
            "${x}",
            "c.org\\",
            "'",
        ] {
            assert_eq!(of(&[("host", host)]), format!("http://{EXAMPLE} {EXAMPLE}"), "{host}");
            // An invalid X-Forwarded-Host is ignored, and Host is used.
            let both = [("host", "c.org"), ("x-forwarded-host", host)];
            assert_eq!(of(&both), "http://c.org c.org", "{host}");
        }
        let long = "a".repeat(HOST_LENGTH_LIMIT + 1);
        assert_eq!(of(&[("host", &long)]), format!("http://{EXAMPLE} {EXAMPLE}"));
        assert_eq!(
            of(&[("host", "c.org"), ("x-forwarded-proto", "javascript")]),
            "http://c.org c.org"
        );
    }
}
